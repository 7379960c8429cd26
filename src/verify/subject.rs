//! What a case is about, as its configuration says.

use serde_json::{Map, Value};

use super::attributes::Attributes;
use super::case::Case;
use super::error::CaseError;
use super::network::Results;
use super::row::Row;
use super::{models, ops, training};
use crate::device::Device;

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

type Run = fn(Job) -> Result<Results, CaseError>;

/// The entries that name what a case is about. The first that is there counts.
const KINDS: [&str; 7] = ["op", "block", "loss", "pipeline", "training", "schedule_of", "net"];

/// Losses, pipelines and networks by the entry that names them and its value.
static NAMED: [(&str, &str, Run); 6] = [
    ("loss", "DM-FNet Fusionloss", training::run_dm_fnet_loss),
    ("loss", "LKC-FUNet Fusionloss (losses/DMFNet_loss.py)", training::run_lkc_loss),
    ("pipeline", "DM-FNet t_fusion.py", models::run_pipeline),
    ("net", "UNet", models::run_unet),
    ("net", "Fusion_Head", models::run_head),
    ("net", "LKC-FUNet", models::run_lkc),
];

/// Networks that cases train, by the entry that has the network's attributes.
static TRAINED: [(&str, Run); 3] =
    [("unet", training::run_stage1), ("head", training::run_stage2), ("net", training::run_lkc)];

/// How a case is computed.
enum Computation {
    Row(&'static Row),
    Other(Run),
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
    pub fn of(case: &Case) -> Result<Self, CaseError> {
        let config = &case.config;
        if let Some((kind, name)) = named(config) {
            let computation = match kind {
                "op" | "block" => ops::find(name).map(Computation::Row),
                _ => NAMED.iter().find(|(k, n, _)| (*k, *n) == (kind, name)).map(|(.., run)| Computation::Other(*run)),
            };
            let mut attributes = Attributes::new(name, config.clone());
            attributes.take(kind);
            let computation = computation.ok_or_else(|| CaseError::Unknown(unknown(kind, name)))?;
            return Ok(Self { computation, attributes });
        }
        let (run, name): (Run, _) = if config.contains_key("optimizer") {
            (optimised(config)?, "training")
        } else if config.contains_key("schedule") {
            (models::run_schedule, "schedule")
        } else {
            let keys: Vec<&str> = config.keys().map(String::as_str).collect();
            let sentence = format!("its configuration ({}) does not say what it is about", keys.join(", "));
            return Err(CaseError::Unknown(sentence));
        };
        Ok(Self { computation: Computation::Other(run), attributes: Attributes::new(name, config.clone()) })
    }

    /// Computes the case.
    pub fn run(self, case: &Case, device: &Device, forward_only: bool) -> Result<Results, CaseError> {
        let job = Job { case, attributes: self.attributes, device, forward_only };
        match self.computation {
            Computation::Row(row) => ops::run(row, job),
            Computation::Other(run) => run(job),
        }
    }
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
fn optimised(config: &Map<String, Value>) -> Result<Run, CaseError> {
    let networks: Vec<_> = TRAINED.iter().filter(|(key, _)| config.contains_key(*key)).collect();
    match networks[..] {
        [] => Ok(training::run_optimiser),
        [(_, run)] => Ok(*run),
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
