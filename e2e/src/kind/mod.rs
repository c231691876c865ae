//! A kind cluster on this machine, and what only real kubelets can prove of the chart: one control plane and two workers out of
//! Debian's packages and Go modules, with our images and our chart as they are shipped.
//!
//! All of it runs in namespaces of its own, for processes, mounts and network, which end with the run whatever happens; only
//! podman's storage below `target/kind` stays. Calico is played by its definitions and a few of its objects.

mod cluster;
mod evidence;
mod fabric;
mod install;
mod leader;
mod node;
mod processes;
mod rollout;
mod uninstall;
mod viewer;

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use nix::mount::{MsFlags, mount};

use crate::{paths, program::output, site, step};
use cluster::Cluster;

/// `lab kind …`
#[derive(Subcommand, Clone, Debug)]
pub enum Work {
    /// Install the chart in a kind cluster, prove it, and take it away again. `make kind-e2e` makes first what it needs: node
    /// image, container images, helm.
    ///
    /// The cluster is made of Debian's packages and Go modules, with podman; Calico is played by its definitions. A cluster of
    /// kindest/node with Calico's own manifest is not built.
    Test {
        /// Leave the cluster up after the installation, until Ctrl-C, to look around in.
        #[arg(long)]
        stay: bool,
    },
    /// The part that runs in namespaces of its own.
    #[command(hide = true)]
    Inside {
        /// As above.
        #[arg(long)]
        stay: bool,
    },
}

/// Does it.
pub async fn run(work: Work) -> Result<ExitCode> {
    match work {
        Work::Test { stay } => outside(stay).await,
        Work::Inside { stay } => inside(stay).await.map(|()| ExitCode::SUCCESS),
    }
}

/// Starts this program again in new namespaces, with the environment of a podman of its own.
async fn outside(stay: bool) -> Result<ExitCode> {
    let enter = r#". "$0"; exec unshare --net --mount --pid --fork --kill-child --mount-proc "$@""#;
    let this = std::env::current_exe().context("path of this program")?;
    let mut command = site::dies_with_us("bash");
    command
        .args(["-c", enter])
        .arg(paths::crate_root().join("kind/env.sh"))
        .arg(this)
        .args(["kind", "inside"]);
    if stay {
        command.arg("--stay");
    }
    let status = command.kill_on_drop(true).status().await.context("start bash")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn inside(stay: bool) -> Result<()> {
    let kind = paths::target("kind")?;
    ensure!(kind.join("node-image").exists(), "there is no node image: run `make kind-e2e`");
    // What podman remembers of running containers, and names of network namespaces, end with this run too.
    for folder in [Path::new("/run"), &kind.join("run")] {
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a tmpfs on {}", folder.display()))?;
    }
    output("ip", &["link", "set", "lo", "up"]).await?;

    let cluster = match Cluster::create(&kind).await {
        Ok(cluster) => cluster,
        Err(error) => {
            evidence::of_creation(&kind.join("logs")).await;
            cluster::delete().await?;
            return Err(error);
        }
    };
    let result = play(&cluster, stay).await;
    if result.is_err() {
        evidence::keep(&cluster, &kind.join("logs")).await;
    }
    let deleted = cluster::delete().await;
    result.and(deleted)?;
    step!("kind: passed");
    Ok(())
}

async fn play(cluster: &Cluster, stay: bool) -> Result<()> {
    cluster.network().await?;
    cluster.load_images().await?;
    fabric::calico(cluster).await?;
    let before = uninstall::traces(cluster).await?;

    install::chart(cluster).await?;
    fabric::underlay(cluster).await?;
    install::looks(cluster).await?;
    processes::capabilities(cluster).await?;
    fabric::tenant(cluster, "red", 1001, "10.200.0.0/16").await?;
    if stay {
        step!(
            "kind: the cluster stays up until Ctrl-C; from another terminal: e2e/kind/in.sh kubectl get pods -A"
        );
        std::future::pending::<()>().await;
    }
    leader::hand_over(cluster).await?;
    viewer::asks(cluster).await?;
    // The new leader is heard by all, or nothing of this would come about.
    fabric::tenant(cluster, "blue", 1002, "10.201.0.0/16").await?;
    rollout::upgrade_and_back(cluster).await?;
    install::nothing_forbidden(cluster).await?;
    rollout::taken_away_and_back(cluster).await?;
    rollout::upgrade_with_frr(cluster).await?;
    uninstall::all(cluster, &before).await
}
