//! Timed steps gathered into rows: equal calls of an operation become one.

use serde::Serialize;

use crate::graph::{Step, Work};
use crate::tensor::Shape;

/// What one step computes and moves.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Call {
    /// The operation with the hyperparameters that its speed depends on.
    pub op: String,
    /// Its first input.
    pub input: Shape,
    /// Its result.
    pub output: Shape,
    /// How it is computed: the kernels of a GPU, the algorithm of the CPU.
    pub algorithm: String,
    /// Kernels launched.
    pub dispatches: usize,
    /// Multiply-adds as the direct algorithm does them.
    pub macs: u64,
    /// Bytes of inputs, weights and result, each counted once.
    pub bytes: u64,
}

impl Call {
    /// The call that a step of a plan makes.
    pub(crate) fn of(step: &Step) -> Self {
        let kernels: Vec<&str> = match &step.work {
            Work::Cpu(_) => vec![step.method],
            Work::Gpu(launches) => launches.iter().map(|launch| launch.kernel.file).collect(),
        };
        let (inputs, output) = (&step.inputs, step.output.slot.shape);
        let elements = inputs.iter().map(|input| input.slot.shape.numel()).chain([output.numel()]);
        Self {
            op: step.op.clone(),
            input: inputs.first().map_or(output, |input| input.slot.shape),
            output,
            algorithm: sequence(&kernels),
            dispatches: kernels.len(),
            macs: step.macs,
            bytes: 4 * elements.sum::<usize>() as u64,
        }
    }
}

/// Kernels in the order they are launched, each named once, and how often the sequence is repeated.
fn sequence(kernels: &[&str]) -> String {
    let mut named: Vec<&str> = Vec::new();
    for kernel in kernels {
        if !named.contains(kernel) {
            named.push(kernel);
        }
    }
    let text = named.join(" + ");
    match kernels.len() / named.len().max(1) {
        0 | 1 => text,
        times => format!("{times} x ({text})"),
    }
}

/// What a device can do at most, measured beside the kernels.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Peak {
    /// Multiply-adds counted as two operations, 10^9 a second.
    pub gflops: f64,
    /// Bytes read and written, 10^9 a second.
    pub gb_per_s: f64,
}

/// Equal calls of a network.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The operation with the hyperparameters that its speed depends on.
    pub op: String,
    /// Shape of its first input.
    pub input: String,
    /// Shape of its result.
    pub output: String,
    /// How it is computed: the kernels of a GPU, the algorithm of the CPU.
    pub algorithm: String,
    /// How often the network makes this call.
    pub count: usize,
    /// Milliseconds of one call: the mean over the calls of their medians over the runs.
    pub ms: f64,
    /// Part of the network's time, 0 to 1, that all these calls take.
    pub share: f64,
    /// Multiply-adds as the direct algorithm does them, counted as two operations; 10^9 a second.
    pub gflops: f64,
    /// Bytes of inputs, weights and result, each counted once; 10^9 a second.
    pub gb_per_s: f64,
    /// Share of the device's peak, 0 to 1, of what is nearer to it: arithmetic or traffic. Fast algorithms need fewer
    /// multiply-adds than are counted, so it may pass 1.
    pub of_peak: f64,
}

/// Gathers calls and their seconds (`seconds[run][call]`) into rows, the longest first.
pub(crate) fn gather(calls: &[Call], seconds: &[Vec<f64>], peak: Peak) -> Vec<Row> {
    let mut groups: Vec<(&Call, usize, f64)> = Vec::new();
    let mut total = 0.0;
    for (i, call) in calls.iter().enumerate() {
        let time = median(seconds.iter().map(|run| run[i]));
        total += time;
        match groups.iter_mut().find(|(known, ..)| *known == call) {
            Some((_, count, sum)) => {
                *count += 1;
                *sum += time;
            }
            None => groups.push((call, 1, time)),
        }
    }
    groups.sort_by(|a, b| b.2.total_cmp(&a.2));
    let row = |&(call, count, sum): &(&Call, usize, f64)| {
        let each = sum / count as f64;
        let gflops = rate(2.0 * call.macs as f64, each);
        let gb_per_s = rate(call.bytes as f64, each);
        Row {
            op: call.op.clone(),
            input: call.input.to_string(),
            output: call.output.to_string(),
            algorithm: call.algorithm.clone(),
            count,
            ms: each * 1e3,
            share: if total > 0.0 { sum / total } else { 0.0 },
            gflops,
            gb_per_s,
            of_peak: (gflops / peak.gflops).max(gb_per_s / peak.gb_per_s),
        }
    };
    groups.iter().map(row).collect()
}

/// `amount` in `seconds`, in 10^9 a second; zero where the clock saw no time pass.
pub(crate) fn rate(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds * 1e-9 } else { 0.0 }
}

/// The middle value, the mean of the two middle ones of an even number; zero of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::networks::convolution;
    use crate::graph::{Plan, Target};
    use crate::models::dm_fnet::passes::{PassOutputs, configs, unet_pass};
    use crate::ops::testing::gpu;

    const PEAK: Peak = Peak { gflops: 100.0, gb_per_s: 10.0 };

    fn call(op: &str, macs: u64, bytes: u64) -> Call {
        Call {
            op: op.into(),
            input: Shape::new(1, 2, 3, 4),
            output: Shape::new(1, 2, 3, 4),
            algorithm: String::new(),
            dispatches: 1,
            macs,
            bytes,
        }
    }

    #[test]
    fn equal_calls_become_one_row() {
        let (conv, norm) = (call("conv2d", 1_000_000, 1000), call("group_norm", 0, 4_000_000));
        let calls = [conv.clone(), norm, conv];
        // The second run is disturbed; medians over three runs do not see it.
        let seconds = [vec![0.001, 0.004, 0.003], vec![9.0, 9.0, 9.0], vec![0.001, 0.004, 0.003]];
        let rows = gather(&calls, &seconds, PEAK);
        let figures: Vec<_> = rows.iter().map(|r| (r.op.as_str(), r.count)).collect();
        assert_eq!(figures, [("conv2d", 2), ("group_norm", 1)]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(rows[0].ms, 2.0);
        close(rows[0].share, 0.5);
        close(rows[0].gflops, 1.0);
        close(rows[0].of_peak, 0.01);
        close(rows[1].gflops, 0.0);
        close(rows[1].gb_per_s, 1.0);
        close(rows[1].of_peak, 0.1);
    }

    #[test]
    fn kernels_are_named_once() {
        assert_eq!(sequence(&["a"]), "a");
        assert_eq!(sequence(&["a", "b"]), "a + b");
        assert_eq!(sequence(&["a", "b", "a", "b"]), "2 x (a + b)");
        assert_eq!(sequence(&[]), "");
    }

    #[test]
    fn the_longest_comes_first() {
        let calls = [call("a", 1, 1), call("b", 1, 1)];
        let rows = gather(&calls, &[vec![1.0, 2.0]], PEAK);
        assert_eq!(rows[0].op, "b");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn a_call_says_what_runs() {
        let (network, _) = convolution(3, [128, 128], 32).expect("the shapes fit");
        for target in [Target::Cpu, Target::Gpu(gpu().traits().clone())] {
            let plan = Plan::new(&network.graph, &network.outputs, target).expect("it can be planned");
            let call = Call::of(&plan.steps[0]);
            assert_eq!(call.op, "conv2d 3x3");
            assert_eq!(call.macs, 128 * 128 * 9 * 32 * 32);
            assert!(call.bytes >= 4 * (2 * 128 * 32 * 32 + 128 * 128 * 9));
            assert!(!call.algorithm.is_empty(), "{call:?}");
        }
    }

    #[test]
    fn repeated_blocks_share_their_rows() {
        let network = unet_pass(&configs(32).0, 64, PassOutputs::Features).expect("the shapes fit");
        let plan = Plan::new(&network.graph, &network.outputs, Target::Cpu).expect("it can be planned");
        let calls: Vec<Call> = plan.steps.iter().map(Call::of).collect();
        let rows = gather(&calls, &[vec![1.0; calls.len()]], PEAK);
        assert_eq!(rows.iter().map(|r| r.count).sum::<usize>(), calls.len());
        assert!(rows.len() < calls.len());
        let whole: f64 = rows.iter().map(|r| r.share).sum();
        assert!((whole - 1.0).abs() < 1e-9);
    }
}
