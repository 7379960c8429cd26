//! Training LKC-FUNet (`train.py` and `losses/DMFNet_loss.py` of its repository).

use std::collections::BTreeMap;
use std::path::Path;

use super::config;
use super::data::{Batches, DataError, Dataset};
use super::init::pytorch_default;
use super::loss::{FusionLossConfig, constants, lkc_loss};
use super::run::{Figures, PublishError, Task, sample_fused};
use super::step::{Layout, LossGraph, StepError};
use crate::device::{Device, ParamSource};
use crate::graph::{Graph, GraphError};
use crate::models::checkpoint::save_model_json;
use crate::models::lkc_funet::{LkcConfig, LkcFile, LkcFunet, LkcFuser, Mode, lkc_funet};
use crate::models::unet::DropoutSeed;
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights, is_buffer};

/// The names of the loss's parts.
pub const REPORTS: &[&str] = &["gradient", "intensity", "ssim"];

/// The network's loss on a batch of pairs `[n, 1, side, side]`, which it moves the batch norms' running statistics with
/// (weights that the graph assigns). Inputs: `mri`, `other` and, with `dropout`, its seed `dropout` `[1, 2, 1, 1]`. Reports:
/// [`REPORTS`].
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of [`LkcConfig::multiple`].
pub fn loss_graph(
    config: &LkcConfig,
    loss: &FusionLossConfig,
    dropout: f32,
    batch: usize,
    side: usize,
) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let image = Shape::new(batch, 1, side, side);
    let [mri, other] = ["mri", "other"].map(|name| graph.input(name, image));
    let seed = (dropout > 0.0).then(|| graph.input("dropout", Shape::new(1, 2, 1, 1)));
    let dropout = seed.map(|seed| DropoutSeed { p: dropout, seed });
    let img_cat = graph.concat("img_cat", &[other, mri])?;
    let fused = lkc_funet(&mut graph, config, img_cat, Mode::Training(dropout))?;
    let loss = lkc_loss(&mut graph, loss, fused, mri, other)?;
    Ok(LossGraph { graph, loss: loss.total, reports: vec![loss.gradient, loss.intensity, loss.ssim], recompute: false })
}

/// The training of an LKC-FUNet on a data set.
#[derive(Debug)]
pub struct LkcTraining<'a> {
    config: &'a config::LkcConfig,
    data: &'a Dataset,
    device: &'a Device,
    batches: Batches<'a>,
    constants: BTreeMap<String, Tensor>,
}

impl<'a> LkcTraining<'a> {
    /// The run on the data set's training pairs; `device` is where it validates.
    ///
    /// # Errors
    /// [`DataError`] if there are none or they are smaller than the crop.
    pub fn new(config: &'a config::LkcConfig, data: &'a Dataset, device: &'a Device) -> Result<Self, DataError> {
        let batches = Batches::new(&data.train, config.data.sampling(), config.run.seed)?;
        Ok(Self { config, data, device, batches, constants: constants() })
    }

    fn model_file(&self) -> LkcFile {
        let config::LkcNet { norm_groups, range, .. } = self.config.net;
        LkcFile { norm_groups, range, ..LkcFile::default() }
    }
}

impl Task for LkcTraining<'_> {
    fn stage(&self) -> &'static str {
        "lkc-funet"
    }

    fn graph(&self) -> Result<LossGraph, StepError> {
        let config::LkcConfig { net, loss, data, run, .. } = self.config;
        let graph = loss_graph(&net.size(), &loss.config(net.range), net.dropout as f32, data.batch, data.crop)?;
        Ok(LossGraph { recompute: run.recompute, ..graph })
    }

    fn is_trained(&self, name: &str) -> bool {
        name.starts_with("model.") && !is_buffer(name)
    }

    fn first_weights(&self, layout: &Layout, seed: u64) -> Vec<f32> {
        pytorch_default(layout, seed)
    }

    fn frozen(&self) -> &dyn ParamSource {
        &self.constants
    }

    fn reports(&self) -> &'static [&'static str] {
        REPORTS
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let batch = self.batches.batch(number);
        let mut images = [batch.mri.into_data(), batch.other.into_data()];
        let [scale, shift] = self.config.net.range.from_signed();
        images.iter_mut().flatten().for_each(|v| *v = scale * *v + shift);
        let [mri, other] = images;
        let seed = DropoutSeed::values(self.config.run.seed, number);
        [("mri", mri), ("other", other), ("dropout", seed)].map(|(name, values)| (name.to_owned(), values)).into()
    }

    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, PublishError> {
        let model = LkcFunet::new(weights.clone().into_iter().collect(), &self.model_file())?;
        sample_fused(folder, step, &self.data.validation, &LkcFuser::new(model, self.device.clone()))
    }

    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), PublishError> {
        let model: Weights = weights.into_iter().collect();
        model.save_safetensors(folder.join("lkc-funet.safetensors"), StoreType::F32)?;
        Ok(save_model_json(&self.model_file(), folder)?)
    }
}
