//! Training: registered pairs from folders, what a run is configured by, and what it leaves behind.

pub mod data;
