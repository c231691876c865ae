//! `lab`: the command. Reads its arguments, picks the work, and sees to it that everything ends with it.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use calico_vni_crds::calico::CalicoApi;
use calico_vni_e2e::{nodes, scenarios, step, world::World};
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
    /// Show the main job, with the matrix of who reaches whom.
    Demo,
    /// Play all scenarios, or those whose names contain a text.
    Test {
        /// Part of a scenario's name.
        #[arg(default_value = "")]
        filter: String,
    },
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
    if let Work::Nodes(options) = work {
        return nodes::server::run(options).await;
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before");
    }
    let mut world = World::start(CalicoApi::V3).await?;
    match work {
        Work::Nodes(_) | Work::Up => {
            step!("up; Ctrl-C ends it. {}", world.lab.directory.display());
            std::future::pending().await
        }
        Work::Demo => scenarios::play(&mut world, "demo").await,
        Work::Test { filter } => scenarios::play(&mut world, &filter).await,
    }
}
