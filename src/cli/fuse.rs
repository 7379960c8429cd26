//! `medfuse fuse`: one pair, or two folders.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::{DeviceArgs, ModelArgs};
use crate::files::check_writable;
use crate::imaging::pairs::Group;
use crate::imaging::{FusionPair, format_for};
use crate::models::fusing::PairFuser;

/// Quality of JPEG results.
const JPEG_QUALITY: u8 = 95;

/// Fuse two registered images, or two folders of them paired by file name
///
/// The result has the other image's colour; a folder's results have the other images' names. Images whose sides are
/// not multiples of the network's stride are padded by reflection and cropped back. What cannot be fused is reported with
/// the reason and the rest is fused; the exit code is 0 if all pairs were fused, 1 if not, and 130 after Ctrl-C, which lets
/// the pair in work finish.
#[derive(Debug, Args)]
pub(crate) struct FuseArgs {
    /// The MRI (or infrared image), or a folder of them
    mri: PathBuf,
    /// The CT, PET or SPECT (or visible) image, or a folder of them
    other: PathBuf,
    /// The fused image (.png, .jpg, .bmp or .tif), or the folder for them
    #[arg(short, long)]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Seed of dm-fnet's noise: the same seed gives the same bytes on one device
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Of two folders' names, sorted, fuse only every Nth from the Ith on: N jobs with I from 1 to N share an archive
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    shard: Option<Shard>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: the device, and for each pair its file and seconds or what went wrong
    #[arg(long)]
    json: bool,
}

/// A job's share of the names of two folders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shard {
    /// From 0.
    index: usize,
    /// How many shards there are.
    count: usize,
}

impl Shard {
    /// The items whose place in the list is `index` modulo `count`.
    fn of<T>(self, items: Vec<T>) -> Vec<T> {
        items.into_iter().skip(self.index).step_by(self.count).collect()
    }
}

fn parse_shard(text: &str) -> Result<Shard, String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((place, count)) if (1..=count).contains(&place) => Ok(Shard { index: place - 1, count }),
        _ => Err("must be I/N with I from 1 to N, such as 2/8".into()),
    }
}

/// A pair of files and where its result goes.
struct Job {
    name: String,
    mri: PathBuf,
    other: PathBuf,
    out: PathBuf,
}

/// The pairs to fuse, and the names that have no partner with the reason.
type Jobs = (Vec<Job>, Vec<(String, String)>);

/// What became of a job: its seconds or what went wrong.
type Outcome = (Job, Result<f64, String>);

/// Fuses the pair or the folders.
///
/// # Errors
/// If the model or the device cannot be had, a folder cannot be listed or written, or a single pair fails.
pub(crate) fn run(args: FuseArgs) -> anyhow::Result<ExitCode> {
    let (jobs, unpaired) = jobs(&args)?;
    for job in &jobs {
        super::check_keeps_inputs(&job.out, [&job.mri, &job.other])?;
    }
    let model = args.model.load()?;
    let device = args.device.open()?;
    eprintln!("device: {}", device.describe());
    let device_name = device.describe();
    let fuser = model.on(device);
    let stop = super::stop_flag("stopping after this pair")?;
    let bar = super::progress_bar(jobs.len() as u64);
    let mut done: Vec<Outcome> = Vec::new();
    let total = jobs.len();
    for job in jobs {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        bar.set_message(job.name.clone());
        let result = fuse_files(&*fuser, &job, args.seed).map_err(|e| format!("{e:#}"));
        bar.inc(1);
        done.push((job, result));
    }
    bar.finish_and_clear();
    let stopped = done.len() < total;
    if args.json {
        super::say(format_args!("{:#}", report(&device_name, &done, &unpaired, stopped)))?;
    }
    Ok(summarise(&done, &unpaired, total, stopped))
}

/// The pairs of the two arguments.
fn jobs(args: &FuseArgs) -> anyhow::Result<Jobs> {
    let matched = super::source_pairs(&args.mri, &args.other)?;
    if !args.mri.is_dir() {
        if args.shard.is_some() {
            bail!("--shard shares two folders among jobs, not two images");
        }
        let job = |Group { name, paths: [mri, other] }| Job { name, mri, other, out: args.out.clone() };
        return Ok((matched.groups.into_iter().map(job).collect(), Vec::new()));
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the output folder {}", args.out.display()))?;
    let shard = args.shard.unwrap_or(Shard { index: 0, count: 1 });
    let jobs = shard.of(matched.groups).into_iter().map(|group| {
        let [mri, other] = group.paths;
        let out = args.out.join(other.file_name().unwrap_or_default());
        Job { name: group.name, mri, other, out }
    });
    let unpaired = shard.of(matched.unmatched).into_iter().map(|u| (u.name, u.reason.to_string()));
    Ok((jobs.collect(), unpaired.collect()))
}

fn fuse_files(fuser: &dyn PairFuser, job: &Job, seed: u64) -> anyhow::Result<f64> {
    let start = Instant::now();
    // Before the long computation: does the result have a place to go?
    format_for(&job.out)?;
    check_writable(&job.out).with_context(|| format!("cannot write {}", job.out.display()))?;
    let pair = FusionPair::load(&job.mri, &job.other)?;
    let fused = fuser.fuse(&pair, seed)?;
    fused.save(&job.out, JPEG_QUALITY)?;
    Ok(start.elapsed().as_secs_f64())
}

fn report(device: &str, done: &[Outcome], unpaired: &[(String, String)], stopped: bool) -> serde_json::Value {
    let row = |(job, result): &Outcome| match result {
        Ok(seconds) => json!({"name": job.name, "out": job.out, "seconds": seconds}),
        Err(error) => json!({"name": job.name, "error": error}),
    };
    let unpaired = unpaired.iter().map(|(name, reason)| json!({"name": name, "error": reason}));
    let pairs: Vec<_> = done.iter().map(row).chain(unpaired).collect();
    json!({"device": device, "stopped": stopped, "pairs": pairs})
}

/// Says on the standard error what failed; the exit code is 1 then, and 130 when the command was stopped.
fn summarise(done: &[Outcome], unpaired: &[(String, String)], total: usize, stopped: bool) -> ExitCode {
    let failed = done.iter().filter_map(|(job, result)| Some((&job.name, result.as_ref().err()?)));
    let failed: Vec<_> = failed.chain(unpaired.iter().map(|(n, r)| (n, r))).collect();
    for (name, reason) in &failed {
        eprintln!("{name}: {reason}");
    }
    let fused = done.iter().filter(|(_, result)| result.is_ok()).count();
    eprintln!("{fused} of {} pairs fused", total + unpaired.len());
    if stopped {
        return ExitCode::from(130);
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
