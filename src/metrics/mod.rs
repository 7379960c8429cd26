//! The fusion metrics.
