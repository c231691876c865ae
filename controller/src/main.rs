//! The controller's command line.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use calico_vni_controller::{
    grpc::{AGE, Access, door::Door},
    leader::{self, Candidate, Timing, fence::Fence},
    replica::{self, Options},
    runtime::Settings,
};
use calico_vni_identity::{
    keep::Keeper,
    serving::Certificate,
    token::Reviewer,
    upkeep::{Origin, service_names},
};
use clap::{Parser, ValueEnum};
use kube::{Client, Config, client::ClientBuilder};
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

  In a pod, reachable by all agents, one of several that take over from each other:
    calico-vni-controller --grpc-listen 0.0.0.0:9443 --namespace calico-vni

  The same with a certificate of cert-manager's, mounted as files:
    calico-vni-controller --grpc-listen 0.0.0.0:9443 --namespace calico-vni --tls-dir /tls

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

    /// Address and port of metrics (/metrics) and probes (/healthz, /readyz), which are not secret and need no proof.
    #[arg(long, env = "CALICO_VNI_HTTP_LISTEN", default_value = "127.0.0.1:9444", value_name = "ADDRESS")]
    http_listen: SocketAddr,

    /// Listen on an address that others can reach, without TLS: whoever reaches it can speak for any node.
    #[arg(long, env = "CALICO_VNI_INSECURE", conflicts_with_all = ["tls", "tls_dir"])]
    insecure: bool,

    /// Serve agents over TLS, and let each speak only for the node that its token proves. So it is without being said
    /// where others than this machine can reach the address.
    #[arg(long, env = "CALICO_VNI_TLS")]
    tls: bool,

    /// Folder with tls.crt and tls.key that somebody else renews, such as cert-manager; they are read again when they
    /// change. Without it the controller keeps an authority of its own in the Secret calico-vni-authority, and publishes
    /// its certificates in the ConfigMap of that name.
    #[arg(long, env = "CALICO_VNI_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,

    /// Namespace of controller and routers: of the Secrets, the ConfigMap, the Lease, and the routers' service account.
    #[arg(long, env = "CALICO_VNI_NAMESPACE")]
    namespace: Option<String>,

    /// Service account of the routers; tokens of others prove nothing.
    #[arg(
        long,
        env = "CALICO_VNI_ROUTER_SERVICE_ACCOUNT",
        default_value = "calico-vni-router",
        value_name = "NAME"
    )]
    router_service_account: String,

    /// Do nothing while another controller holds the Lease calico-vni-controller. By default so in a pod with --namespace.
    #[arg(long, env = "CALICO_VNI_LEADER_ELECT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    leader_elect: Option<bool>,

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
    let mut args = Args::parse();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(std::mem::take(&mut args.log))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    if args.insecure && !args.grpc_listen.ip().is_loopback() {
        warn!(address = %args.grpc_listen, "agents are served without TLS: whoever reaches this address can speak for any node");
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider was installed before");
    }
    let config = Config::infer()
        .await
        .context("no API server: set KUBECONFIG, or run in a pod with a service account")?;
    info!(api_server = %config.cluster_url, version = env!("CARGO_PKG_VERSION"), "starting");
    let (client, mut options) = options(&args, &config)?;
    let http = listen("--http-listen", args.http_listen).await?;
    info!(address = %http.local_addr()?, "metrics and probes");
    options.http = Some(http);
    let listener = listen("--grpc-listen", args.grpc_listen).await?;
    info!(address = %listener.local_addr()?, "agents may dial");

    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone())?);
    Box::pin(replica::run(client, listener, options, shutdown)).await?;
    info!("stopped");
    Ok(())
}

async fn listen(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address}: cannot listen there"))
}

/// What the command line asks for, and the client that everything but the election goes through.
fn options(args: &Args, config: &Config) -> anyhow::Result<(Client, Options)> {
    let unusable = "the API server's configuration cannot be used";
    let exposed = !args.grpc_listen.ip().is_loopback();
    let tls = args.tls || args.tls_dir.is_some() || (exposed && !args.insecure);
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let elect = args.leader_elect.unwrap_or(in_pod && args.namespace.is_some());
    let namespace = || {
        args.namespace.as_deref().with_context(|| {
            let why = if tls {
                "--tls, which is on where others can reach --grpc-listen,"
            } else {
                "--leader-elect"
            };
            format!("--namespace is missing: {why} needs the namespace of controller and routers")
        })
    };

    let plain = || Client::try_from(config.clone()).context(unusable);
    let (client, candidate) = if elect {
        let fence = Fence::default();
        let fenced = ClientBuilder::try_from(config.clone()).context(unusable)?.with_layer(&fence).build();
        let candidate =
            Candidate::new(&plain()?, namespace()?, &leader::identity(), Timing::default(), fence);
        (fenced, Some(candidate))
    } else {
        (plain()?, None)
    };
    let settings = Settings { linger: args.linger, namespace: args.namespace.clone() };
    let mut options = Options { candidate, ..Options::alone(settings) };
    if tls {
        let namespace = namespace()?;
        let reviewer = Reviewer::new(&client, namespace, &args.router_service_account);
        let origin = match &args.tls_dir {
            Some(dir) => Origin::Files { certificate: dir.join("tls.crt"), key: dir.join("tls.key") },
            None => Origin::Authority {
                keeper: Box::new(Keeper::new(&client, namespace)),
                names: service_names(namespace),
            },
        };
        options.access = Access {
            certificate: Some(Certificate::none()),
            door: Door::guarded(Arc::new(reviewer)),
            age: AGE,
        };
        options.origin = Some(origin);
    }
    Ok((client, options))
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
