//! Configurations of trainings as TOML: read from a file, printed with their texts, compared when a run is resumed.

use std::path::Path;

use toml::{Table, Value};

use crate::models::training::TrainingError;
use crate::models::training::config::{Docs, TrainingConfig};
use crate::models::training::sections::RateKind;

/// What a resumed run must share with its first part, a line `section.key = value` each: all but how long it is and what it
/// writes when, unless the learning rate's course depends on the length.
///
/// # Errors
/// [`TrainingError::Type`] if a number is larger than TOML's, 2^63 - 1.
pub(crate) fn settings(config: &dyn TrainingConfig) -> Result<String, TrainingError> {
    let table = config.to_table()?;
    let sections = table.iter().filter_map(|(name, section)| Some((name, section.as_table()?)));
    let lines = sections.flat_map(|(name, section)| section.iter().map(move |(k, v)| (format!("{name}.{k}"), v)));
    let by_length = matches!(config.common().rate.kind, RateKind::Linear | RateKind::Cosine);
    let shared = |key: &str| match key {
        "run.seed" => true,
        "run.steps" => by_length,
        _ => !key.starts_with("run."),
    };
    Ok(lines.filter(|(key, _)| shared(key)).map(|(key, value)| format!("{key} = {value}\n")).collect())
}

/// Puts the values of a TOML text into a configuration; what it leaves out stays. Ranges are [`TrainingConfig::check`]'s.
///
/// # Errors
/// [`TrainingError`] if the text is not TOML, or has an unknown key or a value of the wrong kind.
pub(crate) fn read(config: &mut dyn TrainingConfig, text: &str) -> Result<(), TrainingError> {
    let given: Table = text.parse().map_err(|e: toml::de::Error| TrainingError::Syntax(e.to_string()))?;
    let mut all = config.to_table()?;
    merge(&mut all, given, "")?;
    config.set(all)
}

/// Puts the values of a TOML file into a configuration.
///
/// # Errors
/// [`TrainingError::Read`], and those of [`read`] as [`TrainingError::Config`].
pub(crate) fn load(config: &mut dyn TrainingConfig, path: &Path) -> Result<(), TrainingError> {
    let text = std::fs::read_to_string(path).map_err(|reason| TrainingError::Read { path: path.into(), reason })?;
    read(config, &text).map_err(|reason| TrainingError::Config { path: path.into(), reason: Box::new(reason) })
}

/// A configuration as TOML with a comment above every section and key.
///
/// # Errors
/// [`TrainingError::Type`] if a number is larger than TOML's, 2^63 - 1.
pub(crate) fn to_commented_toml(config: &dyn TrainingConfig) -> Result<String, TrainingError> {
    let table = config.to_table()?;
    let section = |name: &str, docs: &Docs| {
        let comments = |lines: &[&str]| lines.iter().map(|line| format!("#{line}\n")).collect::<String>();
        let line = |(key, about): &(&str, &[&str])| format!("{}{key} = {}\n", comments(about), table[name][key]);
        format!("{}[{name}]\n{}", comments(docs.about), docs.keys.iter().map(line).collect::<String>())
    };
    Ok(config.docs().iter().map(|(name, docs)| section(name, docs)).collect::<Vec<_>>().join("\n"))
}

/// Puts the values of `given` in the place of those of `all`, table by table.
fn merge(all: &mut Table, given: Table, path: &str) -> Result<(), TrainingError> {
    for (name, value) in given {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (all.get_mut(&name), value) {
            (None, _) => return Err(TrainingError::Unknown { key, known: all.keys().cloned().collect() }),
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new, &key)?,
            (Some(Value::Table(_)), _) => return Err(TrainingError::Type(format!("{key} is a section, not a value"))),
            (Some(old), new) => *old = new,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::ScheduleKind;
    use crate::models::MODELS;
    use crate::models::dm_fnet::stage1::Stage1Config;
    use crate::models::dm_fnet::stage2::Stage2Config;

    /// The configuration of a text.
    fn parse<C: TrainingConfig + Default>(text: &str) -> Result<C, TrainingError> {
        let mut config = C::default();
        read(&mut config, text).map(|()| config)
    }

    #[test]
    fn printed_defaults_are_commented_and_read_back() {
        for training in MODELS.iter().flat_map(|row| row.trainings) {
            let (default, mut config) = ((training.config)(), (training.config)());
            let text = to_commented_toml(&*default).unwrap();
            let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
            for (i, line) in lines.iter().enumerate().filter(|(_, l)| !l.starts_with('#')) {
                assert!(i > 0 && lines[i - 1].starts_with("# "), "no comment above {line}");
            }
            for text in [text.as_str(), ""] {
                read(&mut *config, text).unwrap();
                assert_eq!(config.to_table().unwrap(), default.to_table().unwrap());
            }
            default.check().unwrap();
        }
    }

    #[test]
    fn a_file_changes_what_it_names_and_keeps_the_stages_other_defaults() {
        let text = "[optimiser]\neps = 1\n[data]\ncrop = 96\n[unet]\nattn_res = [40, 20]\n";
        let one = parse::<Stage1Config>(text).unwrap();
        assert_eq!((one.optimiser.eps, one.data.crop, one.data.batch), (1.0, 96, 1));
        assert_eq!(one.unet.size().attention, [false, false, true, true, false]);
        let two = parse::<Stage2Config>("[optimiser]\nclip = 0.5\n[noise]\nn_timestep = 1000").unwrap();
        assert_eq!((two.optimiser.lr, two.noise.schedule), (1e-4, ScheduleKind::Linear));
    }

    #[test]
    fn a_resumed_run_may_be_longer_unless_the_rate_depends_on_it() {
        let settings = |text: &str| super::settings(&parse::<Stage1Config>(text).unwrap()).unwrap();
        let plain = settings("");
        assert!(plain.contains("optimiser.lr = 0.00001\n") && plain.contains("unet.channel_mults = [1, 1, 1, 1, 2]\n"));
        assert_eq!(settings("[run]\nsteps = 5\nlog_every = 1"), plain);
        assert_ne!(settings("[run]\nseed = 5"), plain);
        let cosine = |steps| settings(&format!("[run]\nsteps = {steps}\n[rate]\nkind = \"cosine\""));
        assert_ne!(cosine(5), cosine(6));
    }

    #[test]
    fn what_is_not_known_or_of_the_wrong_kind_is_named() {
        let told = |text: &str| parse::<Stage1Config>(text).unwrap_err().to_string();
        let text = told("[data]\nbatchsize = 4");
        assert!(text.contains("no key data.batchsize") && text.contains("accumulate, balanced, batch"), "{text}");
        assert!(told("loss = 1").contains("no key loss"), "{}", told("loss = 1"));
        assert!(told("data = 1").contains("data is a section"), "{}", told("data = 1"));
        let text = told("[data]\nbatch = \"many\"");
        assert!(text.contains("batch") && !text.contains('\n'), "{text}");
        let text = told("[noise]\nschedule = \"sine\"");
        assert!(text.contains("sine") && text.contains("cosine"), "{text}");
        assert!(told("[run]\nsteps = -5").contains("steps"), "{}", told("[run]\nsteps = -5"));
        assert!(told("[run\n").contains("not TOML"));
        let error = load(&mut Stage1Config::default(), Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read no/such.toml"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let one = |text: &str| parse::<Stage1Config>(text).unwrap().check().unwrap_err().to_string();
        for (text, part) in [
            ("[data]\ncrop = 100", "data.crop must be a multiple of 16"),
            ("[data]\ncrop = 0", "data.crop"),
            ("[data]\nmin_content = 1.5", "data.min_content must be from 0 to 1, not 1.5"),
            ("[unet]\ninner_channel = 48", "unet.inner_channel must be even, a multiple of norm_groups (32)"),
            ("[unet]\nnorm_groups = 0", "unet.norm_groups"),
            ("[unet]\nchannel_mults = []", "unet.channel_mults"),
            ("[unet]\ndropout = 1.0", "unet.dropout"),
            ("[noise]\nn_timestep = 0", "noise.n_timestep"),
            ("[optimiser]\nlr = nan", "optimiser.lr must be more than 0, not NaN"),
            ("[optimiser]\nbeta2 = 1", "optimiser.beta2"),
            ("[run]\nlog_every = 0", "run.log_every must be at least 1"),
            ("[run]\nsteps = 10\n[rate]\nwarmup = 10", "rate.warmup"),
        ] {
            assert!(one(text).contains(part), "{text}: {}", one(text));
        }
        let two = |text: &str| parse::<Stage2Config>(text).unwrap().check().unwrap_err().to_string();
        for (text, part) in [
            ("[head]\ntime_steps = [5, 5]", "none of them twice"),
            ("[head]\ntime_steps = [5, 2001]", "from 1 to noise.n_timestep (2000)"),
            ("[loss]\nintensity = 0\ngradient = 0\nssim = 0", "all 0"),
            ("[loss]\noverlap = 1.5", "loss.overlap must be from 0 to 1, not 1.5"),
            ("[loss]\ngradient_gain = 0", "loss.gradient_gain must be more than 0, not 0"),
            ("[loss]\nssim = -1", "loss.ssim must be 0 or more, not -1"),
        ] {
            assert!(two(text).contains(part), "{text}: {}", two(text));
        }
    }
}
