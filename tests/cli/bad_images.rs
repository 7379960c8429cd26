//! Pictures that cannot be fused and results that cannot be written.

use std::time::{Duration, Instant};

use medfuse::imaging::{Channels, Image, Samples};

use super::{Lab, medfuse};

fn grey(width: usize, height: usize) -> Image {
    let samples = Samples::U8(vec![77; width * height]);
    Image::new(width, height, Channels::Grey, samples).expect("a picture")
}

/// One good pair `phantom_0000` and every bad one.
fn bad_folder() -> Lab {
    let lab = Lab::heads(1, 64, "ct");
    let good = lab.bytes("MRI/phantom_0000.png");
    let write = |name: &str, bytes: &[u8]| std::fs::write(lab.path(name), bytes).expect("written");
    for name in ["size", "truncated", "text", "lonely_mri"] {
        write(&format!("MRI/{name}.png"), &good);
    }
    lab.save("CT/size.png", &grey(64, 48));
    lab.save("MRI/pixel.png", &grey(1, 1));
    lab.save("CT/pixel.png", &grey(1, 1));
    write("CT/truncated.png", &good[..good.len() / 2]);
    write("CT/text.png", b"no picture at all");
    write("CT/empty.png", b"");
    write("MRI/empty.png", &good);
    write("CT/lonely_ct.png", &good);
    lab
}

const REASONS: [(&str, &str); 7] = [
    ("size", "MRI 64x64, other 64x48 pixels; register them"),
    ("pixel", "1 x 1 pixels is too small"),
    ("truncated", "truncated.png is a damaged PNG"),
    ("text", "text.png is not an image"),
    ("empty", "empty.png is not an image"),
    ("lonely_mri", "no image of this name in"),
    ("lonely_ct", "no image of this name in"),
];

#[test]
fn a_folder_reports_each_bad_pair_with_its_reason_and_fuses_the_rest() {
    let lab = bad_folder();
    let said = lab.fuse("MRI", "CT", "out", &["--device", "cpu", "--json"]);
    let said = said.fails_with(&["1 of 8 pairs fused"]);
    assert_eq!(lab.names("out"), ["phantom_0000.png"]);
    assert_eq!(lab.image("out/phantom_0000.png").width(), 64);
    let json = said.json();
    assert_eq!(json["stopped"], false);
    assert!(json["device"].as_str().is_some_and(|d| d.starts_with("cpu")));
    let pairs = json["pairs"].as_array().expect("a list of pairs");
    assert_eq!(pairs.len(), 8);
    for (name, reason) in REASONS {
        let pair = pairs.iter().find(|p| p["name"] == name).expect(name);
        let error = pair["error"].as_str().unwrap_or_default();
        assert!(error.contains(reason), "{name}: {error}");
        let line = said.stderr.lines().find(|l| l.starts_with(&format!("{name}: ")));
        assert!(line.is_some_and(|l| l.contains(reason)), "{name}: {}", said.stderr);
    }
    let good = pairs.iter().find(|p| p["name"] == "phantom_0000").expect("the good pair");
    assert!(good["seconds"].as_f64().is_some_and(|s| s > 0.0));
    assert!(good["out"].as_str().is_some_and(|o| o.ends_with("out/phantom_0000.png")));
}

#[test]
fn a_single_bad_pair_is_an_error_and_writes_nothing() {
    let lab = bad_folder();
    for (name, reason) in &REASONS[..5] {
        let [mri, ct] = ["MRI", "CT"].map(|folder| format!("{folder}/{name}.png"));
        lab.fuse_on_cpu(&mri, &ct, "fused.png").fails_with(&[reason]);
    }
    let (mri, gone) = ("MRI/text.png", "CT/gone.png");
    lab.fuse_on_cpu(mri, gone, "fused.png").fails_with(&["gone.png", "no such file"]);
    lab.fuse_on_cpu(mri, "CT", "fused.png").fails_with(&["two images or two folders"]);
    lab.fuse_on_cpu(mri, "CT/size.png", "fused.gif").fails_with(&["fused.gif", ".png"]);
    assert_eq!(lab.names(""), ["CT", "MRI"]);
}

#[test]
fn folders_without_a_common_name_are_refused() {
    let lab = Lab::heads(1, 64, "ct");
    std::fs::rename(lab.path("CT/phantom_0000.png"), lab.path("CT/else.png")).expect("renamed");
    lab.fuse_on_cpu("MRI", "CT", "out").fails_with(&["no file name is in both"]);
    assert!(!lab.path("out").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let lab = Lab::heads(1, 64, "ct");
    std::fs::write(lab.path("file"), b"kept").expect("written");
    let (mri, ct) = ("MRI/phantom_0000.png", "CT/phantom_0000.png");
    // Permissions do not stop the superuser, a file in the folder's place does.
    for out in ["file", "file/folder"] {
        lab.fuse_on_cpu("MRI", "CT", out).fails_with(&["cannot make the output folder", out]);
    }
    for out in ["file/out.png", "no/out.png"] {
        let said = lab.fuse_on_cpu(mri, ct, out).fails_with(&["cannot write", out, "there is no folder"]);
        assert!(!said.stderr.contains("at path"), "{}", said.stderr);
    }
    std::fs::create_dir(lab.path("taken.png")).expect("a folder");
    lab.fuse_on_cpu(mri, ct, "taken.png").fails_with(&["cannot write", "taken.png", "directory"]);
    assert_eq!(lab.bytes("file"), b"kept");
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_takes_no_files_is_named() {
    let lab = Lab::heads(1, 64, "ct");
    let out = ["MRI", "CT"].map(|folder| lab.text(&format!("{folder}/phantom_0000.png")));
    let fuse = ["fuse", &out[0], &out[1], "--device", "cpu", "-o"];
    let fails = |out: &str, why: &str| medfuse(&[&fuse[..], &[out]].concat()).fails_with(&[why]);
    fails("/proc/fused.png", "cannot write /proc/fused.png");
    let folders = ["MRI", "CT"].map(|folder| lab.text(folder));
    let fuse = ["fuse", &folders[0], &folders[1], "--device", "cpu", "-o", "/proc/fused"];
    medfuse(&fuse).fails_with(&["cannot make the output folder /proc/fused"]);
}

#[test]
fn images_over_the_adapters_limits_fail_at_planning() {
    let adapters = medfuse(&["devices", "--json"]).ok().json();
    let adapters = adapters.as_array().expect("a list of adapters");
    let hardware = adapters.iter().find(|a| a["kind"] != "software");
    let used = hardware
        .or(adapters.first())
        .expect("no GPU adapter: install your GPU's Vulkan driver, or apt-get install mesa-vulkan-drivers");
    let limit = used["max_storage_binding"].as_u64().expect("bytes");
    // The finest maps of the network that ships have 32 channels.
    let over = |side: &u64| side * side * 32 * 4 > limit;
    let side = [2048, 8192].into_iter().find(over).expect("WebGPU binds at most 4 GiB") as usize;
    let lab = Lab::empty();
    for name in ["mri.bmp", "ct.bmp"] {
        lab.save(name, &grey(side, side));
    }
    let start = Instant::now();
    let said = lab.fuse("mri.bmp", "ct.bmp", "fused.png", &["--device", "gpu"]);
    said.fails_with(&["layer ", "use smaller images"]);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(!lab.path("fused.png").exists());
}
