//! Takes everything of ours off the node, and gives its interfaces back.

use std::{path::PathBuf, sync::Arc};

use tracing::warn;

use crate::{
    desired::nothing,
    executor::{Outcome, execute},
    files,
    frr_link::FrrLink,
    frr_port::Frr,
    last_good::LastGood,
    lock::{LOCK_FILE, Lock},
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
    Lock(#[from] crate::lock::LockError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// What was kept for the next start.
    #[error("what was kept of the last configuration cannot be deleted: {0}")]
    Forget(#[source] std::io::Error),
    /// What failed.
    #[error("left on the node:\n{}", .0.join("\n"))]
    Left(Vec<String>),
}

/// Cleans up. Without a router's namespace only the host's part is looked at, in a namespace that lives for that long.
pub async fn run(options: Options) -> Result<(), CleanupError> {
    let _lock = Lock::take(&options.state_dir)?;
    let host = Arc::new(Netns::current()?);
    let router = match Netns::open(&options.router_netns) {
        Ok(router) => router,
        Err(NetnsError::Open { .. } | NetnsError::NotOne(_)) => Netns::create(&options.router_netns)?,
        Err(error) => return Err(error.into()),
    };
    let platform = Node::open(host, Arc::new(router), &options.state_dir)?;
    let frr = FrrLink::new(options.frr_dir).patient();
    remove_all(&platform, &frr).await?;
    drop(platform);
    // An agent that starts again waits for the controller, and does not bring back what was just removed.
    LastGood::new(&options.state_dir).forget().map_err(CleanupError::Forget)?;
    for file in [LOADED_FILE, LOCK_FILE] {
        files::remove(&options.state_dir.join(file)).map_err(CleanupError::Forget)?;
    }
    Ok(Netns::remove(&options.router_netns)?)
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
