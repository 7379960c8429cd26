//! Training: the loop, the step's graph with its optimiser, checkpoints, logs, and configurations as TOML.
//!
//! What is trained are the tasks that the models describe, see [`crate::models::training`].

pub mod chart;
pub mod checkpoint;
pub mod config;
mod error;
pub mod log;
pub mod optim;
pub mod run;
pub mod step;

pub use error::TrainError;
