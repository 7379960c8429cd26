//! Stage II of DM-FNet: the fusion head learns to fuse by the frozen UNet's features of noisy images (`Fusion_model.py`
//! of the reference).

use std::collections::BTreeMap;

use super::data::Batch;
use super::loss::{FusionLossConfig, fusion_loss};
use super::step::LossGraph;
use crate::diffusion::{NoiseSchedule, NoiseSource, q_sample};
use crate::graph::{Graph, GraphError};
use crate::models::dm_fnet::{MODALITIES, dm_fnet};
use crate::models::fusion_head::HeadConfig;
use crate::models::unet::UnetConfig;
use crate::tensor::{Shape, Tensor};

/// Names of the loss's parts, in the order of the graph's reports.
pub const REPORTS: [&str; 3] = ["loss_intensity", "loss_gradient", "ssim"];

/// The head's loss on a batch of pairs of `side` x `side`. Inputs: those of [`dm_fnet`], and the images `mri` and `other`
/// `[n, 1, side, side]`.
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of the UNet's or too small.
pub fn loss_graph(
    unet: &UnetConfig,
    head: &HeadConfig,
    time_steps: &[usize],
    loss: &FusionLossConfig,
    batch: usize,
    side: usize,
) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let fused = dm_fnet(&mut graph, unet, head, time_steps, [batch, side, side])?;
    let image = Shape::new(batch, 1, side, side);
    let (mri, other) = (graph.input("mri", image), graph.input("other", image));
    let loss = fusion_loss(&mut graph, loss, fused, mri, other)?;
    Ok(LossGraph { graph, loss: loss.total, reports: vec![loss.intensity, loss.gradient, loss.ssim] })
}

/// Whether a weight is the head's, which stage II trains.
pub fn is_trained(name: &str) -> bool {
    ["decoder.", "rgb_decode1.", "rgb_decode2."].iter().any(|prefix| name.starts_with(prefix))
}

/// The graph's inputs for a batch of pairs: each image at each noise step, with a level and noise of its own.
pub fn inputs(
    batch: &Batch,
    schedule: &NoiseSchedule,
    time_steps: &[usize],
    noise: &mut NoiseSource,
) -> BTreeMap<String, Vec<f32>> {
    let mut inputs = BTreeMap::new();
    for t in time_steps {
        for (modality, images) in MODALITIES.iter().zip([&batch.mri, &batch.other]) {
            let (x_t, levels) = noisy(images, schedule, *t, noise);
            inputs.insert(format!("x_t.{modality}.t{t}"), x_t);
            inputs.insert(format!("level.{modality}.t{t}"), levels);
        }
    }
    inputs.insert("mri".to_owned(), batch.mri.data().to_vec());
    inputs.insert("other".to_owned(), batch.other.data().to_vec());
    inputs
}

/// The images at noise step `t`, and the level of each.
fn noisy(images: &Tensor, schedule: &NoiseSchedule, t: usize, noise: &mut NoiseSource) -> (Vec<f32>, Vec<f32>) {
    let item = images.data().len() / images.dims()[0];
    let (mut x_t, mut levels) = (Vec::with_capacity(images.data().len()), Vec::new());
    for x_0 in images.data().chunks(item) {
        let level = noise.level(schedule, t);
        x_t.extend(q_sample(x_0, level, &noise.normal(item)));
        levels.push(level);
    }
    (x_t, levels)
}
