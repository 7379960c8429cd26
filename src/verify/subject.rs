//! What a case is about, as its configuration says.

use serde_json::{Map, Value};

use super::compare::Scale;
use super::network::{self, Results};
use super::{ops, training};
use crate::device::Device;
use crate::diffusion::NoiseSchedule;
use crate::models::MODELS;
use crate::models::golden::attributes::Attributes;
use crate::models::golden::case::{Array, Case, Values};
use crate::models::golden::error::CaseError;
use crate::models::golden::row::Row;
use crate::models::golden::{Computed, Golden, RunPipeline, Train, Write, schedule};

/// A case that is to be computed.
pub(super) struct Job<'a> {
    /// The case.
    pub case: &'a Case,
    /// What its configuration says beside the name of what it is about.
    pub attributes: Attributes,
    /// Where to compute it.
    pub device: &'a Device,
    /// Whether gradients and what else training computes are left out.
    pub forward_only: bool,
}

/// The entries that name what a case is about. The first that is there counts.
const KINDS: [&str; 7] = ["op", "block", "loss", "pipeline", "training", "schedule_of", "net"];

/// How a case is computed.
enum Computation {
    Row(&'static Row),
    Graph(Write),
    Pipeline(RunPipeline),
    Training(Train),
    Optimiser,
    Schedule,
}

/// What a case is about.
pub(super) struct Subject {
    computation: Computation,
    attributes: Attributes,
}

impl Subject {
    /// Reads it from the case's configuration.
    ///
    /// # Errors
    /// [`CaseError::Unknown`] if that names nothing that is known here.
    pub(crate) fn of(case: &Case) -> Result<Self, CaseError> {
        let config = &case.config;
        if let Some((kind, name)) = named(config) {
            let computation = match kind {
                "op" | "block" => ops::find(name).map(Computation::Row),
                "net" => find(|golden| golden.networks, name).map(Computation::Graph),
                "loss" => find(|golden| golden.losses, name).map(Computation::Graph),
                "pipeline" => find(|golden| golden.pipelines, name).map(Computation::Pipeline),
                _ => None,
            };
            let mut attributes = Attributes::new(name, config.clone());
            attributes.take(kind);
            let computation = computation.ok_or_else(|| CaseError::Unknown(unknown(kind, name)))?;
            return Ok(Self { computation, attributes });
        }
        let (computation, name) = if config.contains_key("optimizer") {
            (optimised(config)?, "training")
        } else if config.contains_key("schedule") {
            (Computation::Schedule, "schedule")
        } else {
            let keys: Vec<&str> = config.keys().map(String::as_str).collect();
            let sentence = format!("its configuration ({}) does not say what it is about", keys.join(", "));
            return Err(CaseError::Unknown(sentence));
        };
        Ok(Self { computation, attributes: Attributes::new(name, config.clone()) })
    }

    /// Computes the case.
    pub(crate) fn run(self, case: &Case, device: &Device, forward_only: bool) -> Result<Results, CaseError> {
        let job = Job { case, attributes: self.attributes, device, forward_only };
        match self.computation {
            Computation::Row(row) => ops::run(row, job),
            Computation::Graph(write) => {
                network::run(&write(case, job.attributes)?, case, device, Scale::Model, forward_only)
            }
            Computation::Pipeline(run) => Ok(Results::new(Scale::Model, run(case, job.attributes, device)?)),
            Computation::Training(train) => training::run_training(train, job),
            Computation::Optimiser => training::run_optimiser(job),
            Computation::Schedule => Ok(Results::new(Scale::Schedule, tables(job.attributes)?)),
        }
    }
}

/// What a model answers under this name.
fn find<T: Copy + 'static>(of: impl Fn(&Golden) -> &'static [(&'static str, T)], name: &str) -> Option<T> {
    MODELS.iter().flat_map(|model| of(model.golden)).find(|(known, _)| *known == name).map(|(_, answer)| *answer)
}

/// The tables of a noise schedule.
fn tables(attributes: Attributes) -> Result<Computed, CaseError> {
    let schedule = NoiseSchedule::new(&schedule(attributes)?);
    let mut computed = Computed::default();
    for (name, table) in [
        ("betas", &schedule.betas),
        ("alphas_cumprod", &schedule.alphas_cumprod),
        ("sqrt_alphas_cumprod_prev", &schedule.sqrt_alphas_cumprod_prev),
    ] {
        let (dims, values) = (vec![table.len()], Values::F64(table.clone()));
        computed.arrays.insert(format!("out.{name}_f64"), Array { dims, values });
    }
    for (name, buffer) in schedule.buffers() {
        let (dims, values) = (vec![buffer.len()], Values::F32(buffer));
        computed.arrays.insert(format!("out.buffer.{name}"), Array { dims, values });
    }
    Ok(computed)
}

/// The first entry that names what a case is about, and its value.
fn named(config: &Map<String, Value>) -> Option<(&'static str, &str)> {
    KINDS.iter().find_map(|kind| Some((*kind, config.get(*kind)?.as_str()?)))
}

fn unknown(kind: &str, name: &str) -> String {
    match kind {
        "op" => format!("{name} is not an operation that medfuse knows"),
        "block" => format!("{name} is not a block that medfuse knows"),
        "schedule_of" => format!("the schedule of {name:?} is not known"),
        "net" => format!("the network {name:?} is not known"),
        kind => format!("the {kind} {name:?} is not known"),
    }
}

/// What an optimiser's case trains: a network, or weights whose gradients are given.
fn optimised(config: &Map<String, Value>) -> Result<Computation, CaseError> {
    let trainings = MODELS.iter().flat_map(|model| model.golden.trainings);
    let networks: Vec<_> = trainings.filter(|(key, _)| config.contains_key(*key)).collect();
    match networks[..] {
        [] => Ok(Computation::Optimiser),
        [(_, train)] => Ok(Computation::Training(*train)),
        [..] => {
            let all: Vec<&str> = networks.iter().map(|(key, _)| *key).collect();
            Err(CaseError::Unknown(format!("the training of {} in one is not known", all.join(" and "))))
        }
    }
}

/// Whether training alone has a use for what the case is about.
pub(super) fn is_training(case: &Case) -> bool {
    let loss = |name: &Value| name.as_str().and_then(ops::find).is_some_and(|row| row.loss);
    let has = |key: &str| case.config.contains_key(key);
    case.train || ["loss", "training", "optimizer"].into_iter().any(has) || case.config.get("op").is_some_and(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_models_have_names_of_their_own() {
        fn names<T: 'static>(of: impl Fn(&Golden) -> &'static [(&'static str, T)]) {
            let mut names: Vec<&str> = MODELS.iter().flat_map(|row| of(row.golden)).map(|(name, _)| *name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{names:?}");
        }
        names(|golden| golden.networks);
        names(|golden| golden.losses);
        names(|golden| golden.pipelines);
        names(|golden| golden.trainings);
    }
}
