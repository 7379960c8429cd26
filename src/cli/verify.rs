//! `medfuse verify`: golden cases against what this machine computes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::DeviceArgs;
use super::eval::columns;
use crate::verify::{CaseError, Check, Comparison, Counts, Outcome, Report, find_cases, verify};

/// Check what medfuse computes against golden cases, tensor by tensor
///
/// A case is NAME.safetensors and NAME.json: inputs, weights, and the outputs, activations and gradients that the
/// reference computed. tools/export_case.py makes cases of PyTorch modules of your own, see docs/verifying.md. What a case
/// is about, and each of its attributes, must be known: what is only similar is an error, which names the difference.
///
/// Operations and blocks must come within a relative L2 error of 1e-5, networks and pipelines within
/// 1e-4, or 10 times the case's noise floor where that is larger; 8-bit images within one grey level.
///
/// Gradients are taken of the graph as training runs it, of the sum of the outputs times their weights w.* or of the
/// case's loss, and must come within 1e-4, or 10 times the noise floor. Where that would let zeros pass, the gradient is
/// nothing but rounding, and each element must come within 10 times the reference's own largest error.
///
/// A loss of DM-FNet with flat areas picks sources there by the sign of a rounded variance (the reference's NaN), so
/// its noise floor is about 1% and the tolerance of out.* and grad.* accordingly wide; out_clamped.* and
/// grad_clamped.*, where variances end at zero, have no such excuse.
///
/// Training steps: every loss within 1e-4 of itself, the first step's gradients within 1e-4. Adam moves a weight by about
/// the learning rate whatever the size of its gradient, so rounding decides the way of a weight whose gradient is of
/// rounding size: one that is not over 100 times the reference's largest error of its tensor in the first step. Such
/// a final weight may be off by 2 learning rates for each step, in either direction; the others of its tensor must come within
/// a relative L2 error of 1e-4 and none of them may be off by more than half a learning rate.
/// Where a ReLU's argument is of rounding size it is luck on which side of its jump the gradient is: a case whose first
/// gradients are not close is tried again with inputs larger by 1 part in 2^23, and so on up to 31.
///
/// The last line is the count of tensors, "N passed, N failed, N not checked". The tensors of a case that cannot be run
/// count as failed, and as one failure where they cannot be read. Any failure makes the exit code 1.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Cases (either of their files, or their common name), or folders of them, which are searched to any depth
    #[arg(required = true, value_name = "CASE")]
    cases: Vec<PathBuf>,
    /// Check outputs and activations only: losses, gradients and what else training computes count as not checked
    #[arg(long)]
    forward: bool,
    /// List the activations in the order of the graph and name the first that drifts
    #[arg(long)]
    layers: bool,
    /// List all tensors, not only those of cases that fail
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON; the count goes to the standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the cases.
///
/// # Errors
/// If the device cannot be had or the results cannot be printed.
pub(crate) fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let device = args.device.open()?;
    eprintln!("device: {}", device.describe());
    let (mut counts, mut shown) = (Counts::default(), Vec::new());
    let mut out = std::io::stdout().lock();
    for (path, error) in jobs(&args.cases) {
        let report = match error {
            Some(error) => Report::of_error(&path, error),
            None => verify(&path, &device, args.forward),
        };
        counts = counts.plus(report.counts());
        if args.json {
            shown.push(report_json(&report));
        } else {
            out.write_all(text(&report, &args).as_bytes()).context("cannot print")?;
        }
    }
    let Counts { passed, failed, not_checked } = counts;
    let line = format!("{passed} passed, {failed} failed, {not_checked} not checked");
    if args.json {
        let all = json!({
            "device": device.describe(), "cases": shown,
            "passed": passed, "failed": failed, "not_checked": not_checked,
        });
        writeln!(out, "{all:#}").context("cannot print")?;
        eprintln!("{line}");
    } else {
        writeln!(out, "{line}").context("cannot print")?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The cases of the arguments, each once, and the arguments that have none with the reason. A file of weights is none
/// by right, unless there is nothing else.
fn jobs(arguments: &[PathBuf]) -> Vec<(PathBuf, Option<CaseError>)> {
    let mut jobs: Vec<(PathBuf, Option<CaseError>)> = Vec::new();
    for argument in arguments {
        match find_cases(argument) {
            Err(error) => jobs.push((argument.clone(), Some(error))),
            Ok(cases) => {
                for case in cases {
                    if jobs.iter().all(|(known, _)| *known != case) {
                        jobs.push((case, None));
                    }
                }
            }
        }
    }
    if jobs.is_empty() {
        let named = arguments.iter().map(|path| (path.clone(), Some(CaseError::NoCases)));
        jobs.extend(named);
    }
    jobs
}

/// A case's line, and below it the tensors that are worth showing.
fn text(report: &Report, args: &VerifyArgs) -> String {
    let counts = report.counts();
    let verdict = match counts {
        Counts { failed: 1.., .. } => "FAIL",
        Counts { passed: 1.., .. } => "pass",
        _ => "----",
    };
    let mut text = format!("{verdict}  {}  {}", report.name, summary(report));
    let error = report.error.as_ref().map(ToString::to_string);
    for remark in error.iter().chain(&report.note) {
        text += &format!("\n      {remark}");
    }
    let wanted = |check: &&Check| match check.outcome {
        Outcome::NotChecked => false,
        // Where the case could not be run, its error says it all.
        Outcome::Failed(_) if report.error.is_some() => false,
        _ => args.verbose || counts.failed > 0 || (args.layers && check.name.starts_with("act.")),
    };
    let rows: Vec<[String; 7]> = report.checks.iter().filter(wanted).map(row).collect();
    if !rows.is_empty() {
        text += "\n";
        text += &aligned(rows);
    }
    if args.layers && report.error.is_none() {
        text += &format!("\n      {}", drift(report));
    }
    text + "\n"
}

fn drift(report: &Report) -> String {
    let activations = report.checks.iter().filter(|c| c.name.starts_with("act."));
    match (activations.count(), report.first_drift()) {
        (_, Some(check)) => format!("the first to drift is {}", check.name),
        (0, None) => "the case has no activations".into(),
        (n, None) => format!("none of {n} activations drifts"),
    }
}

/// The counts of a case and its worst tensor.
fn summary(report: &Report) -> String {
    let Counts { passed, failed, not_checked } = report.counts();
    let compared = report.checks.iter().filter_map(|c| match &c.outcome {
        Outcome::Compared(comparison) => Some((c, comparison)),
        _ => None,
    });
    // NaN is the largest of all in the total order.
    let worst = compared.max_by(|a, b| a.1.share().abs().total_cmp(&b.1.share().abs()));
    let mut text = format!("{passed} passed");
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    if not_checked > 0 {
        text += &format!(", {not_checked} not checked");
    }
    if let Some((check, comparison)) = worst {
        let of = comparison.tolerance;
        text += &format!("; nearest the limit: {} {} of {of}", check.name, figure(comparison.error()));
    }
    format!("{text} ({:.1} s)", report.seconds)
}

fn figure(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:.1e}") }
}

fn row(check: &Check) -> [String; 7] {
    let dims: Vec<String> = check.dims.iter().map(usize::to_string).collect();
    let dims = if dims.is_empty() { "scalar".into() } else { dims.join("x") };
    let name = check.name.clone();
    match &check.outcome {
        Outcome::Compared(c) => [
            name,
            dims,
            figure(c.max_abs_error),
            figure(c.relative_l2),
            c.noise_floor.map_or("-".into(), figure),
            c.tolerance.to_string(),
            verdict(c),
        ],
        Outcome::Failed(reason) => {
            let none = || "-".to_owned();
            [name, dims, none(), none(), none(), none(), format!("FAIL: {reason}")]
        }
        Outcome::NotChecked => {
            let none = || "-".to_owned();
            [name, dims, none(), none(), none(), none(), "not checked".into()]
        }
    }
}

fn verdict(comparison: &Comparison) -> String {
    match (comparison.passed(), comparison.not_finite) {
        (true, _) => "pass".into(),
        (false, 0) => "FAIL".into(),
        (false, n) => format!("FAIL: {n} elements are NaN or infinite"),
    }
}

/// A heading and rows in columns: names and shapes to the left, figures to the right.
fn aligned(rows: Vec<[String; 7]>) -> String {
    let heading = ["tensor", "shape", "max abs", "rel L2", "floor", "limit", ""];
    let rows: Vec<Vec<String>> = std::iter::once(heading.map(str::to_owned)).chain(rows).map(Vec::from).collect();
    let lines = columns(&rows, |column| (2..6).contains(&column));
    lines.iter().map(|line| format!("      {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}

fn report_json(report: &Report) -> Value {
    let Counts { passed, failed, not_checked } = report.counts();
    json!({
        "case": report.name,
        "error": report.error.as_ref().map(ToString::to_string),
        "note": report.note,
        "seconds": report.seconds,
        "passed": passed,
        "failed": failed,
        "not_checked": not_checked,
        "first_drift": report.first_drift().map(|c| &c.name),
        "tensors": report.checks.iter().map(check_json).collect::<Vec<_>>(),
    })
}

fn check_json(check: &Check) -> Value {
    let mut value = json!({ "name": check.name, "shape": check.dims });
    let more = match &check.outcome {
        Outcome::Compared(c) => json!({
            "outcome": if c.passed() { "passed" } else { "failed" },
            "max_abs_error": c.max_abs_error,
            "relative_l2": c.relative_l2,
            "noise_floor": c.noise_floor,
            "tolerance": c.tolerance.to_string(),
            "not_finite": c.not_finite,
        }),
        Outcome::Failed(reason) => json!({ "outcome": "failed", "reason": reason }),
        Outcome::NotChecked => json!({ "outcome": "not checked" }),
    };
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let cells =
            |first: &str, figure: &str| [first, "2x3", figure, "1.0e-7", "-", "1.0e-5", "pass"].map(str::to_owned);
        let text = aligned(vec![cells("out.y", "1.0e-10"), cells("out.longer", "0")]);
        let ends: Vec<Option<usize>> = text.lines().skip(1).map(|l| l.find("1.0e-7")).collect();
        assert!(ends[0].is_some() && ends[0] == ends[1], "{text}");
    }
}
