//! The command line: commands, flags, help. Types only.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use k8s_openapi::jiff::Timestamp;

use crate::output::Format;

/// The whole line.
#[derive(Parser)]
#[command(
    name = "kubectl-vni",
    bin_name = "kubectl vni",
    version,
    about = "See what calico-vni does, and why",
    after_help = "Examples:
  # What is wrong, and what to do about it
  kubectl vni doctor

  # What would follow from manifests that are not applied yet
  kubectl vni plan --cluster -f manifests/

Each command has a --help with examples of its own. Nothing is ever written."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked.
#[derive(Subcommand)]
pub enum Command {
    /// Show what the cluster will hold, and what changes.
    Plan(PlanArguments),
    /// Show how Tenants and Underlays fare.
    Status(StatusArguments),
    /// Show the BGP sessions of the routers, with the fabric and with each node's BIRD.
    Sessions(SessionsArguments),
    /// Show which node announces which prefix into a tenant's VRF, and what the routers hold in it.
    Routes(RoutesArguments),
    /// Find what is wrong, why, and what to do about it.
    Doctor(DoctorArguments),
    /// Print a script by which a shell completes commands.
    Completion(CompletionArguments),
    /// What kubectl asks by way of `kubectl_complete-vni`.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words so far.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Which cluster is read.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Connection {
    /// Kubeconfig to use instead of `KUBECONFIG` or ~/.kube/config.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// What is read.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Source {
    /// Objects of a saved state to read instead of the cluster: a file, a folder, or `-` for standard input. May be given
    /// several times.
    #[arg(short, long = "filename", value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub filename: Vec<PathBuf>,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Show what the cluster will hold once all routers have done their part, and what changes.
///
/// Reads Tenants, Underlays, Nodes and Calico's pools and blocks, from the cluster, from manifests, or from manifests laid
/// over the cluster. Prints the tenants with their VNIs and links, what each node carries, which BGPPeers and BGPFilters
/// follow, all of it that is not so yet as a diff, and what is wrong with the way out. Nothing is written.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  # What follows from what is in the cluster, and what of it does not stand yet
  kubectl vni plan

  # What would change in the cluster if these manifests were applied
  kubectl vni plan --cluster -f manifests/

  # What would follow from manifests, without a cluster
  kubectl vni plan -f underlay.yaml -f pools.yaml

  # The same for a cluster's saved state, as YAML
  kubectl get tenants,underlays,nodes,namespaces,ippools,blockaffinities -o yaml | kubectl vni plan -f - -o yaml

Exit codes:
  0  all is well
  1  something is wrong with an object; it is told under WRONG, or under `notices` in JSON and YAML
  2  there is no answer: bad arguments, or what was asked for cannot be read")]
pub struct PlanArguments {
    /// Manifests to read instead of the cluster: a file, a folder, or `-` for standard input. May be given several times.
    #[arg(short, long = "filename", value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub filename: Vec<PathBuf>,
    /// Read the cluster too, and lay the manifests over it, as if they had been applied.
    #[arg(long)]
    pub cluster: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Show how Tenants and Underlays fare: VNI, VRF, pools, nodes, prefixes, sessions, and what is wrong.
///
/// By the statuses that the controller writes and the labels of Nodes. `kubectl vni doctor` looks for causes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  # All of them
  kubectl vni status

  # One Tenant, with its pools and nodes
  kubectl vni status red

  # For a script
  kubectl vni status -o json | jq '.tenants[] | select(.well | not).name'

Exit codes:
  0  all is well
  1  something is not
  2  it cannot be read, or there is no such Tenant")]
pub struct StatusArguments {
    /// One Tenant alone, with everything about it.
    #[arg(value_name = "TENANT")]
    pub tenant: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// What is read.
    #[command(flatten)]
    pub source: Source,
}

/// How routers are asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Asking {
    /// Ask no router: tell what the API server's objects say.
    #[arg(long, conflicts_with = "controller")]
    pub no_ask: bool,
    /// Namespace of controller and routers.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "calico-vni")]
    pub namespace: String,
    /// URL at which the controller that leads is reached, in place of a port-forward to its pod. With http nothing is
    /// proven, by either side: for a controller on this machine.
    #[arg(long, value_name = "URL", conflicts_with = "filename")]
    pub controller: Option<String>,
    /// PEM file of the authorities that may speak for the controller, in place of the ConfigMap calico-vni-authority.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,
    /// Name that the controller's certificate has to be for, by whatever way it is reached.
    #[arg(long, value_name = "NAME", default_value = "calico-vni-controller")]
    pub controller_name: String,
}

/// Show the BGP sessions: of the routers with the fabric, and of each node's BIRD with its router.
///
/// First by the statuses that the controller writes: how many of the fabric's are established on all nodes together, and to
/// which nodes each tenant's BGPPeer is admitted. Then session by session, as each router says at this moment. Routers are
/// asked by way of the controller, which is reached by a port-forward; that takes the rights of the roles calico-vni-viewer.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kubectl vni sessions
  kubectl vni sessions --node n1

  # Those that are down
  kubectl vni sessions -o json | jq -r '.sessions[] | select(.state != \"Established\") | .node + \" \" + .peer'

  # With fewer rights, or without a controller: counts alone
  kubectl vni sessions --no-ask

Exit codes:
  0  all sessions with the fabric are established, every admitted tenant has one and has routes, and all routers answered
  1  some are not, or have none, or some router did not answer
  2  it cannot be read, or no router could be asked")]
pub struct SessionsArguments {
    /// Of one Node's router alone.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// What is read.
    #[command(flatten)]
    pub source: Source,
    /// How routers are asked.
    #[command(flatten)]
    pub asking: Asking,
}

/// Show which node announces which prefix into a tenant's VRF, with next hop, route distinguisher and route targets; and what
/// the routers hold in it.
///
/// First by the plan, from BlockAffinities, pools and Node labels: what should be announced, and whether the node's router
/// holds it. Then every route that the routers have in the tenant's VRF at this moment, its own and those from the fabric.
/// Routers are asked by way of the controller, which is reached by a port-forward; that takes the rights of the roles
/// calico-vni-viewer.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kubectl vni routes red
  kubectl vni routes red --node n1 -o json

  # What n1 has from the fabric
  kubectl vni routes red --node n1 -o json | jq -r '.held[] | select(.from == \"fabric\") | .prefix + \" \" + .nextHop'

  # With fewer rights, or without a controller: the plan alone
  kubectl vni routes red --no-ask

Exit codes:
  0  each of these prefixes is to be announced by a node whose router answers, and holds it
  1  some wait or are missing, or some router did not answer
  2  it cannot be read, there is no such Tenant, or no router could be asked")]
pub struct RoutesArguments {
    /// The Tenant.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Of one Node alone.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// What is read.
    #[command(flatten)]
    pub source: Source,
    /// How routers are asked.
    #[command(flatten)]
    pub asking: Asking,
}

/// Find what is wrong, why, and what to do about it.
///
/// Looks at the preconditions, at the usual mistakes in Tenants, Underlays and pools, at controller, agents and sessions,
/// and at what others have done to our objects. Every finding names the object, the cause, and the remedy, with a command
/// where there is one. It needs neither the controller nor an agent, and changes nothing. What goes by itself within
/// seconds is told only if it is there in a second look.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kubectl vni doctor

  # In a script: names of what is wrong
  kubectl vni doctor -o json | jq -r '.findings[] | .about + \": \" + .reason'

  # A saved state, as of the time when it was saved
  kubectl vni doctor -f state/ --now 2026-01-01T12:00:00Z

Exit codes:
  0  no problem was found (hints do not count)
  1  a problem was found
  2  something could not be read, and no problem was found in the rest")]
pub struct DoctorArguments {
    /// Namespace of controller and routers.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "calico-vni")]
    pub namespace: String,
    /// Of a saved state: when it was saved, for what has an age.
    #[arg(long, value_name = "TIME", requires = "filename")]
    pub now: Option<Timestamp>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// What is read.
    #[command(flatten)]
    pub source: Source,
}

/// Print a script by which a shell completes the commands of `kubectl-vni`.
///
/// For `kubectl vni` itself, kubectl asks an executable named `kubectl_complete-vni`; see docs/operations.md.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kubectl-vni completion bash > /etc/bash_completion.d/kubectl-vni
  kubectl-vni completion zsh > \"${fpath[1]}/_kubectl-vni\"
  kubectl-vni completion fish > ~/.config/fish/completions/kubectl-vni.fish")]
pub struct CompletionArguments {
    /// For which shell.
    #[arg(value_enum)]
    pub shell: Shell,
}
