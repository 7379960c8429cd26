//! `medfuse verify` on cases made by hand: what must pass and, above all, what must fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use medfuse::device::Device;
use medfuse::graph::Graph;
use medfuse::models::dm_fnet::unet::{UnetConfig, unet};
use medfuse::tensor::{Shape, Tensor};
use medfuse::verify::{CaseError, Counts, Report, find_cases, verify};
use medfuse::weights::{StoreType, Weights};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

type Tensors<'a> = Vec<(&'a str, Vec<usize>, Vec<f32>)>;

/// Writes the case and returns the name that its files share.
fn write(folder: &Path, name: &str, config: Value, tensors: &Tensors) -> PathBuf {
    let path = folder.join(name);
    let listed: BTreeMap<&str, Value> = tensors.iter().map(|(n, dims, _)| (*n, json!(["float32", dims]))).collect();
    let sidecar = json!({ "config": config, "tensors": listed, "weights": "small.weights.safetensors" });
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    std::fs::write(file("json"), sidecar.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views =
        tensors.iter().zip(&bytes).map(|((n, dims, _), b)| (*n, TensorView::new(Dtype::F32, dims.clone(), b).unwrap()));
    std::fs::write(file("safetensors"), serialize(views, None).unwrap()).unwrap();
    path
}

/// A 1x1 convolution from two channels to one: `2 a - b + 0.5`.
fn conv_config() -> Value {
    json!({
        "op": "conv2d", "in_channels": 2, "out_channels": 1, "kernel": [1, 1], "stride": [1, 1], "padding": [0, 0],
        "dilation": [1, 1], "groups": 1, "bias": true, "padding_mode": "zeros",
    })
}

fn conv_tensors() -> Tensors<'static> {
    vec![
        ("in.x", vec![1, 2, 1, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 7.0]),
        ("param.weight", vec![1, 2, 1, 1], vec![2.0, -1.0]),
        ("param.bias", vec![1], vec![0.5]),
        ("out.y", vec![1, 1, 1, 3], vec![-1.5, -0.5, -0.5]),
        ("w.y", vec![1, 1, 1, 3], vec![1.0, -2.0, 4.0]),
        ("out.loss", vec![1], vec![-2.5]),
    ]
}

fn verify_conv(change: impl FnOnce(&mut Value, &mut Tensors)) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, mut tensors) = (conv_config(), conv_tensors());
    change(&mut config, &mut tensors);
    verify(&write(folder.path(), "conv", config, &tensors), &Device::Cpu, true)
}

fn counts(passed: usize, failed: usize, not_checked: usize) -> Counts {
    Counts { passed, failed, not_checked }
}

fn error(report: &Report) -> String {
    report.error.as_ref().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn right_numbers_pass() {
    assert_eq!(verify_conv(|_, _| {}).counts(), counts(2, 0, 0));
}

#[test]
fn wrong_numbers_fail() {
    let report = verify_conv(|_, tensors| tensors[3].2[1] = -0.500_02);
    assert_eq!(report.counts(), counts(1, 1, 0));
    let report = verify_conv(|_, tensors| tensors[5].2[0] = -2.501);
    assert_eq!(report.counts(), counts(1, 1, 0));
}

#[test]
fn nan_fails_on_either_side() {
    let report = verify_conv(|_, tensors| tensors[0].2[0] = f32::NAN);
    assert_eq!(report.counts(), counts(0, 2, 0));
    let report = verify_conv(|_, tensors| tensors[3].2[2] = f32::NAN);
    assert_eq!(report.counts(), counts(1, 1, 0));
}

#[test]
fn a_result_of_another_shape_fails() {
    let report = verify_conv(|_, tensors| tensors[3].1 = vec![1, 1, 3, 1]);
    assert_eq!(report.counts(), counts(1, 1, 0));
}

#[test]
fn what_cannot_be_run_fails_with_a_sentence() {
    let report = verify_conv(|_, tensors| drop(tensors.remove(0)));
    assert_eq!((report.counts(), error(&report)), (counts(0, 2, 0), "tensor in.x: the case lacks it".into()));
    let report = verify_conv(|_, tensors| drop(tensors.remove(1)));
    assert!(error(&report).contains("weight") && report.counts() == counts(0, 2, 0), "{report:?}");
    let report = verify_conv(|config, _| config["stride"] = json!([0, 1]));
    assert!(report.error.is_some() && report.counts() == counts(0, 2, 0), "{report:?}");
    let report = verify_conv(|config, _| config["groups"] = json!(3));
    assert!(error(&report).starts_with("config.groups"), "{report:?}");
    let report = verify_conv(|config, _| config["stride"] = json!([1u64 << 63, 1]));
    assert!(error(&report).starts_with("config.stride"), "{report:?}");
    let report = verify_conv(|_, tensors| tensors[0] = ("in.x", vec![0, 2, 1, 3], vec![]));
    assert_eq!((report.counts(), error(&report)), (counts(0, 1, 0), "tensor in.x: it has no elements".into()));
    let report = verify_conv(|config, _| config["in_channels"] = json!(4));
    assert!(report.error.is_some(), "{report:?}");
}

#[test]
fn unknown_and_unimplemented_operations_fail() {
    let report = verify_conv(|config, _| config["op"] = json!("fourier"));
    assert!(matches!(report.error, Some(CaseError::Unknown(_))) && report.counts() == counts(0, 2, 0));
    let report = verify_conv(|config, _| config["padding_mode"] = json!("circular"));
    assert!(matches!(report.error, Some(CaseError::Unimplemented(_))) && report.counts() == counts(0, 2, 0));
}

#[test]
fn a_case_without_results_is_a_failure() {
    let report = verify_conv(|_, tensors| tensors.truncate(3));
    assert_eq!(report.counts(), counts(0, 1, 0));
}

#[test]
fn gradients_are_checked_unless_only_the_forward_pass_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = conv_tensors();
    // By x each weight times w.y, by the weights the sums of x times w.y, by the bias the sum of w.y.
    tensors.push(("grad.in.x", vec![1, 2, 1, 3], vec![2.0, -4.0, 8.0, -1.0, 2.0, -4.0]));
    tensors.push(("grad.param.weight", vec![1, 2, 1, 1], vec![9.0, 22.0]));
    tensors.push(("grad.param.bias", vec![1], vec![3.0]));
    let run = |tensors: &Tensors, forward_only: bool| {
        let path = write(folder.path(), "conv", conv_config(), tensors);
        verify(&path, &Device::Cpu, forward_only).counts()
    };
    assert_eq!(run(&tensors, true), counts(2, 0, 3));
    assert_eq!(run(&tensors, false), counts(5, 0, 0));
    tensors[7].2[1] = 22.01;
    assert_eq!(run(&tensors, false), counts(4, 1, 0));
    tensors.push(("grad.in.y", vec![1], vec![3.0]));
    assert_eq!(run(&tensors, false), counts(4, 2, 0));
    let path = write(folder.path(), "loss", json!({ "loss": "L1" }), &tensors);
    assert_eq!(verify(&path, &Device::Cpu, true).counts(), counts(0, 0, 6));
    assert_eq!(verify(&path, &Device::Cpu, false).counts(), counts(0, 6, 0));
}

#[test]
fn files_that_do_not_fit_each_other_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "conv", conv_config(), &conv_tensors());
    let run = || verify(&path, &Device::Cpu, true);
    let sidecar = std::fs::read_to_string(path.with_extension("json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(sidecar.contains(from));
        std::fs::write(path.with_extension("json"), sidecar.replace(from, to)).unwrap();
        let report = run();
        assert_eq!(report.counts(), counts(0, 1, 0));
        error(&report)
    };
    assert!(with("[1,1,1,3]", "[1,1,3,1]").contains("according to the JSON"));
    assert!(with("out.y", "out.z").contains("tensor out.z"));
    assert!(with("{\"config\"", "{{").contains("conv.json"));
    std::fs::write(path.with_extension("json"), &sidecar).unwrap();
    let whole = std::fs::read(path.with_extension("safetensors")).unwrap();
    std::fs::write(path.with_extension("safetensors"), &whole[..whole.len() - 1]).unwrap();
    assert!(error(&run()).contains("conv.safetensors"));
    std::fs::remove_file(path.with_extension("safetensors")).unwrap();
    assert!(error(&run()).contains("cannot be read"));
}

#[test]
fn folders_are_searched_for_cases() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("a.b");
    std::fs::create_dir(&inner).unwrap();
    assert!(matches!(find_cases(folder.path()), Err(CaseError::NoCases)));
    let deep = write(&inner, "deep", conv_config(), &conv_tensors());
    let top = write(folder.path(), "top", conv_config(), &conv_tensors());
    write(folder.path(), "unet.weights", conv_config(), &conv_tensors());
    std::fs::write(folder.path().join("notes.txt"), "").unwrap();
    assert_eq!(find_cases(folder.path()).unwrap(), [deep.clone(), top]);
    for name in ["deep", "deep.json", "deep.safetensors"] {
        assert_eq!(find_cases(&inner.join(name)).unwrap(), std::slice::from_ref(&deep));
    }
}

/// A small UNet with its weights in `folder`; its case's tensors, computed by the UNet itself.
fn unet_case(folder: &Path) -> Tensors<'static> {
    let config = UnetConfig {
        inner_channel: 4,
        norm_groups: 2,
        channel_mults: vec![1, 2],
        res_blocks: 1,
        attention: vec![false; 2],
        ..UnetConfig::published()
    };
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::new(1, 1, 8, 8));
    let level = graph.input("level", Shape::new(1, 1, 1, 1));
    let out = unet(&mut graph, &config, x, level).unwrap();
    let values = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 101) % 64) as f32 / 64.0 - 0.5).collect()
    };
    // Files give channel vectors one dimension.
    let dims = |shape: Shape| match shape.0 {
        [1, c, 1, 1] => vec![c],
        [n, c, 1, 1] => vec![n, c],
        all => all.to_vec(),
    };
    let weights: BTreeMap<String, Tensor> = graph
        .params()
        .iter()
        .enumerate()
        .map(|(i, (name, id))| {
            let shape = graph.shape(*id);
            // A 1x1 convolution of one channel reads as a vector, which means the same.
            (name.clone(), Tensor::new(dims(shape), values(shape.numel(), i)))
        })
        .collect();
    let stored: Weights = weights.clone().into_iter().collect();
    stored.save_safetensors(folder.join("small.weights.safetensors"), StoreType::F32).unwrap();
    let named = |name: &str| graph.marks().iter().find(|(n, _)| n == name).unwrap().1;
    let nodes = [out.x_final, named("denoise_fn.downs.0"), named("denoise_fn.mid.0"), named("denoise_fn.ups.1")];
    let executable = Device::Cpu.compile(&graph, &nodes, &weights).unwrap();
    let (x, level) = (values(64, 5), vec![0.9]);
    let results = executable.run(&[("x", &x), ("level", &level)]).unwrap();
    let mut tensors = vec![("in.x_noisy", vec![1, 1, 8, 8], x), ("in.noise_level", vec![1, 1], level)];
    let names = ["out.x_final", "act.downs.0", "act.mid.0", "act.ups.1"];
    for ((name, id), values) in names.into_iter().zip(nodes).zip(results) {
        tensors.push((name, graph.shape(id).0.to_vec(), values));
    }
    tensors
}

#[test]
fn the_first_layer_that_drifts_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = unet_case(folder.path());
    let config = json!({ "net": "UNet", "norm_groups": 2 });
    let path = write(folder.path(), "unet", config.clone(), &tensors);
    let report = verify(&path, &Device::Cpu, true);
    assert_eq!(report.counts(), counts(4, 0, 0), "{report:#?}");
    assert!(report.first_drift().is_none());
    // In the graph downs.0 comes before mid.0, and that before ups.1.
    for (_, _, values) in &mut tensors[4..] {
        values[0] += 1.0;
    }
    let path = write(folder.path(), "unet", config, &tensors);
    let report = verify(&path, &Device::Cpu, true);
    assert_eq!(report.counts(), counts(2, 2, 0));
    assert_eq!(report.first_drift().map(|c| c.name.as_str()), Some("act.mid.0"));
}

#[test]
fn the_command_counts_last_and_fails_with_1() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "good", conv_config(), &conv_tensors());
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medfuse"));
        command.args(["verify", "--device", "cpu", "--forward"]).args(more).arg(folder.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&[]);
    assert_eq!((code, text.lines().last()), (Some(0), Some("2 passed, 0 failed, 0 not checked")));
    let mut wrong = conv_tensors();
    wrong[3].2[0] = 9.0;
    write(folder.path(), "wrong", conv_config(), &wrong);
    let (code, text) = run(&[]);
    assert_eq!((code, text.lines().last()), (Some(1), Some("3 passed, 1 failed, 0 not checked")));
    let (_, text) = run(&["--json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&all["failed"], &all["cases"][1]["tensors"][1]["outcome"]), (&json!(1), &json!("failed")));
    let twice = folder.path().join("wrong.json");
    let weights = folder.path().join("unet.weights.safetensors");
    let (_, text) = run(&[twice.to_str().unwrap(), weights.to_str().unwrap()]);
    assert_eq!(text.lines().last(), Some("3 passed, 1 failed, 0 not checked"));
    let missing = folder.path().join("missing");
    let (code, text) = run(&[missing.to_str().unwrap()]);
    assert_eq!((code, text.lines().last()), (Some(1), Some("3 passed, 2 failed, 0 not checked")));
}
