//! What a training run is configured by: a TOML file's worth of values, those of the reference by default.
//!
//! The reference's values are those of `config/ddpm_train_MMIF.json` (stage I), `config/fusion_train.json` (stage II),
//! LKC-FUNet's `train.py`, and PyTorch's own for what these leave out.

mod sections;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::diffusion::ScheduleKind;
use sections::need;
pub use sections::{
    Data, Docs, Head, LkcLossWeights, LkcNet, LossWeights, Noise, Optimiser, OptimiserKind, Rate, RateKind, Run, Unet,
};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    /// A key that no configuration of this stage has.
    #[error("the configuration has no key {key}; it has {}", known.join(", "))]
    Unknown {
        /// The key with its section.
        key: String,
        /// The keys at that place.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("a value of the configuration is of the wrong kind: {0}")]
    Type(String),
    /// A value out of range.
    #[error("{key} {reason}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
}

/// The sections that all stages have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The batches.
    pub data: &'a Data,
    /// The update.
    pub optimiser: &'a Optimiser,
    /// The learning rate's schedule.
    pub rate: &'a Rate,
    /// The run.
    pub run: &'a Run,
}

/// The configuration of one stage: its sections, their texts and their ranges.
pub trait Stage: Serialize + DeserializeOwned + Default {
    /// The sections' names and texts.
    const SECTIONS: &'static [(&'static str, Docs)];

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key and says what it must be.
    fn check(&self) -> Result<(), ConfigError>;

    /// The sections that all stages have.
    fn common(&self) -> Common<'_>;

    /// What a resumed run must share with its first part, a line `section.key = value` each: all but how long it is and what
    /// it writes when, unless the learning rate's course depends on the length.
    ///
    /// # Errors
    /// [`ConfigError::Type`] if a number is larger than TOML's, 2^63 - 1.
    fn settings(&self) -> Result<String, ConfigError> {
        let table = Table::try_from(self).map_err(|e| ConfigError::Type(e.to_string()))?;
        let sections = table.iter().filter_map(|(name, section)| Some((name, section.as_table()?)));
        let lines = sections.flat_map(|(name, section)| section.iter().map(move |(k, v)| (format!("{name}.{k}"), v)));
        let by_length = matches!(self.common().rate.kind, RateKind::Linear | RateKind::Cosine);
        let shared = |key: &str| match key {
            "run.seed" => true,
            "run.steps" => by_length,
            _ => !key.starts_with("run."),
        };
        Ok(lines.filter(|(key, _)| shared(key)).map(|(key, value)| format!("{key} = {value}\n")).collect())
    }

    /// The configuration of a TOML text; what it leaves out is the default. Ranges are [`Stage::check`]'s.
    ///
    /// # Errors
    /// [`ConfigError`] if the text is not TOML, or has an unknown key or a value of the wrong kind.
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let given: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
        let of_type = |e: &dyn std::fmt::Display| ConfigError::Type(e.to_string().trim_end().replace('\n', " "));
        let mut all = Table::try_from(Self::default()).map_err(|e| of_type(&e))?;
        merge(&mut all, given, "")?;
        all.try_into().map_err(|e| of_type(&e))
    }

    /// The configuration of a TOML file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], and those of [`Stage::parse`].
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.map_err(|source| ConfigError::Read { path: path.into(), source })?)
    }

    /// The configuration as TOML with a comment above every section and key.
    ///
    /// # Errors
    /// [`ConfigError::Type`] if a number is larger than TOML's, 2^63 - 1.
    fn to_commented_toml(&self) -> Result<String, ConfigError> {
        let plain = toml::to_string(self).map_err(|e| ConfigError::Type(e.to_string()))?;
        let (mut text, mut section) = (String::new(), None);
        for line in plain.lines() {
            let comments: &[&str] = if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = Self::SECTIONS.iter().find(|(n, _)| *n == name).map(|(_, docs)| docs);
                section.map_or(&[], |docs| docs.about)
            } else {
                let key = line.split(" = ").next();
                let of_key = section.and_then(|docs| docs.keys.iter().find(|(k, _)| Some(*k) == key));
                of_key.map_or(&[], |(_, comments)| comments)
            };
            comments.iter().for_each(|comment| text.push_str(&format!("#{comment}\n")));
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    }
}

/// Puts the values of `given` in the place of those of `all`, table by table.
fn merge(all: &mut Table, given: Table, path: &str) -> Result<(), ConfigError> {
    for (name, value) in given {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (all.get_mut(&name), value) {
            (None, _) => return Err(ConfigError::Unknown { key, known: all.keys().cloned().collect() }),
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new, &key)?,
            (Some(Value::Table(_)), _) => return Err(ConfigError::Type(format!("{key} is a section, not a value"))),
            (Some(old), new) => *old = new,
        }
    }
    Ok(())
}

/// A stage's struct with its sections, each with what differs from the section's default.
macro_rules! stage {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $section:ident: $type:ident = $default:expr,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $section: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($section: $default,)+ }
            }
        }

        impl Stage for $name {
            const SECTIONS: &'static [(&'static str, Docs)] = &[$((stringify!($section), $type::DOCS)),+];

            fn common(&self) -> Common<'_> {
                Common { data: &self.data, optimiser: &self.optimiser, rate: &self.rate, run: &self.run }
            }

            fn check(&self) -> Result<(), ConfigError> {
                $(self.$section.check()?;)+
                self.check_together()
            }
        }
    };
}

stage! {
    /// Stage I: the UNet learns to tell images from noisy ones.
    Stage1Config {
        /// The network.
        unet: Unet = Unet::default(),
        /// The noise schedule.
        noise: Noise = Noise::default(),
        /// The batches.
        data: Data = Data::default(),
        /// The update.
        optimiser: Optimiser = Optimiser::default(),
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run::default(),
    }
}

stage! {
    /// Stage II: the head learns to fuse the frozen UNet's features. The reference runs 300 epochs of one pair a step, which
    /// is the default number of steps for 715 pairs.
    Stage2Config {
        /// The networks.
        head: Head = Head::default(),
        /// The noise schedule.
        noise: Noise = Noise { schedule: ScheduleKind::Linear, ..Noise::default() },
        /// The loss.
        loss: LossWeights = LossWeights::default(),
        /// The batches.
        data: Data = Data::default(),
        /// The update.
        optimiser: Optimiser =
            Optimiser { kind: OptimiserKind::Adam, lr: 1e-4, weight_decay: 0.0, ..Optimiser::default() },
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run { steps: 214_500, log_every: 60, checkpoint_every: 2000, ..Run::default() },
    }
}

stage! {
    /// LKC-FUNet. The reference runs 1,000 epochs, 22 steps each for 715 pairs.
    LkcConfig {
        /// The network.
        net: LkcNet = LkcNet::default(),
        /// The loss.
        loss: LkcLossWeights = LkcLossWeights::default(),
        /// The batches.
        data: Data = Data { crop: 64, batch: 32, ..Data::default() },
        /// The update.
        optimiser: Optimiser =
            Optimiser { kind: OptimiserKind::Adam, lr: 2e-4, weight_decay: 0.0, ..Optimiser::default() },
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run { steps: 22_000, log_every: 20, sample_every: 1000, checkpoint_every: 200, ..Run::default() },
    }
}

impl Stage1Config {
    fn check_together(&self) -> Result<(), ConfigError> {
        let multiple = self.unet.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the UNet halves it at each level");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

impl LkcConfig {
    fn check_together(&self) -> Result<(), ConfigError> {
        let multiple = self.net.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the network halves it twice");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

impl Stage2Config {
    fn check_together(&self) -> Result<(), ConfigError> {
        let last = self.noise.n_timestep;
        let on_schedule = self.head.time_steps.iter().all(|t| (1..=last).contains(t));
        need("head.time_steps", on_schedule, format!("must be from 1 to noise.n_timestep ({last})"))?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::ScheduleConfig;
    use crate::models::lkc_funet::ValueRange;
    use crate::models::unet::UnetConfig;
    use crate::train::loss::FusionLossConfig;

    fn every_key_is_commented<S: Stage + PartialEq + std::fmt::Debug>() {
        let text = S::default().to_commented_toml().unwrap();
        let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| !l.starts_with('#')) {
            assert!(i > 0 && lines[i - 1].starts_with("# "), "no comment above {line}");
        }
        assert_eq!(S::parse(&text).unwrap(), S::default());
        assert_eq!(S::parse("").unwrap(), S::default());
        S::default().check().unwrap();
    }

    #[test]
    fn printed_defaults_are_commented_and_read_back() {
        every_key_is_commented::<Stage1Config>();
        every_key_is_commented::<Stage2Config>();
        every_key_is_commented::<LkcConfig>();
    }

    #[test]
    fn the_defaults_are_the_references() {
        let (one, two) = (Stage1Config::default(), Stage2Config::default());
        assert_eq!(one.unet.size(), UnetConfig::published());
        assert_eq!(two.noise.schedule(), ScheduleConfig::default());
        assert_eq!(two.loss.config(), FusionLossConfig::default());
        assert_eq!(LkcConfig::default().loss.config(ValueRange::Signed), FusionLossConfig::lkc());
        let of = |o: &Optimiser| (o.kind, o.lr, o.weight_decay);
        assert_eq!(of(&one.optimiser), (OptimiserKind::Adamw, 1e-5, 0.01));
        assert_eq!(of(&two.optimiser), (OptimiserKind::Adam, 1e-4, 0.0));
    }

    #[test]
    fn a_file_changes_what_it_names_and_keeps_the_stages_other_defaults() {
        let text = "[optimiser]\neps = 1\n[data]\ncrop = 96\n[unet]\nattn_res = [40, 20]\n";
        let one = Stage1Config::parse(text).unwrap();
        assert_eq!((one.optimiser.eps, one.data.crop, one.data.batch), (1.0, 96, 1));
        assert_eq!(one.unet.size().attention, [false, false, true, true, false]);
        let two = Stage2Config::parse("[optimiser]\nclip = 0.5\n[noise]\nn_timestep = 1000").unwrap();
        assert_eq!((two.optimiser.lr, two.noise.schedule), (1e-4, ScheduleKind::Linear));
    }

    #[test]
    fn a_resumed_run_may_be_longer_unless_the_rate_depends_on_it() {
        let settings = |text: &str| Stage1Config::parse(text).unwrap().settings().unwrap();
        let plain = settings("");
        assert!(plain.contains("optimiser.lr = 0.00001\n") && plain.contains("unet.channel_mults = [1, 1, 1, 1, 2]\n"));
        assert_eq!(settings("[run]\nsteps = 5\nlog_every = 1"), plain);
        assert_ne!(settings("[run]\nseed = 5"), plain);
        let cosine = |steps| settings(&format!("[run]\nsteps = {steps}\n[rate]\nkind = \"cosine\""));
        assert_ne!(cosine(5), cosine(6));
    }

    #[test]
    fn what_is_not_known_or_of_the_wrong_kind_is_named() {
        let told = |text: &str| Stage1Config::parse(text).unwrap_err().to_string();
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
        let error = Stage1Config::load(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read no/such.toml"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let one = |text: &str| Stage1Config::parse(text).unwrap().check().unwrap_err().to_string();
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
        let two = |text: &str| Stage2Config::parse(text).unwrap().check().unwrap_err().to_string();
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
