//! Cases of training: optimisers, and training steps of whole networks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::compare::{Comparison, Scale, Tolerance};
use super::network::Results;
use super::subject::Job;
use super::{Outcome, compare};
use crate::device::Device;
use crate::graph::{Graph, NodeId};
use crate::models::golden::attributes::Attributes;
use crate::models::golden::case::{Array, Case, Values};
use crate::models::golden::error::CaseError;
use crate::models::golden::{CaseGraph, Computed, NamedValues, Train, TrainingCase};
use crate::models::training::LossGraph;
use crate::models::training::sections::{Optimiser, OptimiserKind};
use crate::tensor::{Shape, Tensor};
use crate::train::optim::{self, EXP_AVG, EXP_AVG_SQ, NUMBERS, NumberNodes, Update, WEIGHTS};
use crate::train::step::{Layout, TrainStep};

/// How close the losses of training steps and the final weights must come, relative to them.
const CLOSE: f64 = 1e-4;
/// How often the first step may begin again, see [`Training::begin`].
const TRIES: u16 = 32;
/// A first gradient that is not this many times the reference's largest error of its tensor is of rounding size.
const SURE: f64 = 100.0;

/// The entries that a case has of its optimiser.
#[derive(Deserialize)]
struct OptimiserEntries {
    optimizer: OptimiserName,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

/// Optimisers by their names in PyTorch.
#[derive(Clone, Copy, Deserialize)]
enum OptimiserName {
    Adam,
    AdamW,
}

/// The update of a case. The learning rate is the optimiser's.
fn update(attributes: Attributes) -> Result<Update, CaseError> {
    let OptimiserEntries { optimizer, lr, betas: [beta1, beta2], eps, weight_decay } = attributes.read()?;
    let kind = match optimizer {
        OptimiserName::Adam => OptimiserKind::Adam,
        OptimiserName::AdamW => OptimiserKind::Adamw,
    };
    let optimiser = Optimiser { kind, lr, beta1, beta2, eps, weight_decay, clip: 0.0, ema_decay: 0.0, ema_start: 0 };
    Ok(Update { optimiser, accumulate: 1 })
}

/// Computes the case of an optimiser: weights and state after each step with gradients that are given.
pub(super) fn run_optimiser(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    let update = update(attributes)?;
    let first = case.params("in.param.");
    let layout = Layout::from_entries(first.iter().map(|(name, t)| (name.clone(), t.dims().to_vec())).collect());
    if layout.is_empty() {
        return Err(CaseError::tensor("in.param.0", "the case lacks it"));
    }
    let shape = Shape::new(1, 1, 1, layout.len());
    let mut g = Graph::new();
    let numbers = NumberNodes::new(&mut g)?;
    let (row, gradient) = (g.param(WEIGHTS, shape)?, g.input("gradient", shape));
    let norm = optim::update(&mut g, &update, &numbers, row, gradient)?;
    let executable = device.compile(&g, &[norm], &update.first_rows(layout.row(&first)?))?;
    let all = case.params("in.grad.");
    let mut computed = Computed::default();
    for step in 0.. {
        let suffix = format!(".step{step}");
        let of_step = all.iter().filter_map(|(name, t)| Some((name.strip_suffix(&suffix)?.to_owned(), t.clone())));
        let of_step: BTreeMap<String, Tensor> = of_step.collect();
        if of_step.is_empty() {
            break;
        }
        let numbers = optim::numbers(&update, step + 1, 0, update.optimiser.lr);
        executable.run(&[(NUMBERS, &numbers), ("gradient", &layout.row(&of_step)?)])?;
        for (row, name) in [(WEIGHTS, "param"), (EXP_AVG, "exp_avg"), (EXP_AVG_SQ, "exp_avg_sq")] {
            for (key, tensor) in layout.tensors(&executable.weight(row)?) {
                let (dims, values) = (tensor.dims().to_vec(), Values::F32(tensor.into_data()));
                computed.arrays.insert(format!("out.{name}.{key}{suffix}"), Array { dims, values });
            }
        }
    }
    Ok(Results::new(Scale::Op, computed))
}

/// Computes the case of a network that is trained for some steps.
pub(super) fn run_training(train: Train, job: Job) -> Result<Results, CaseError> {
    let Job { case, mut attributes, device, .. } = job;
    let TrainingCase { loss, params, is_trained, inputs, given, prediction, losses } = train(case, &mut attributes)?;
    let update = update(attributes)?;
    let inputs = |step: usize| Ok([inputs(case, step)?, given.clone()].concat());
    let network = CaseGraph {
        graph: loss.graph.clone(),
        inputs: inputs(0)?,
        params,
        outputs: prediction.map(|(name, id)| (name.to_owned(), id)).into_iter().collect(),
        ..CaseGraph::default()
    };
    let layout = Layout::new(&loss, is_trained);
    Training { case, device, loss, network, layout, update, losses, growth: 1.0 }.run(&inputs)
}

/// A training run of some steps.
struct Training<'a> {
    case: &'a Case,
    device: &'a Device,
    loss: LossGraph,
    /// The loss's graph, with the first weights.
    network: CaseGraph,
    /// The trained weights.
    layout: Layout,
    /// What a step does with the gradients.
    update: Update,
    /// The tensor with the losses of each step, and what else is reported.
    losses: &'static str,
    /// The factor of all inputs.
    growth: f32,
}

/// The inputs of a step.
type Inputs<'a> = &'a dyn Fn(usize) -> Result<NamedValues, CaseError>;

/// Inputs times a factor.
fn grown(mut inputs: NamedValues, factor: f32) -> NamedValues {
    inputs.iter_mut().flat_map(|(_, values)| values).for_each(|v| *v *= factor);
    inputs
}

impl Training<'_> {
    fn run(mut self, inputs: Inputs) -> Result<Results, CaseError> {
        let mut results = Results::new(Scale::Model, self.network.run(self.case, self.device)?);
        let first = self.begin(&mut results)?;
        let weights = self.steps(inputs, &mut results)?;
        let steps = self.step_count()?;
        for (name, tensor) in self.layout.tensors(&weights) {
            if let Some(outcome) = self.final_weights(&name, &tensor, &first[&name], self.update.optimiser.lr, steps) {
                let whole = format!("out.final.{name}");
                let part = format!("out_first.final.{name}");
                results.outcomes.insert(if self.case.tensors.contains_key(&whole) { whole } else { part }, outcome);
            }
            insert_norm(&mut results, format!("out_l2.final.{name}"), &tensor);
        }
        Ok(results)
    }

    fn step_count(&self) -> Result<usize, CaseError> {
        let (dims, _) = self.case.f32(self.losses)?;
        dims.first().copied().ok_or_else(|| CaseError::tensor(self.losses, "it must have a row for each step"))
    }

    /// The gradients of the first step, by name. The slope of a ReLU jumps, and where its argument is of rounding size it
    /// is luck on which side of the jump a device is. If the gradients are not those of the reference, the inputs are made
    /// larger by one part in 2^23, and again, until they are: everything is rounded otherwise then. If that does not
    /// help, the inputs stay as they were given.
    fn begin(&mut self, results: &mut Results) -> Result<BTreeMap<String, Tensor>, CaseError> {
        let given = std::mem::take(&mut self.network.inputs);
        for growth in 0..TRIES {
            self.growth = 1.0 + f32::from(growth) * f32::EPSILON;
            self.network.inputs = grown(given.clone(), self.growth);
            let first = self.first_gradients(results)?;
            let of_case = |name: &String| self.case.tensors.get(name).filter(|_| name.starts_with("grad"));
            let mut compared = results.computed.arrays.keys().filter_map(|name| Some((name, of_case(name)?)));
            if compared.all(|(name, expected)| !compare(self.case, name, expected, results).failed()) {
                let said = format!("with inputs larger by {growth} parts in 2^23, see --help on ReLUs");
                results.note = (growth > 0).then_some(said);
                return Ok(first);
            }
        }
        (self.growth, self.network.inputs) = (1.0, given);
        self.first_gradients(results)
    }

    /// The gradients of the first step, by name.
    fn first_gradients(&self, results: &mut Results) -> Result<BTreeMap<String, Tensor>, CaseError> {
        let wrt: Vec<NodeId> = self.layout.entries().iter().map(|(name, _)| self.loss.graph.params()[name]).collect();
        let found = self.network.gradients(self.device, &[(self.loss.loss, vec![1.0])], &wrt)?;
        let mut gradients = BTreeMap::new();
        for ((name, dims), values) in self.layout.entries().iter().zip(found) {
            let values = values.unwrap_or_else(|| vec![0.0; dims.iter().product()]);
            let gradient = Tensor::new(dims.clone(), values);
            for prefix in ["grad", "grad_first"] {
                let name = format!("{prefix}.step0.{name}");
                if let Some(expected) = self.case.tensors.get(&name) {
                    results.computed.arrays.insert(name, first_rows(&gradient, expected));
                }
            }
            insert_norm(results, format!("grad_l2.step0.{name}"), &gradient);
            gradients.insert(name.clone(), gradient);
        }
        Ok(gradients)
    }

    /// Trains for as many steps as the case has losses, compares those, and returns the row of weights. The results get the
    /// weights that the graph itself assigns.
    fn steps(&self, inputs: Inputs, results: &mut Results) -> Result<Vec<f32>, CaseError> {
        let (layout, update) = (&self.layout, &self.update);
        let first = update.first_rows(layout.row(&self.network.params)?);
        let step = TrainStep::new(self.device, &self.loss, layout, update.clone(), &first, &self.network.params)?;
        let (_, expected) = self.case.f32(self.losses)?;
        let mut found = Vec::new();
        for i in 0..self.step_count()? {
            let inputs = grown(inputs(i)?, self.growth);
            let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let report = step.run(i as u64 + 1, 0, update.optimiser.lr, &inputs)?;
            found.push(f64::from(report.loss));
            found.extend(report.others.iter().map(|v| f64::from(*v)));
        }
        if found.len() != expected.len() {
            return Err(CaseError::tensor(self.losses, format!("it must have {} losses", found.len())));
        }
        let floor = self.case.noise_floor.get(self.losses).copied();
        // Each by itself: a small loss must be right beside a large one.
        let each = found.iter().zip(expected);
        let each = each.map(|(a, b)| Comparison::new(&[*a], &[f64::from(*b)], Tolerance::RelativeL2(CLOSE), floor));
        if let Some(worst) = each.max_by(|a, b| a.share().abs().total_cmp(&b.share().abs())) {
            results.outcomes.insert(self.losses.to_owned(), Outcome::Compared(worst));
        }
        for (name, shape) in self.loss.assigned() {
            results.computed.insert(format!("out.final.{name}"), shape, step.row(name)?);
        }
        Ok(step.row(WEIGHTS)?)
    }

    /// Compares the final weights of one tensor. Adam's first steps are about `lr * sign(gradient)`, so an element whose
    /// first gradient is of rounding size may go the other way at every step; the others must be as close as any result.
    fn final_weights(&self, name: &str, found: &Tensor, first: &Tensor, lr: f64, steps: usize) -> Option<Outcome> {
        let tensors = &self.case.tensors;
        let of = |whole: &str, part: &str| {
            let names = [format!("{whole}.{name}"), format!("{part}.{name}")];
            names.into_iter().find(|name| tensors.contains_key(name))
        };
        let expected = &tensors[&of("out.final", "out_first.final")?];
        let gradient = of("grad.step0", "grad_first.step0")?;
        let floor = self.case.noise_floor.get(&gradient).map_or(0.0, |f| f.max_abs_err);
        let (found, first) = (first_rows(found, expected), first_rows(first, expected));
        if found.dims != expected.dims {
            return Some(Outcome::Failed(format!("medfuse gives it the shape {:?}", found.dims)));
        }
        let (found, expected, first) = (found.values.to_f64(), expected.values.to_f64(), first.values.to_f64());
        let unsure: Vec<bool> = first.iter().map(|g| g.abs() <= SURE * floor).collect();
        Some(compare_moved(&found, &expected, &unsure, [0.5 * lr, 2.0 * lr * steps as f64]))
    }
}

/// Compares weights after some steps of Adam. No element may be off by more than the limit of its kind, sure and unsure;
/// the sure ones are compared as a whole too.
fn compare_moved(found: &[f64], expected: &[f64], unsure: &[bool], limits: [f64; 2]) -> Outcome {
    // A weight of 1 is rounded by 6e-8 at every step.
    let limits = limits.map(|limit| limit + 1e-6);
    let of_kind = |kind: bool| {
        let pairs = found.iter().zip(expected).zip(unsure).filter(move |(_, unsure)| **unsure == kind);
        pairs.map(|((a, b), _)| (*a, *b)).unzip::<f64, f64, Vec<f64>, Vec<f64>>()
    };
    let kinds = [of_kind(false), of_kind(true)];
    for ((a, b), limit) in kinds.iter().zip(limits) {
        let each = Comparison::new(a, b, Tolerance::Absolute(limit), None);
        if !each.passed() || b.len() == found.len() && limit == limits[1] {
            return Outcome::Compared(each);
        }
    }
    Outcome::Compared(Comparison::new(&kinds[0].0, &kinds[0].1, Tolerance::RelativeL2(CLOSE), None))
}

/// The tensor, or as many of its first rows as the case has.
fn first_rows(tensor: &Tensor, expected: &Array) -> Array {
    let mut dims = tensor.dims().to_vec();
    if dims.get(1..) == expected.dims.get(1..) {
        dims[0] = dims[0].min(expected.dims[0]);
    }
    let len = dims.iter().product();
    Array { dims, values: Values::F32(tensor.data()[..len].to_vec()) }
}

/// Adds the norm of a tensor.
fn insert_norm(results: &mut Results, name: String, tensor: &Tensor) {
    let norm = tensor.data().iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    results.computed.insert(name, Shape::new(1, 1, 1, 1), vec![norm as f32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_may_be_off_where_rounding_decides() {
        let passes =
            |found: [f64; 2], unsure: [bool; 2]| !compare_moved(&found, &[1.0, 0.1], &unsure, [0.5e-5, 6e-5]).failed();
        assert!(passes([1.0, 0.100_05], [false, true]));
        assert!(!passes([1.0, 0.100_05], [false, false]));
        assert!(!passes([1.000_05, 0.1], [false, true]));
        assert!(!passes([1.0, 0.100_07], [false, true]));
        assert!(passes([1.000_05, 0.100_05], [true, true]));
        assert!(!passes([1.000_05, 0.100_07], [true, true]));
        assert!(!passes([f64::NAN, 0.1], [true, false]));
        // Small weights must be close relative to themselves.
        assert!(compare_moved(&[1.5e-6], &[1e-6], &[false], [0.5e-5, 6e-5]).failed());
    }
}
