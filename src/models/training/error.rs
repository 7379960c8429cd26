//! What can be wrong with a training before its first step: its configuration, its pairs, its files.

use std::path::PathBuf;

use crate::imaging::ImagingError;
use crate::models::checkpoint::ModelError;
use crate::weights::WeightsError;

/// Names that an error lists before it only counts.
const LISTED: usize = 5;

/// Why a training cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A file of a configuration cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        reason: Box<TrainingError>,
    },
    /// The text is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    /// A key that the configuration does not have.
    #[error("the configuration has no key {key}; it has {}", known.join(", "))]
    Unknown {
        /// The key with its section.
        key: String,
        /// The keys at that place.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("a value of the configuration is of the wrong kind: {0}")]
    Type(String),
    /// A value out of range.
    #[error("{key} {reason}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
    /// A folder is not there.
    #[error("there is no folder {}", .0.display())]
    NoFolder(PathBuf),
    /// Nothing in the folder is laid out as pairs.
    #[error("{} has no pairs: put images of the same names into two folders such as MRI-CT/MRI and MRI-CT/CT", .0.display())]
    NoPairs(PathBuf),
    /// A list of pairs has none.
    #[error("there are no pairs to train on")]
    Empty,
    /// A folder has an MRI folder, but not exactly one other folder of images beside it.
    #[error("{} needs one folder of images beside MRI, not {}: {}", folder.display(), others.len(), list(others))]
    NotTwoFolders {
        /// The folder.
        folder: PathBuf,
        /// Names of the folders of images beside MRI.
        others: Vec<String>,
    },
    /// Images have no partner.
    #[error("images of {} lack their partner; pair or remove them: {}", folder.display(), list(names))]
    Unpaired {
        /// The folder of the other images.
        folder: PathBuf,
        /// The names, each with the reason.
        names: Vec<String>,
    },
    /// A pair cannot be read or its images differ in size.
    #[error("pair {name}: {reason}")]
    Pair {
        /// Modality and name of the pair.
        name: String,
        /// What is wrong with it.
        reason: ImagingError,
    },
    /// Pairs are smaller than the crop.
    #[error("pairs are smaller than the crop of {crop} pixels; choose a smaller crop or remove them: {}", list(names))]
    SmallerThanCrop {
        /// The pairs with their sizes.
        names: Vec<String>,
        /// The crop's side in pixels.
        crop: usize,
    },
    /// Holding out the validation pairs leaves nothing to train on.
    #[error("{modality} has {pairs} pairs: holding out {held_out} for validation (val_pairs) leaves none to train on")]
    NoneLeft {
        /// The modality.
        modality: String,
        /// Its pairs.
        pairs: usize,
        /// How many are to be held out.
        held_out: usize,
    },
    /// A folder or an image cannot be read.
    #[error(transparent)]
    Imaging(#[from] ImagingError),
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: std::io::Error,
    },
    /// Weights cannot be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model cannot be loaded, or not be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What a training is given beside the pairs cannot be used; the sentence says what and why.
    #[error("{0}")]
    Unusable(String),
}

impl TrainingError {
    /// The error of values that cannot be read or written, of which the library says `reason`.
    pub(crate) fn of_type(reason: &dyn std::fmt::Display) -> Self {
        Self::Type(reason.to_string().trim_end().replace('\n', " "))
    }
}

/// The first few of `names`, and how many more there are.
fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(LISTED);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}
