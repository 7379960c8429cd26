//! The state of a training run in one file, from which it goes on bit for bit.
//!
//! A safetensors file: the rows of [`super::optim`] as tensors, the rest as JSON under `medfuse` in its metadata. All
//! randomness of a run is a function of its seed and the step's number, so that the number is the generators' state.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::step::Layout;
use crate::files::write_whole;
use crate::tensor::Tensor;

/// What a checkpoint says of its run besides the rows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// `stage1` or `stage2`.
    pub stage: String,
    /// Steps done.
    pub step: u64,
    /// Seconds spent on them.
    pub seconds: f64,
    /// The run's settings, which a resumed run must share.
    pub settings: String,
    /// Names and dimensions of the trained weights, in the order of the row.
    pub layout: Layout,
}

/// The state of a run after some steps.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Checkpoint {
    /// How far it is.
    pub progress: Progress,
    /// The weights and the optimiser's state by name, each a row `[1, 1, 1, len]`, and the weights that the network itself
    /// assigns.
    pub rows: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Writes the file whole or not at all; the former one stays until then.
    ///
    /// # Errors
    /// [`TrainError::Io`]: no such folder, no permission, disk full.
    pub(crate) fn save(&self, path: &Path) -> Result<(), TrainError> {
        let io = |reason| TrainError::Io { path: path.to_path_buf(), reason };
        let other = |e: &dyn std::fmt::Display| io(std::io::Error::other(e.to_string()));
        let progress = serde_json::to_string(&self.progress).map_err(|e| other(&e))?;
        let mut views = Vec::with_capacity(self.rows.len());
        for (name, row) in &self.rows {
            let bytes = bytemuck::cast_slice(row.data());
            let view = TensorView::new(Dtype::F32, row.dims().to_vec(), bytes).map_err(|e| other(&e))?;
            views.push((name.as_str(), view));
        }
        let metadata = [("medfuse".to_owned(), progress)].into_iter().collect();
        let bytes = ::safetensors::serialize(views, Some(metadata)).map_err(|e| other(&e))?;
        write_whole(path, &bytes).map_err(io)
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read or is no checkpoint.
    pub(crate) fn load(path: &Path) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(|reason| TrainError::Io { path: path.to_path_buf(), reason })?;
        let format = |reason: String| TrainError::Format { path: path.to_path_buf(), reason };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| format(e.to_string()))?;
        let text = metadata.metadata().as_ref().and_then(|m| m.get("medfuse"));
        let text = text.ok_or_else(|| format("it says nothing of a run".into()))?;
        let progress: Progress = serde_json::from_str(text).map_err(|e| format(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| format(e.to_string()))?;
        let mut rows = BTreeMap::new();
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(format(format!("{name} is not float32")));
            }
            let values: Vec<f32> =
                view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            rows.insert(name.to_owned(), Tensor::new(view.shape(), values));
        }
        Ok(Self { progress, rows })
    }

    /// Fails if the checkpoint is not of this stage, network and settings, or lacks one of `rows` or has it with other
    /// dimensions.
    ///
    /// # Errors
    /// [`TrainError::Other`] saying what differs.
    pub(crate) fn check(
        &self,
        path: &Path,
        stage: &str,
        settings: &str,
        layout: &Layout,
        rows: &[(String, Vec<usize>)],
    ) -> Result<(), TrainError> {
        let fail = |reason: String| Err(TrainError::Other { path: path.to_path_buf(), reason });
        let found = &self.progress;
        if found.stage != stage {
            return fail(format!("it is of {}, this is {stage}", found.stage));
        }
        if found.layout != *layout {
            let reason = match found.layout.first_difference(layout) {
                Some(name) => format!("it is of another architecture, first in {name}"),
                None => "it is of another architecture".to_owned(),
            };
            return fail(reason);
        }
        if found.settings != settings {
            let changed = found.settings.lines().zip(settings.lines()).find(|(a, b)| a != b);
            let reason = match changed {
                Some((before, now)) => format!("it was trained with `{before}`, this run has `{now}`"),
                None => "it was trained with other settings".to_owned(),
            };
            return fail(reason);
        }
        let fits = |name: &str, dims: &[usize]| self.rows.get(name).is_some_and(|found| found.dims() == dims);
        match rows.iter().find(|(name, dims)| !fits(name, dims)) {
            Some((name, dims)) => fail(format!("it has no {name} of shape {dims:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::optim::{WEIGHTS, row};

    fn sample() -> Checkpoint {
        let layout = Layout::from_entries(vec![("a".into(), vec![2, 1]), ("b".into(), vec![1])]);
        let progress =
            Progress { stage: "stage1".into(), step: 7, seconds: 1.5, settings: "lr = 1\nseed = 2".into(), layout };
        let rows = BTreeMap::from([(WEIGHTS.to_owned(), row(vec![0.1, -2.0, 3e-9]))]);
        Checkpoint { progress, rows }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        sample().save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), sample());
        std::fs::write(&path, b"no checkpoint").unwrap();
        assert!(matches!(Checkpoint::load(&path), Err(TrainError::Format { .. })));
        assert!(matches!(Checkpoint::load(&folder.path().join("none")), Err(TrainError::Io { .. })));
    }

    #[test]
    fn other_runs_are_told_apart() {
        let (saved, path) = (sample(), Path::new("c"));
        let Progress { settings, layout, .. } = saved.progress.clone();
        let check = |stage: &str, settings: &str, layout: &Layout, rows: &[(&str, usize)]| {
            let rows: Vec<_> = rows.iter().map(|(name, len)| ((*name).to_owned(), vec![1, 1, 1, *len])).collect();
            saved.check(path, stage, settings, layout, &rows).map_err(|e| e.to_string())
        };
        assert_eq!(check("stage1", &settings, &layout, &[(WEIGHTS, 3)]), Ok(()));
        assert!(check("stage1", &settings, &layout, &[(WEIGHTS, 4)]).unwrap_err().contains("no weights of shape"));
        assert!(check("stage2", &settings, &layout, &[]).unwrap_err().contains("it is of stage1"));
        let error = check("stage1", "lr = 1\nseed = 3", &layout, &[]).unwrap_err();
        assert!(error.contains("`seed = 2`, this run has `seed = 3`"), "{error}");
        let wider = Layout::from_entries(vec![("a".into(), vec![2, 1]), ("b".into(), vec![2])]);
        assert!(check("stage1", &settings, &wider, &[]).unwrap_err().contains("first in b"));
        assert!(check("stage1", &settings, &layout, &[("ema", 3)]).unwrap_err().contains("no ema"));
    }
}
