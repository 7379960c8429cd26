//! The networks: pure functions that write a graph, named as the checkpoints' keys are.

pub mod checkpoint;
pub mod denoiser;
pub mod dm_fnet;
pub mod fusing;
pub mod fusion_head;
pub mod layers;
pub mod lkc_funet;
pub mod unet;

use clap::ValueEnum;
use serde::Serialize;

use crate::device::Device;
use dm_fnet::{DmFnet, Fuser};
use fusing::PairFuser;
use lkc_funet::{LkcFunet, LkcFuser};

/// The models that fuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// DM-FNet: the features of a diffusion UNet at several noise steps, fused by a head
    DmFnet,
    /// LKC-FUNet: one pass of a UNet with large kernels
    LkcFunet,
}

/// A model with its weights.
pub enum Model {
    /// DM-FNet.
    DmFnet(Box<DmFnet>),
    /// LKC-FUNet.
    LkcFunet(LkcFunet),
}

impl Model {
    /// A fuser of the model on a device.
    pub fn on(self, device: Device) -> Box<dyn PairFuser> {
        match self {
            Self::DmFnet(model) => Box::new(Fuser::new(*model, device)),
            Self::LkcFunet(model) => Box::new(LkcFuser::new(model, device)),
        }
    }
}
