//! How a graph that was written for a case is run.

use std::collections::{BTreeMap, HashMap};

use super::Outcome;
use super::compare::Scale;
use crate::device::Device;
use crate::graph::fuse::fuse;
use crate::graph::{Kind, NodeId};
use crate::models::golden::case::{Array, Case, Values};
use crate::models::golden::error::CaseError;
use crate::models::golden::{CaseGraph, Computed};
use crate::ops::gradients;

/// What became of a case's tensors.
#[derive(Debug)]
pub(super) struct Results {
    /// By which the tolerance is chosen.
    pub scale: Scale,
    /// What is compared.
    pub computed: Computed,
    /// What became of tensors that are not compared in the way of all others.
    pub outcomes: BTreeMap<String, Outcome>,
    /// What a reader of the figures should know of how they came about.
    pub note: Option<String>,
}

impl Results {
    /// Results that are compared by the tolerance of `scale`.
    pub(crate) fn new(scale: Scale, computed: Computed) -> Self {
        Self { scale, computed, outcomes: BTreeMap::new(), note: None }
    }
}

/// Runs a graph and, unless `forward_only`, takes the gradients that the case has.
pub(super) fn run(
    graph: &CaseGraph,
    case: &Case,
    device: &Device,
    scale: Scale,
    forward_only: bool,
) -> Result<Results, CaseError> {
    let mut computed = graph.run(case, device)?;
    if !forward_only {
        graph.differentiate(case, device, &mut computed)?;
        for (name, of, wrt) in graph.gradients.iter().filter(|(name, ..)| case.tensors.contains_key(name)) {
            let found = graph.gradients(device, &[(*of, vec![1.0])], &[*wrt])?.swap_remove(0);
            if let Some(grad) = found {
                computed.insert(name, graph.graph.shape(*wrt), grad);
            }
        }
    }
    Ok(Results::new(scale, computed))
}

impl CaseGraph {
    /// The activations that the case holds, in the order of the graph. The second output of a module is called
    /// `act.MODULE#2`, and so on.
    fn activations(&self, case: &Case) -> Vec<(String, NodeId)> {
        let mut calls: HashMap<&str, usize> = HashMap::new();
        let mut wanted = Vec::new();
        for (module, id) in self.graph.marks() {
            let module = module.strip_prefix(self.prefix).unwrap_or(module);
            let call = calls.entry(module).or_default();
            *call += 1;
            let name = match *call {
                1 => format!("act.{module}"),
                n => format!("act.{module}#{n}"),
            };
            if case.tensors.contains_key(&name) {
                wanted.push((name, *id));
            }
        }
        wanted
    }

    fn run_for(&self, device: &Device, wanted: &[(String, NodeId)]) -> Result<Vec<Vec<f32>>, CaseError> {
        let ids: Vec<NodeId> = wanted.iter().map(|(_, id)| *id).collect();
        let executable = device.compile(&self.graph, &ids, &self.params)?;
        let inputs = self.inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
        Ok(executable.run(&inputs.collect::<Vec<_>>())?)
    }

    /// Runs the network as it is used, then once more with the activations as outputs: nothing can be fused across
    /// an output, so the first run would not be the real one with them.
    pub(super) fn run(&self, case: &Case, device: &Device) -> Result<Computed, CaseError> {
        let mut computed = Computed { arrays: self.derived.clone(), order: Vec::new() };
        for ((name, id), values) in self.outputs.iter().zip(self.run_for(device, &self.outputs)?) {
            computed.insert(name, self.graph.shape(*id), values);
        }
        let activations = self.activations(case);
        if !activations.is_empty() {
            let all = self.run_for(device, &activations)?;
            for ((name, id), values) in activations.into_iter().zip(all) {
                computed.insert_activation(name, self.graph.shape(id), values);
            }
        }
        Ok(computed)
    }

    /// The gradients with respect to `wrt` of the sum of `seeds`, nodes times weights of their elements, `None` where there
    /// is none. They are taken of the fused graph, as training takes them.
    pub(super) fn gradients(
        &self,
        device: &Device,
        seeds: &[(NodeId, Vec<f32>)],
        wrt: &[NodeId],
    ) -> Result<Vec<Option<Vec<f32>>>, CaseError> {
        let kept: Vec<NodeId> = seeds.iter().map(|(id, _)| *id).chain(wrt.iter().copied()).collect();
        let (mut graph, kept) = fuse(&self.graph, &kept);
        let (summed, wrt) = kept.split_at(seeds.len());
        let mut inputs: Vec<(String, &[f32])> = self.inputs.iter().map(|(n, v)| (n.clone(), v.as_slice())).collect();
        let mut pairs = Vec::with_capacity(seeds.len());
        for (i, (&id, (_, weights))) in summed.iter().zip(seeds).enumerate() {
            let name = format!("w.{i}");
            let shape = graph.shape(id);
            pairs.push((id, graph.input(&name, shape)));
            inputs.push((name, weights));
        }
        let found = gradients(&mut graph, &pairs, wrt)?;
        let outputs: Vec<NodeId> = found.iter().flatten().copied().collect();
        let executable = device.compile(&graph, &outputs, &self.params)?;
        let inputs = inputs.iter().map(|(n, v)| (n.as_str(), *v));
        let mut values = executable.run(&inputs.collect::<Vec<_>>())?.into_iter();
        Ok(found.into_iter().map(|grad| grad.and_then(|_| values.next())).collect())
    }

    /// Adds the gradients that the case has, `grad.in.*` and `grad.param.*`, of its loss: the sum of `w.* * out.*`.
    fn differentiate(&self, case: &Case, device: &Device, computed: &mut Computed) -> Result<(), CaseError> {
        let mut wanted = Vec::new();
        for name in case.tensors.keys() {
            let found = match (name.strip_prefix("grad.in."), name.strip_prefix("grad.param.")) {
                (Some(input), _) => self.input_node(input).map(|id| (id, format!("in.{input}"))),
                (_, Some(key)) => {
                    let id = self.graph.params().get(&format!("{}{key}", self.param_prefix));
                    id.map(|id| (*id, format!("param.{key}")))
                }
                _ => None,
            };
            wanted.extend(found.map(|(id, of)| (name, id, of)));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut seeds = Vec::new();
        for (name, id) in &self.outputs {
            let weights = name.strip_prefix("out.").map(|of| format!("w.{of}"));
            if let Some(weights) = weights.filter(|w| case.tensors.contains_key(w)) {
                seeds.push((*id, case.f32(&weights)?.1.to_vec()));
            }
        }
        if seeds.is_empty() {
            return Ok(());
        }
        let wrt: Vec<NodeId> = wanted.iter().map(|(_, id, _)| *id).collect();
        let found = self.gradients(device, &seeds, &wrt)?;
        for ((name, id, of), values) in wanted.into_iter().zip(found) {
            // A gradient has the dimensions of what it is with respect to, which the graph may have read otherwise.
            let dims = case.tensors.get(&of).map_or(self.graph.shape(id).0.to_vec(), |given| given.dims.clone());
            if let Some(values) = values {
                computed.arrays.insert(name.clone(), Array { dims, values: Values::F32(values) });
            }
        }
        Ok(())
    }

    fn input_node(&self, name: &str) -> Option<NodeId> {
        let mut nodes = self.graph.nodes().iter();
        nodes.position(|node| matches!(node.kind, Kind::Input) && node.name == name).map(NodeId)
    }
}
