//! `medfuse train`: the networks from folders of registered pairs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::train_progress::{CONFIG_FILE, Progress};
use super::{DeviceArgs, stop_flag};
use crate::device::Device;
use crate::files::folder_of;
use crate::hash::fnv1a;
use crate::models::dm_fnet::read_model_file;
use crate::train::config::{Data, LkcConfig, Optimiser, Run, Stage, Stage1Config, Stage2Config};
use crate::train::data::Dataset;
use crate::train::lkc::LkcTraining;
use crate::train::optim::Update;
use crate::train::run::{self, CHECKPOINT, Ending, RunConfig, Task, TrainError};
use crate::train::stage1::Stage1;
use crate::train::stage2::Stage2;
use crate::weights::Weights;

/// Train on folders of registered pairs: a DM-FNet (first the diffusion UNet, then the fusion head on its features) or an
/// LKC-FUNet
///
/// A run writes into one folder: its configuration, a log with a loss curve, sample pictures, checkpoints and the model.
/// Killed at any moment it goes on with --resume from its last checkpoint, with the bytes it would have had.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    stage: StageArgs,
}

#[derive(Debug, Subcommand)]
enum StageArgs {
    /// Train the diffusion UNet: it predicts an image from a noisy one
    Stage1(RunArgs),
    /// Train the fusion head on the features of a UNet of stage1, which stays as it is
    Stage2 {
        /// The UNet's weights (.safetensors or .pth)
        #[arg(long, value_name = "FILE", required_unless_present = "print_config")]
        unet: Option<PathBuf>,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Train an LKC-FUNet
    LkcFunet(RunArgs),
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

/// Trains a stage.
///
/// # Errors
/// If the configuration, the pairs or the device cannot be used, or the run fails.
pub fn run(args: TrainArgs) -> anyhow::Result<ExitCode> {
    match args.stage {
        StageArgs::Stage1(args) => {
            let mut config: Stage1Config = args.base_config()?;
            args.override_config(&mut config.data, &mut config.optimiser, &mut config.run);
            match args.prepare(&config)? {
                Some(job) => run_stage1(&config, &job),
                None => Ok(ExitCode::SUCCESS),
            }
        }
        StageArgs::Stage2 { unet, run: args } => {
            let mut config: Stage2Config = args.base_config()?;
            args.override_config(&mut config.data, &mut config.optimiser, &mut config.run);
            let job = args.prepare(&config)?;
            match (job, unet) {
                (Some(job), Some(unet)) => run_stage2(&config, &unet, &job),
                _ => Ok(ExitCode::SUCCESS),
            }
        }
        StageArgs::LkcFunet(args) => {
            let mut config: LkcConfig = args.base_config()?;
            args.override_config(&mut config.data, &mut config.optimiser, &mut config.run);
            match args.prepare(&config)? {
                Some(job) => start(&LkcTraining::new(&config, &job.dataset, &job.device)?, &config, &job, ""),
                None => Ok(ExitCode::SUCCESS),
            }
        }
    }
}

fn run_stage1(config: &Stage1Config, job: &Job) -> anyhow::Result<ExitCode> {
    start(&Stage1::new(config, &job.dataset, &job.device)?, config, job, "")
}

fn run_stage2(config: &Stage2Config, unet: &Path, job: &Job) -> anyhow::Result<ExitCode> {
    // Another UNet's features would pass for this one's after a resume: the shapes are the same.
    let bytes = std::fs::read(unet).with_context(|| format!("cannot read {}", unet.display()))?;
    let (wanted, file) = (config.head.norm_groups, folder_of(unet).join("model.json"));
    if file.exists() {
        let found = read_model_file(&folder_of(unet))?.norm_groups;
        if found != wanted {
            bail!(
                "{} says norm_groups {found}, the configuration {wanted}: set head.norm_groups = {found}",
                file.display()
            );
        }
    }
    let shared = format!("unet = {:016x}\n", fnv1a(&bytes));
    start(&Stage2::new(config, Weights::load(unet)?, &job.dataset, &job.device)?, config, job, &shared)
}

/// Runs the task to its end, its time limit or Ctrl-C. `shared` is what a resumed run must share besides the configuration
/// and the pairs.
fn start(task: &dyn Task, config: &impl Stage, job: &Job, shared: &str) -> anyhow::Result<ExitCode> {
    let common = config.common();
    let settings = RunConfig {
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
        settings: format!("{}pairs = {:016x}\n{shared}", config.settings()?, job.dataset.fingerprint()),
    };
    let stop = stop_flag("stopping after this step with a checkpoint")?;
    let mut progress = Progress::new(&job.out, task, config, stop)?;
    let ending = run::run(task, &settings, &job.device, &mut progress)?;
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
    /// The configuration of the file, of the run that goes on, or the defaults.
    fn base_config<S: Stage>(&self) -> anyhow::Result<S> {
        let own = self.out.as_ref().filter(|_| self.resume).map(|out| out.join(CONFIG_FILE));
        if let Some(out) = self.out.as_ref().filter(|out| self.resume && !out.join(CHECKPOINT).exists()) {
            return Err(TrainError::NothingToResume(out.clone()).into());
        }
        match self.config.as_ref().or(own.as_ref()) {
            Some(path) => S::load(path).with_context(|| path.display().to_string()),
            None => Ok(S::default()),
        }
    }

    /// Puts the flags into the configuration.
    fn override_config(&self, data: &mut Data, optimiser: &mut Optimiser, run: &mut Run) {
        data.batch = self.batch.unwrap_or(data.batch);
        data.crop = self.crop.unwrap_or(data.crop);
        optimiser.lr = self.lr.unwrap_or(optimiser.lr);
        run.steps = self.steps.unwrap_or(run.steps);
        run.seed = self.seed.unwrap_or(run.seed);
    }

    /// Checks the configuration, then prints it (`None`), or loads the pairs, opens the device and makes the folder.
    fn prepare(&self, config: &impl Stage) -> anyhow::Result<Option<Job>> {
        config.check()?;
        let text = config.to_commented_toml()?;
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
