//! Ctrl-C in a folder run.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Lab, command};

/// Sends the signal of Ctrl-C.
fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
}

#[test]
fn ctrl_c_leaves_whole_files_and_nothing_else() {
    let lab = Lab::heads(10, 64, "ct");
    let paths = ["MRI", "CT", "out"].map(|name| lab.text(name));
    let args = ["fuse", &paths[0], &paths[1], "-o", &paths[2], "--device", "cpu", "--json"];
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the command starts");
    let start = Instant::now();
    while !lab.path("out/phantom_0000.png").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no first picture");
        assert!(child.try_wait().expect("a child").is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    interrupt(&child);
    let output = child.wait_with_output().expect("a child");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("stopping after this pair"), "{stderr}");
    let names = lab.names("out");
    assert!((1..10).contains(&names.len()), "{names:?}");
    for name in &names {
        assert!(name.ends_with(".png") && !name.starts_with('.'), "{name} remains");
        assert_eq!(lab.image(&format!("out/{name}")).width(), 64);
    }
    assert!(stderr.contains(&format!("{} of 10 pairs fused", names.len())), "{stderr}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["stopped"], true);
    assert_eq!(json["pairs"].as_array().map(Vec::len), Some(names.len()));
}

#[test]
fn ctrl_c_stops_a_comparison_without_a_table() {
    let lab = Lab::heads(20, 64, "ct");
    let [mri, ct, sheet] = ["MRI", "CT", "sheet.png"].map(|name| lab.text(name));
    let args = ["compare", &mri, &ct, "--device", "cpu", "-o", &sheet];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    // The model's line comes before the first pair.
    stderr.read_line(&mut said).expect("UTF-8");
    interrupt(&child);
    stderr.read_to_string(&mut said).expect("UTF-8");
    let output = child.wait_with_output().expect("a child");
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("nothing is written"), "{said}");
    assert!(output.stdout.is_empty() && !lab.path("sheet.png").exists());
}
