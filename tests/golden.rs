//! The golden cases in `tests/golden`: what PyTorch computed, on both devices.

use std::path::Path;

use medfuse::device::Device;
use medfuse::verify::{Counts, find_cases, verify};

fn all_pass(device: &Device) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let cases = find_cases(&folder).unwrap();
    assert_eq!(cases.len(), 49);
    for case in cases {
        let report = verify(&case, device, false);
        let counts = report.counts();
        assert!(counts.passed > 0 && counts.failed == 0, "{report:#?}");
        assert_eq!(counts, Counts { passed: counts.passed, ..Counts::default() });
    }
}

#[test]
fn the_cpu_computes_what_pytorch_does() {
    all_pass(&Device::Cpu);
}

#[test]
fn the_gpu_computes_what_pytorch_does() {
    all_pass(&Device::select("gpu").unwrap_or_else(|error| panic!("this test needs an adapter: {error}")));
}
