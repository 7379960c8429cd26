//! What the models that fuse pairs of images have in common.

use std::sync::{Arc, Mutex, PoisonError};

use super::checkpoint::ModelError;
use crate::device::{Device, Executable, ParamSource};
use crate::graph::{Graph, GraphError, NodeId};
use crate::imaging::{FusionPair, Image};

/// A model on a device, fusing images one after the other.
pub trait PairFuser {
    /// Fuses a pair; models that draw noise draw it from `seed`.
    ///
    /// # Errors
    /// [`ModelError`] if the network does not fit the device or fails on it.
    fn fuse(&self, pair: &FusionPair, seed: u64) -> Result<Image, ModelError>;
}

/// A plan and the height and width of the images that it is for.
type Planned = ((usize, usize), Arc<Executable>);

/// The last plan and its size: a folder's images usually have one size.
#[derive(Debug, Default)]
pub(crate) struct PlanCache(Mutex<Option<Planned>>);

impl PlanCache {
    /// The plan of `graph`, which has one output, for images of `height` x `width`, made at its first use.
    ///
    /// # Errors
    /// [`ModelError`] if the network does not take the size or does not fit the device.
    pub(crate) fn executable(
        &self,
        [height, width]: [usize; 2],
        graph: impl FnOnce(usize, usize) -> Result<(Graph, NodeId), GraphError>,
        device: &Device,
        weights: &dyn ParamSource,
    ) -> Result<Arc<Executable>, ModelError> {
        let mut planned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((size, known)) = &*planned
            && *size == (height, width)
        {
            return Ok(known.clone());
        }
        let (graph, fused) = graph(height, width)?;
        // The old plan's memory goes before the new one's is taken.
        *planned = None;
        let executable = Arc::new(device.compile(&graph, &[fused], weights)?);
        *planned = Some(((height, width), executable.clone()));
        Ok(executable)
    }
}
