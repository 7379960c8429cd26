//! Stage I of DM-FNet: the diffusion UNet learns to predict x_0 from x_t (`train_ddpm.py`, `p_losses` of the reference).

use std::collections::BTreeMap;

use super::loss::mse;
use super::step::LossGraph;
use crate::diffusion::{NoiseSchedule, NoiseSource, q_sample};
use crate::graph::{Graph, GraphError};
use crate::models::unet::{UnetConfig, unet};
use crate::tensor::{Shape, Tensor};

/// The UNet's loss on a batch of images `[n, in_channel, side, side]`. Inputs: `x_0`, `x_t` and `level` `[n, 1, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of [`UnetConfig::multiple`].
pub fn loss_graph(config: &UnetConfig, batch: usize, side: usize) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let image = Shape::new(batch, config.in_channel, side, side);
    let x_0 = graph.input("x_0", image);
    let x_t = graph.input("x_t", image);
    let level = graph.input("level", Shape::new(batch, 1, 1, 1));
    let prediction = unet(&mut graph, config, x_t, level)?.x_final;
    let loss = mse(&mut graph, prediction, x_0)?;
    Ok(LossGraph { graph, loss, reports: Vec::new() })
}

/// The graph's inputs for `images`, `[n, ...]`: one step of the schedule for all of them, and for each a level between
/// it and the step before, and its noise.
pub fn inputs(images: &Tensor, schedule: &NoiseSchedule, noise: &mut NoiseSource) -> BTreeMap<String, Vec<f32>> {
    let count = images.dims()[0];
    let item = images.data().len() / count;
    let t = noise.step(schedule);
    let levels: Vec<f32> = (0..count).map(|_| noise.level(schedule, t)).collect();
    let x_t =
        images.data().chunks(item).zip(&levels).flat_map(|(x_0, level)| q_sample(x_0, *level, &noise.normal(item)));
    BTreeMap::from([
        ("x_t".to_owned(), x_t.collect()),
        ("x_0".to_owned(), images.data().to_vec()),
        ("level".to_owned(), levels.clone()),
    ])
}
