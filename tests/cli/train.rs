//! What `medfuse train` says before a run begins.

use super::{Lab, medfuse};

#[test]
fn the_printed_configuration_is_that_of_file_and_flags_and_reads_back() {
    let lab = Lab::empty();
    std::fs::write(lab.path("c.toml"), "[data]\ncrop = 96\nbatch = 3\n[rate]\nkind = \"cosine\"\n").expect("written");
    let print = ["train", "stage2", "--print-config", "--config", &lab.text("c.toml"), "--batch", "4", "--lr", "2e-4"];
    let text = medfuse(&print).ok().stdout;
    for line in ["crop = 96", "batch = 4", "lr = 0.0002", "kind = \"cosine\"", "[loss]", "# Noise steps at which"] {
        assert!(text.contains(line), "no {line:?} in: {text}");
    }
    std::fs::write(lab.path("again.toml"), &text).expect("written");
    assert_eq!(medfuse(&["train", "stage2", "--print-config", "--config", &lab.text("again.toml")]).ok().stdout, text);
}

#[test]
fn what_cannot_be_trained_is_refused_before_anything_is_written() {
    let lab = Lab::heads(3, 64, "ct");
    let train = |more: &[&str]| {
        let (data, out) = (lab.text(""), lab.text("run"));
        let args = ["train", "stage1", "--data", &data, "--out", &out, "--device", "cpu", "--crop", "64"];
        medfuse(&[&args[..], more].concat())
    };
    train(&["--batch", "0"]).fails_with(&["data.batch must be from 1"]);
    train(&["--resume"]).fails_with(&["no run to resume", "config.toml"]);
    std::fs::write(lab.path("bad.toml"), "[data]\nflip = 1").expect("written");
    train(&["--config", &lab.text("bad.toml")]).fails_with(&["bad.toml", "no key data.flip"]);
    train(&[]).fails_with(&["has 3 pairs", "holding out 4"]);
    std::fs::remove_file(lab.path("CT/phantom_0001.png")).expect("the file goes");
    train(&[]).fails_with(&["phantom_0001", "lack their partner"]);
    assert!(!lab.path("run").exists());
    let usage = medfuse(&["train", "stage2", "--data", "x", "--out", "y"]);
    assert_eq!(usage.code, Some(2));
    assert!(usage.stderr.contains("--unet"), "{}", usage.stderr);
}
