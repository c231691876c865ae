//! `lab`: the command. Reads its arguments, picks the work, and sees to it that everything ends with it.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use calico_vni_e2e::{lab::Lab, nodes, step};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// The whole system on one machine.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand, Debug)]
enum Work {
    /// Start the lab and leave it up until Ctrl-C.
    Up,
    /// The node side; the lab starts it itself.
    #[command(hide = true)]
    Nodes(nodes::server::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    step::start();
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does the work unless a signal ends it; in both ways all that was started is dropped, and so ended.
async fn run() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    tokio::select! {
        result = work(Arguments::parse().work) => result,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}

async fn work(work: Work) -> Result<()> {
    match work {
        Work::Nodes(options) => nodes::server::run(options).await,
        Work::Up => {
            let lab = Lab::start().await?;
            step!("up; Ctrl-C ends it. {}", lab.directory.display());
            std::future::pending().await
        }
    }
}
