//! Training: data, configuration, losses, optimisers, the step's graph, checkpoints and the loop.

pub mod chart;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod init;
pub mod lkc;
pub mod log;
pub mod loss;
pub mod optim;
pub mod run;
pub mod stage1;
pub mod stage2;
pub mod step;
