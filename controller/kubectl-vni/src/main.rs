//! `kubectl vni`: what calico-vni would do, and why. It reads, and never writes.

mod input;
mod report;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use calico_vni_planner::{Plan, Snapshot, plan, simulate::settle};
use clap::{Parser, Subcommand, ValueEnum};

/// Exit code where an object cannot be honoured.
const WRONG: u8 = 1;
/// Exit code where the question could not be answered: as clap has it for arguments that make no sense.
const UNANSWERED: u8 = 2;

#[derive(Parser)]
#[command(
    name = "kubectl-vni",
    bin_name = "kubectl vni",
    version,
    about = "See what calico-vni does, and why"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Plan(PlanArguments),
}

/// Show what the cluster will hold once all routers have done their part.
///
/// Reads Tenants, Underlays, Nodes and Calico's pools and blocks, from the cluster or from manifests, and prints the
/// tenants with their VNIs and links, what each node carries, which BGPPeers and BGPFilters follow, and what is wrong
/// with the way out. Nothing is written.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  # What follows from what is in the cluster
  kubectl vni plan

  # What would follow from manifests, without a cluster
  kubectl vni plan -f underlay.yaml -f pools.yaml

  # The same for a cluster's saved state, as YAML
  kubectl get tenants,underlays,nodes,namespaces,ippools,blockaffinities -o yaml | kubectl vni plan -f - -o yaml

Exit codes:
  0  all is well
  1  something is wrong with an object; it is told under WRONG, or under `notices` in YAML
  2  there is no answer: bad arguments, or what was asked for cannot be read")]
struct PlanArguments {
    /// Manifests to read instead of the cluster; `-` is standard input. May be given several times.
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Kubeconfig to use instead of `KUBECONFIG` or ~/.kube/config.
    #[arg(long, value_name = "FILE", conflicts_with = "filename")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", conflicts_with = "filename")]
    context: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Plain words.
    Text,
    /// The plan itself.
    Yaml,
}

fn main() -> ExitCode {
    let Command::Plan(arguments) = Arguments::parse().command;
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(UNANSWERED)
        }
    }
}

fn run(arguments: &PlanArguments) -> anyhow::Result<ExitCode> {
    let snapshot = if arguments.filename.is_empty() {
        input::from_cluster(arguments.kubeconfig.as_deref(), arguments.context.clone())?
    } else {
        input::from_files(&arguments.filename)?
    };
    let (rest, planned) = to_rest(&snapshot);
    let text = match arguments.output {
        Output::Text => report::text(&snapshot, &rest, &planned),
        Output::Yaml => yaml(&planned)?,
    };
    // A reader that has seen enough (`| head`) is no error.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(error).context("standard output");
        }
        _ => {}
    }
    Ok(if planned.notices.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

/// Where things come to rest if every router obeys.
fn to_rest(snapshot: &Snapshot) -> (Snapshot, Plan) {
    let mut obeyed = snapshot.clone();
    for node in &snapshot.nodes {
        let agent = obeyed.agents.entry(node.metadata.name.clone().unwrap_or_default()).or_default();
        agent.frr_running = true;
    }
    // What does not come to rest is shown as it would be next.
    settle(&obeyed).unwrap_or_else(|| {
        let next = plan(&obeyed);
        (obeyed, next)
    })
}

fn yaml(plan: &Plan) -> anyhow::Result<String> {
    // By way of JSON, so that enums are plain maps.
    let value = serde_json::to_value(plan).context("the plan")?;
    serde_yaml::to_string(&value).context("the plan")
}
