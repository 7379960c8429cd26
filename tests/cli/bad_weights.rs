//! Checkpoints that cannot be used.

use std::path::Path;

use medfuse::tensor::Tensor;
use medfuse::weights::{StoreType, Weights};

use super::{Lab, Ran, medfuse};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/dm-fnet-small");

/// A pair of images and a copy of the weights that ship.
fn lab() -> Lab {
    let lab = Lab::heads(1, 64, "ct");
    std::fs::create_dir(lab.path("weights")).expect("a folder");
    for name in ["unet.safetensors", "head.safetensors", "model.json"] {
        std::fs::copy(Path::new(SHIPPED).join(name), lab.path("weights").join(name)).expect(name);
    }
    lab
}

/// Fuses with the folder `weights`; no picture may come of it.
fn refused(lab: &Lab, parts: &[&str]) -> Ran {
    let weights = lab.text("weights");
    let (mri, ct) = ("MRI/phantom_0000.png", "CT/phantom_0000.png");
    let more = ["--device", "cpu", "--weights", &weights];
    let said = lab.fuse(mri, ct, "fused.png", &more).fails_with(parts);
    assert!(!lab.path("fused.png").exists());
    said
}

/// Changes one of the copied files.
fn change(lab: &Lab, name: &str, edit: impl FnOnce(&mut Weights)) {
    let path = lab.path(&format!("weights/{name}.safetensors"));
    let mut weights = Weights::load(&path).expect("the weights that ship");
    edit(&mut weights);
    weights.save_safetensors(path, StoreType::F32).expect("written");
}

/// Puts a file in the UNet's place.
fn replace_unet(lab: &Lab, bytes: &[u8]) {
    std::fs::remove_file(lab.path("weights/unet.safetensors")).expect("it was there");
    std::fs::write(lab.path("weights/unet.pth"), bytes).expect("written");
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/weights");
    std::fs::read(Path::new(folder).join(name)).expect(name)
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_listed_by_name() {
    let lab = lab();
    let (gone, bent, new) = (
        "denoise_fn.mid.0.res_block.block1.block.3.bias",
        "denoise_fn.ups.0.res_block.block1.block.3.bias",
        "denoise_fn.downs.99.hello",
    );
    change(&lab, "unet", |weights| {
        weights.retain(|name| name != gone);
        let long = Tensor::new(vec![7], vec![0.0; 7]);
        weights.insert(bent, long.clone());
        weights.insert(new, long);
    });
    let said = refused(&lab, &["unet.safetensors does not fit the model", "1 missing", "1 unexpected"]);
    for part in [gone, new, &format!("{bent} should be [64] and is [7]")] {
        assert!(said.stderr.contains(part), "no {part} in {}", said.stderr);
    }
}

#[test]
fn a_weight_that_is_nan_is_named() {
    let lab = lab();
    let name = "decoder.1.att.ca.ca.0.weight";
    change(&lab, "head", |weights| {
        let tensor = weights.get(name).expect("a weight");
        let (dims, mut data) = (tensor.dims().to_vec(), tensor.data().to_vec());
        data[3] = f32::NAN;
        weights.insert(name, Tensor::new(dims, data));
    });
    refused(&lab, &["head.safetensors", name, "1 NaN"]);
}

#[test]
fn a_head_of_another_width_does_not_go_with_the_unet() {
    let lab = lab();
    change(&lab, "head", |weights| {
        let [out, joined] = [16, 48];
        let tensor = Tensor::new(vec![out, joined, 1, 1], vec![0.0; out * joined]);
        weights.insert("decoder.0.block.0.weight", tensor);
    });
    refused(&lab, &["this head does not go with this UNet", "[64, 32, 32, 32, 32]", "[16, 32, 32, 32, 32]"]);
}

#[test]
fn unet_and_head_in_each_others_place_are_told_apart() {
    let lab = lab();
    let [unet, head] = ["unet", "head"].map(|n| lab.path(&format!("weights/{n}.safetensors")));
    std::fs::copy(&unet, &head).expect("copied");
    refused(&lab, &["not a DM-FNet fusion head", "head.safetensors"]);
    std::fs::copy(Path::new(SHIPPED).join("head.safetensors"), &unet).expect("copied");
    refused(&lab, &["not a DM-FNet UNet", "unet.safetensors"]);
}

#[test]
fn a_checkpoint_cut_in_half_is_damaged() {
    let lab = lab();
    let whole = fixture("zip.pth");
    replace_unet(&lab, &whole[..whole.len() / 2]);
    refused(&lab, &["unet.pth", "download it again"]);
    let whole = fixture("legacy.pth");
    std::fs::write(lab.path("weights/unet.pth"), &whole[..whole.len() / 2]).expect("written");
    refused(&lab, &["unet.pth"]);
    let path = lab.path("weights/head.safetensors");
    let whole = std::fs::read(&path).expect("the head");
    std::fs::remove_file(lab.path("weights/unet.pth")).expect("it was there");
    std::fs::write(lab.path("weights/unet.safetensors"), &whole[..whole.len() / 2]).expect("written");
    refused(&lab, &["unet.safetensors", "download it again"]);
}

/// A legacy checkpoint whose pickle calls `os.system(command)`.
fn legacy_that_calls(command: &str) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    let head = [magic, b"\x80\x02M\xe9\x03.".to_vec(), b"\x80\x02}q\x00.".to_vec()].concat();
    let call = format!("\x02cposix\nsystem\n(S'{command}'\ntR.");
    [head, b"\x80".to_vec(), call.into_bytes()].concat()
}

#[test]
fn a_pickle_that_would_run_code_is_refused_and_runs_nothing() {
    let lab = lab();
    replace_unet(&lab, b"");
    for name in ["evil.pth", "evil_protocol4.pth", "evil_legacy.pth"] {
        std::fs::write(lab.path("weights/unet.pth"), fixture(name)).expect("written");
        let said = refused(&lab, &["unet.pth is refused", "posix.system"]);
        assert!(!format!("{}{}", said.stdout, said.stderr).contains("pwned"));
    }
    let marker = lab.text("marker");
    let evil = legacy_that_calls(&format!("touch {marker}"));
    std::fs::write(lab.path("weights/unet.pth"), evil).expect("written");
    refused(&lab, &["unet.pth is refused", "posix.system"]);
    let unet = lab.text("weights/unet.pth");
    medfuse(&["weights", "inspect", &unet]).fails_with(&["posix.system"]);
    assert!(!lab.path("marker").exists(), "the pickle was executed");
}

#[test]
fn a_folder_without_weights_says_what_it_should_hold() {
    let lab = lab();
    std::fs::remove_file(lab.path("weights/head.safetensors")).expect("it was there");
    refused(&lab, &["weights has no head.safetensors or head.pth"]);
    std::fs::remove_dir_all(lab.path("weights")).expect("it was there");
    refused(&lab, &["weights", "unet and head"]);
    std::fs::write(lab.path("weights"), b"no folder").expect("written");
    refused(&lab, &["weights", "takes a folder with unet and head"]);
}

#[test]
fn a_model_file_that_makes_no_sense_is_refused() {
    let lab = lab();
    let model = |text: &str, parts: &[&str]| {
        std::fs::write(lab.path("weights/model.json"), text).expect("written");
        refused(&lab, parts);
    };
    model("{", &["model.json", "line 1"]);
    model(r#"{"model": "other"}"#, &["model.json", "\"other\", not dm-fnet"]);
    model(r#"{"norm_groups": 0}"#, &["model.json", "norm_groups"]);
    model(r#"{"norm_groups": 5}"#, &["group"]);
    model(r#"{"time_steps": []}"#, &["3 steps"]);
    let schedule = |n: &str, end: &str| {
        format!(r#"{{"schedule": {{"kind": "linear", "n_timestep": {n}, "linear_start": 1e-6, "linear_end": {end}}}}}"#)
    };
    for n in ["0", "99999999999"] {
        model(&schedule(n, "1e-2"), &["model.json", "n_timestep", n]);
    }
    model(&schedule("2000", "1.5"), &["model.json", "linear_end"]);
}

#[test]
fn arguments_and_folders_of_another_model_are_refused() {
    let lab = lab();
    let weights = lab.text("weights");
    let fails = |more: &[&str], parts: &[&str]| {
        let (mri, ct) = ("MRI/phantom_0000.png", "CT/phantom_0000.png");
        lab.fuse(mri, ct, "fused.png", &[more, &["--device", "cpu"]].concat()).fails_with(parts);
        assert!(!lab.path("fused.png").exists());
    };
    let lkc = ["--model", "lkc-funet", "--weights", &weights];
    fails(&["--range", "unit"], &["--range is for lkc-funet"]);
    fails(&[&lkc[..], &["--steps", "5,10,20"]].concat(), &["--steps is for dm-fnet"]);
    fails(&lkc, &["model.json", "describes the model \"dm-fnet\", not lkc-funet"]);
    std::fs::write(lab.path("weights/model.json"), r#"{"model": "lkc-funet", "range": "signed"}"#).expect("written");
    fails(&["--weights", &weights], &["no lkc-funet.safetensors or lkc-funet.pth", "takes a folder with lkc-funet"]);
    fails(&["--model", "dm-fnet", "--weights", &weights], &["describes the model \"lkc-funet\", not dm-fnet"]);
    std::fs::copy(lab.path("weights/unet.safetensors"), lab.path("weights/lkc-funet.safetensors")).expect("copied");
    fails(&["--weights", &weights], &["lkc-funet.safetensors", "not an LKC-FUNet"]);
    std::fs::write(lab.path("weights/model.json"), r#"{"model": "lkc-funet", "range": "percent"}"#).expect("written");
    fails(&["--weights", &weights], &["model.json", "percent"]);
}
