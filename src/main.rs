//! The command `medfuse`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match medfuse::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
