//! The subcommands of `medfuse`, one file each.

#[cfg(feature = "bench")]
pub mod bench;
pub mod compare;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod fuse;
pub mod model_args;
pub mod phantom;
pub mod sample;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "train")]
mod train_progress;
#[cfg(feature = "verify")]
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
use model_args::ModelArgs;

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
    #[cfg(feature = "train")]
    Train(train::TrainArgs),
    Sample(sample::SampleArgs),
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    Eval(eval::EvalArgs),
    Compare(compare::CompareArgs),
    #[cfg(feature = "verify")]
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
            #[cfg(feature = "train")]
            Command::Train(args) => train::run(args),
            Command::Sample(args) => sample::run(args),
            #[cfg(feature = "bench")]
            Command::Bench(args) => bench::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Compare(args) => compare::run(args),
            #[cfg(feature = "verify")]
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
pub(crate) struct DeviceArgs {
    /// Where to run: auto (a hardware GPU, else cpu), cpu, gpu, an adapter's number or part of its name
    #[arg(long, default_value = "auto", value_name = "WHICH")]
    pub device: String,
}

impl DeviceArgs {
    /// Opens the device.
    ///
    /// # Errors
    /// If it is not there or does not open.
    pub(crate) fn open(&self) -> anyhow::Result<Device> {
        Ok(Device::select(&self.device)?)
    }
}
