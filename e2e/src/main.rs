//! `lab`: the command. Reads its arguments, picks the work, and sees to it that everything ends with it.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use calico_vni_crds::calico::CalicoApi;
use calico_vni_e2e::{kind, nodes, run, scenarios, step, world::World};
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
    Demo {
        /// Leave the lab up afterwards, until Ctrl-C.
        #[arg(long)]
        stay: bool,
    },
    /// End every lab of this checkout that is up.
    Down,
    /// Run a program in a network namespace of the lab that is up: n1, n1-router, leaf, a pod's name.
    Exec {
        /// The namespace.
        netns: String,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Play all scenarios, or those whose names contain one of these texts.
    Test {
        /// Parts of scenarios' names. A few are played by their whole names alone.
        names: Vec<String>,
    },
    /// A kind cluster: what real kubelets can prove of chart and images.
    #[command(subcommand)]
    Kind(kind::Work),
    /// The node side; the lab starts it itself.
    #[command(hide = true)]
    Nodes(nodes::server::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    step::start();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does the work unless a signal ends it; in both ways all that was started is dropped, and so ended.
async fn run() -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    tokio::select! {
        result = work(Arguments::parse().work) => result,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

async fn work(work: Work) -> Result<ExitCode> {
    let (names, stay) = match work {
        Work::Nodes(options) => return nodes::server::run(options).await.map(|()| ExitCode::SUCCESS),
        Work::Down => return run::down().await.map(|()| ExitCode::SUCCESS),
        Work::Exec { netns, argv } => return run::exec(netns, argv).await.map(ExitCode::from),
        Work::Kind(work) => {
            provide_tls()?;
            return kind::run(work).await;
        }
        Work::Up => (None, true),
        Work::Demo { stay } => (Some(vec!["demo".to_owned()]), stay),
        Work::Test { names } => (Some(names), false),
    };
    let chosen = names.map(|names| scenarios::chosen(&names)).transpose()?;
    provide_tls()?;
    let calico = match std::env::var("LAB_CALICO_API").as_deref() {
        Ok("v1") => CalicoApi::CrdV1,
        Ok("v3") | Err(_) => CalicoApi::V3,
        Ok(other) => anyhow::bail!("LAB_CALICO_API is `{other}`; it can be `v3` or `v1`"),
    };
    let release = scenarios::first_release(chosen.as_deref().unwrap_or_default());
    let mut world = World::start(calico, release).await?;
    if let Some(chosen) = chosen {
        scenarios::play(&mut world, &chosen).await?;
    }
    if stay {
        world.tell_how_to_reach();
        std::future::pending::<()>().await;
    }
    world.stop().await?;
    Ok(ExitCode::SUCCESS)
}

fn provide_tls() -> Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before");
    }
    Ok(())
}
