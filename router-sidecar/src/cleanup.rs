//! Takes everything of ours off the node, and gives its interfaces back.

use std::{path::PathBuf, sync::Arc};

use calico_vni_proto::model::Guard;
use tracing::warn;

use crate::{
    desired::nothing,
    executor::{Outcome, execute},
    files,
    frr_link::FrrLink,
    frr_port::Frr,
    last_good::{LastGood, Told},
    leaving::{LeavingError, Shared},
    lock::{AGENT, Lock, LockError},
    netns::{Netns, NetnsError},
    node::{LOADED_FILE, Node, NodeError, Platform},
    op::Op,
    reconcile::compare,
};

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// The router's network namespace.
    pub router_netns: PathBuf,
    /// Where FRR's sockets are.
    pub frr_dir: PathBuf,
    /// Where the agent keeps its files.
    pub state_dir: PathBuf,
}

/// Why something of ours is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The end of it.
    #[error(transparent)]
    Leaving(#[from] LeavingError),
    /// What was kept for the next start.
    #[error("what was kept of the last configuration cannot be deleted: {0}")]
    Forget(#[source] std::io::Error),
    /// What failed.
    #[error("left on the node:\n{}", .0.join("\n"))]
    Left(Vec<String>),
}

/// Whether the node carries nothing, and no pool of the cluster has to be guarded: the controller said so. Where nothing
/// was heard, or what was heard is lost, what stands may be somebody's.
pub fn is_idle(told: &Told) -> bool {
    let carries_nothing = told.config.as_ref().is_some_and(|held| held.value.underlay.is_none());
    let no_pools = |guard: &Guard| guard.tenants.is_empty() && guard.quarantined.is_empty();
    carries_nothing && told.guard.as_ref().is_none_or(|held| no_pools(&held.value))
}

/// Cleans up if the node is idle, and says whether it was. Whoever uninstalls then has nothing left to do on the nodes. Only the
/// name of the router's namespace stays for an FRR that runs, and for the next agent if this one was only replaced.
pub async fn run_if_idle(node: &str, options: Options) -> Result<bool, CleanupError> {
    let idle = is_idle(&LastGood::for_a_look(&options.state_dir).load(node));
    if idle {
        clean(&options).await?;
        Shared { frr_dir: &options.frr_dir, netns: &options.router_netns }.agent_is_done()?;
    }
    Ok(idle)
}

/// Cleans up, and takes the name of the router's namespace away, whoever is in it.
pub async fn run(options: Options) -> Result<(), CleanupError> {
    clean(&options).await?;
    Ok(Netns::remove(&options.router_netns)?)
}

/// Without a router's namespace only the host's part is looked at, in a namespace that lives for that long.
async fn clean(options: &Options) -> Result<(), CleanupError> {
    let _lock = Lock::take(&options.state_dir.join(AGENT))?;
    let host = Arc::new(Netns::current()?);
    let router = match Netns::open(&options.router_netns) {
        Ok(router) => router,
        Err(NetnsError::Open { .. } | NetnsError::NotOne(_)) => Netns::create(&options.router_netns)?,
        Err(error) => return Err(error.into()),
    };
    let platform = Node::open(host, Arc::new(router), &options.state_dir)?;
    let frr = FrrLink::new(options.frr_dir.clone()).patient();
    remove_all(&platform, &frr).await?;
    drop(platform);
    // An agent that starts again waits for the controller, and does not bring back what was just removed.
    LastGood::new(&options.state_dir).forget().map_err(CleanupError::Forget)?;
    for file in [LOADED_FILE, AGENT] {
        files::remove(&options.state_dir.join(file)).map_err(CleanupError::Forget)?;
    }
    Ok(())
}

async fn remove_all(platform: &impl Platform, frr: &impl Frr) -> Result<(), CleanupError> {
    // FRR has to stand still for nothing here: where it runs no more, its configuration is gone with it.
    let desired = nothing("");
    let mut outcome = Outcome::default();
    for _ in 0..3 {
        let (observed, ops) = compare(&desired, platform, frr).await?;
        if let Some(error) = observed.frr_error {
            warn!(error, "FRR's configuration is not touched");
        }
        if ops.is_empty() {
            return Ok(());
        }
        outcome = execute(&ops, &desired.config, platform, frr, |_| false).await;
    }
    let (_, left) = compare(&desired, platform, frr).await?;
    if left.is_empty() {
        return Ok(());
    }
    let failed = outcome.node.iter().chain(outcome.tenants.values());
    let reasons: Vec<String> = failed.map(ToString::to_string).collect();
    Err(CleanupError::Left(if reasons.is_empty() {
        left.iter().map(Op::headline).collect()
    } else {
        reasons
    }))
}

#[cfg(test)]
mod tests {
    use calico_vni_proto::{
        codec::Digest,
        model::{GuardTenant, NodeConfig},
    };

    use super::*;
    use crate::last_good::Held;

    fn held<T>(value: T) -> Held<T> {
        Held { digest: Digest::of(b""), value }
    }

    #[test]
    fn a_node_is_idle_only_when_the_controller_said_so() {
        let empty = NodeConfig { node: "n1".into(), underlay: None, tenants: Vec::new() };
        let told = Told { guard: Some(held(Guard::default())), config: Some(held(empty)) };
        assert!(is_idle(&told));
        assert!(is_idle(&Told { guard: None, ..told.clone() }));

        assert!(!is_idle(&Told::default()), "nothing was heard");
        assert!(!is_idle(&Told { config: None, ..told.clone() }), "of the node nothing was heard");
        let red =
            GuardTenant { name: "red".into(), vni: 1001, pools: vec!["10.200.0.0/16".parse().unwrap()] };
        let guarded = Guard { tenants: vec![red], ..Guard::default() };
        assert!(
            !is_idle(&Told { guard: Some(held(guarded)), ..told.clone() }),
            "another node's pool is guarded here"
        );
        let quarantine = Guard { quarantined: vec!["10.1.0.0/16".parse().unwrap()], ..Guard::default() };
        assert!(!is_idle(&Told { guard: Some(held(quarantine)), ..told }), "a quarantine would end");
    }

    #[tokio::test]
    async fn a_node_that_is_not_idle_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [router_netns, frr_dir, state_dir] = ["netns", "frr", "state"].map(|name| dir.path().join(name));
        let options = Options { router_netns, frr_dir, state_dir };
        assert!(!run_if_idle("n1", options).await.unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "not even the lock was taken");
    }
}
