//! What the command says of files that are missing or broken: the file, and the cause once.

use super::{Lab, medfuse};

/// Runs a command that must fail; no part of what it says between colons may come twice, nor may the file.
fn says_once(args: &[&str], file: &str) {
    let ran = medfuse(args);
    assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.stderr);
    let said = ran.stderr + &ran.stdout;
    let name = file.rsplit('/').next().expect("a name");
    let line = said.lines().rfind(|line| line.contains(name) && line.contains(' ')).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(line.matches(file).count(), 1, "{line}");
    let parts: Vec<&str> = line.split(": ").collect();
    for (i, part) in parts.iter().enumerate() {
        assert!(!parts[..i].contains(part), "{part:?} twice in: {line}");
    }
}

#[test]
fn the_cause_of_an_error_is_said_once() {
    let lab = Lab::heads(6, 64, "ct");
    let at = |name: &str| lab.text(name);
    let (heads, out) = (at(""), at("out"));
    let (mri, ct) = (at("MRI/phantom_0000.png"), at("CT/phantom_0000.png"));
    let (picture, folder, missing) = (at("out.png"), at("no-folder"), at("no-weights.pth"));
    let (config, case) = (at("no-config.toml"), at("no-case"));
    let train = |name: &'static str| ["train", name, "--data", &heads, "--out", &out, "--device", "cpu"];
    for weights in [&missing, &at("no-weights.safetensors")] {
        says_once(&["weights", "inspect", weights], weights);
        says_once(&["sample", "--weights", weights, "--out", &picture], weights);
    }
    says_once(&[&train("stage2")[..], &["--unet", &missing]].concat(), &missing);
    says_once(&[&train("lkc-funet")[..], &["--init", &missing, "--crop", "32"]].concat(), &missing);
    says_once(&[&train("lkc-funet")[..], &["--config", &config]].concat(), &config);
    says_once(&["train", "lkc-funet", "--data", &folder, "--out", &out], &folder);
    says_once(&["fuse", &folder, &folder, "-o", &picture], &folder);
    says_once(&["fuse", &mri, &ct, "-o", &picture, "--weights", &folder, "--device", "cpu"], &folder);
    says_once(&["eval", &folder, &at("CT"), &at("MRI")], &folder);
    says_once(&["verify", &case, "--device", "cpu"], &case);

    std::fs::write(&config, "[data]\nbatchsize = 1\n").expect("written");
    says_once(&[&train("lkc-funet")[..], &["--config", &config]].concat(), &config);
    std::fs::write(&missing, "no weights").expect("written");
    says_once(&["weights", "inspect", &missing], &missing);
    says_once(&["fuse", &missing, &ct, "-o", &picture, "--device", "cpu"], &missing);
}
