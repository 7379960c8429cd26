//! `medfuse train`: the networks from folders of registered pairs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand, value_parser};

use super::model_args::listed;
use super::train_progress::{CONFIG_FILE, Progress};
use super::{DeviceArgs, stop_flag};
use crate::device::Device;
use crate::models::MODELS;
use crate::models::training::config::TrainingConfig;
use crate::models::training::data::Dataset;
use crate::models::training::{TaskInputs, TrainTask, Training};
use crate::train::TrainError;
use crate::train::config::{load, settings, to_commented_toml};
use crate::train::optim::Update;
use crate::train::run::{self, CHECKPOINT, Ending, RunConfig};
use crate::weights::Weights;

/// The arguments of `medfuse train`.
#[derive(Debug, Args)]
#[command(about = about(), long_about = format!("{}\n\n{LONG_ABOUT}", about()))]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    stage: StageArgs,
}

/// What the long help says of every run.
const LONG_ABOUT: &str = "\
A run writes into one folder: its configuration, a log with a loss curve, sample pictures, checkpoints and the model. \
Killed at any moment it goes on with --resume from its last checkpoint, with the bytes it would have had.";

/// The trainings of all models.
fn trainings() -> impl Iterator<Item = &'static Training> {
    MODELS.iter().flat_map(|row| row.trainings)
}

/// What can be trained: the models' titles, each with its trainings.
fn about() -> String {
    let trained = MODELS.iter().filter(|row| !row.trainings.is_empty()).map(|row| {
        let names: Vec<&str> = row.trainings.iter().map(|training| training.name).collect();
        format!("{} ({})", row.title, names.join(", then "))
    });
    format!("Train on folders of registered pairs: {}", listed(&trained.collect::<Vec<_>>(), " or "))
}

/// A training that was chosen.
#[derive(Debug)]
struct StageArgs {
    training: &'static Training,
    /// The files of [`Training::files`], none with `--print-config`.
    files: Vec<PathBuf>,
    run: RunArgs,
}

impl Subcommand for StageArgs {
    fn augment_subcommands(command: Command) -> Command {
        let subcommands = trainings().map(|training| {
            let files = training.files.iter().map(|file| {
                let arg = Arg::new(file.name).long(file.name).value_name("FILE").help(file.about);
                arg.value_parser(value_parser!(PathBuf)).required_unless_present("print_config")
            });
            RunArgs::augment_args(Command::new(training.name).args(files)).about(training.about)
        });
        command.subcommand_required(true).arg_required_else_help(true).subcommands(subcommands)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        trainings().any(|training| training.name == name)
    }
}

impl FromArgMatches for StageArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let chosen = matches.subcommand();
        let chosen = chosen.and_then(|(name, args)| Some((trainings().find(|training| training.name == name)?, args)));
        let (training, args) = chosen.ok_or_else(|| clap::Error::new(clap::error::ErrorKind::MissingSubcommand))?;
        let files = training.files.iter().filter_map(|file| args.get_one::<PathBuf>(file.name).cloned()).collect();
        Ok(Self { training, files, run: RunArgs::from_arg_matches(args)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What all runs take. Flags go before the configuration file, which goes before the defaults.
#[derive(Debug, Args)]
struct RunArgs {
    /// Folder of pairs: subfolders such as MRI-CT, each with a folder MRI and one other, matched by file name
    #[arg(long, value_name = "DIR", required_unless_present_any = ["mri", "print_config"])]
    data: Option<PathBuf>,
    /// Folder of MRIs, in place of --data
    #[arg(long, value_name = "DIR", requires = "other", conflicts_with = "data")]
    mri: Option<PathBuf>,
    /// Folder of the other images, in place of --data
    #[arg(long, value_name = "DIR", requires = "mri")]
    other: Option<PathBuf>,
    /// Folder for what the run writes; made if need be
    #[arg(short, long, value_name = "DIR", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Configuration in TOML; --print-config shows what it can say [default: the run's own with --resume]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on with the run in the --out folder from its last checkpoint
    #[arg(long)]
    resume: bool,
    /// Begin with the weights of this file (.safetensors or .pth) in place of random ones, to fine-tune them
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// End after this time with a checkpoint: 90m, 2h, 1h30m or 600s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time_limit: Option<Duration>,
    /// Print the configuration that the other flags make, with a comment to each value, and stop
    #[arg(long)]
    print_config: bool,
    /// Updates of the weights
    #[arg(long)]
    steps: Option<u64>,
    /// Pairs a batch
    #[arg(long)]
    batch: Option<usize>,
    /// Side of the crops in pixels
    #[arg(long)]
    crop: Option<usize>,
    /// Learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Seed of the weights, crops, noise and dropout
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A run that is ready to start.
#[derive(Debug)]
struct Job {
    /// The pairs, with those held out.
    dataset: Dataset,
    device: Device,
    out: PathBuf,
    resume: bool,
    init: Option<Weights>,
    time_limit: Option<Duration>,
}

/// Trains what was chosen.
///
/// # Errors
/// If the configuration, the pairs or the device cannot be used, or the run fails.
pub(crate) fn run(args: TrainArgs) -> anyhow::Result<ExitCode> {
    let StageArgs { training, files, run } = args.stage;
    let mut config = (training.config)();
    run.configure(&mut *config)?;
    let Some(job) = run.prepare(&*config)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let inputs = TaskInputs { data: &job.dataset, device: &job.device, files: &files };
    let task = config.task(inputs).map_err(anyhow::Error::from_boxed)?;
    start(&*task, &*config, &job)
}

/// Runs the task to its end, its time limit or Ctrl-C.
fn start(task: &dyn TrainTask, config: &dyn TrainingConfig, job: &Job) -> anyhow::Result<ExitCode> {
    let common = config.common();
    let (pairs, identity) = (job.dataset.fingerprint(), task.identity());
    let run = RunConfig {
        out: job.out.clone(),
        steps: common.run.steps,
        rate: common.rate.clone(),
        update: Update { optimiser: common.optimiser.clone(), accumulate: common.data.accumulate },
        seed: common.run.seed,
        checkpoint_every: common.run.checkpoint_every,
        sample_every: common.run.sample_every,
        time_limit: job.time_limit,
        resume: job.resume,
        init: job.init.as_ref(),
        settings: format!("{}pairs = {pairs:016x}\n{identity}", settings(config)?),
    };
    let stop = stop_flag("stopping after this step with a checkpoint")?;
    let mut progress = Progress::new(&job.out, task, config, stop)?;
    let ending = run::run(task, &run, &job.device, &mut progress)?;
    let (done, steps, out) = (progress.done(), common.run.steps, job.out.display());
    progress.finish()?;
    Ok(match ending {
        Ending::Done => {
            eprintln!("{steps} steps done, the model is in {out}");
            ExitCode::SUCCESS
        }
        Ending::TimeLimit => {
            eprintln!("the time is up after step {done} of {steps}; go on with --resume");
            ExitCode::SUCCESS
        }
        Ending::Stopped => {
            eprintln!("stopped after step {done} of {steps}; go on with --resume");
            ExitCode::from(130)
        }
    })
}

impl RunArgs {
    /// Puts the values of the file, or of the run that goes on, and then those of the flags into a configuration.
    fn configure(&self, config: &mut dyn TrainingConfig) -> anyhow::Result<()> {
        let own = self.out.as_ref().filter(|_| self.resume).map(|out| out.join(CONFIG_FILE));
        if let Some(out) = self.out.as_ref().filter(|out| self.resume && !out.join(CHECKPOINT).exists()) {
            return Err(TrainError::NothingToResume(out.clone()).into());
        }
        if let Some(path) = self.config.as_ref().or(own.as_ref()) {
            load(config, path)?;
        }
        let common = config.common_mut();
        common.data.batch = self.batch.unwrap_or(common.data.batch);
        common.data.crop = self.crop.unwrap_or(common.data.crop);
        common.optimiser.lr = self.lr.unwrap_or(common.optimiser.lr);
        common.run.steps = self.steps.unwrap_or(common.run.steps);
        common.run.seed = self.seed.unwrap_or(common.run.seed);
        Ok(())
    }

    /// Checks the configuration, then prints it (`None`), or loads the pairs, opens the device and makes the folder.
    fn prepare(&self, config: &dyn TrainingConfig) -> anyhow::Result<Option<Job>> {
        config.check()?;
        let text = to_commented_toml(config)?;
        let Some(out) = self.out.clone().filter(|_| !self.print_config) else {
            super::say(text.trim_end())?;
            return Ok(None);
        };
        let dataset = self.dataset()?.hold_out(config.common().data.val_pairs)?;
        let init = self.init.as_deref().map(Weights::load).transpose()?;
        if let Some(weights) = &init {
            weights.check_finite()?;
        }
        let device = self.device.open()?;
        eprintln!("{} pairs to train on, {} held out", dataset.train.len(), dataset.validation.len());
        eprintln!("device: {}", device.describe());
        std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
        Ok(Some(Job { dataset, device, out, resume: self.resume, init, time_limit: self.time_limit }))
    }

    fn dataset(&self) -> anyhow::Result<Dataset> {
        match (&self.data, &self.mri, &self.other) {
            (Some(root), _, _) => Ok(Dataset::from_root(root)?),
            (None, Some(mri), Some(other)) => Ok(Dataset::from_folders(mri, other)?),
            _ => bail!("--data, or --mri and --other, must say where the pairs are"),
        }
    }
}

/// A time such as 90m, 2h, 1h30m or 600s.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write it as 90m, 2h, 1h30m or 600s");
    let mut seconds = 0u64;
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let unit = match part.chars().next_back() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = part[..part.len() - 1].parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    }
    if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nonsense_is_not() {
        let seconds = |text: &str| parse_time(text).map(|d| d.as_secs());
        let good = [("600s", 600), ("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("1d", 86_400)];
        for (text, expected) in good {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in
            ["", "0s", "90", "m", "1h30", "-2h", "2 h", "1.5h", "99999999999999999999s", "9999999999999999d", "5µ"]
        {
            assert!(seconds(text).is_err_and(|e| e.contains("90m")), "{text}");
        }
    }
}
