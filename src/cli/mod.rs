//! The subcommands of `medfuse`, one file each.

pub mod eval;
pub mod phantom;
pub mod weights;
