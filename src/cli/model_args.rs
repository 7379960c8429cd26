//! The model of a command: its arguments, of which the table of the models says what there is.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgMatches, Args, Command, value_parser};

use crate::models::options::{ModelOption, ModelOptions, OptionValue, OptionValues};
use crate::models::{FusionModel, MODELS, ModelRow, find, model_of_folder};

/// A parser of models' names, which gives their rows.
pub(crate) fn model_parser() -> impl TypedValueParser<Value = &'static ModelRow> {
    let names = MODELS.iter().map(|row| PossibleValue::new(row.name).help(row.about));
    PossibleValuesParser::new(names).map(|name| find(&name).expect("the names are the table's"))
}

/// The words with commas between them, and `last` before the last.
pub(crate) fn listed(words: &[String], last: &str) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., end] => format!("{}{last}{end}", first.join(", ")),
    }
}

/// What each model has to say, `of NAME TEXT` with commas between.
pub(crate) fn of_each(text: impl Fn(&ModelRow) -> String) -> String {
    let each: Vec<String> = MODELS.iter().map(|row| format!("of {} {}", row.name, text(row))).collect();
    each.join(", ")
}

/// The model of a command.
#[derive(Debug, Default)]
pub(crate) struct ModelArgs {
    /// The model, if it is named.
    model: Option<&'static ModelRow>,
    /// The folder of its weights, if they are not those that ship.
    weights: Option<PathBuf>,
    /// The options that the models declare.
    options: ModelOptions,
}

impl ModelArgs {
    /// A model of the table by its name, with the weights that ship, or of a folder of weights.
    pub(crate) fn named(name_or_folder: &std::path::Path) -> Self {
        match name_or_folder.to_str().and_then(find) {
            Some(row) => Self { model: Some(row), ..Self::default() },
            None => Self { weights: Some(name_or_folder.into()), ..Self::default() },
        }
    }

    /// Loads the model.
    ///
    /// # Errors
    /// If its files are missing, unreadable or of another architecture, or an argument is another model's.
    pub(crate) fn load(&self) -> anyhow::Result<Box<dyn FusionModel>> {
        let row = match (self.model, &self.weights) {
            (Some(row), _) => row,
            (None, Some(folder)) => model_of_folder(folder)?,
            (None, None) => MODELS[0],
        };
        Ok(row.open_fusion(self.weights.as_deref(), &self.options)?)
    }
}

/// The options of all models, each once.
fn options() -> impl Iterator<Item = &'static ModelOption> {
    let all = || MODELS.iter().flat_map(|row| row.options);
    all()
        .enumerate()
        .filter(move |(i, option)| !all().take(*i).any(|o| o.name == option.name))
        .map(|(_, option)| option)
}

impl Args for ModelArgs {
    fn augment_args(command: Command) -> Command {
        let model = Arg::new("model").long("model").value_name("MODEL").value_parser(model_parser()).help(format!(
            "The model [default: the one that model.json or the files of --weights name, else {}]",
            MODELS[0].name
        ));
        let files: Vec<String> = MODELS.iter().map(|row| format!("with {}", row.files.join(" and "))).collect();
        let weights =
            Arg::new("weights").long("weights").value_name("DIR").value_parser(value_parser!(PathBuf)).help(format!(
                "Folder {} (.safetensors or .pth), and, if not the reference's values, model.json \
                 [default: the weights that ship with medfuse]",
                listed(&files, ", or ")
            ));
        options().fold(command.arg(model).arg(weights), |command, option| {
            let arg = Arg::new(option.name).long(option.name).value_name(option.value_name).help(option.about);
            command.arg(match option.values {
                OptionValues::Counts => arg.value_delimiter(',').value_parser(value_parser!(usize)),
                OptionValues::Names(names) => {
                    let names = names.iter().map(|(name, about)| PossibleValue::new(*name).help(*about));
                    arg.value_parser(PossibleValuesParser::new(names))
                }
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ModelArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = ModelOptions::default();
        for option in options() {
            let value = match option.values {
                OptionValues::Counts => {
                    matches.get_many(option.name).map(|counts| OptionValue::Counts(counts.copied().collect()))
                }
                OptionValues::Names(_) => matches.get_one::<String>(option.name).cloned().map(OptionValue::Name),
            };
            if let Some(value) = value {
                given.set(option.name, value);
            }
        }
        let (model, weights) = (matches.get_one("model").copied(), matches.get_one("weights").cloned());
        Ok(Self { model, weights, options: given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
