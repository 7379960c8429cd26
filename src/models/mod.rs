//! The networks: pure functions that write a graph, named as the checkpoints' keys are, and the table of the models.
//!
//! A model is a file or a folder here and a row of [`MODELS`]. Commands, benchmark, verification and training loop iterate
//! over the table and know no model by name.

pub mod blocks;
pub mod checkpoint;
pub mod dm_fnet;
pub mod fusing;
#[cfg(feature = "verify")]
pub(crate) mod golden;
pub mod layers;
pub mod lkc_funet;
pub mod networks;
pub mod options;
#[cfg(feature = "train")]
pub mod training;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};

use crate::device::{Device, ParamSource};
use crate::graph::GraphError;
use checkpoint::{ModelError, parse_json, read_model_json, weights_file};
use fusing::PairFuser;
use networks::{BenchRow, Effort, Network};
use options::{ModelOption, ModelOptions};
#[cfg(feature = "train")]
use training::{LossGraph, Training};

/// The models. The first is the one that is meant where nothing names another.
pub static MODELS: [&ModelRow; 2] = [&dm_fnet::ROW, &lkc_funet::ROW];

/// What the commands know of a model.
pub struct ModelRow {
    /// Its name in `model.json` and on the command line.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// A line about it.
    pub about: &'static str,
    /// The files of weights that its folder has, without `.safetensors` or `.pth`.
    pub files: &'static [&'static str],
    /// Whether weights for it are built in.
    pub ships: bool,
    /// The options that it takes.
    pub options: &'static [ModelOption],
    /// What it is given and what it makes of it, with the functions that load it.
    pub kind: ModelKind,
    /// What the benchmark says and presumes of it.
    pub bench: BenchRow,
    /// Its trainings, in the order in which they are run.
    #[cfg(feature = "train")]
    pub trainings: &'static [Training],
    /// The golden cases that it answers.
    #[cfg(feature = "verify")]
    pub(crate) golden: &'static golden::Golden,
}

/// The kinds of models, by what they are given and what they make of it.
pub enum ModelKind {
    /// A registered pair of images is fused into one.
    Fusion(Loader<dyn FusionModel>),
}

/// How models of one kind are made; `M` is that kind's trait.
pub struct Loader<M: ?Sized> {
    /// Loads the model from a folder, or without one the weights that are built in.
    pub open: fn(Option<&Path>, &ModelOptions) -> Result<Box<M>, ModelError>,
    /// The published architecture with so many channels at the first level and random weights, to be timed.
    pub random: fn(usize) -> Result<Box<M>, ModelError>,
}

/// A model with its weights.
pub trait Model {
    /// The weights, under the names by which its graphs read them.
    fn weights(&self) -> &dyn ParamSource;

    /// The networks whose operations are timed one by one, for images of `size` x `size`.
    ///
    /// # Errors
    /// [`GraphError`] if the network does not take the size.
    fn parts(&self, size: usize) -> Result<Vec<Network>, GraphError>;

    /// The networks that are timed as a whole, for images of `size` x `size`.
    ///
    /// # Errors
    /// [`GraphError`] if the network does not take the size.
    fn networks(&self, size: usize) -> Result<Vec<(Network, Effort)>, GraphError>;

    /// The loss that a training step is timed with, on [`BenchRow::training_batch`] images of `size` x `size`.
    ///
    /// # Errors
    /// [`GraphError`] if the network does not take the size.
    #[cfg(feature = "train")]
    fn loss(&self, size: usize) -> Result<LossGraph, GraphError>;
}

/// A model that fuses registered pairs of images.
pub trait FusionModel: Model {
    /// A fuser of the model on a device.
    fn on(self: Box<Self>, device: Device) -> Box<dyn PairFuser>;
}

impl ModelRow {
    /// Loads a model that fuses: from a folder, or without one the weights that are built in.
    ///
    /// # Errors
    /// [`ModelError`] if its files are missing, unreadable or of another architecture, or an option is another model's.
    pub fn open_fusion(
        &self,
        folder: Option<&Path>,
        options: &ModelOptions,
    ) -> Result<Box<dyn FusionModel>, ModelError> {
        self.check_options(options)?;
        let ModelKind::Fusion(loader) = &self.kind;
        (loader.open)(folder, options)
    }

    /// The published architecture with `width` channels at the first level and random weights.
    ///
    /// # Errors
    /// [`ModelError`] if the norms cannot group these channels.
    pub fn random(&self, width: usize) -> Result<Box<dyn Model>, ModelError> {
        let ModelKind::Fusion(loader) = &self.kind;
        Ok((loader.random)(width)?)
    }

    /// Whether all the model's files of weights are in a folder.
    fn recognises(&self, folder: &Path) -> bool {
        self.files.iter().all(|name| weights_file(folder, name, self.files).is_ok())
    }

    fn check_options(&self, options: &ModelOptions) -> Result<(), ModelError> {
        let takes = |row: &ModelRow, name: &str| row.options.iter().any(|option| option.name == name);
        let Some(name) = options.names().find(|name| !takes(self, name)) else {
            return Ok(());
        };
        let owners: Vec<&str> = MODELS.iter().filter(|row| takes(row, name)).map(|row| row.name).collect();
        Err(ModelError::Option(format!("--{name} is for {}: {} does not take it", owners.join(" and "), self.name)))
    }
}

/// The model of this name.
pub fn find(name: &str) -> Option<&'static ModelRow> {
    MODELS.into_iter().find(|row| row.name == name)
}

/// The model that the `model.json` of a folder names; if it names none, the one whose files of weights are there. What
/// cannot be told is the first model of the table, whose errors then say what the folder lacks.
///
/// # Errors
/// [`ModelError::ModelFile`] if `model.json` cannot be read or understood.
pub fn model_of_folder(folder: &Path) -> Result<&'static ModelRow, ModelError> {
    #[derive(Default, Deserialize)]
    struct Named {
        model: Option<String>,
    }
    let found = match read_model_json(folder, parse_json::<Named>)?.model {
        Some(name) => find(&name),
        // The first model's files are the last to be looked for: it is taken anyway where nothing is found.
        None => MODELS.into_iter().rev().find(|row| row.recognises(folder)),
    };
    Ok(found.unwrap_or(MODELS[0]))
}

impl fmt::Debug for ModelRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for ModelRow {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ModelRow {}

impl Serialize for ModelRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use options::OptionValue;

    #[test]
    fn rows_have_names_of_their_own_and_models_that_ship_load() {
        for (i, row) in MODELS.iter().enumerate() {
            assert!(MODELS[..i].iter().all(|other| other.name != row.name && other.files != row.files));
            assert_eq!(row.open_fusion(None, &ModelOptions::default()).is_ok(), row.ships, "{row:?}");
        }
    }

    #[test]
    fn an_option_of_another_model_is_refused() {
        for row in MODELS {
            for option in MODELS.iter().filter(|other| **other != row).flat_map(|other| other.options) {
                let mut options = ModelOptions::default();
                options.set(option.name, OptionValue::Counts(vec![1]));
                let error = row.open_fusion(None, &options).err().expect("it is not this model's").to_string();
                assert!(error.starts_with(&format!("--{} is for", option.name)), "{error}");
            }
        }
    }

    #[test]
    fn a_folder_is_the_model_s_that_it_names_or_else_has_the_files_of() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(model_of_folder(folder.path()).unwrap(), MODELS[0]);
        for row in MODELS {
            std::fs::write(folder.path().join("model.json"), format!(r#"{{"model": "{}"}}"#, row.name)).unwrap();
            assert_eq!(model_of_folder(folder.path()).unwrap(), row);
            std::fs::write(folder.path().join("model.json"), r#"{"norm_groups": 8}"#).unwrap();
            for (i, name) in row.files.iter().enumerate() {
                std::fs::write(folder.path().join(format!("{name}.{}", ["pth", "safetensors"][i % 2])), "").unwrap();
            }
            assert_eq!(model_of_folder(folder.path()).unwrap(), row);
        }
    }
}
