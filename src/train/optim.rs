//! Adam and AdamW as nodes of the graph, gradient clipping, accumulation, the moving average of the weights, and the
//! course of the learning rate.

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, GraphError, NodeId};
use crate::ops::pointwise::Pointwise;
use crate::ops::reduce_sum::ReduceSum;
use crate::tensor::Shape;

/// The weight that holds all trained weights.
pub const WEIGHTS: &str = "weights";
/// Running mean of the gradients.
pub const EXP_AVG: &str = "optimiser.exp_avg";
/// Running mean of the squared gradients.
pub const EXP_AVG_SQ: &str = "optimiser.exp_avg_sq";
/// Sum of the gradients of a step's batches.
pub const ACCUMULATED: &str = "optimiser.accumulated";
/// Exponential moving average of the weights.
pub const EMA: &str = "ema";
/// The input with the step's numbers, see [`numbers`].
pub const NUMBERS: &str = "optimiser.numbers";

/// Added to the gradient's norm when clipping (`torch.nn.utils.clip_grad_norm_`).
const CLIP_EPS: f32 = 1e-6;

/// Which optimiser.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimiser {
    /// Adam (Kingma and Ba 2015); weight decay is added to the gradient.
    Adam,
    /// AdamW (Loshchilov and Hutter 2019); weights decay apart from the gradient.
    Adamw,
}

/// The settings of the optimiser; names and meanings are PyTorch's.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Which one.
    pub kind: Optimiser,
    /// Decay of the two running means.
    pub betas: [f64; 2],
    /// Added to the root of the second mean.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient, 0 for any.
    pub max_grad_norm: f64,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// Decay of the moving average of the weights, 0 for none.
    pub ema_decay: f64,
    /// Steps before the moving average begins.
    pub ema_start: u64,
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        Self {
            kind: Optimiser::Adamw,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 0.0,
            accumulate: 1,
            ema_decay: 0.0,
            ema_start: 0,
        }
    }
}

impl OptimiserConfig {
    /// The names of the weights that make up the optimiser's state, all as long as the trained weights.
    pub fn state(&self) -> Vec<&'static str> {
        let mut names = vec![EXP_AVG, EXP_AVG_SQ];
        if self.accumulate > 1 {
            names.push(ACCUMULATED);
        }
        if self.ema_decay > 0.0 {
            names.push(EMA);
        }
        names
    }
}

/// How many numbers of a run the graph is given.
const NUMBER_COUNT: usize = 10;

/// The values of the graph's input [`NUMBERS`] for batch `batch` (of `accumulate`, from 0) of step `step`, which counts
/// from 1, at learning rate `lr`, in the order of [`NumberNodes`].
pub fn numbers(cfg: &OptimiserConfig, step: u64, batch: usize, lr: f64) -> Vec<f32> {
    let seed = 1.0 / cfg.accumulate as f64;
    let keep = if batch == 0 { 0.0 } else { 1.0 };
    let [b1, b2] = cfg.betas;
    let power = step.min(i32::MAX as u64) as i32;
    let (c1, c2) = (1.0 - b1.powi(power), 1.0 - b2.powi(power));
    let decay = match cfg.kind {
        Optimiser::Adam => 1.0,
        Optimiser::Adamw => 1.0 - lr * cfg.weight_decay,
    };
    let ema_rate = if step > cfg.ema_start { 1.0 - cfg.ema_decay } else { 1.0 };
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
pub struct NumberNodes {
    /// The gradient by the loss: one over the batches of a step.
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
    pub fn new(g: &mut Graph) -> Result<Self, GraphError> {
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
pub fn update(
    g: &mut Graph,
    cfg: &OptimiserConfig,
    numbers: &NumberNodes,
    weights: NodeId,
    gradient: NodeId,
) -> Result<NodeId, GraphError> {
    let row = g.shape(weights);
    let mut gradient = gradient;
    if cfg.accumulate > 1 {
        let sum = g.param(ACCUMULATED, row)?;
        let add = Pointwise::build(|[sum, keep, grad]| sum * keep + grad);
        gradient = g.apply(ACCUMULATED, add, &[sum, numbers.keep, gradient])?;
        g.assign(sum, gradient)?;
    }
    let square = g.apply("grad_norm", Pointwise::build(|[x]| x.clone() * x), &[gradient])?;
    let square = g.apply("grad_norm", ReduceSum::ALL, &[square])?;
    let norm = g.apply("grad_norm", Pointwise::build(|[x]| x.sqrt()), &[square])?;
    if cfg.max_grad_norm > 0.0 {
        let max = cfg.max_grad_norm as f32;
        let clip = Pointwise::build(|[grad, norm]| {
            let one = norm.clone().affine(0.0, 1.0);
            let share = norm.clone().affine(0.0, max) / norm.affine(1.0, CLIP_EPS);
            grad * share.min(one)
        });
        gradient = g.apply("clip", clip, &[gradient, norm])?;
    }
    if cfg.kind == Optimiser::Adam && cfg.weight_decay > 0.0 {
        let decay = cfg.weight_decay as f32;
        let add = Pointwise::build(|[grad, weight]| grad + weight.affine(decay, 0.0));
        gradient = g.apply("weight_decay", add, &[gradient, weights])?;
    }
    let new = adam(g, cfg, numbers, weights, gradient)?;
    if cfg.ema_decay > 0.0 {
        let ema = g.param(EMA, row)?;
        let follow = Pointwise::build(|[ema, new, rate]| ema.clone() + rate * (new - ema));
        let moved = g.apply(EMA, follow, &[ema, new, numbers.ema_rate])?;
        g.assign(ema, moved)?;
    }
    Ok(norm)
}

/// The new weights and running means.
fn adam(
    g: &mut Graph,
    cfg: &OptimiserConfig,
    numbers: &NumberNodes,
    weights: NodeId,
    gradient: NodeId,
) -> Result<NodeId, GraphError> {
    let row = g.shape(weights);
    let (mean, square) = (g.param(EXP_AVG, row)?, g.param(EXP_AVG_SQ, row)?);
    let [[b1, c1], [b2, c2]] = numbers.betas;
    let follow = Pointwise::build(|[mean, grad, b, c]| mean * b + grad * c);
    let new_mean = g.apply(EXP_AVG, follow, &[mean, gradient, b1, c1])?;
    let follow = Pointwise::build(|[mean, grad, b, c]| mean * b + grad.clone() * grad * c);
    let new_square = g.apply(EXP_AVG_SQ, follow, &[square, gradient, b2, c2])?;
    let eps = cfg.eps as f32;
    let step = Pointwise::build(|[weight, mean, square, size, correction, decay]| {
        weight * decay - size * mean / (square.sqrt() * correction).affine(1.0, eps)
    });
    let inputs = [weights, new_mean, new_square, numbers.step_size, numbers.correction, numbers.decay];
    let new = g.apply(WEIGHTS, step, &inputs)?;
    g.assign(mean, new_mean)?;
    g.assign(square, new_square)?;
    g.assign(weights, new)?;
    Ok(new)
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrKind {
    /// As it is: what the reference does in effect.
    Constant,
    /// In a straight line to the last rate.
    Linear,
    /// Times `gamma` every `step_every` steps.
    Step,
    /// Along half a cosine to the last rate.
    Cosine,
}

/// The course of the learning rate.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrConfig {
    /// The rate after the warm-up.
    pub lr: f64,
    /// How it goes on.
    pub kind: LrKind,
    /// Steps over which it rises from 0.
    pub warmup: u64,
    /// The rate at the last step, as a share of `lr`, for `linear` and `cosine`.
    pub last: f64,
    /// Steps between reductions, for `step`.
    pub step_every: u64,
    /// What a reduction multiplies by, for `step`.
    pub gamma: f64,
}

impl Default for LrConfig {
    fn default() -> Self {
        Self { lr: 1e-5, kind: LrKind::Constant, warmup: 0, last: 0.0, step_every: 100_000, gamma: 0.1 }
    }
}

impl LrConfig {
    /// The rate of step `step`, 1 to `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step <= self.warmup {
            return self.lr * step as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        let between = |share: f64| self.lr * (self.last + (1.0 - self.last) * share);
        match self.kind {
            LrKind::Constant => self.lr,
            LrKind::Linear => between(1.0 - done.min(1.0)),
            LrKind::Step => self.lr * self.gamma.powf(((step - self.warmup) / self.step_every.max(1)) as f64),
            LrKind::Cosine => between(0.5 + 0.5 * (std::f64::consts::PI * done.min(1.0)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_their_courses() {
        let cfg = |kind| LrConfig { lr: 2.0, kind, warmup: 4, last: 0.1, step_every: 3, gamma: 0.5 };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        for kind in [LrKind::Constant, LrKind::Linear, LrKind::Step, LrKind::Cosine] {
            close(cfg(kind).at(1, 14), 0.5);
            close(cfg(kind).at(4, 14), 2.0);
        }
        close(cfg(LrKind::Constant).at(14, 14), 2.0);
        close(cfg(LrKind::Linear).at(9, 14), 1.1);
        close(cfg(LrKind::Linear).at(14, 14), 0.2);
        close(cfg(LrKind::Cosine).at(9, 14), 1.1);
        close(cfg(LrKind::Cosine).at(14, 14), 0.2);
        close(cfg(LrKind::Step).at(6, 14), 2.0);
        close(cfg(LrKind::Step).at(10, 14), 0.5);
    }

    #[test]
    fn batches_before_the_last_only_accumulate() {
        let cfg = OptimiserConfig { accumulate: 2, ema_decay: 0.9, ..OptimiserConfig::default() };
        assert_eq!(numbers(&cfg, 3, 0, 0.1), [0.5, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        let last = numbers(&cfg, 3, 1, 0.1);
        assert_eq!(last[1], 1.0);
        assert_eq!(last[9], 0.1);
        assert!((f64::from(last[6]) - 0.1 / (1.0 - 0.9f64.powi(3))).abs() < 1e-6);
    }
}
