//! Help texts and broken pipes.

use std::io::Read;
use std::process::Stdio;

use super::{command, medfuse};

#[test]
fn every_subcommand_is_described() {
    let help = medfuse(&["--help"]).ok().stdout;
    assert!(help.starts_with("Fuses registered pairs"), "{help}");
    for subcommand in ["fuse", "train", "sample", "eval", "compare", "verify", "weights", "demo", "phantom", "devices"]
    {
        let line = help.lines().find(|l| l.trim_start().starts_with(&format!("{subcommand} ")));
        assert!(line.is_some_and(|l| l.trim().len() > subcommand.len() + 20), "{subcommand}: {help}");
        let own = medfuse(&[subcommand, "--help"]).ok().stdout;
        assert!(own.contains(&format!("Usage: medfuse {subcommand}")), "{own}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child =
        command(&["devices"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    drop(child.stdout.take());
    let mut stderr = String::new();
    let pipe = child.stderr.as_mut().expect("piped");
    pipe.read_to_string(&mut stderr).expect("UTF-8");
    child.wait().expect("a child");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
