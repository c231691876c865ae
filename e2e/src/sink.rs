//! Takes rendered configurations to the nodes' BIRD daemons: writes the file, starts the daemon the first time, and has it
//! read the file again later.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail, ensure};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    calico::{Family, confd::BirdSink},
    nodes::{RUN_DIR, client::Nodes, protocol::Command},
    wait,
};

/// Where a node's BIRD has its control socket, on the node side.
pub fn control_socket(node: &str, family: Family) -> String {
    format!("{RUN_DIR}/{node}-{}.ctl", family.daemon())
}

/// How long a daemon may take to start under emulation.
const START: Duration = Duration::from_mins(1);

/// The nodes' daemons.
pub struct NodeBird {
    nodes: Nodes,
    started: Mutex<BTreeSet<(String, Family)>>,
}

impl NodeBird {
    /// By way of the node side.
    pub fn new(nodes: Nodes) -> Self {
        Self { nodes, started: Mutex::default() }
    }
}

/// Starts a node's daemon on a file, and returns when it answers.
pub async fn start_bird(nodes: &Nodes, node: &str, family: Family, file: &str) -> Result<()> {
    let socket = control_socket(node, family);
    let argv = [family.daemon(), "-f", "-c", file, "-s", &socket].map(str::to_owned).to_vec();
    let command = Command { netns: Some(node.to_owned()), argv, ..Command::default() };
    nodes.spawn(&format!("{node}-{}", family.daemon()), command).await?;
    answers(nodes.clone(), node.to_owned(), family).await
}

/// Owns what it looks at, so that it can be awaited on any thread.
async fn answers(nodes: Nodes, node: String, family: Family) -> Result<()> {
    let deadline = Instant::now() + START;
    let socket = control_socket(&node, family);
    loop {
        let seen = nodes.bird(&socket, "show status").await;
        match seen {
            Ok(text) if text.contains("up and running") => return Ok(()),
            seen if Instant::now() > deadline => {
                bail!("{} on {node} does not answer: {seen:?}", family.daemon())
            }
            _ => tokio::time::sleep(wait::PAUSE).await,
        }
    }
}

impl BirdSink for NodeBird {
    type Error = anyhow::Error;

    async fn configure(&self, node: &str, family: Family, text: &str) -> Result<()> {
        let file = format!("{RUN_DIR}/{node}-{}.conf", family.daemon());
        self.nodes.write(&file, text, 0o644, None).await?;
        let key = (node.to_owned(), family);
        if self.started.lock().await.contains(&key) {
            let said = self.nodes.bird(&control_socket(node, family), "configure").await?;
            // `Reconfigured` at once, or `Reconfiguration in progress` while sessions are being taken down.
            ensure!(said.contains("Reconfigur"), "{} on {node}: {said}", family.daemon());
            return Ok(());
        }
        start_bird(&self.nodes, node, family, &file).await?;
        self.started.lock().await.insert(key);
        Ok(())
    }
}
