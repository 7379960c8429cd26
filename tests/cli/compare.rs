//! What `medfuse compare` prints and draws.

use medfuse::imaging::{Channels, Image, Samples};
use serde_json::Value;

use super::{Lab, Ran, medfuse};

/// `medfuse compare MRI CT` in this folder, with labelled folders of results in it.
fn compare(lab: &Lab, results: &[&str], more: &[&str]) -> Ran {
    let [mri, ct] = ["MRI", "CT"].map(|name| lab.text(name));
    let results: Vec<String> = results.iter().map(|name| format!("{name}={}", lab.text(name))).collect();
    let results = results.iter().flat_map(|result| ["--result", result]);
    let args: Vec<&str> = ["compare", &mri, &ct, "--device", "cpu"].into_iter().chain(results).collect();
    medfuse(&[&args[..], more].concat())
}

/// `medfuse eval MRI CT FUSED --json` in this folder.
fn eval(lab: &Lab, fused: &str) -> Value {
    let [mri, ct, fused] = ["MRI", "CT", fused].map(|name| lab.text(name));
    medfuse(&["eval", &mri, &ct, &fused, "--json"]).json()
}

fn bytes_of(image: &Image) -> &[u8] {
    match image.samples() {
        Samples::U8(v) => v,
        Samples::U16(_) => panic!("the image has 16 bits"),
    }
}

/// Writes what `of` makes of the heads' pixels into a folder.
fn fuse_by(lab: &Lab, folder: &str, of: fn(u8, u8) -> u8) {
    for name in lab.names("MRI") {
        let [mri, ct] = ["MRI", "CT"].map(|source| lab.image(&format!("{source}/{name}")));
        let levels = bytes_of(&mri).iter().zip(bytes_of(&ct)).map(|(&a, &b)| of(a, b)).collect();
        let fused = Image::new(mri.width(), mri.height(), Channels::Grey, Samples::U8(levels)).expect("a picture");
        lab.save(&format!("{folder}/{name}"), &fused);
    }
}

#[test]
fn rows_have_the_figures_of_eval() {
    let lab = Lab::heads(3, 64, "ct");
    fuse_by(&lab, "brighter", u8::max);
    fuse_by(&lab, "mean", |a, b| ((u16::from(a) + u16::from(b)) / 2) as u8);
    let rows = compare(&lab, &["brighter", "mean"], &["--json", "--csv", &lab.text("all.csv")]).ok().json();
    let labels: Vec<&Value> = rows.as_array().expect("rows").iter().map(|row| &row["row"]).collect();
    assert_eq!(labels, ["brighter", "mean", "maximum", "average"]);
    for (row, folder) in [(0, "brighter"), (1, "mean"), (2, "brighter"), (3, "mean")] {
        let expected = eval(&lab, folder);
        assert_eq!(expected["pairs"].as_array().map(Vec::len), Some(3));
        for part in ["mean", "std", "pairs"] {
            assert_eq!(rows[row][part], expected[part], "{part} of row {row}");
        }
    }
    let csv = String::from_utf8(lab.bytes("all.csv")).expect("UTF-8");
    assert_eq!(csv.lines().count(), 1 + 4 * 3);
    assert!(csv.lines().nth(12).is_some_and(|line| line.starts_with("average,phantom_0002,")), "{csv}");
    let table = compare(&lab, &["brighter"], &[]).ok().stdout;
    let mse = rows[3]["mean"]["MSE"].as_f64().expect("a number");
    // No grey image is nearer to both sources than their average.
    assert!(table.lines().any(|line| line.starts_with("average") && line.ends_with(&format!(" {mse:.4}*"))), "{table}");
    assert!(table.contains("means over 3 pairs"), "{table}");
}

#[test]
fn a_models_row_is_what_fuse_writes() {
    let lab = Lab::heads(1, 64, "ct");
    lab.fuse("MRI", "CT", "fused", &["--device", "cpu", "--seed", "3"]).ok();
    let both = compare(&lab, &["fused"], &["--model", "dm-fnet", "--seed", "3", "--json"]).ok().json();
    assert_eq!((&both[0]["row"], &both[1]["row"]), (&"dm-fnet".into(), &"fused".into()));
    assert_eq!(both[0]["mean"], both[1]["mean"]);
    // Without any row asked for it is the models that ship; a single pair is compared like a folder of one.
    let [mri, ct] = ["MRI", "CT"].map(|folder| lab.text(&format!("{folder}/phantom_0000.png")));
    let alone = medfuse(&["compare", &mri, &ct, "--device", "cpu", "--seed", "3", "--json"]).ok().json();
    assert_eq!(alone[0], both[0]);
    lab.fuse("MRI", "CT", "large-kernels", &["--device", "cpu", "--model", "lkc-funet"]).ok();
    let fused = compare(&lab, &["large-kernels"], &["--json"]).ok().json();
    assert_eq!((&alone[1]["row"], &alone[1]["mean"]), (&"lkc-funet".into(), &fused[0]["mean"]));
    assert_ne!(alone[1]["mean"], alone[0]["mean"]);
}

#[test]
fn the_sheet_shows_sources_rows_patches_and_differences() {
    let lab = Lab::heads(3, 64, "ct");
    fuse_by(&lab, "inverse", |a, b| 255 - a.max(b));
    let more = ["-o", &lab.text("sheet.png"), "--pairs", "phantom_0002,phantom_0001", "--patch", "20,24,32,16"];
    compare(&lab, &["inverse"], &[&more[..], &["--scale", "255"]].concat()).ok();
    let sheet = lab.image("sheet.png");
    // Captions, MRI, CT, inverse, maximum, average; labels, and for two pairs pictures, patches at x2 and differences.
    let margin = 6 * "-max: blue -255, red +255".len();
    assert_eq!((sheet.width(), sheet.height()), (margin + 5 * 64 + 4 * 2, 11 + 2 * (64 + 32 + 64) + 5 * 2));
    let at = |x: usize, y: usize| {
        let first = (y * sheet.width() + x) * 3;
        [0, 1, 2].map(|c| bytes_of(&sheet)[first + c])
    };
    for (pair, top) in [("phantom_0001", 11), ("phantom_0002", 11 + 64 + 2 + 32 + 2 + 64 + 2)] {
        let [mri, ct] = ["MRI", "CT"].map(|folder| lab.image(&format!("{folder}/{pair}.png")));
        for (x, y) in (0..64).flat_map(|y| (0..64).map(move |x| (x, y))) {
            let [mri, ct] = [&mri, &ct].map(|image| bytes_of(image)[y * 64 + x]);
            let cell = |column: usize, row_top: usize| at(margin + column * 66 + x, top + row_top + y);
            assert_eq!([cell(0, 0), cell(1, 0), cell(3, 0)], [mri, ct, mri.max(ct)].map(|v| [v; 3]));
            // Nothing is lost or added by the maximum itself; the CT lacks what is brighter in the MRI.
            assert_eq!(cell(3, 100), [255; 3]);
            assert_eq!(cell(1, 100), [255 - (mri.max(ct) - ct), 255 - (mri.max(ct) - ct), 255]);
            let inverse = 255 - 2 * i32::from(mri.max(ct));
            let pale = 255 - inverse.unsigned_abs() as u8;
            assert_eq!(cell(2, 100), if inverse < 0 { [pale, pale, 255] } else { [255, pale, pale] });
        }
        for (x, y) in (0..32).flat_map(|y| (0..64).map(move |x| (x, y))) {
            assert_eq!(at(margin + x, top + 66 + y), [bytes_of(&mri)[(24 + y / 2) * 64 + 20 + x / 2]; 3]);
        }
    }
}

#[test]
fn figures_are_over_the_pairs_that_all_rows_have() {
    let lab = Lab::heads(4, 64, "ct");
    for folder in ["whole", "partial", "odd"] {
        fuse_by(&lab, folder, u8::max);
    }
    std::fs::remove_file(lab.path("partial/phantom_0001.png")).expect("removed");
    std::fs::remove_file(lab.path("CT/phantom_0003.png")).expect("removed");
    let small = Image::new(50, 64, Channels::Grey, Samples::U8(vec![9; 50 * 64])).expect("a picture");
    lab.save("odd/phantom_0002.png", &small);
    let said = compare(&lab, &["whole", "partial", "odd"], &["--json", "-o", &lab.text("sheet.png")]);
    let said = said.fails_with(&["partial has 2 of 3 pairs", "whole has 3 of 3 pairs"]).fails_with(&[
        "left out phantom_0001: partial: no image of this name in",
        "left out phantom_0002: odd: the sizes differ",
        "fused 50x64",
        "left out phantom_0003: no image of this name in",
    ]);
    let rows = said.json();
    for row in 0..5 {
        let names: Vec<_> = rows[row]["pairs"].as_array().expect("pairs").iter().map(|pair| &pair["name"]).collect();
        assert_eq!(names, ["phantom_0000"], "row {row}");
        assert_eq!(rows[row]["failed"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(lab.image("sheet.png").height(), 11 + 3 * 64 + 2 * 2);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let lab = Lab::heads(2, 64, "ct");
    fuse_by(&lab, "a", u8::max);
    lab.save("elsewhere/other.png", &lab.image("a/phantom_0000.png"));
    let sheet = lab.text("sheet.png");
    compare(&lab, &["nowhere"], &[]).fails_with(&["nowhere", "must be a folder"]);
    compare(&lab, &["elsewhere"], &[]).fails_with(&["elsewhere has 0 of 2 pairs", "no pair of"]);
    compare(&lab, &["a", "a"], &[]).fails_with(&["two rows are called a"]);
    let folder = lab.text("a");
    compare(&lab, &[], &["--result", &format!("maximum={folder}")]).fails_with(&["two rows are called maximum"]);
    compare(&lab, &[], &["--model", "none"]).fails_with(&["--model none", "unet"]);
    compare(&lab, &["a"], &["-o", &lab.text("sheet.txt")]).fails_with(&["cannot tell the format"]);
    compare(&lab, &["a"], &["-o", &sheet, "--pairs", "phantom_0007"]).fails_with(&["phantom_0007"]);
    compare(&lab, &["a"], &["-o", &sheet, "--pairs", "0"]).fails_with(&["--pairs", "called 0"]);
    compare(&lab, &["a"], &["-o", &sheet, "--patch", "60,0,5,5"])
        .fails_with(&["60,0,5,5 leaves phantom_0000", "64 x 64"]);
    for input in ["a/phantom_0001.png", "MRI/phantom_0000.png"] {
        let before = lab.bytes(input);
        compare(&lab, &["a"], &["-o", &lab.text(input)]).fails_with(&["replace its own input"]);
        compare(&lab, &["a"], &["--csv", &lab.text(input)]).fails_with(&["replace its own input"]);
        assert_eq!(lab.bytes(input), before);
    }
    for (option, wrong) in [("--patch", "1,2,3"), ("--patch", "1,2,0,4"), ("--result", "=a"), ("--scale", "0")] {
        assert_eq!(compare(&lab, &["a"], &[option, wrong]).code, Some(2), "{option} {wrong}");
    }
    assert!(!lab.path("sheet.png").exists());
}
