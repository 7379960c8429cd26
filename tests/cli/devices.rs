//! `--device`, `medfuse devices` and `medfuse demo`.

use super::{Lab, command, medfuse, ran};

#[test]
fn the_adapters_are_listed_for_people_and_as_json() {
    let json = medfuse(&["devices", "--json"]).ok().json();
    let text = medfuse(&["devices"]).ok().stdout;
    for (index, adapter) in json.as_array().expect("a list").iter().enumerate() {
        assert_eq!(adapter["index"], index);
        assert!(adapter["max_storage_binding"].as_u64() >= Some(1 << 27), "{adapter}");
        assert!(text.contains(adapter["name"].as_str().expect("a name")), "{text}");
    }
    assert!(text.contains("cpu: "), "{text}");
    assert!(text.contains("--device auto takes: "), "{text}");
}

#[test]
fn an_adapter_that_is_not_there_is_refused_with_what_to_do() {
    let lab = Lab::heads(1, 64, "ct");
    for device in ["GeForce 9999", "77", ""] {
        let said = lab.fuse("MRI", "CT", "out", &["--device", device]);
        said.fails_with(&["no GPU adapter", device, "medfuse devices", "--device cpu"]);
    }
}

/// With no driver to be found, `gpu` says what to install and `auto` takes the CPU.
#[test]
#[cfg(target_os = "linux")]
fn without_a_driver_gpu_fails_and_auto_takes_the_cpu() {
    let lab = Lab::heads(1, 64, "ct");
    let on = |device: &str| {
        let paths = ["MRI", "CT", "out"].map(|name| lab.text(name));
        let args = ["fuse", &paths[0], &paths[1], "-o", &paths[2], "--device", device];
        let mut command = command(&args);
        let variables = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
        ran(command.envs(variables.map(|name| (name, "/nonexistent.json"))))
    };
    on("gpu").fails_with(&["no GPU adapter", "apt-get install mesa-vulkan-drivers"]);
    let said = on("auto").ok();
    assert!(said.stderr.contains("device: cpu"), "{}", said.stderr);
}

#[test]
fn the_demo_writes_three_pictures_labelled_synthetic() {
    let lab = Lab::empty();
    let out = lab.text("demo");
    let said = medfuse(&["demo", "--size", "64", "--device", "cpu", "-o", &out]).ok();
    let names = lab.names("demo");
    assert_eq!(names, ["synthetic_MRI_CT.png", "synthetic_MRI_PET.png", "synthetic_MRI_SPECT.png"]);
    for name in names {
        assert!(said.stdout.contains(&name), "{}", said.stdout);
        assert!(lab.image(&format!("demo/{name}")).width() >= 3 * 64);
    }
    std::fs::write(lab.path("file"), b"").expect("written");
    let file = lab.text("file");
    medfuse(&["demo", "--device", "cpu", "-o", &file]).fails_with(&["cannot make the folder", "file"]);
    medfuse(&["demo", "--size", "8", "--device", "cpu", "-o", &out]).fails_with(&["32 to 4096", "8"]);
}
