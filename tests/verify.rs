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
    assert!(error(&report).contains("2 input channels do not go with 3 groups"), "{report:?}");
    let report = verify_conv(|_, tensors| tensors[0] = ("in.x", vec![0, 2, 1, 3], vec![]));
    assert_eq!((report.counts(), error(&report)), (counts(0, 1, 0), "tensor in.x: it has no elements".into()));
}

#[test]
fn unknown_operations_fail_with_their_name() {
    let report = verify_conv(|config, _| config["op"] = json!("fourier"));
    assert!(matches!(report.error, Some(CaseError::Unknown(_))) && report.counts() == counts(0, 2, 0));
    assert_eq!(error(&report), "fourier is not an operation that medfuse knows");
    let of = |config: Value| error(&verify_conv(|all, _| *all = config));
    assert_eq!(of(json!({ "block": "attention" })), "attention is not a block that medfuse knows");
    assert_eq!(of(json!({ "net": "cmdNet" })), "the network \"cmdNet\" is not known");
    let of = |config: Value| error(&verify_op(config, "in.x", &[1]));
    assert_eq!(of(json!({ "net": "cmdNet", "optimizer": "Adam" })), "the network \"cmdNet\" is not known");
    assert_eq!(of(json!({ "loss": "LAGN stage C" })), "the loss \"LAGN stage C\" is not known");
    let both = json!({ "unet": {}, "head": {}, "optimizer": "Adam" });
    assert_eq!(of(both), "the training of unet and head in one is not known");
    assert_eq!(of(json!({ "pairs": 1 })), "its configuration (pairs) does not say what it is about");
}

/// A case of an operation of one input and no weights, on the CPU with all that training computes.
fn verify_op(config: Value, input: &str, dims: &[usize]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let values = vec![0.5; dims.iter().product()];
    let tensors = vec![(input, dims.to_vec(), values.clone()), ("out.y", dims.to_vec(), values)];
    verify(&write(folder.path(), "op", config, &tensors), &Device::Cpu, false)
}

#[test]
fn attributes_that_are_not_known_are_named() {
    let conv = |name: &str, value: Value| error(&verify_conv(|config, _| config[name] = value));
    assert_eq!(conv("offset", json!(1)), "conv2d: it has no attribute offset");
    assert!(conv("padding_mode", json!("circular")).starts_with("conv2d: padding_mode: unknown variant `circular`"));
    assert!(conv("stride", json!([1])).starts_with("conv2d: stride: "));
    let of = |config: Value| error(&verify_op(config, "in.x", &[1, 1, 4, 4]));
    assert_eq!(of(json!({ "op": "relu", "slope": 0.1 })), "relu: it has no attribute slope");
    // The same name, another computation.
    assert_eq!(of(json!({ "op": "sobel_abs", "offset": 1 })), "sobel_abs: it has no attribute offset");
    let kernels = json!({ "op": "sobel_abs", "kernels": "Scharr" });
    assert!(of(kernels).starts_with("sobel_abs: kernels is \"Scharr\", but medfuse computes only \"x=[-1 0 1;"));
    let bilinear = |corners: Value| of(json!({ "op": "upsample_bilinear2", "align_corners": corners }));
    assert_eq!(bilinear(json!(false)), "upsample_bilinear2: align_corners is false, but medfuse computes only true");
    assert_eq!(of(json!({ "op": "upsample_bilinear2" })), "upsample_bilinear2: it lacks the attribute align_corners");
    assert_eq!(of(json!({ "op": "softmax", "dim": 4 })), "softmax: dim is 4, which is no dimension of [1, 1, 4, 4]");
    let missing = of(json!({ "op": "instance_norm" }));
    assert_eq!(missing, "instance_norm: missing field `eps`");
}

#[test]
fn attributes_that_tensors_imply_must_agree_with_them() {
    let conv = |name: &str, value: Value| error(&verify_conv(|config, _| config[name] = value));
    assert_eq!(conv("in_channels", json!(4)), "conv2d: in_channels is 4, but the tensors say 2");
    assert_eq!(conv("out_channels", json!(2)), "conv2d: out_channels is 2, but the tensors say 1");
    assert_eq!(conv("bias", json!(false)), "conv2d: bias is false, but the tensors say true");
    assert!(conv("kernel", json!([1, 3])).ends_with("the kernel should be 1x3"));
    let norm = json!({ "op": "instance_norm", "channels": 3, "eps": 1e-5 });
    let report = verify_op(norm, "in.x", &[1, 2, 4, 4]);
    assert_eq!(error(&report), "instance_norm: channels is 3, but the tensors say 2");
}

#[test]
fn tensors_that_an_operation_does_not_take_are_named() {
    let report = verify_conv(|_, tensors| tensors.push(("in.mask", vec![1], vec![1.0])));
    assert_eq!(error(&report), "tensor in.mask: conv2d takes no such tensor");
    let report = verify_conv(|_, tensors| tensors.push(("param.temperature", vec![1], vec![1.0])));
    assert_eq!(error(&report), "tensor param.temperature: conv2d with these attributes has no such weight");
}

/// What asks for minutes or gigabytes is refused before anything is computed.
#[test]
fn attributes_have_limits() {
    let start = std::time::Instant::now();
    let conv = |name: &str, value: Value| error(&verify_conv(|config, _| config[name] = value));
    assert_eq!(conv("padding", json!([257, 32_767])), "conv2d: padding is 32767, over the limit of 1024");
    assert!(conv("dilation", json!([1u64 << 40, 1])).contains("over the limit"));
    assert!(conv("stride", json!([1u64 << 63, 1])).contains("over the limit"));
    assert!(conv("padding", json!([1024, 1024])).starts_with("tensor out.y: it is [1, 1, 1, 3], but medfuse's result"));
    let report = verify_op(
        json!({ "schedule": "linear", "n_timestep": 1 << 24, "linear_start": 0.1, "linear_end": 0.2 }),
        "in.x",
        &[1],
    );
    assert_eq!(error(&report), "schedule: n_timestep is 16777216, over the limit of 100000");
    let report = verify_op(json!({ "op": "positional_encoding", "dim": 1 << 14 }), "in.noise_level", &[1, 1]);
    assert!(error(&report).contains("at most 4096"), "{report:?}");
    assert!(start.elapsed().as_secs() < 10);
}

/// A case that `tools/export_case.py --demo` wrote: a strided 3x3 convolution.
#[test]
fn a_case_that_a_user_made_passes_and_fails_when_it_is_changed() {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases/conv3x3_stride2");
    let report = verify(&made, &Device::Cpu, false);
    assert_eq!(report.counts(), counts(5, 0, 0), "{report:#?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("conv");
    std::fs::copy(made.with_extension("safetensors"), path.with_extension("safetensors")).unwrap();
    let sidecar: Value = serde_json::from_slice(&std::fs::read(made.with_extension("json")).unwrap()).unwrap();
    let with = |name: &str, value: Value| {
        let mut sidecar = sidecar.clone();
        sidecar["config"][name] = value;
        std::fs::write(path.with_extension("json"), sidecar.to_string()).unwrap();
        verify(&path, &Device::Cpu, false)
    };
    assert_eq!(with("stride", json!([2, 2])).counts(), counts(5, 0, 0));
    assert!(error(&with("stride", json!([1, 1]))).starts_with("tensor out.y: it is [2, 7, 7, 5]"));
    assert_eq!(error(&with("out_channels", json!(6))), "conv2d: out_channels is 6, but the tensors say 7");
    // What is computed as it is said, and is not what the module computed, fails by its numbers.
    let report = with("padding_mode", json!("reflect"));
    assert!(report.error.is_none() && report.counts().failed > 0);
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
fn attributes_that_weights_imply_must_agree_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = unet_case(folder.path());
    let run = |more: Value| {
        let mut config = json!({ "net": "UNet", "norm_groups": 2, "channel_mults": [1, 2], "dropout": 0 });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        verify(&write(folder.path(), "unet", config, &tensors), &Device::Cpu, true)
    };
    assert_eq!(run(json!({ "image_size": 8, "attn_res": [2] })).counts(), counts(4, 0, 0));
    let of = |more: Value| error(&run(more));
    assert_eq!(of(json!({ "channel_mults": [1, 3] })), "UNet: channel_mults is [1,3], but the weights say [1,2]");
    assert_eq!(of(json!({ "heads": 2 })), "UNet: it has no attribute heads");
    assert!(of(json!({ "image_size": 8, "attn_res": [4] })).starts_with("UNet: attn_res gives attention to levels"));
    assert_eq!(of(json!({ "norm_groups": "two" })), "UNet: norm_groups: invalid type: string \"two\", expected usize");
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
