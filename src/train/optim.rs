//! Adam and AdamW as nodes of the graph, gradient clipping, accumulation, the moving average of the weights, and the
//! course of the learning rate.

use std::collections::BTreeMap;

use crate::graph::{Graph, GraphError, NodeId};
use crate::models::training::sections::{Optimiser, OptimiserKind, Rate, RateKind};
use crate::ops::pointwise::Pointwise;
use crate::ops::reduce_sum::ReduceSum;
use crate::tensor::{Shape, Tensor};

/// The weight that holds all trained weights.
pub(crate) const WEIGHTS: &str = "weights";
/// Running mean of the gradients.
pub(crate) const EXP_AVG: &str = "optimiser.exp_avg";
/// Running mean of the squared gradients.
pub(crate) const EXP_AVG_SQ: &str = "optimiser.exp_avg_sq";
/// Sum of the gradients of a step's batches.
pub(crate) const ACCUMULATED: &str = "optimiser.accumulated";
/// Exponential moving average of the weights.
pub(crate) const EMA: &str = "ema";
/// The input with the step's numbers, see [`numbers`].
pub(crate) const NUMBERS: &str = "optimiser.numbers";

/// Added to the gradient's norm when clipping (`torch.nn.utils.clip_grad_norm_`).
const CLIP_EPS: f32 = 1e-6;

/// The settings of the update.
#[derive(Clone, PartialEq, Debug)]
pub struct Update {
    /// The optimiser and what goes with it.
    pub optimiser: Optimiser,
    /// Batches whose gradients are averaged for one step, at least 1.
    pub accumulate: usize,
}

impl Default for Update {
    fn default() -> Self {
        Self { optimiser: Optimiser::default(), accumulate: 1 }
    }
}

/// A row as the graph has it, `[1, 1, 1, len]`.
pub(crate) fn row(values: Vec<f32>) -> Tensor {
    Tensor::new(Shape::new(1, 1, 1, values.len()).0, values)
}

impl Update {
    /// The names of the rows that a run changes, all of one length: the trained weights and the optimiser's state.
    pub(crate) fn rows(&self) -> Vec<&'static str> {
        let mut names = vec![WEIGHTS, EXP_AVG, EXP_AVG_SQ];
        if self.accumulate > 1 {
            names.push(ACCUMULATED);
        }
        if self.optimiser.ema_decay > 0.0 {
            names.push(EMA);
        }
        names
    }

    /// The rows before the first step: `weights`, from which their moving average begins, and zeros.
    pub(crate) fn first_rows(&self, weights: Vec<f32>) -> BTreeMap<String, Tensor> {
        let first = |name: &str| match name {
            WEIGHTS | EMA => weights.clone(),
            _ => vec![0.0; weights.len()],
        };
        self.rows().into_iter().map(|name| (name.to_owned(), row(first(name)))).collect()
    }
}

/// How many numbers of a run the graph is given.
const NUMBER_COUNT: usize = 10;

/// The values of the graph's input [`NUMBERS`] for batch `batch` (of `accumulate`, from 0) of step `step`, which counts
/// from 1, at learning rate `lr`, in the order of [`NumberNodes`].
pub(crate) fn numbers(cfg: &Update, step: u64, batch: usize, lr: f64) -> Vec<f32> {
    let seed = 1.0 / cfg.accumulate as f64;
    let keep = if batch == 0 { 0.0 } else { 1.0 };
    let Optimiser { beta1: b1, beta2: b2, .. } = cfg.optimiser;
    let power = step.min(i32::MAX as u64) as i32;
    let (c1, c2) = (1.0 - b1.powi(power), 1.0 - b2.powi(power));
    let decay = match cfg.optimiser.kind {
        OptimiserKind::Adam => 1.0,
        OptimiserKind::Adamw => 1.0 - lr * cfg.optimiser.weight_decay,
    };
    let ema_rate = if step > cfg.optimiser.ema_start { 1.0 - cfg.optimiser.ema_decay } else { 1.0 };
    let last = batch + 1 == cfg.accumulate;
    let numbers: [f64; NUMBER_COUNT] = if last {
        [seed, keep, b1, 1.0 - b1, b2, 1.0 - b2, lr / c1, 1.0 / c2.sqrt(), decay, ema_rate]
    } else {
        // Only the sum of the gradients changes.
        [seed, keep, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    };
    numbers.map(|v| v as f32).to_vec()
}

/// The nodes of [`numbers`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberNodes {
    /// The gradient with respect to the loss itself: one over the batches of a step.
    pub seed: NodeId,
    keep: NodeId,
    betas: [[NodeId; 2]; 2],
    step_size: NodeId,
    correction: NodeId,
    decay: NodeId,
    ema_rate: NodeId,
}

impl NumberNodes {
    /// Adds the input.
    ///
    /// # Errors
    /// None: the slices lie inside the input.
    pub(crate) fn new(g: &mut Graph) -> Result<Self, GraphError> {
        let all = g.input(NUMBERS, Shape::new(1, NUMBER_COUNT, 1, 1));
        let mut next = 0;
        let mut take = |g: &mut Graph| {
            next += 1;
            g.slice(NUMBERS, all, next - 1, 1)
        };
        Ok(Self {
            seed: take(g)?,
            keep: take(g)?,
            betas: [[take(g)?, take(g)?], [take(g)?, take(g)?]],
            step_size: take(g)?,
            correction: take(g)?,
            decay: take(g)?,
            ema_rate: take(g)?,
        })
    }
}

/// Adds the update of `weights` by `gradient`, both rows, and returns the gradient's norm before clipping,
/// `[1, 1, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn update(
    g: &mut Graph,
    cfg: &Update,
    numbers: &NumberNodes,
    weights: NodeId,
    gradient: NodeId,
) -> Result<NodeId, GraphError> {
    let row = g.shape(weights);
    let mut gradient = gradient;
    if cfg.accumulate > 1 {
        let sum = g.param(ACCUMULATED, row)?;
        let add = Pointwise::build(|[sum, keep, grad]| sum * keep + grad);
        gradient = g.apply("update.accumulated", add, &[sum, numbers.keep, gradient])?;
        g.assign(sum, gradient)?;
    }
    let square = g.apply("update.grad_norm", Pointwise::build(|[x]| x.clone() * x), &[gradient])?;
    let square = g.apply("update.grad_norm", ReduceSum::ALL, &[square])?;
    let norm = g.apply("update.grad_norm", Pointwise::build(|[x]| x.sqrt()), &[square])?;
    if cfg.optimiser.clip > 0.0 {
        let max = cfg.optimiser.clip as f32;
        let clip = Pointwise::build(|[grad, norm]| {
            let one = norm.clone().affine(0.0, 1.0);
            let share = norm.clone().affine(0.0, max) / norm.affine(1.0, CLIP_EPS);
            grad * share.min(one)
        });
        gradient = g.apply("update.clip", clip, &[gradient, norm])?;
    }
    if cfg.optimiser.kind == OptimiserKind::Adam && cfg.optimiser.weight_decay > 0.0 {
        let decay = cfg.optimiser.weight_decay as f32;
        let add = Pointwise::build(|[grad, weight]| grad + weight.affine(decay, 0.0));
        gradient = g.apply("update.weight_decay", add, &[gradient, weights])?;
    }
    let new = adam(g, cfg, numbers, weights, gradient)?;
    if cfg.optimiser.ema_decay > 0.0 {
        let ema = g.param(EMA, row)?;
        let follow = Pointwise::build(|[ema, new, rate]| ema.clone() + rate * (new - ema));
        let moved = g.apply("update.ema", follow, &[ema, new, numbers.ema_rate])?;
        g.assign(ema, moved)?;
    }
    Ok(norm)
}

/// The new weights and running means.
fn adam(
    g: &mut Graph,
    cfg: &Update,
    numbers: &NumberNodes,
    weights: NodeId,
    gradient: NodeId,
) -> Result<NodeId, GraphError> {
    let row = g.shape(weights);
    let (mean, square) = (g.param(EXP_AVG, row)?, g.param(EXP_AVG_SQ, row)?);
    let [[b1, c1], [b2, c2]] = numbers.betas;
    let follow = Pointwise::build(|[mean, grad, b, c]| mean * b + grad * c);
    let new_mean = g.apply("update.exp_avg", follow, &[mean, gradient, b1, c1])?;
    let follow = Pointwise::build(|[mean, grad, b, c]| mean * b + grad.clone() * grad * c);
    let new_square = g.apply("update.exp_avg_sq", follow, &[square, gradient, b2, c2])?;
    let eps = cfg.optimiser.eps as f32;
    let step = Pointwise::build(|[weight, mean, square, size, correction, decay]| {
        weight * decay - size * mean / (square.sqrt() * correction).affine(1.0, eps)
    });
    let inputs = [weights, new_mean, new_square, numbers.step_size, numbers.correction, numbers.decay];
    let new = g.apply("update.weights", step, &inputs)?;
    g.assign(mean, new_mean)?;
    g.assign(square, new_square)?;
    g.assign(weights, new)?;
    Ok(new)
}

/// The learning rate of step `step`, 1 to `steps`.
pub(crate) fn learning_rate(optimiser: &Optimiser, rate: &Rate, step: u64, steps: u64) -> f64 {
    let lr = optimiser.lr;
    if step <= rate.warmup {
        return lr * step as f64 / rate.warmup as f64;
    }
    let done = (step - rate.warmup) as f64 / steps.saturating_sub(rate.warmup).max(1) as f64;
    let between = |share: f64| lr * (rate.final_share + (1.0 - rate.final_share) * share);
    match rate.kind {
        RateKind::Constant => lr,
        RateKind::Linear => between(1.0 - done.min(1.0)),
        RateKind::Step => lr * rate.gamma.powf(((step - rate.warmup) / rate.every.max(1)) as f64),
        RateKind::Cosine => between(0.5 + 0.5 * (std::f64::consts::PI * done.min(1.0)).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_their_courses() {
        let optimiser = Optimiser { lr: 2.0, ..Optimiser::default() };
        let at = |kind, step| {
            let rate = Rate { kind, warmup: 4, final_share: 0.1, every: 3, gamma: 0.5 };
            learning_rate(&optimiser, &rate, step, 14)
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        for kind in [RateKind::Constant, RateKind::Linear, RateKind::Step, RateKind::Cosine] {
            close(at(kind, 1), 0.5);
            close(at(kind, 4), 2.0);
        }
        close(at(RateKind::Constant, 14), 2.0);
        close(at(RateKind::Linear, 9), 1.1);
        close(at(RateKind::Linear, 14), 0.2);
        close(at(RateKind::Cosine, 9), 1.1);
        close(at(RateKind::Cosine, 14), 0.2);
        close(at(RateKind::Step, 6), 2.0);
        close(at(RateKind::Step, 10), 0.5);
    }

    #[test]
    fn batches_before_the_last_only_accumulate() {
        let optimiser = Optimiser { ema_decay: 0.9, ..Optimiser::default() };
        let cfg = Update { optimiser, accumulate: 2 };
        assert_eq!(numbers(&cfg, 3, 0, 0.1), [0.5, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        let last = numbers(&cfg, 3, 1, 0.1);
        assert_eq!(last[1], 1.0);
        assert_eq!(last[9], 0.1);
        assert!((f64::from(last[6]) - 0.1 / (1.0 - 0.9f64.powi(3))).abs() < 1e-6);
    }
}
