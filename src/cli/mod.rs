//! The subcommands of `medfuse`, one file each.

pub mod bench;
pub mod compare;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod fuse;
pub mod phantom;
pub mod sample;
pub mod train;
mod train_progress;
pub mod verify;
pub mod weights;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::device::Device;
use crate::imaging::pairs::{Group, Matched, match_folders};
use crate::models::checkpoint::model_name;
use crate::models::dm_fnet::DmFnet;
use crate::models::lkc_funet::{LkcFunet, ValueRange};
use crate::models::{Model, ModelKind};

/// Fuses registered pairs of medical images (MRI with CT, PET or SPECT) on any GPU, without CUDA.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fuse(fuse::FuseArgs),
    Train(train::TrainArgs),
    Sample(sample::SampleArgs),
    Bench(bench::BenchArgs),
    Eval(eval::EvalArgs),
    Compare(compare::CompareArgs),
    Verify(verify::VerifyArgs),
    Weights(weights::WeightsArgs),
    Demo(demo::DemoArgs),
    Phantom(phantom::PhantomArgs),
    Devices(devices::DevicesArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What made the subcommand as a whole impossible; what failed for single files is reported and in the exit code.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Fuse(args) => fuse::run(args),
            Command::Train(args) => train::run(args),
            Command::Sample(args) => sample::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Weights(args) => weights::run(args),
            Command::Demo(args) => demo::run(args),
            Command::Phantom(args) => phantom::run(args),
            Command::Devices(args) => devices::run(args),
        }
    }
}

/// Prints a line on the standard output. Unlike `println!` it does not panic when the reader of a pipe has gone.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to the standard output")
}

/// A bar of `len` things to do, hidden where the standard error is not a terminal.
fn progress_bar(len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed}, {eta} left)")
        .expect("the template is well-formed");
    ProgressBar::new(len).with_style(style)
}

/// A flag that Ctrl-C sets, saying `message`: what is in work is finished, then the command stops. A second Ctrl-C ends it
/// at once.
fn stop_flag(message: &'static str) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("{message} (once more to stop now)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// The pair of two images, named as the MRI, or the pairs of two folders.
fn source_pairs(mri: &Path, other: &Path) -> anyhow::Result<Matched<2>> {
    for path in [mri, other] {
        if !path.exists() {
            bail!("{}: no such file or folder", path.display());
        }
    }
    match (mri.is_dir(), other.is_dir()) {
        (false, false) => {
            let name = mri.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let group = Group { name, paths: [mri.into(), other.into()] };
            Ok(Matched { groups: vec![group], unmatched: Vec::new(), ignored: Vec::new() })
        }
        (true, true) => {
            let matched = match_folders([mri, other])?;
            if matched.groups.is_empty() {
                bail!("no file name is in both {} and {} (PNG, JPEG, BMP, TIFF)", mri.display(), other.display());
            }
            Ok(matched)
        }
        _ => bail!("MRI and OTHER must be two images or two folders"),
    }
}

/// Refuses an output that would replace one of the images it is made of.
fn check_keeps_inputs<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    // What cannot be resolved is not there yet.
    let Ok(out) = out.canonicalize() else {
        return Ok(());
    };
    for input in inputs {
        if input.canonicalize().is_ok_and(|path| path == out) {
            bail!("the result would replace its own input {}: choose another --out", input.display());
        }
    }
    Ok(())
}

/// The device of a command.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to run: auto (a hardware GPU, else cpu), cpu, gpu, an adapter's number or part of its name
    #[arg(long, default_value = "auto", value_name = "WHICH")]
    pub device: String,
}

impl DeviceArgs {
    /// Opens the device.
    ///
    /// # Errors
    /// If it is not there or does not open.
    pub fn open(&self) -> anyhow::Result<Device> {
        Ok(Device::select(&self.device)?)
    }
}

/// The model of a command.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The model [default: the one that model.json or the files of --weights name, else dm-fnet]
    #[arg(long, value_enum)]
    pub model: Option<ModelKind>,
    /// Folder with unet and head, or with lkc-funet (.safetensors or .pth), and, if not the reference's values, model.json
    /// [default: the weights that ship with medfuse]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Noise steps whose features dm-fnet fuses, such as 5,10,20 [default: the model's]
    #[arg(long, value_name = "T,T,...", value_delimiter = ',')]
    pub steps: Option<Vec<usize>>,
    /// The range of lkc-funet's images, in and out: 0 to 1 or -1 to 1 [default: the model's]
    #[arg(long, value_enum)]
    pub range: Option<ValueRange>,
}

impl ModelArgs {
    /// Loads the model.
    ///
    /// # Errors
    /// If its files are missing, unreadable or of another architecture, or an argument is another model's.
    pub fn load(&self) -> anyhow::Result<Model> {
        let kind = match (self.model, &self.weights) {
            (Some(kind), _) => kind,
            (None, Some(folder)) if model_name(folder)? == "lkc-funet" => ModelKind::LkcFunet,
            _ => ModelKind::DmFnet,
        };
        match kind {
            ModelKind::DmFnet if self.range.is_some() => {
                bail!("--range is for lkc-funet: dm-fnet has the range -1 to 1")
            }
            ModelKind::DmFnet => Ok(Model::DmFnet(Box::new(self.load_dm_fnet()?))),
            ModelKind::LkcFunet if self.steps.is_some() => {
                bail!("--steps is for dm-fnet: lkc-funet has no noise steps")
            }
            ModelKind::LkcFunet => Ok(Model::LkcFunet(self.load_lkc_funet()?)),
        }
    }

    fn load_dm_fnet(&self) -> anyhow::Result<DmFnet> {
        let model = match &self.weights {
            Some(folder) => DmFnet::load(folder)?,
            None => DmFnet::shipped()?,
        };
        Ok(match &self.steps {
            Some(steps) => model.with_steps(steps)?,
            None => model,
        })
    }

    fn load_lkc_funet(&self) -> anyhow::Result<LkcFunet> {
        let mut model = match &self.weights {
            Some(folder) => LkcFunet::load(folder)?,
            None => LkcFunet::shipped()?,
        };
        model.range = self.range.unwrap_or(model.range);
        Ok(model)
    }
}
