//! What the device can do at most, timed again and again between the measurements.

use std::collections::BTreeMap;
use std::time::Instant;

use gemm::Parallelism;
use serde::Serialize;

use super::networks::random_inputs;
use super::peak::{PeakCopy, PeakFma};
use super::rows::{Peak, median, rate};
use super::{BenchError, time_steps};
use crate::device::{Device, Executable};
use crate::graph::Graph;
use crate::graph::Op;
use crate::tensor::Shape;

/// Elements that the multiply-add kernel works on, enough invocations to fill a large GPU.
const FMA_ELEMENTS: usize = 1 << 18;
/// Elements copied: 64 MiB, more than the caches hold.
const COPY_ELEMENTS: usize = 1 << 24;
/// Rows and columns of the matrices of the CPU's product.
const SGEMM: usize = 2048;
/// Seconds that the multiply-add kernel should run at least, so that the clock's steps do not matter.
const LONG_ENOUGH: f64 = 0.04;
/// Rounds of the multiply-add kernel at first and at most.
const ROUNDS: [usize; 2] = [16, 1 << 15];

/// A yardstick and what it showed.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Yardstick {
    /// What was measured.
    pub name: String,
    /// `GFLOP/s` or `GB/s`.
    pub unit: &'static str,
    /// The median over the measurements.
    pub median: f64,
    /// The lowest and the highest: how steady the machine was.
    pub range: [f64; 2],
}

/// Runs one yardstick once; seconds.
type Measure<'a> = Box<dyn FnMut() -> Result<f64, BenchError> + 'a>;

struct Gauge<'a> {
    name: &'static str,
    unit: &'static str,
    /// Operations or bytes of a run.
    amount: f64,
    measure: Measure<'a>,
    rates: Vec<f64>,
}

/// The yardsticks of a device.
pub(crate) struct Yardsticks<'a> {
    gauges: Vec<Gauge<'a>>,
}

impl std::fmt::Debug for Yardsticks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.gauges.iter().map(|g| (g.name, &g.rates));
        f.debug_map().entries(names).finish()
    }
}

impl<'a> Yardsticks<'a> {
    /// Those of `device`: multiply-adds, a copy and, on the CPU, a matrix product.
    ///
    /// # Errors
    /// If the kernels do not run, or cannot be timed.
    pub(crate) fn new(device: &'a Device) -> Result<Self, BenchError> {
        let (macs, multiply_adds) = calibrated(device)?;
        let copy = Single::new(device, PeakCopy, COPY_ELEMENTS)?;
        copy.seconds()?;
        let mut gauges = vec![
            Gauge {
                name: "multiply-adds",
                unit: "GFLOP/s",
                amount: 2.0 * macs as f64,
                measure: Box::new(move || multiply_adds.seconds()),
                rates: Vec::new(),
            },
            Gauge {
                name: "copy",
                unit: "GB/s",
                amount: 8.0 * COPY_ELEMENTS as f64,
                measure: Box::new(move || copy.seconds()),
                rates: Vec::new(),
            },
        ];
        if matches!(device, Device::Cpu) {
            gauges.push(sgemm());
        }
        Ok(Self { gauges })
    }

    /// Measures each once more.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn measure(&mut self) -> Result<(), BenchError> {
        for gauge in &mut self.gauges {
            let seconds = (gauge.measure)()?;
            gauge.rates.push(rate(gauge.amount, seconds));
        }
        Ok(())
    }

    /// How often they were measured so far.
    pub(crate) fn count(&self) -> usize {
        self.gauges[0].rates.len()
    }

    /// The peak over the measurements from number `first` on.
    pub(crate) fn peak_since(&self, first: usize) -> Peak {
        let of = |i: usize| median(self.gauges[i].rates.iter().skip(first).copied());
        Peak { gflops: of(0), gb_per_s: of(1) }
    }

    /// What was measured so far.
    pub(crate) fn report(&self) -> Vec<Yardstick> {
        let of = |gauge: &Gauge| {
            let rates = gauge.rates.iter().copied();
            Yardstick {
                name: gauge.name.into(),
                unit: gauge.unit,
                median: median(rates.clone()),
                range: [rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max)],
            }
        };
        self.gauges.iter().map(of).collect()
    }
}

/// An operation on one tensor, ready to run.
struct Single {
    exe: Executable,
    inputs: Vec<(String, Vec<f32>)>,
}

impl Single {
    fn new(device: &Device, op: impl Op, elements: usize) -> Result<Self, BenchError> {
        let mut graph = Graph::new();
        let x = graph.input("level", Shape::new(1, 1, 1, elements));
        let out = graph.apply("yardstick", op, &[x])?;
        let exe = device.compile(&graph, &[out], &BTreeMap::new())?;
        let inputs = random_inputs(exe.plan());
        Ok(Self { exe, inputs })
    }

    fn seconds(&self) -> Result<f64, BenchError> {
        Ok(time_steps(&self.exe, &self.inputs)?.iter().sum())
    }
}

/// The multiply-add kernel with so many rounds that it runs [`LONG_ENOUGH`], and its multiply-adds.
fn calibrated(device: &Device) -> Result<(u64, Single), BenchError> {
    let [mut rounds, most] = ROUNDS;
    loop {
        let single = Single::new(device, PeakFma { rounds }, FMA_ELEMENTS)?;
        // The first run pays for what the driver does once.
        single.seconds()?;
        if rounds >= most || single.seconds()? >= LONG_ENOUGH {
            return Ok((single.exe.plan().macs, single));
        }
        rounds *= 4;
    }
}

/// A product of two square matrices by the `gemm` crate on all threads.
fn sgemm<'a>() -> Gauge<'a> {
    let n = SGEMM;
    let values = |shift: f32| -> Vec<f32> { (0..n * n).map(|i| (i as f32 + shift).sin()).collect() };
    let (a, b) = (values(0.0), values(0.5));
    let mut product = vec![0.0f32; n * n];
    let measure = move || {
        let start = Instant::now();
        let stride = n as isize;
        let (out, a, b) = (product.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        let threads = Parallelism::Rayon(0);
        // SAFETY: three row-major matrices of n x n elements, of which only the first is written.
        unsafe {
            gemm::gemm(
                n, n, n, out, 1, stride, false, a, 1, stride, b, 1, stride, 0.0, 1.0, false, false, false, threads,
            );
        }
        Ok(start.elapsed().as_secs_f64())
    };
    Gauge {
        name: "matrix product 2048^3 (gemm crate)",
        unit: "GFLOP/s",
        amount: 2.0 * (SGEMM as f64).powi(3),
        measure: Box::new(measure),
        rates: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::gpu;

    #[test]
    fn both_devices_have_a_peak() {
        for device in [Device::Cpu, Device::Gpu(gpu())] {
            let mut yardsticks = Yardsticks::new(&device).expect("it can be timed");
            yardsticks.measure().expect("it runs");
            assert_eq!(yardsticks.count(), 1);
            let peak = yardsticks.peak_since(0);
            // Anything that computes does more than this, and nothing does 10^15 a second.
            assert!((0.1..1e6).contains(&peak.gflops), "{peak:?}");
            assert!((0.1..1e6).contains(&peak.gb_per_s), "{peak:?}");
            let expected = if matches!(device, Device::Cpu) { 3 } else { 2 };
            assert_eq!(yardsticks.report().len(), expected);
        }
    }
}
