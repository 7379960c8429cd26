//! The networks: pure functions that write a graph, named as the checkpoints' keys are.

pub mod checkpoint;
pub mod denoiser;
pub mod dm_fnet;
pub mod fusing;
pub mod fusion_head;
pub mod layers;
pub mod lkc_funet;
pub mod unet;
