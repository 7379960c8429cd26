//! Benchmarks of models other than the one that the library's own tests measure.

use medfuse::bench::{KernelTable, Options, run};
use medfuse::device::Device;
use medfuse::models::lkc_funet;

#[test]
fn lkc_funet_is_measured_too() {
    let options = Options {
        network: &lkc_funet::ROW,
        size: 16,
        channels: 32,
        runs: 1,
        kernels: true,
        model: true,
        pair: false,
        training: false,
    };
    let report = run(&Device::Cpu, &options, &mut |_| {}).expect("it runs");
    let rows = |table: &KernelTable| table.rows.iter().filter(|row| row.op.contains("15x15")).count();
    assert!(report.kernels[0].network == "pair" && rows(&report.kernels[0]) >= 3, "{:?}", report.kernels[0]);
    assert!(report.model.len() == 1 && report.model[0].seconds.is_some());
}
