//! Stage I of DM-FNet: the diffusion UNet learns to predict x_0 from x_t (`train_ddpm.py`, `p_losses` of the reference).

use std::collections::BTreeMap;
use std::path::Path;

use super::config::Stage1Config;
use super::data::{Batches, DataError, Dataset};
use super::loss::{constants, mse};
use super::run::{Publish, Task};
use super::step::{LossGraph, StepError};
use crate::device::ParamSource;
use crate::diffusion::{NoiseSchedule, NoiseSource, q_sample};
use crate::graph::{Graph, GraphError};
use crate::models::unet::{UnetConfig, unet};
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights};

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

/// The run of stage I on a data set.
#[derive(Debug)]
pub struct Stage1<'a> {
    config: &'a Stage1Config,
    batches: Batches<'a>,
    schedule: NoiseSchedule,
    constants: BTreeMap<String, Tensor>,
}

impl<'a> Stage1<'a> {
    /// The run on the data set's training pairs.
    ///
    /// # Errors
    /// [`DataError`] if there are none or they are smaller than the crop.
    pub fn new(config: &'a Stage1Config, data: &'a Dataset) -> Result<Self, DataError> {
        Ok(Self {
            config,
            batches: Batches::new(&data.train, config.data.sampling(), config.run.seed)?,
            schedule: NoiseSchedule::new(&config.noise.schedule()),
            constants: constants(),
        })
    }
}

impl Task for Stage1<'_> {
    fn stage(&self) -> &'static str {
        "stage1"
    }

    fn graph(&self) -> Result<LossGraph, StepError> {
        Ok(loss_graph(&self.config.unet.size(), 2 * self.config.data.batch, self.config.data.crop)?)
    }

    fn is_trained(&self, name: &str) -> bool {
        name.starts_with("denoise_fn.")
    }

    fn frozen(&self) -> &dyn ParamSource {
        &self.constants
    }

    fn reports(&self) -> &'static [&'static str] {
        &[]
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let mut noise = NoiseSource::numbered(self.config.run.seed, number);
        inputs(&self.batches.batch(number).images(), &self.schedule, &mut noise)
    }

    fn publish(
        &self,
        folder: &Path,
        weights: &BTreeMap<String, Tensor>,
        what: Publish,
    ) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error + Send + Sync>> {
        if what == Publish::Model {
            let mut model: Weights = weights.clone().into_iter().collect();
            for (name, buffer) in self.schedule.buffers() {
                model.insert(name, Tensor::new([buffer.len()], buffer));
            }
            model.save_safetensors(folder.join("unet.safetensors"), StoreType::F32)?;
        }
        Ok(Vec::new())
    }
}
