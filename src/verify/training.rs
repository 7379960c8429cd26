//! Cases of training: losses, optimisers, and training steps of whole networks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::attributes::{AttributeError, Attributes};
use super::case::{Array, Case, Values};
use super::compare::{Comparison, Scale, Tolerance};
use super::error::CaseError;
use super::models::{head, lkc_config, params, schedule, unet_config, weights};
use super::network::{Network, Results};
use super::subject::Job;
use super::{Outcome, compare};
use crate::device::Device;
use crate::diffusion::{NoiseSchedule, q_sample_batch};
use crate::graph::{Graph, NodeId};
use crate::models::dm_fnet::stage1;
use crate::models::dm_fnet::stage2::fusion_loss;
use crate::models::lkc_funet::training::{self as lkc, lkc_loss};
use crate::models::training::LossGraph;
use crate::models::training::loss::{FusionLossConfig, constants, local_variance};
use crate::models::training::sections::{Optimiser, OptimiserKind};
use crate::ops::pointwise::Pointwise;
use crate::tensor::{Shape, Tensor};
use crate::train::optim::{self, EXP_AVG, EXP_AVG_SQ, NUMBERS, NumberNodes, Update, WEIGHTS};
use crate::train::step::{Layout, TrainStep};
use crate::weights::is_buffer;

/// How close the losses of training steps and the final weights must come, relative to them.
const CLOSE: f64 = 1e-4;
/// How often the first step may begin again, see [`Training::begin`].
const TRIES: u16 = 32;
/// A first gradient that is not this many times the reference's largest error of its tensor is of rounding size.
const SURE: f64 = 100.0;

/// What DM-FNet's parts of a loss weigh.
#[derive(Clone, Copy, Deserialize)]
struct LossEntries {
    alpha: f32,
    intensity_weight: f32,
    ssim_weight: f32,
}

/// Computes the case of DM-FNet's loss: its parts, and their gradients with respect to the fused image.
pub(super) fn run_dm_fnet_loss(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    let entries: LossEntries = attributes.read()?;
    let mut results = run_fusion_loss(case, device, entries, "", true)?;
    if case.tensors.contains_key("out_clamped.total") {
        results.arrays.extend(run_fusion_loss(case, device, entries, "_clamped", false)?.arrays);
    }
    let window = case.tensors.get("act.window").zip(constants().remove("loss.gaussian"));
    if let Some((expected, window)) = window {
        let array = Array { dims: expected.dims.clone(), values: Values::F32(window.into_data()) };
        results.arrays.insert("act.window".into(), array);
    }
    Ok(results)
}

/// DM-FNet's loss, as `out{suffix}.*` and `grad{suffix}.*`.
fn run_fusion_loss(
    case: &Case,
    device: &Device,
    entries: LossEntries,
    suffix: &str,
    nan_switch: bool,
) -> Result<Results, CaseError> {
    let LossEntries { alpha: gradient, intensity_weight: intensity, ssim_weight: ssim } = entries;
    let loss = FusionLossConfig { intensity, gradient, ssim, nan_switch, ..FusionLossConfig::default() };
    let mut network = Network { params: constants(), ..Network::default() };
    let (fused, other, mri) = (network.input(case, "fused")?, network.input(case, "vis")?, network.input(case, "ir")?);
    let g = &mut network.graph;
    let loss = fusion_loss(g, &loss, fused, mri, other)?;
    let weight = entries.ssim_weight;
    let lack = g.apply("lssim", Pointwise::build(|[ssim]| ssim.affine(-weight, weight)), &[loss.ssim])?;
    let mut parts = vec![("total", loss.total), ("loss_in", loss.intensity), ("loss_grad", loss.gradient)];
    parts.extend([("ssim", loss.ssim), ("lssim", lack), ("l_sobel", loss.edges)]);
    for (name, image) in [("act.sigma_sq_ir", mri), ("act.sigma_sq_vis", other)] {
        network.outputs.push((name.into(), local_variance(g, image)?));
    }
    run_parts(&mut network, case, device, fused, &parts, suffix)
}

/// What is read where there is nothing to read.
#[derive(Deserialize)]
struct NoEntries;

/// Computes the case of LKC-FUNet's loss: its parts, and their gradients with respect to the fused image.
pub(super) fn run_lkc_loss(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    attributes.read::<NoEntries>()?;
    let mut network = Network { params: constants(), ..Network::default() };
    let fused = network.input(case, "fused")?;
    let (mri, other) = (network.input(case, "mri")?, network.input(case, "other")?);
    let loss = lkc_loss(&mut network.graph, &FusionLossConfig::lkc(), fused, mri, other)?;
    let parts = [("total", loss.total), ("loss_in", loss.intensity), ("loss_grad", loss.gradient)];
    run_parts(&mut network, case, device, fused, &[&parts[..], &[("loss_ssim", loss.ssim)]].concat(), "")
}

/// The parts of a loss, and the gradients with respect to `fused` of those parts of which the case has them.
fn run_parts(
    network: &mut Network,
    case: &Case,
    device: &Device,
    fused: NodeId,
    parts: &[(&str, NodeId)],
    suffix: &str,
) -> Result<Results, CaseError> {
    network.outputs.extend(parts.iter().map(|(name, id)| (format!("out{suffix}.{name}"), *id)));
    let mut results = network.run(case, device, Scale::Model)?;
    for (part, id) in parts {
        let name = format!("grad{suffix}.{part}");
        if case.tensors.contains_key(&name) {
            let found = network.gradients(device, &[(*id, vec![1.0])], &[fused])?.swap_remove(0);
            if let Some(grad) = found {
                results.insert(name, network.graph.shape(fused), grad);
            }
        }
    }
    Ok(results)
}

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
fn update(attributes: Attributes) -> Result<Update, AttributeError> {
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
    let mut results = Results::new(Scale::Op);
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
                results.arrays.insert(format!("out.{name}.{key}{suffix}"), Array { dims, values });
            }
        }
    }
    Ok(results)
}

/// Computes the case of stage I: the UNet learns from noisy images, whose noise is given.
pub(super) fn run_stage1(job: Job) -> Result<Results, CaseError> {
    let Job { case, mut attributes, device, .. } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let config = unet_config(&weights, attributes.nested("unet", "UNet")?)?;
    levels_are_of_steps(case, &mut attributes)?;
    let update = update(attributes)?;
    let (shape, _) = case.nchw("in.x_start.step0")?;
    let loss = stage1::loss_graph(&config, 0.0, shape.n(), shape.h())?;
    let prediction = loss.graph.marks().iter().find(|(name, _)| name == "denoise_fn.final_conv").map(|(_, id)| *id);
    let inputs = |step: usize| {
        let of = |name: &str| case.f32(&format!("in.{name}.step{step}")).map(|(_, values)| values);
        let (x_0, levels, noise) = (of("x_start")?, of("noise_level")?, of("noise")?);
        let x_t = q_sample_batch(x_0, levels, noise);
        Ok(vec![("x_0".to_owned(), x_0.to_vec()), ("x_t".to_owned(), x_t), ("level".to_owned(), levels.to_vec())])
    };
    let network = Network { graph: loss.graph.clone(), params: params(&weights), ..Network::default() };
    Training { case, device, loss, network, update, losses: "out.loss", growth: 1.0 }.run(
        "act.x_recon.step0",
        prediction,
        &inputs,
    )
}

/// Checks the levels that a case gives against the steps `t` of the schedule that it says they were drawn at: a level is
/// between that of the step before and that of its own.
fn levels_are_of_steps(case: &Case, attributes: &mut Attributes) -> Result<(), CaseError> {
    let steps = attributes.take("t").unwrap_or_default();
    let tables = NoiseSchedule::new(&schedule(attributes.nested("schedule", "schedule")?)?).sqrt_alphas_cumprod_prev;
    for (i, t) in steps.as_array().into_iter().flatten().enumerate() {
        let ends = t.as_u64().and_then(|t| tables.get((t as usize).checked_sub(1)?..)?.first_chunk::<2>());
        let name = format!("in.noise_level.step{i}");
        let (_, levels) = case.f32(&name)?;
        let within = |[before, own]: &[f64; 2]| levels.iter().all(|v| (*own as f32..=*before as f32).contains(v));
        if !ends.is_some_and(within) {
            return Err(CaseError::tensor(&name, format!("it is not of step {t} of the schedule")));
        }
    }
    Ok(())
}

/// Computes the case of stage II: the fusion head learns from features that are given.
pub(super) fn run_stage2(job: Job) -> Result<Results, CaseError> {
    let Job { case, mut attributes, device, .. } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let features = case.features.as_deref().ok_or_else(|| attributes.error("the case names no features"))?;
    let mut network = head(&weights, attributes.nested("head", "Fusion_Head")?, &Case::load(features)?)?;
    let alpha = attributes.take("alpha").and_then(|alpha| alpha.as_f64());
    let gradient = alpha.ok_or_else(|| attributes.error("alpha, the weight of the edges, is missing"))? as f32;
    let update = update(attributes)?;
    let fused = network.outputs[0].1;
    let (other, mri) = (network.input(case, "vis")?, network.input(case, "ir")?);
    let config = FusionLossConfig { gradient, ..FusionLossConfig::default() };
    let loss = fusion_loss(&mut network.graph, &config, fused, mri, other)?;
    let reports = vec![loss.intensity, loss.gradient];
    let loss = LossGraph { graph: network.graph.clone(), loss: loss.total, reports, recompute: false };
    let given = network.inputs.clone();
    let training = Training { case, device, loss, network, update, losses: "out.losses", growth: 1.0 };
    training.run("act.fused.step0", Some(fused), &|_| Ok(given.clone()))
}

/// Computes the case of LKC-FUNet's training: the network learns from pairs that are given.
pub(super) fn run_lkc(job: Job) -> Result<Results, CaseError> {
    let Job { case, mut attributes, device, .. } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let config = lkc_config(&weights, attributes.nested("net", "LKC-FUNet")?)?;
    let update = update(attributes)?;
    let (shape, _) = case.nchw("in.mri.step0")?;
    let loss = lkc::loss_graph(&config, &FusionLossConfig::lkc(), 0.0, shape.n(), shape.h())?;
    let prediction = loss.graph.marks().iter().find(|(name, _)| name == "model.final_conv").map(|(_, id)| *id);
    let inputs = |step: usize| {
        let of = |name: &str| Ok((name.to_owned(), case.f32(&format!("in.{name}.step{step}"))?.1.to_vec()));
        ["mri", "other"].into_iter().map(of).collect()
    };
    let network = Network { graph: loss.graph.clone(), params: params(&weights), ..Network::default() };
    Training { case, device, loss, network, update, losses: "out.losses", growth: 1.0 }.run(
        "act.fused.step0",
        prediction,
        &inputs,
    )
}

/// The inputs of a step by name.
type Inputs = Result<Vec<(String, Vec<f32>)>, CaseError>;

/// A training run of some steps.
struct Training<'a> {
    case: &'a Case,
    device: &'a Device,
    loss: LossGraph,
    /// The loss's graph, with the first weights.
    network: Network,
    /// What a step does with the gradients.
    update: Update,
    /// The tensor with the losses of each step, and what else is reported.
    losses: &'static str,
    /// The factor of all inputs.
    growth: f32,
}

/// Inputs times a factor.
fn grown(mut inputs: Vec<(String, Vec<f32>)>, factor: f32) -> Vec<(String, Vec<f32>)> {
    inputs.iter_mut().flat_map(|(_, values)| values).for_each(|v| *v *= factor);
    inputs
}

impl Training<'_> {
    fn run(
        mut self,
        act: &str,
        prediction: Option<NodeId>,
        inputs: &dyn Fn(usize) -> Inputs,
    ) -> Result<Results, CaseError> {
        let layout = Layout::new(&self.loss, |name| self.network.params.contains_key(name) && !is_buffer(name));
        self.network.params.extend(constants());
        self.network.inputs = inputs(0)?;
        self.network.outputs = prediction.map(|id| (act.to_owned(), id)).into_iter().collect();
        let mut results = self.network.run(self.case, self.device, Scale::Model)?;
        let first = self.begin(&layout, &mut results)?;
        let weights = self.steps(&layout, inputs, &mut results)?;
        let steps = self.step_count()?;
        for (name, tensor) in layout.tensors(&weights) {
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
    fn begin(&mut self, layout: &Layout, results: &mut Results) -> Result<BTreeMap<String, Tensor>, CaseError> {
        let given = std::mem::take(&mut self.network.inputs);
        for growth in 0..TRIES {
            self.growth = 1.0 + f32::from(growth) * f32::EPSILON;
            self.network.inputs = grown(given.clone(), self.growth);
            let first = self.first_gradients(layout, results)?;
            let of_case = |name: &String| self.case.tensors.get(name).filter(|_| name.starts_with("grad"));
            let mut compared = results.arrays.keys().filter_map(|name| Some((name, of_case(name)?)));
            if compared.all(|(name, expected)| !compare(self.case, name, expected, results).failed()) {
                let said = format!("with inputs larger by {growth} parts in 2^23, see --help on ReLUs");
                results.note = (growth > 0).then_some(said);
                return Ok(first);
            }
        }
        (self.growth, self.network.inputs) = (1.0, given);
        self.first_gradients(layout, results)
    }

    /// The gradients of the first step, by name.
    fn first_gradients(&self, layout: &Layout, results: &mut Results) -> Result<BTreeMap<String, Tensor>, CaseError> {
        let wrt: Vec<NodeId> = layout.entries().iter().map(|(name, _)| self.loss.graph.params()[name]).collect();
        let found = self.network.gradients(self.device, &[(self.loss.loss, vec![1.0])], &wrt)?;
        let mut gradients = BTreeMap::new();
        for ((name, dims), values) in layout.entries().iter().zip(found) {
            let values = values.unwrap_or_else(|| vec![0.0; dims.iter().product()]);
            let gradient = Tensor::new(dims.clone(), values);
            for prefix in ["grad", "grad_first"] {
                let name = format!("{prefix}.step0.{name}");
                if let Some(expected) = self.case.tensors.get(&name) {
                    results.arrays.insert(name, first_rows(&gradient, expected));
                }
            }
            insert_norm(results, format!("grad_l2.step0.{name}"), &gradient);
            gradients.insert(name.clone(), gradient);
        }
        Ok(gradients)
    }

    /// Trains for as many steps as the case has losses, compares those, and returns the row of weights. The results get the
    /// weights that the graph itself assigns.
    fn steps(
        &self,
        layout: &Layout,
        inputs: &dyn Fn(usize) -> Inputs,
        results: &mut Results,
    ) -> Result<Vec<f32>, CaseError> {
        let update = &self.update;
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
            results.insert(format!("out.final.{name}"), shape, step.row(name)?);
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
    results.insert(name, Shape::new(1, 1, 1, 1), vec![norm as f32]);
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
