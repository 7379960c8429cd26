//! medfuse: multimodal medical image fusion on any GPU, without CUDA.
//!
//! It runs the networks that fuse an MRI with a CT, PET or SPECT image of the same slice, on every GPU that wgpu reaches
//! and on the CPU, with weights read from PyTorch's files. Fusing two images with the weights that ship inside:
//!
//! ```
//! use medfuse::device::Device;
//! use medfuse::imaging::FusionPair;
//! use medfuse::imaging::phantom::{Modality, head_pair};
//! use medfuse::models::dm_fnet::{DmFnet, Fuser};
//!
//! let (mri, pet) = head_pair(64, 0, Modality::Pet)?; // or Image::load("mri.png")?
//! let fuser = Fuser::new(DmFnet::shipped()?, Device::select("auto")?);
//! let fused = fuser.fuse(&FusionPair::new(mri, pet)?, 0)?;
//! fused.save(std::env::temp_dir().join("fused.png"), 95)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `ARCHITECTURE.md` says how it is built; the rooms of the crate are the modules below.
#![deny(missing_docs)]
// The crate's own rooms share parts that only some features use. All features together show what nobody uses.
#![cfg_attr(
    not(all(feature = "cli", feature = "train", feature = "verify", feature = "bench", feature = "shipped-weights")),
    allow(dead_code, unused_imports)
)]

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cpu;
pub mod device;
pub mod diffusion;
pub mod files;
pub mod gpu;
pub mod graph;
pub mod hash;
pub mod imaging;
pub mod metrics;
pub mod models;
pub mod ops;
pub mod tensor;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "verify")]
pub mod verify;
pub mod weights;
