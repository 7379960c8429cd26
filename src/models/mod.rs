//! The networks: pure functions that write a graph, named as the checkpoints' keys are.

pub mod denoiser;
pub mod dm_fnet;
pub mod fusion_head;
pub mod layers;
pub mod unet;
