//! Options that single models take, such as DM-FNet's noise steps: declared by the model, given by the command.

use std::collections::BTreeMap;

/// An option that a model declares, `--NAME` on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelOption {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// What stands for its value in the help.
    pub value_name: &'static str,
    /// A line of help.
    pub about: &'static str,
    /// The values that it takes.
    pub values: OptionValues,
}

/// The values that an option takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionValues {
    /// Whole numbers with commas between them.
    Counts,
    /// One of these names; each has a line of help.
    Names(&'static [(&'static str, &'static str)]),
}

/// The value of an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionValue {
    /// Of an option that takes [`OptionValues::Counts`].
    Counts(Vec<usize>),
    /// Of an option that takes [`OptionValues::Names`].
    Name(String),
}

/// The options that are given, by name; the model's own values stand for all others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelOptions(BTreeMap<String, OptionValue>);

impl ModelOptions {
    /// Gives an option.
    pub fn set(&mut self, name: impl Into<String>, value: OptionValue) {
        self.0.insert(name.into(), value);
    }

    /// The names of those that are given.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The numbers that the option `name` is given.
    pub(crate) fn counts(&self, name: &str) -> Option<&[usize]> {
        match self.0.get(name) {
            Some(OptionValue::Counts(counts)) => Some(counts),
            _ => None,
        }
    }

    /// The name that the option `name` is given.
    pub(crate) fn name(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(OptionValue::Name(value)) => Some(value),
            _ => None,
        }
    }
}
