//! `medfuse devices`: the adapters of this machine.

use std::process::ExitCode;

use clap::Args;

use crate::device::Device;
use crate::device::adapters;
use crate::gpu::AdapterReport;

/// List the adapters that `--device` can name, with limits and features
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the adapters.
///
/// # Errors
/// If the JSON cannot be written.
pub(crate) fn run(args: DevicesArgs) -> anyhow::Result<ExitCode> {
    let found = adapters()?;
    if args.json {
        super::say(format_args!("{}", serde_json::to_string_pretty(&found)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        super::say(format_args!(
            "no GPU adapter (a software one on Debian and Ubuntu: apt-get install mesa-vulkan-drivers)"
        ))?;
    }
    found.iter().try_for_each(print_adapter)?;
    super::say(format_args!("cpu: {}", Device::Cpu.describe()))?;
    super::say(format_args!("--device auto takes: {}", Device::select("auto")?.describe()))?;
    Ok(ExitCode::SUCCESS)
}

fn print_adapter(r: &AdapterReport) -> anyhow::Result<()> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    super::say(format_args!("{}: {} ({}, {}, driver {})", r.index, r.name, r.kind, r.backend, r.driver))?;
    super::say(format_args!(
        "   storage binding {:.0} MiB, buffer {:.0} MiB, workgroup {} invocations and {} KiB, subgroup {} to {}",
        mib(r.max_storage_binding),
        mib(r.max_buffer),
        r.max_workgroup_invocations,
        r.workgroup_memory / 1024,
        r.subgroup[0],
        r.subgroup[1]
    ))?;
    super::say(format_args!("   features: {}", r.features.join(", ")))
}
