//! `medfuse demo`: a synthetic head, fused with the weights that ship.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Args;

use super::{DeviceArgs, ModelArgs};
use crate::imaging::FusionPair;
use crate::imaging::contact_sheet;
use crate::imaging::phantom::{Modality, head_pair};

/// Fuse a synthetic head's MRI with its CT, PET and SPECT using the weights that ship, and write the pictures
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder to write to; made if need be
    #[arg(short, long, default_value = "medfuse-demo")]
    out: PathBuf,
    /// Pixels a side, 32 to 4096
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Seed of the head and of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Draws, fuses and writes one picture a modality: MRI, the other image and the fused one side by side.
///
/// # Errors
/// A size out of range, a folder that cannot be written, a device that is not there.
pub(crate) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let (model, device) = (args.model.load()?, args.device.open()?);
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    super::say(format_args!("device: {}", device.describe()))?;
    let fuser = model.on(device);
    for modality in Modality::ALL {
        let (mri, other) = head_pair(args.size, args.seed, modality)?;
        let start = Instant::now();
        let fused = fuser.fuse(&FusionPair::new(mri.clone(), other.clone())?, args.seed)?;
        let seconds = start.elapsed().as_secs_f64();
        let labels = ["MRI (synthetic)", &format!("{modality} (synthetic)"), "fused"];
        let path = args.out.join(format!("synthetic_MRI_{modality}.png"));
        contact_sheet(&labels, &[(String::new(), vec![mri, other, fused])])?.save(&path, 95)?;
        super::say(format_args!("{}: MRI, {modality} and fused, {seconds:.1} s", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
