//! The command line.

use std::{
    io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration,
};

use calico_vni_router::{
    agent, cleanup,
    dial::Dial,
    frr_link::FrrLink,
    last_good::LastGood,
    netns::Netns,
    node::Node,
    reconcile::{Settings, look},
    show::show,
    supervisor,
};
use clap::{Args, Parser, Subcommand};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// The router sidecar of calico-vni: keeps one node's VRFs, routes, rules, guard and FRR as the controller wants them.
#[derive(Parser)]
#[command(name = "calico-vni-router", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How logs are written.
    #[arg(long, global = true, value_enum, default_value = "text", env = "CALICO_VNI_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the router's persistent network namespace.
    #[command(
        after_help = "Examples:\n  calico-vni-router init\n  calico-vni-router init --router-netns /run/netns/rtr1"
    )]
    Init {
        #[command(flatten)]
        netns: RouterNetns,
    },
    /// Runs FRR's daemons in the router's network namespace, restarts what dies, and stops them without losing a packet. Waits
    /// for another one that runs there.
    #[command(after_help = "Example:\n  calico-vni-router frr --router-netns /run/netns/calico-vni\n\n\
                            Stop it with SIGTERM. Never stop FRR's daemons themselves: they take their routes with them.")]
    Frr {
        #[command(flatten)]
        options: supervisor::Options,
    },
    /// Runs the agent. Waits for the router's network namespace.
    #[command(
        after_help = "Examples:\n  calico-vni-router run --node n1 --controller http://127.0.0.1:9443\n  \
                            calico-vni-router run --node n1 --controller https://calico-vni-controller.calico-vni:9443 \\\n    \
                            --ca-file /ca/ca.crt --token-file /token/token\n  \
                            calico-vni-router run --node n1 --dry-run    what would it do now?\n\n\
                            Stopping it, however it is stopped, moves no packet: everything stays as it is."
    )]
    Run(Run),
    /// Shows what is wanted against what stands, by tenant, and what is outstanding.
    #[command(after_help = "Example:\n  calico-vni-router show --node n1\n\n\
                            The exit code is 0 if the node is in step, 1 if it is not, 2 if it cannot be read.")]
    Show {
        /// Kubernetes name of this node.
        #[arg(long, env = "NODE_NAME")]
        node: String,
        #[command(flatten)]
        places: Places,
    },
    /// Removes everything of ours from the node, and gives its interfaces back as they were.
    #[command(after_help = "Example:\n  calico-vni-router cleanup\n\n\
                            The agent must be stopped. It can be run again after a failure.")]
    Cleanup {
        #[command(flatten)]
        places: Places,
    },
}

#[derive(Args)]
struct RouterNetns {
    /// The router's network namespace.
    #[arg(long, value_name = "PATH", default_value = "/run/netns/calico-vni")]
    router_netns: PathBuf,
}

#[derive(Args)]
struct Places {
    #[command(flatten)]
    netns: RouterNetns,
    /// Where the sockets of FRR's daemons are.
    #[arg(long, value_name = "DIR", default_value = "/var/run/frr/calico-vni")]
    frr_dir: PathBuf,
    /// Where the agent keeps what it has to know after a restart.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/calico-vni")]
    state_dir: PathBuf,
}

impl Places {
    fn cleanup(&self) -> cleanup::Options {
        cleanup::Options {
            router_netns: self.netns.router_netns.clone(),
            frr_dir: self.frr_dir.clone(),
            state_dir: self.state_dir.clone(),
        }
    }
}

#[derive(Args)]
struct Run {
    /// Kubernetes name of this node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// URL of the controller.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9443")]
    controller: String,
    /// PEM file of the authorities that may speak for the controller, for https. It is read anew for each connection.
    #[arg(long, value_name = "FILE", env = "CALICO_VNI_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// File of the token by which this node proves itself: a projected one, bound to the pod, for the audience calico-vni.
    /// It is read anew for each connection.
    #[arg(long, value_name = "FILE", env = "CALICO_VNI_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Name that the controller's certificate has to be for, by whatever address it is reached.
    #[arg(long, value_name = "NAME", default_value = "calico-vni-controller")]
    controller_name: String,
    #[command(flatten)]
    places: Places,
    /// Address and port of metrics (/metrics) and probes (/healthz, /readyz), which are not secret and need no proof.
    #[arg(long, env = "CALICO_VNI_HTTP_LISTEN", default_value = "127.0.0.1:9445", value_name = "ADDRESS")]
    http_listen: SocketAddr,
    /// Seconds after which everything is looked at again though nothing was told.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    resync: u64,
    /// When stopped while this node carries nothing and the cluster has no pools of tenants: does what `cleanup` does, but
    /// leaves the name of the router's namespace to an FRR that runs. For pods, which are gone when nodes are to be cleaned.
    #[arg(long)]
    cleanup_when_idle: bool,
    /// Prints what would be done, from the configuration taken last, and does nothing.
    #[arg(long)]
    #[allow(clippy::struct_field_names, reason = "the name of the option")]
    dry_run: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What is printed for a human is the answer itself; logs only where something is wrong.
    let quiet = match &cli.command {
        Command::Show { .. } => true,
        Command::Run(run) => run.dry_run,
        _ => false,
    };
    logs(cli.log_format, if quiet { "warn" } else { "info" });
    match serve(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("calico-vni-router: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn logs(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let subscriber = subscriber.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

#[tokio::main]
async fn serve(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init { netns } => {
            Netns::create(&netns.router_netns)?;
        }
        Command::Frr { options } => supervisor::run(options).await?,
        Command::Run(run) => {
            let Run {
                node,
                controller,
                ca_file,
                token_file,
                controller_name,
                places,
                http_listen,
                resync,
                ..
            } = run;
            let leaving = run.cleanup_when_idle.then(|| (node.clone(), places.cleanup()));
            let options = agent::Options {
                node,
                dial: Dial { controller, ca_file, token_file, controller_name },
                router_netns: places.netns.router_netns,
                frr_dir: places.frr_dir,
                state_dir: places.state_dir,
                http_listen,
                settings: Settings { resync: Duration::from_secs(resync), ..Settings::default() },
            };
            if run.dry_run {
                agent::dry_run(&options).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Box::pin(agent::run(options)).await?;
            if let Some((node, places)) = leaving
                && cleanup::run_if_idle(&node, places).await?
            {
                info!(node, "nothing was carried here: all of ours was taken off the node");
            }
        }
        Command::Show { node, places } => {
            let told = LastGood::for_a_look(&places.state_dir).load(&node);
            let host = Arc::new(Netns::current()?);
            let router = Arc::new(Netns::open(&places.netns.router_netns)?);
            let platform = Node::open(host, router, &places.state_dir)?;
            let found = look(&told, &platform, &FrrLink::new(places.frr_dir)).await?;
            let (text, in_step) = show(&node, &told, found.as_ref());
            print!("{text}");
            return Ok(if in_step { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Cleanup { places } => {
            cleanup::run(places.cleanup()).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
