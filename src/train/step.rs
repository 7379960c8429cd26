//! One training step as a graph: forward, backward and update, planned together and run at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::optim::{self, NUMBERS, NumberNodes, Update, WEIGHTS};
use crate::device::{Device, Executable, ParamSource, RunError};
use crate::graph::fuse::{fuse, prune};
use crate::graph::{Graph, GraphError, Kind, Node, NodeId, Phase, Plan};
use crate::models::training::LossGraph;
use crate::ops::gradients_in_segments;
use crate::ops::pointwise::Pointwise;
use crate::tensor::Tensor;

/// The trained weights in the order of their row, with the dimensions of their checkpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Layout(Vec<(String, Vec<usize>)>);

impl Layout {
    /// Those weights of a graph that its loss depends on and that `trained` names.
    pub(crate) fn new(graph: &LossGraph, trained: impl Fn(&str) -> bool) -> Self {
        let (used, _) = prune(&graph.graph, &[graph.loss]);
        let weight = |node: &Node| match &node.kind {
            Kind::Param { dims } if trained(&node.name) => Some((node.name.clone(), dims.clone())),
            _ => None,
        };
        let mut all: Vec<(String, Vec<usize>)> = used.nodes().iter().filter_map(weight).collect();
        all.sort();
        Self(all)
    }

    /// The layout of these names and dimensions.
    pub(crate) fn from_entries(entries: Vec<(String, Vec<usize>)>) -> Self {
        Self(entries)
    }

    /// The first weight that two layouts do not share.
    pub(crate) fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let longer = if self.0.len() >= other.0.len() { self } else { other };
        let differs = |i: &usize| self.0.get(*i) != other.0.get(*i);
        (0..longer.0.len()).find(differs).map(|i| longer.0[i].0.as_str())
    }

    /// Names and dimensions, in order.
    pub(crate) fn entries(&self) -> &[(String, Vec<usize>)] {
        &self.0
    }

    /// Elements of the row.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    /// Whether nothing is trained.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The row of these weights.
    ///
    /// # Errors
    /// [`RunError::MissingWeight`] if one is not there or of another size.
    pub(crate) fn row(&self, weights: &dyn ParamSource) -> Result<Vec<f32>, RunError> {
        let mut row = Vec::with_capacity(self.len());
        for (name, dims) in &self.0 {
            let fits = |t: &&Tensor| t.data().len() == dims.iter().product::<usize>();
            let found = weights.param(name).filter(fits).ok_or_else(|| RunError::MissingWeight(name.clone()))?;
            row.extend_from_slice(found.data());
        }
        Ok(row)
    }

    /// The weights of a row by name.
    pub(crate) fn tensors(&self, row: &[f32]) -> BTreeMap<String, Tensor> {
        let mut rest = row;
        let mut take = |(name, dims): &(String, Vec<usize>)| {
            let (this, next) = rest.split_at(dims.iter().product());
            rest = next;
            (name.clone(), Tensor::new(dims.clone(), this.to_vec()))
        };
        self.0.iter().map(&mut take).collect()
    }
}

/// What one batch gave.
#[derive(Clone, PartialEq, Debug)]
pub struct BatchReport {
    /// The loss.
    pub loss: f32,
    /// The norm of the gradient so far, before clipping.
    pub grad_norm: f32,
    /// The graph's other reports.
    pub others: Vec<f32>,
}

/// The training step of a network on a device; the weights and the optimiser's state live in it.
#[derive(Debug)]
pub struct TrainStep {
    executable: Executable,
    update: Update,
    reports: usize,
}

impl TrainStep {
    /// Plans the step that trains the weights of `layout`. `state` holds the rows [`WEIGHTS`] and
    /// [`Update::rows`] and what [`LossGraph::assigned`] names, `frozen` whatever else the graph reads.
    ///
    /// # Errors
    /// [`RunError`] if an operation has no gradient or the step does not fit the device.
    pub(crate) fn new(
        device: &Device,
        graph: &LossGraph,
        layout: &Layout,
        update: Update,
        state: &BTreeMap<String, Tensor>,
        frozen: &dyn ParamSource,
    ) -> Result<Self, RunError> {
        let (graph, outputs) = training_graph(graph, layout, &update)?;
        let executable = device.compile(&graph, &outputs, &Either(state, frozen))?;
        Ok(Self { executable, update, reports: outputs.len() - 2 })
    }

    /// The plan, for its memory.
    pub(crate) fn plan(&self) -> &Plan {
        self.executable.plan()
    }

    /// What runs the plan, for timings of its operations.
    pub(crate) fn executable(&self) -> &Executable {
        &self.executable
    }

    /// Runs batch `batch` (of `accumulate`) of step `step` (from 1); the last one changes the weights.
    ///
    /// # Errors
    /// [`RunError::NotFinite`] with the first layer whose result is not finite; the weights are as they were.
    pub(crate) fn run(
        &self,
        step: u64,
        batch: usize,
        lr: f64,
        inputs: &[(&str, &[f32])],
    ) -> Result<BatchReport, RunError> {
        let numbers = optim::numbers(&self.update, step, batch, lr);
        let mut all: Vec<(&str, &[f32])> = inputs.to_vec();
        all.push((NUMBERS, &numbers));
        let outputs = self.executable.run(&all)?;
        let value = |i: usize| outputs[i][0];
        let others = (0..self.reports).map(|i| value(i + 2)).collect();
        Ok(BatchReport { loss: value(0), grad_norm: value(1), others })
    }

    /// The present values of a row, [`WEIGHTS`] or one of [`Update::rows`], or of a weight that the graph assigns.
    ///
    /// # Errors
    /// [`RunError`] if there is no such row or the GPU fails.
    pub(crate) fn row(&self, name: &str) -> Result<Vec<f32>, RunError> {
        self.executable.weight(name)
    }
}

/// The first of two sources that has a weight.
struct Either<'a>(&'a dyn ParamSource, &'a dyn ParamSource);

impl ParamSource for Either<'_> {
    fn param(&self, name: &str) -> Option<&Tensor> {
        self.0.param(name).or_else(|| self.1.param(name))
    }
}

/// Forward, backward and update: the graph and its outputs, loss, norm of the gradient and reports.
fn training_graph(loss: &LossGraph, layout: &Layout, update: &Update) -> Result<(Graph, Vec<NodeId>), GraphError> {
    let names: Vec<String> = layout.entries().iter().map(|(name, _)| name.clone()).collect();
    let wanted: Vec<NodeId> = std::iter::once(loss.loss).chain(loss.reports.iter().copied()).collect();
    let rowed = loss.graph.with_weights_in_a_row(WEIGHTS, &names, &wanted);
    let kept: Vec<NodeId> = rowed.nodes.into_iter().chain([rowed.row]).chain(rowed.parts).collect();
    // Gradients are taken of the fused operations, which read less and keep less.
    let (mut g, kept) = fuse(&rowed.graph, &kept);
    let (reports, rest) = kept.split_at(wanted.len());
    let (row, parts) = (rest[0], &rest[1..]);
    let numbers = NumberNodes::new(&mut g)?;
    // The root of their number is the number of segments that keeps the least (Chen et al. 2016).
    let operations = g.nodes().iter().filter(|node| matches!(node.kind, Kind::Op(_))).count();
    let segments = if loss.recompute { operations.isqrt() } else { 1 };
    let grads = gradients_in_segments(&mut g, &[(reports[0], numbers.seed)], parts, segments)?;
    let mut known = Vec::with_capacity(parts.len());
    for (grad, &part) in grads.into_iter().zip(parts) {
        known.push(match grad {
            Some(grad) => grad,
            // The loss depends on it only through what has no slope.
            None => {
                let zero = Pointwise::build(|[x]| x.affine(0.0, 0.0));
                g.in_phase(Phase::Backward, |g| g.apply("no gradient", zero, &[part]))?
            }
        });
    }
    let gradient = g.flatten("gradient", &known);
    let norm = g.in_phase(Phase::Update, |g| optim::update(g, update, &numbers, row, gradient))?;
    let outputs = [reports[0], norm].into_iter().chain(reports[1..].iter().copied()).collect();
    Ok((g, outputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::training::loss::mse;
    use crate::models::training::sections::{Optimiser, OptimiserKind};
    use crate::ops::testing::{gpu, random};
    use crate::tensor::Shape;
    use crate::train::optim::{EMA, EXP_AVG, EXP_AVG_SQ};

    /// The mean squared distance of `a * x + b` to `y`, by element.
    fn line() -> LossGraph {
        let shape = Shape::new(1, 1, 2, 3);
        let mut g = Graph::new();
        let (x, y) = (g.input("x", shape), g.input("y", shape));
        let a = g.param("a", shape).unwrap();
        let b = g.param("b", shape).unwrap();
        let at = g.apply("line", Pointwise::build(|[a, x, b]| a * x + b), &[a, x, b]).unwrap();
        let loss = mse(&mut g, at, y).unwrap();
        LossGraph { graph: g, loss, reports: vec![loss], recompute: false }
    }

    /// What [`line`]'s weights are after some steps of AdamW with clipping and a moving average, in `f64`.
    fn by_hand(cfg: &Update, w: &mut [f64; 12], batches: &[(Vec<f32>, Vec<f32>)], lr: f64) -> [f64; 12] {
        let (mut m, mut v, mut ema) = ([0f64; 12], [0f64; 12], *w);
        for (step, group) in batches.chunks(cfg.accumulate).enumerate() {
            let mut grad = [0f64; 12];
            for (x, y) in group {
                for i in 0..6 {
                    let d = w[i] * f64::from(x[i]) + w[6 + i] - f64::from(y[i]);
                    grad[i] += d * f64::from(x[i]) / 3.0 / cfg.accumulate as f64;
                    grad[6 + i] += d / 3.0 / cfg.accumulate as f64;
                }
            }
            let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
            let clip = (cfg.optimiser.clip / (norm + 1e-6)).min(1.0);
            let Optimiser { beta1: b1, beta2: b2, kind, weight_decay, .. } = cfg.optimiser;
            let power = step as i32 + 1;
            for i in 0..12 {
                let mut g = grad[i] * clip;
                if kind == OptimiserKind::Adam {
                    g += weight_decay * w[i];
                } else {
                    w[i] -= lr * weight_decay * w[i];
                }
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let denominator = (v[i] / (1.0 - b2.powi(power))).sqrt() + cfg.optimiser.eps;
                w[i] -= lr * m[i] / (1.0 - b1.powi(power)) / denominator;
                ema[i] += (1.0 - cfg.optimiser.ema_decay) * (w[i] - ema[i]);
            }
        }
        ema
    }

    #[test]
    fn steps_are_those_of_the_definition_on_both_devices() {
        for (kind, accumulate) in [(OptimiserKind::Adam, 1), (OptimiserKind::Adamw, 1), (OptimiserKind::Adamw, 3)] {
            let optimiser = Optimiser { kind, clip: 0.4, weight_decay: 0.1, ema_decay: 0.9, ..Optimiser::default() };
            let cfg = Update { optimiser, accumulate };
            let graph = line();
            let layout = Layout::new(&graph, |_| true);
            let first = random(12, 1);
            let batches: Vec<_> = (0..6).map(|i| (random(6, 10 + i), random(6, 20 + i))).collect();
            let mut expected: [f64; 12] = std::array::from_fn(|i| f64::from(first[i]));
            let ema = by_hand(&cfg, &mut expected, &batches, 0.05);
            let state = cfg.first_rows(first);
            for device in [Device::Cpu, Device::Gpu(gpu())] {
                let step = TrainStep::new(&device, &graph, &layout, cfg.clone(), &state, &BTreeMap::new()).unwrap();
                for (i, (x, y)) in batches.iter().enumerate() {
                    let at = (i / accumulate) as u64 + 1;
                    let report = step.run(at, i % accumulate, 0.05, &[("x", x), ("y", y)]).unwrap();
                    assert_eq!(report.others, [report.loss]);
                }
                let close = |found: Vec<f32>, expected: &[f64]| {
                    for (a, b) in found.iter().zip(expected) {
                        assert!((f64::from(*a) - b).abs() < 1e-5, "{kind:?} {accumulate}: {a} is not {b}");
                    }
                };
                close(step.row(WEIGHTS).unwrap(), &expected);
                close(step.row(EMA).unwrap(), &ema);
                assert!(step.row(EXP_AVG_SQ).unwrap().iter().all(|v| *v > 0.0));
            }
        }
    }

    #[test]
    fn a_step_that_fails_changes_nothing_and_names_the_layer() {
        let graph = line();
        let layout = Layout::new(&graph, |_| true);
        let cfg = Update::default();
        let row = || Tensor::new([1, 1, 1, 12], random(12, 1));
        let state = [WEIGHTS, EXP_AVG, EXP_AVG_SQ].map(|name| (name.to_owned(), row())).into();
        let mut x = random(6, 2);
        x[3] = f32::NAN;
        for device in [Device::Cpu, Device::Gpu(gpu())] {
            let step = TrainStep::new(&device, &graph, &layout, cfg.clone(), &state, &BTreeMap::new()).unwrap();
            let error = step.run(1, 0, 0.1, &[("x", &x), ("y", &random(6, 3))]).unwrap_err();
            assert!(matches!(&error, RunError::NotFinite { layer: Some(layer) } if layer == "line"), "{error:?}");
            assert_eq!(step.row(WEIGHTS).unwrap(), row().into_data());
            assert_eq!(step.row(EXP_AVG).unwrap(), row().into_data());
        }
    }
}
