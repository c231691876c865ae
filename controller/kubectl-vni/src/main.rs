//! `kubectl vni`: what calico-vni does and would do, and why. It reads, and never writes.

mod cli;
mod completion;
mod conditions;
mod doctor;
mod input;
mod output;
mod plan;
mod routers;
mod routes;
mod sessions;
mod status;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use self::cli::{Arguments, Command};

/// Exit code where something is wrong.
const WRONG: u8 = 1;
/// Exit code where the question could not be answered: as clap has it for arguments that make no sense.
const UNANSWERED: u8 = 2;

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(UNANSWERED)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(async {
        match command {
            Command::Plan(arguments) => plan::run(&arguments).await,
            Command::Status(arguments) => status::run(&arguments).await,
            Command::Sessions(arguments) => sessions::run(&arguments).await,
            Command::Routes(arguments) => routes::run(&arguments).await,
            Command::Doctor(arguments) => doctor::run(&arguments).await,
            Command::Completion(arguments) => {
                output::print(&completion::script(arguments.shell)).map(|()| ExitCode::SUCCESS)
            }
            Command::Complete { words } => {
                output::print(&completion::answer(&words).await).map(|()| ExitCode::SUCCESS)
            }
        }
    })
}
