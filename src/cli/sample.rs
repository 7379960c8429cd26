//! `medfuse sample`: images drawn from a diffusion UNet.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use clap::Args;

use super::DeviceArgs;
use crate::diffusion::{NoiseSchedule, NoiseSource, ScheduleConfig, ScheduleKind};
use crate::files::{check_writable, folder_of};
use crate::imaging::{Image, MAX_SIDE, format_for};
use crate::models::dm_fnet::denoiser::Denoiser;
use crate::models::dm_fnet::read_model_file;
use crate::models::dm_fnet::unet::UnetConfig;
use crate::tensor::Shape;
use crate::weights::Weights;

/// Draw images from the diffusion UNet of `train stage1`, out of noise
///
/// The picture is a strip a row for each image: from noise on the left to the image on the right.
#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// The UNet's weights (.safetensors or .pth)
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// The picture to write (.png, .jpg, .bmp or .tif)
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// How many images
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub count: u64,
    /// Their sides in pixels, a multiple of 16 for the published architecture
    #[arg(long, default_value_t = 160, value_parser = clap::value_parser!(u64).range(16..=4096))]
    pub size: u64,
    /// Noise steps to go: a number for DDIM, which strides over the schedule, or all for ancestral sampling
    #[arg(long, default_value = "50", value_name = "N|all", value_parser = parse_steps)]
    pub steps: SampleSteps,
    /// Groups of the UNet's norms [default: those of model.json beside the weights, else 32]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub norm_groups: Option<u64>,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to run
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// How the noise is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SampleSteps {
    /// Every step of the schedule, each with fresh noise (Ho et al. 2020).
    Ancestral,
    /// So many steps, evenly over the schedule, without fresh noise (Song et al. 2021).
    Ddim(usize),
}

fn parse_steps(text: &str) -> Result<SampleSteps, String> {
    match (text, text.parse()) {
        ("all", _) => Ok(SampleSteps::Ancestral),
        (_, Ok(count)) if count > 0 => Ok(SampleSteps::Ddim(count)),
        _ => Err("must be a number of steps, at least 1, or all".into()),
    }
}

/// States of each image in the strip, noise and result included.
const STATES: usize = 6;

/// Draws the images and writes the picture.
///
/// # Errors
/// If the weights or the device cannot be had, or the picture cannot be written.
pub(crate) fn run(args: SampleArgs) -> anyhow::Result<ExitCode> {
    format_for(&args.out)?;
    check_writable(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let weights = Weights::load(&args.weights)?;
    let norm_groups = match args.norm_groups {
        Some(groups) => groups as usize,
        None => read_model_file(&folder_of(&args.weights))?.norm_groups,
    };
    let config = UnetConfig::from_weights(&weights, norm_groups)?;
    if config.in_channel != 1 || config.out_channel != 1 {
        bail!(
            "{} is of a UNet for images of {} channels; only grey images can be drawn",
            args.weights.display(),
            config.in_channel
        );
    }
    weights.check_finite()?;
    let schedule = schedule_of(&weights).with_context(|| args.weights.display().to_string())?;
    let (size, count) = (args.size as usize, args.count as usize);
    if !size.is_multiple_of(config.multiple()) {
        bail!("--size {size}: this UNet takes multiples of {}", config.multiple());
    }
    if count * size > MAX_SIDE as usize || STATES * size > MAX_SIDE as usize {
        bail!("a picture of {count} rows of {STATES} images of {size}x{size} is too large: ask for less");
    }
    let steps = match args.steps {
        SampleSteps::Ancestral => schedule.len(),
        SampleSteps::Ddim(steps) if steps < schedule.len() => steps,
        SampleSteps::Ddim(steps) => {
            bail!("--steps {steps}: the schedule has {} steps; write all for them", schedule.len())
        }
    };
    let device = args.device.open()?;
    let denoiser = Denoiser::new(&config, &weights, &device, Shape::new(count, 1, size, size))?;
    let stop = super::stop_flag("stopping after this step")?;
    let bar = super::progress_bar(steps as u64);
    let mut noise = NoiseSource::new(args.seed);
    // The same draw as the sampling's first: what it begins with.
    let mut states = vec![noise.clone().normal(count * size * size)];
    denoiser.sample(&schedule, steps, &mut noise, |done, images| {
        bar.set_position(done as u64);
        if done * (STATES - 1) / steps > (done - 1) * (STATES - 1) / steps {
            states.push(images.to_vec());
        }
        !stop.load(Ordering::Relaxed)
    })?;
    bar.finish_and_clear();
    if stop.load(Ordering::Relaxed) {
        eprintln!("stopped; no picture was written");
        return Ok(ExitCode::from(130));
    }
    strip(&states, count, size)?.save(&args.out, 95)?;
    super::say(args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// The noise schedule that a checkpoint's buffers tell of; without them the published one's.
fn schedule_of(weights: &Weights) -> anyhow::Result<NoiseSchedule> {
    match weights.get("betas") {
        None => Ok(NoiseSchedule::new(&ScheduleConfig { kind: ScheduleKind::Cosine, ..ScheduleConfig::default() })),
        Some(betas) => {
            let betas: Vec<f64> = betas.data().iter().map(|beta| f64::from(*beta)).collect();
            if betas.is_empty() || !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
                bail!("its betas are no noise schedule: they must be at least 0 and less than 1");
            }
            Ok(NoiseSchedule::from_betas(betas))
        }
    }
}

/// The states of `count` images of `size` x `size` side by side, a row an image.
fn strip(states: &[Vec<f32>], count: usize, size: usize) -> anyhow::Result<Image> {
    let width = states.len() * size;
    let mut plane = vec![-1.0; count * size * width];
    for (column, state) in states.iter().enumerate() {
        for (row, line) in state.chunks(size).enumerate() {
            plane[row * width + column * size..][..size].copy_from_slice(line);
        }
    }
    Ok(Image::from_plane(width, count * size, &plane)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_number_or_all() {
        assert_eq!(parse_steps("all"), Ok(SampleSteps::Ancestral));
        assert_eq!(parse_steps("50"), Ok(SampleSteps::Ddim(50)));
        assert!(["0", "-1", "ALL", "many", ""].iter().all(|text| parse_steps(text).is_err()));
    }
}
