//! What a training is configured by: sections of values, each with a text for the file, its default and its range.
//!
//! A model declares its own sections with `section!` and the whole with `configuration!`; what all share are
//! [`super::sections`]. Defaults are the values of the references, and PyTorch's own for what these leave out.

use toml::Table;

use super::sections::{Data, Optimiser, Rate, Run};
use super::{TaskError, TaskInputs, TrainTask, TrainingError};

/// The sections that all configurations have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The batches.
    pub data: &'a Data,
    /// The update.
    pub optimiser: &'a Optimiser,
    /// The learning rate's schedule.
    pub rate: &'a Rate,
    /// The run.
    pub run: &'a Run,
}

/// The same sections, to be changed.
#[derive(Debug)]
pub struct CommonMut<'a> {
    /// The batches.
    pub data: &'a mut Data,
    /// The update.
    pub optimiser: &'a mut Optimiser,
    /// The run.
    pub run: &'a mut Run,
}

/// The texts above a section and its keys in the printed file.
#[derive(Debug)]
pub struct Docs {
    /// The lines above the section.
    pub about: &'static [&'static str],
    /// The keys in order, each with the lines above it.
    pub keys: &'static [(&'static str, &'static [&'static str])],
}

/// The sections of a configuration, whatever they are: what `configuration!` writes.
pub trait Sections {
    /// The sections' names and texts, in order.
    fn docs(&self) -> &'static [(&'static str, Docs)];

    /// All values, a table for each section.
    ///
    /// # Errors
    /// [`TrainingError::Type`] if a number is larger than TOML's, 2^63 - 1.
    fn to_table(&self) -> Result<Table, TrainingError>;

    /// Takes all values from such a table.
    ///
    /// # Errors
    /// [`TrainingError::Type`] if a value is missing or of the wrong kind.
    fn set(&mut self, table: Table) -> Result<(), TrainingError>;

    /// Checks every section's ranges, and that the learning rate's warmup ends before the run.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    fn check_sections(&self) -> Result<(), TrainingError>;

    /// The sections that all configurations have.
    fn common(&self) -> Common<'_>;

    /// The same sections, to be changed.
    fn common_mut(&mut self) -> CommonMut<'_>;
}

/// The configuration of a training.
pub trait TrainingConfig: Sections {
    /// Checks every value's range, and the values that must go together.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    fn check(&self) -> Result<(), TrainingError>;

    /// The training of this configuration on a data set.
    ///
    /// # Errors
    /// Pairs or files that cannot be used.
    fn task<'a>(&'a self, inputs: TaskInputs<'a>) -> Result<Box<dyn TrainTask + 'a>, TaskError>;
}

/// A struct whose docstrings are also the comments of its TOML section.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: $type,)+
        }

        impl $name {
            /// The texts of the section and its keys.
            pub(crate) const DOCS: $crate::models::training::config::Docs = $crate::models::training::config::Docs {
                about: &[$($about),+],
                keys: &[$((stringify!($key), &[$($doc),+])),+],
            };
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }
    };
}
pub(crate) use section;

/// A struct of sections, each with what differs from the section's default. `data`, `optimiser`, `rate` and `run` are among
/// them.
macro_rules! configuration {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $section:ident: $type:ident = $default:expr,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $section: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($section: $default,)+ }
            }
        }

        impl $crate::models::training::config::Sections for $name {
            fn docs(&self) -> &'static [(&'static str, $crate::models::training::config::Docs)] {
                &[$((stringify!($section), $type::DOCS)),+]
            }

            fn to_table(&self) -> Result<toml::Table, TrainingError> {
                toml::Table::try_from(self).map_err(|e| TrainingError::of_type(&e))
            }

            fn set(&mut self, table: toml::Table) -> Result<(), TrainingError> {
                *self = table.try_into().map_err(|e: toml::de::Error| TrainingError::of_type(&e))?;
                Ok(())
            }

            fn check_sections(&self) -> Result<(), TrainingError> {
                $(self.$section.check()?;)+
                need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
            }

            fn common(&self) -> $crate::models::training::config::Common<'_> {
                $crate::models::training::config::Common {
                    data: &self.data,
                    optimiser: &self.optimiser,
                    rate: &self.rate,
                    run: &self.run,
                }
            }

            fn common_mut(&mut self) -> $crate::models::training::config::CommonMut<'_> {
                $crate::models::training::config::CommonMut {
                    data: &mut self.data,
                    optimiser: &mut self.optimiser,
                    run: &mut self.run,
                }
            }
        }
    };
}
pub(crate) use configuration;

/// The error of a value out of range, unless it is in it.
///
/// # Errors
/// [`TrainingError::Value`] with the reason.
pub(crate) fn need(key: &'static str, in_range: bool, reason: impl Into<String>) -> Result<(), TrainingError> {
    if in_range { Ok(()) } else { Err(TrainingError::Value { key, reason: reason.into() }) }
}

/// A share from 0 to 1.
///
/// # Errors
/// [`TrainingError::Value`] if it is not.
pub(crate) fn share(key: &'static str, value: f64) -> Result<(), TrainingError> {
    need(key, (0.0..=1.0).contains(&value), format!("must be from 0 to 1, not {value}"))
}

/// From 0 up to but not 1.
///
/// # Errors
/// [`TrainingError::Value`] if it is not.
pub(crate) fn decay(key: &'static str, value: f64) -> Result<(), TrainingError> {
    need(key, (0.0..1.0).contains(&value), format!("must be at least 0 and less than 1, not {value}"))
}

/// A finite number over 0.
///
/// # Errors
/// [`TrainingError::Value`] if it is not.
pub(crate) fn positive(key: &'static str, value: f64) -> Result<(), TrainingError> {
    need(key, value > 0.0 && value.is_finite(), format!("must be more than 0, not {value}"))
}

/// A finite number, 0 or more.
///
/// # Errors
/// [`TrainingError::Value`] if it is not.
pub(crate) fn not_negative(key: &'static str, value: f64) -> Result<(), TrainingError> {
    need(key, value >= 0.0 && value.is_finite(), format!("must be 0 or more, not {value}"))
}

/// A whole number over 0.
///
/// # Errors
/// [`TrainingError::Value`] if it is not.
pub(crate) fn at_least_one(key: &'static str, value: u64) -> Result<(), TrainingError> {
    need(key, value > 0, "must be at least 1")
}
