//! What `medfuse train` says before a run begins.

use medfuse::weights::Weights;

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
    train(&["--resume"]).fails_with(&["holds no run to go on with"]);
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

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let lab = Lab::heads(6, 64, "ct");
    let small = "[unet]\ninner_channel = 8\nnorm_groups = 4\nchannel_mults = [1, 2]\nres_blocks = 1\n\
                 [data]\ncrop = 32\nval_pairs = 1\n[optimiser]\nlr = 1e-3\nema_decay = 0.9\n\
                 [run]\nlog_every = 2\nsample_every = 3\ncheckpoint_every = 2\n";
    std::fs::write(lab.path("c.toml"), small).expect("written");
    let train = |out: &str, steps: &str, more: &[&str]| {
        let [mri, ct, out, config] = ["MRI", "CT", out, "c.toml"].map(|name| lab.text(name));
        let args = ["train", "stage1", "--mri", &mri, "--other", &ct, "-o", &out, "--steps", steps];
        medfuse(&[&args[..], &["--device", "cpu", "--config", &config], more].concat())
    };
    let said = train("whole", "6", &[]).ok();
    assert!(said.stderr.contains("5 pairs to train on, 1 held out"), "{}", said.stderr);
    assert!(said.stderr.contains("step 6 of 6: loss"), "{}", said.stderr);
    train("parts", "3", &[]).ok();
    train("parts", "6", &[]).fails_with(&["already holds a run"]);
    train("parts", "6", &["--resume", "--lr", "1e-2"]).fails_with(&["optimiser.lr = 0.001", "optimiser.lr = 0.01"]);
    train("parts", "6", &["--resume"]).ok();
    for file in ["unet.safetensors", "config.toml"] {
        assert_eq!(lab.bytes(&format!("whole/{file}")), lab.bytes(&format!("parts/{file}")), "{file}");
    }
    let losses = |out: &str| {
        let text = String::from_utf8(lab.bytes(&format!("{out}/log.csv"))).expect("UTF-8");
        let field = |line: &str, i: usize| line.split(',').nth(i).expect("a field").to_owned();
        text.lines().map(|line| (field(line, 0), field(line, 2))).collect::<Vec<_>>()
    };
    assert_eq!(losses("whole").iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), ["step", "2", "4", "6"]);
    assert_eq!(losses("whole")[1], losses("parts")[1]);
    assert_eq!(losses("whole")[3], losses("parts")[4]);
    assert!(lab.image("parts/loss.png").width() > 500);
}

#[test]
fn stage_two_goes_on_with_the_unet_it_began_with() {
    let lab = Lab::heads(3, 64, "ct");
    let common = "[data]\ncrop = 64\nval_pairs = 1\n";
    let unet = "[unet]\ninner_channel = 8\nnorm_groups = 4\nres_blocks = 1\n";
    std::fs::write(lab.path("one.toml"), format!("{unet}{common}")).expect("written");
    std::fs::write(lab.path("two.toml"), format!("[head]\nnorm_groups = 4\ndecode_channels = 4\n{common}"))
        .expect("written");
    let train = |stage: &str, out: &str, config: &str, more: &[&str]| {
        let [mri, ct, out, config] = ["MRI", "CT", out, config].map(|name| lab.text(name));
        let args = ["train", stage, "--mri", &mri, "--other", &ct, "-o", &out, "--config", &config, "--device", "cpu"];
        medfuse(&[&args[..], more].concat())
    };
    for seed in ["1", "2"] {
        train("stage1", seed, "one.toml", &["--steps", "1", "--seed", seed]).ok();
    }
    let [first, second] = ["1", "2"].map(|seed| lab.text(&format!("{seed}/unet.safetensors")));
    train("stage2", "head", "two.toml", &["--steps", "1", "--unet", &first]).ok();
    let resume = |unet: &str| train("stage2", "head", "two.toml", &["--steps", "2", "--resume", "--unet", unet]);
    resume(&second).fails_with(&["trained with `unet = "]);
    resume(&first).ok();
    let text = String::from_utf8(lab.bytes("head/log.csv")).expect("UTF-8");
    assert_eq!(text.lines().map(|l| l.split(',').next()).collect::<Vec<_>>(), [Some("step"), Some("1"), Some("2")]);
}

#[test]
fn thirty_steps_halve_the_loss_and_a_run_killed_after_fifteen_ends_in_the_same_bytes() {
    let lab = Lab::heads(6, 64, "pet");
    let small = "[unet]\ninner_channel = 8\nnorm_groups = 4\nchannel_mults = [1, 1, 2]\nres_blocks = 1\n\
                 [data]\ncrop = 32\nbatch = 2\nval_pairs = 1\n[optimiser]\nlr = 2e-3\nema_decay = 0.9\nclip = 1.0\n\
                 [run]\nlog_every = 5\nsample_every = 0\ncheckpoint_every = 5\n";
    std::fs::write(lab.path("c.toml"), small).expect("written");
    let args = |out: &str, steps: &str, more: &[&str]| -> Vec<String> {
        let [mri, pet, out, config] = ["MRI", "PET", out, "c.toml"].map(|name| lab.text(name));
        let args = ["train", "stage1", "--mri", &mri, "--other", &pet, "-o", &out, "--config", &config];
        [&args[..], &["--steps", steps, "--device", "cpu"], more].concat().into_iter().map(str::to_owned).collect()
    };
    let train = |out: &str, more: &[&str]| {
        let all = args(out, "90", more);
        medfuse(&all.iter().map(String::as_str).collect::<Vec<_>>()).ok()
    };
    train("whole", &[]);
    let log = String::from_utf8(lab.bytes("whole/log.csv")).expect("UTF-8");
    let losses: Vec<f64> =
        log.lines().skip(1).map(|line| line.split(',').nth(2).expect("a loss").parse().expect("a number")).collect();
    // The sixth row is that of steps 26 to 30.
    assert!(losses.len() == 18 && losses[5] < 0.5 * losses[0], "{losses:?}");

    // Killed without warning at whatever it does after step 15, long before the 100,000 steps it was to do.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_medfuse"))
        .args(args("killed", "100000", &[]))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let rows = || std::fs::read_to_string(lab.path("killed/log.csv")).map_or(0, |text| text.lines().count());
    let start = std::time::Instant::now();
    while rows() < 4 && start.elapsed().as_secs() < 120 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert!((4..18).contains(&rows()), "killed at step {} in place of 15 or soon after", 5 * (rows() - 1));
    train("killed", &["--resume"]);
    assert_eq!(lab.bytes("whole/unet.safetensors"), lab.bytes("killed/unet.safetensors"));
}

#[test]
fn a_run_is_refused_for_what_would_only_show_after_hours() {
    let lab = Lab::heads(6, 64, "ct");
    let small = "[unet]\ninner_channel = 8\nnorm_groups = 4\nchannel_mults = [1, 1, 1]\nres_blocks = 1\n\
                 [data]\ncrop = 32\nval_pairs = 1\n";
    std::fs::write(lab.path("one.toml"), small).expect("written");
    std::fs::write(
        lab.path("two.toml"),
        "[head]\nnorm_groups = 8\ndecode_channels = 4\n[data]\ncrop = 32\nval_pairs = 1\n",
    )
    .expect("written");
    std::fs::write(lab.path("single.toml"), "[head]\ntime_steps = [5]\n").expect("written");
    let train = |stage: &str, out: &str, config: &str, more: &[&str]| {
        let [mri, ct, out, config] = ["MRI", "CT", out, config].map(|name| lab.text(name));
        let args = ["train", stage, "--mri", &mri, "--other", &ct, "-o", &out, "--config", &config, "--device", "cpu"];
        medfuse(&[&args[..], more].concat())
    };
    train("stage1", "unet", "one.toml", &["--steps", "3"]).ok();
    train("stage1", "unet", "one.toml", &["--steps", "2", "--resume"]).fails_with(&["has done 3 steps already"]);
    let unet = lab.text("unet/unet.safetensors");
    train("stage2", "head", "two.toml", &["--unet", &unet]).fails_with(&["norm_groups 4", "set head.norm_groups = 4"]);
    train("stage2", "head", "single.toml", &["--unet", &unet]).fails_with(&["two or more noise steps"]);
    assert!(!lab.path("head/log.csv").exists());
    let out = lab.text("s.png");
    let sample = |more: &[&str]| {
        let args = ["sample", "--weights", &unet, "--out", &out, "--device", "cpu", "--count", "1"];
        medfuse(&[&args[..], more].concat())
    };
    sample(&["--size", "30"]).fails_with(&["--size 30", "multiples of 4"]);
    sample(&["--steps", "5000"]).fails_with(&["schedule has 2000 steps"]);
    sample(&["--size", "32", "--steps", "5"]).ok();
    assert_eq!((lab.image("s.png").width(), lab.image("s.png").height()), (6 * 32, 32));
}

#[test]
fn an_lkc_funet_resumes_with_its_running_statistics_and_fuses() {
    let lab = Lab::heads(4, 64, "pet");
    let small = "[net]\ninner_channel = 2\nnorm_groups = 2\ndropout = 0.1\n\
                 [data]\ncrop = 32\nbatch = 2\nval_pairs = 1\n[optimiser]\nlr = 3e-2\n\
                 [run]\nlog_every = 10\nsample_every = 20\ncheckpoint_every = 5\n";
    std::fs::write(lab.path("c.toml"), small).expect("written");
    let train = |out: &str, steps: &str, more: &[&str]| {
        let [mri, pet, out, config] = ["MRI", "PET", out, "c.toml"].map(|name| lab.text(name));
        let args = ["train", "lkc-funet", "--mri", &mri, "--other", &pet, "-o", &out, "--steps", steps];
        medfuse(&[&args[..], &["--device", "cpu", "--config", &config], more].concat())
    };
    train("whole", "40", &[]).ok();
    train("parts", "15", &[]).ok();
    train("parts", "40", &["--resume"]).ok();
    for file in ["lkc-funet.safetensors", "model.json", "checkpoint.safetensors"] {
        let same = lab.bytes(&format!("whole/{file}")) == lab.bytes(&format!("parts/{file}"));
        // A checkpoint tells its seconds.
        assert_eq!(same, file != "checkpoint.safetensors", "{file}");
    }
    let log = String::from_utf8(lab.bytes("whole/log.csv")).expect("UTF-8");
    let loss = |line: &str| line.split(',').nth(2).expect("a loss").parse::<f64>().expect("a number");
    let losses: Vec<f64> = log.lines().skip(1).map(loss).collect();
    assert!(losses.len() == 4 && losses[3] < 0.9 * losses[0], "{losses:?}");
    let first = lab.text("whole/lkc-funet.safetensors");
    train("tuned", "1", &["--lr", "1e-9", "--init", &first]).ok();
    let before = Weights::load(&first).expect("weights");
    let after = Weights::load(lab.text("tuned/lkc-funet.safetensors")).expect("weights");
    let of = |weights: &Weights, name: &str| weights.get(name).expect("a tensor").data().to_vec();
    let near = |name| of(&before, name).iter().zip(of(&after, name)).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near("model.init_conv.weight") && !near("model.IN_conv.0.running_var"));
    std::fs::write(lab.path("wide.toml"), "[net]\ninner_channel = 4\nnorm_groups = 2\n[data]\nval_pairs = 1\n")
        .expect("written");
    let wide = lab.text("wide.toml");
    let pairs = ["MRI", "PET", "other"].map(|name| lab.text(name));
    let args = ["train", "lkc-funet", "--mri", &pairs[0], "--other", &pairs[1], "-o", &pairs[2], "--device", "cpu"];
    medfuse(&[&args[..], &["--config", &wide, "--init", &first]].concat()).fails_with(&["are of another network"]);
    let [mri, pet, out, weights] =
        ["MRI/phantom_0001.png", "PET/phantom_0001.png", "f.png", "whole"].map(|name| lab.text(name));
    let fuse = |more: &[&str]| medfuse(&[&["fuse", &mri, &pet, "-o", &out, "--device", "cpu"], more].concat());
    fuse(&["--weights", &weights]).ok();
    assert_eq!(lab.image("f.png").width(), 64);
    fuse(&["--model", "dm-fnet", "--weights", &weights]).fails_with(&["lkc-funet"]);
    std::fs::write(lab.path("bad.toml"), "[net]\ninner_channel = 3\n").expect("written");
    let bad = lab.text("bad.toml");
    medfuse(&["train", "lkc-funet", "--data", "x", "-o", "y", "--config", &bad])
        .fails_with(&["net.inner_channel must"]);
}
