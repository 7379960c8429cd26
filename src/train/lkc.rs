//! Training LKC-FUNet (`train.py` and `losses/DMFNet_loss.py` of its repository).

use super::loss::lkc_loss;
use super::step::LossGraph;
use crate::graph::{Graph, GraphError};
use crate::models::lkc_funet::{LkcConfig, Mode, lkc_funet};
use crate::models::unet::DropoutSeed;
use crate::tensor::Shape;

/// The network's loss on a batch of pairs `[n, 1, side, side]`, which it moves the batch norms' running statistics with
/// (weights that the graph assigns). Inputs: `mri`, `other` and, with `dropout`, its seed `dropout` `[1, 2, 1, 1]`.
/// Reports: [`REPORTS`].
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of [`LkcConfig::multiple`].
pub fn loss_graph(config: &LkcConfig, dropout: f32, batch: usize, side: usize) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let image = Shape::new(batch, 1, side, side);
    let [mri, other] = ["mri", "other"].map(|name| graph.input(name, image));
    let seed = (dropout > 0.0).then(|| graph.input("dropout", Shape::new(1, 2, 1, 1)));
    let dropout = seed.map(|seed| DropoutSeed { p: dropout, seed });
    let img_cat = graph.concat("img_cat", &[other, mri])?;
    let fused = lkc_funet(&mut graph, config, img_cat, Mode::Training(dropout))?;
    let loss = lkc_loss(&mut graph, fused, mri, other)?;
    Ok(LossGraph { graph, loss: loss.total, reports: vec![loss.gradient, loss.intensity, loss.ssim], recompute: false })
}

/// The names of the loss's parts.
pub const REPORTS: &[&str] = &["gradient", "intensity", "ssim"];
