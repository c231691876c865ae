//! The controller's command line.

use std::{io::IsTerminal, net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use calico_vni_controller::runtime::{self, Settings};
use clap::{Parser, ValueEnum};
use kube::{Client, Config};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  Against the cluster of the current kubeconfig, for agents on this machine:
    calico-vni-controller --log-format text

  In a pod, reachable by all agents (without TLS; only on a network that nobody else reaches):
    calico-vni-controller --grpc-listen 0.0.0.0:9443 --insecure

  With tenants that leave a node two minutes after their last pod's block:
    calico-vni-controller --linger 2m

The API server is found by KUBECONFIG, ~/.kube/config or, in a pod, its service account.";

/// Puts annotated Calico IPPools into the VRFs of an EVPN fabric: reads intent from the API server, writes Calico's BGP
/// objects, and tells every node's router what to carry.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Address and port that agents dial.
    #[arg(long, env = "CALICO_VNI_GRPC_LISTEN", default_value = "127.0.0.1:9443", value_name = "ADDRESS")]
    grpc_listen: SocketAddr,

    /// Listen on an address that others can reach, without TLS: whoever reaches it can speak for any node.
    #[arg(long, env = "CALICO_VNI_INSECURE")]
    insecure: bool,

    /// How long a tenant stays on a node after its last block has left, so that a rolling restart of pods moves no
    /// session: a number with a unit, as 90s, 10m or 1h30m; 0s for not at all.
    #[arg(long, env = "CALICO_VNI_LINGER", default_value = "10m", value_name = "DURATION", value_parser = duration)]
    linger: Duration,

    /// How logs are written.
    #[arg(long, env = "CALICO_VNI_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// What is logged, as tracing's directives: a level, or `target=level` parted by commas.
    // The client's own errors are told by who meets them, with what is done about them.
    #[arg(long, env = "CALICO_VNI_LOG", default_value = "info,kube_client=off", value_name = "DIRECTIVES")]
    log: EnvFilter,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(parsed).map_err(|_| "it must not be negative".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(args.log)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    if !args.grpc_listen.ip().is_loopback() {
        if !args.insecure {
            bail!(
                "--grpc-listen {}: others can reach that address and the connection has no TLS; add --insecure if that is meant",
                args.grpc_listen
            );
        }
        warn!(address = %args.grpc_listen, "agents are served without TLS: whoever reaches this address can speak for any node");
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider was installed before");
    }
    let config = Config::infer()
        .await
        .context("no API server: set KUBECONFIG, or run in a pod with a service account")?;
    info!(api_server = %config.cluster_url, version = env!("CARGO_PKG_VERSION"), "starting");
    let client = Client::try_from(config).context("the API server's configuration cannot be used")?;
    let listener = TcpListener::bind(args.grpc_listen)
        .await
        .with_context(|| format!("--grpc-listen {}: cannot listen there", args.grpc_listen))?;
    info!(address = %listener.local_addr()?, "agents may dial");

    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone())?);
    runtime::run(client, listener, Settings { linger: args.linger }, shutdown).await?;
    info!("stopped");
    Ok(())
}

/// Ends the controller in good order: what was written stands, agents reconnect to whoever comes next.
fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: stopping"),
            _ = interrupt.recv() => info!("SIGINT: stopping"),
        }
        shutdown.cancel();
    })
}
