//! Golden cases: what the reference computed, compared with what medfuse computes.
//!
//! A case is `NAME.safetensors`, whose tensors are inputs (`in.*`), parameters of an operation (`param.*`), outputs
//! (`out.*`), outputs of modules on the way (`act.MODULE`, `#2` at the module's second call), weights of the loss
//! (`w.*`) and gradients (`grad.*`), statistics and weights after training (`after.*`, `out.final.*`), and `NAME.json`
//! with its configuration, its files of weights and for each tensor its noise floor: how far the reference in float32 is
//! from itself in float64. `docs/verifying.md` describes the files; `tools/export_case.py` writes them.

mod compare;
mod network;
mod ops;
mod subject;
mod training;

use std::path::Path;
use std::time::Instant;

use crate::device::Device;
use crate::models::golden::Computed;
pub(crate) use crate::models::golden::case::{Array, Case};
pub use crate::models::golden::case::{NoiseFloor, find_cases};
pub use crate::models::golden::error::CaseError;
use crate::tensor::Shape;
pub(crate) use compare::compare_loss;
pub use compare::{Comparison, Scale, Tolerance};
use network::Results;
use subject::{Job, Subject};

/// What became of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It was computed and compared.
    Compared(Comparison),
    /// There is nothing to compare it with, and why.
    Failed(String),
    /// It is none of those asked for.
    NotChecked,
}

impl Outcome {
    /// Whether it counts as failed.
    pub fn failed(&self) -> bool {
        match self {
            Self::Compared(comparison) => !comparison.passed(),
            Self::Failed(_) => true,
            Self::NotChecked => false,
        }
    }
}

/// A tensor of a case and what became of it.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Tensors that passed, failed and were not checked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Close enough.
    pub passed: usize,
    /// Too far off, not finite, or not computed.
    pub failed: usize,
    /// Not asked for.
    pub not_checked: usize,
}

impl Counts {
    /// The counts of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            not_checked: self.not_checked + other.not_checked,
        }
    }
}

/// What became of a case.
#[derive(Debug)]
pub struct Report {
    /// The case's files without their endings.
    pub name: String,
    /// Why it could not be run, if it could not.
    pub error: Option<CaseError>,
    /// Its tensors: derived inputs, activations in the order of the graph, outputs, the rest.
    pub checks: Vec<Check>,
    /// What a reader of the figures should know of how they came about.
    pub note: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// The report of what is no case.
    pub fn of_error(path: &Path, error: CaseError) -> Self {
        Self { name: path.display().to_string(), error: Some(error), checks: Vec::new(), note: None, seconds: 0.0 }
    }

    /// How many tensors passed, failed and were not checked. A case that was not run, or in which nothing was checked
    /// though nothing was left out on purpose, has at least one failure.
    pub fn counts(&self) -> Counts {
        let count = |of: &dyn Fn(&Outcome) -> bool| self.checks.iter().filter(|c| of(&c.outcome)).count();
        let mut counts = Counts {
            failed: count(&Outcome::failed),
            not_checked: count(&|o| *o == Outcome::NotChecked),
            ..Counts::default()
        };
        counts.passed = self.checks.len() - counts.failed - counts.not_checked;
        if counts.failed == 0 && (self.error.is_some() || self.checks.is_empty()) {
            counts.failed = 1;
        }
        counts
    }

    /// The first activation, in the order of the graph, that is not close enough.
    pub fn first_drift(&self) -> Option<&Check> {
        self.checks.iter().find(|c| c.name.starts_with("act.") && c.outcome.failed())
    }
}

/// Why a tensor is in a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is given.
    Given,
    /// A forward pass computes it.
    Forward,
    /// Training computes it.
    Training,
}

fn role(name: &str) -> Role {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    if starts(&["in.", "param.", "w."]) {
        Role::Given
    } else if starts(&["out.", "act."]) && !starts(&["out.final."]) {
        Role::Forward
    } else {
        Role::Training
    }
}

/// Runs the case whose files have the name `path` and the endings `.safetensors` and `.json`, and compares. With
/// `forward_only`, gradients and all else that training computes are not checked.
pub fn verify(path: &Path, device: &Device, forward_only: bool) -> Report {
    let start = Instant::now();
    let mut report = match Case::load(path) {
        Ok(case) => verify_case(&case, device, forward_only),
        Err(error) => Report::of_error(path, error),
    };
    report.name = path.display().to_string();
    report.seconds = start.elapsed().as_secs_f64();
    report
}

fn verify_case(case: &Case, device: &Device, forward_only: bool) -> Report {
    let training = subject::is_training(case);
    let outcome = match training && forward_only {
        true => Ok(Results::new(Scale::Op, Computed::default())),
        false => Subject::of(case).and_then(|subject| subject.run(case, device, forward_only)),
    };
    let mut checks = Vec::new();
    for (name, expected) in &case.tensors {
        let outcome = match (role(name), &outcome) {
            (Role::Given, Ok(results)) if results.computed.arrays.contains_key(name) => {
                compare(case, name, expected, results)
            }
            (Role::Given, _) => continue,
            (Role::Training, _) if forward_only => Outcome::NotChecked,
            (Role::Forward, _) if forward_only && training => Outcome::NotChecked,
            (_, Err(_)) => Outcome::Failed("the case could not be run".into()),
            (_, Ok(results)) => compare(case, name, expected, results),
        };
        checks.push(Check { name: name.clone(), dims: expected.dims.clone(), outcome });
    }
    let order = outcome.as_ref().map_or(&[][..], |results| &results.computed.order);
    let rank = |name: &str| order.iter().position(|n| n == name).unwrap_or(usize::MAX);
    let group = |name: &str| ["in.", "act.", "out."].iter().position(|p| name.starts_with(p)).unwrap_or(3);
    checks.sort_by_key(|c| (group(&c.name), rank(&c.name)));
    let note = outcome.as_ref().ok().and_then(|results| not_computed(&checks).or(results.note.clone()));
    Report { name: String::new(), error: outcome.err(), checks, note, seconds: 0.0 }
}

const NOT_COMPUTED: &str = "medfuse does not compute this tensor";

/// A sentence on the tensors that the subject does not have in medfuse.
fn not_computed(checks: &[Check]) -> Option<String> {
    let missing = |check: &&Check| matches!(&check.outcome, Outcome::Failed(reason) if reason == NOT_COMPUTED);
    let names: Vec<&str> = checks.iter().filter(missing).map(|check| check.name.as_str()).collect();
    match names[..] {
        [] => None,
        [name] => Some(format!("medfuse computes the case without {name}")),
        [name, ..] => Some(format!("medfuse computes the case without {name} and {} more", names.len() - 1)),
    }
}

fn compare(case: &Case, name: &str, expected: &Array, results: &Results) -> Outcome {
    if let Some(outcome) = results.outcomes.get(name) {
        return outcome.clone();
    }
    let floor = case.noise_floor.get(name).copied();
    let loss_weights = || case.tensors.keys().any(|n| n.starts_with("w."));
    if name == "out.loss" && loss_weights() {
        return match (loss_products(case, results), &expected.values.to_f64()[..]) {
            (Ok(products), [loss]) => Outcome::Compared(compare_loss(products.into_iter(), *loss, floor)),
            (Ok(_), _) => Outcome::Failed("a loss is one number".into()),
            (Err(reason), _) => Outcome::Failed(reason),
        };
    }
    let Some(found) = results.computed.arrays.get(name) else {
        return Outcome::Failed(NOT_COMPUTED.into());
    };
    let same_shape = match (Shape::from_dims(&found.dims), Shape::from_dims(&expected.dims)) {
        (Some(a), Some(b)) => a == b,
        _ => found.dims == expected.dims,
    };
    if !same_shape {
        return Outcome::Failed(format!("medfuse gives it the shape {:?}", found.dims));
    }
    let tolerance = Tolerance::of(name, expected, results.scale, floor);
    let (found, expected) = (found.values.to_f64(), expected.values.to_f64());
    Outcome::Compared(Comparison::new(&found, &expected, tolerance, floor))
}

/// The summands of the loss: each output's elements times their weights.
fn loss_products(case: &Case, results: &Results) -> Result<Vec<f64>, String> {
    let mut products = Vec::new();
    for (name, weights) in &case.tensors {
        let Some(of) = name.strip_prefix("w.") else {
            continue;
        };
        let weights = weights.values.to_f64();
        match results.computed.arrays.get(&format!("out.{of}")) {
            Some(out) if out.values.len() == weights.len() => {
                products.extend(out.values.to_f64().iter().zip(&weights).map(|(a, b)| a * b));
            }
            _ => {
                return Err(format!("out.{of}, which it sums, is not computed in that shape"));
            }
        }
    }
    Ok(products)
}
