//! The lab as scenarios see it: everything started, in words that read like what they do.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Result;
use futures::future::try_join_all;

use crate::{
    leaf,
    nodes::{client::Nodes, protocol::Command},
    release::Release,
    site::{Mode, Site},
    step,
    topology::{self, Batch, Node, PodLink},
};

/// A running lab. Dropping it ends all that it started.
pub struct Lab {
    /// Where the nodes are.
    pub site: Site,
    /// The cluster's nodes.
    pub members: Vec<Node>,
    /// Logs and data of this run.
    pub directory: PathBuf,
}

impl Lab {
    /// Starts everything, in the order of need; logs and data go to `directory`. Programs of `release` can be started too.
    pub async fn start(directory: &Path, release: Release) -> Result<Self> {
        let site = Site::start(Mode::choose().await?, directory, release).await?;
        let members = vec![Node::new(1), Node::new(2)];
        let lab = Self { site, members, directory: directory.to_owned() };
        lab.network().await?;
        leaf::start(lab.nodes(), &lab.members).await?;
        step!("leaf ready: ASN {}, VTEP {}", topology::LEAF_ASN, topology::LEAF_VTEP);
        Ok(lab)
    }

    /// The node side.
    pub fn nodes(&self) -> &Nodes {
        &self.site.nodes
    }

    /// Makes pods as Calico's CNI plugin and Felix do.
    pub async fn add_pods(&self, links: &[PodLink]) -> Result<()> {
        let (make, batches) = topology::pods(links);
        apply(self.nodes(), make, batches).await?;
        self.answer(links.iter().map(|link| link.netns.clone())).await
    }

    /// Takes a pod away, with the routes of the host outside to it.
    pub async fn remove_pod(&self, link: &PodLink) -> Result<()> {
        let PodLink { node, netns, addresses, interface } = link;
        // The interface first: what still listens in the namespace keeps it alive for a while.
        self.nodes().ip(Some(&node.name), vec![format!("link del {interface}")]).await?;
        self.nodes().ip(None, vec![format!("netns del {netns}")]).await?;
        let routes = [format!("route del {}/32", addresses.v4), format!("route del {}/128", addresses.v6)];
        self.nodes().ip(Some(topology::OUTSIDE), routes.into()).await
    }

    /// Has these namespaces answer on the lab's port, in both families.
    async fn answer(&self, namespaces: impl IntoIterator<Item = String>) -> Result<()> {
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, topology::PORT));
        let serve = |netns: String| async move { self.nodes().serve(&netns, listen, &netns).await };
        try_join_all(namespaces.into_iter().map(serve)).await?;
        Ok(())
    }

    async fn network(&self) -> Result<()> {
        let (make, batches) = topology::base(&self.members);
        apply(self.nodes(), make, batches).await?;
        try_join_all(self.members.iter().map(|node| self.reverse_path_rule(node))).await?;
        let external = topology::FABRIC_TENANTS.iter().map(topology::FabricTenant::host);
        let nodes = self.members.iter().map(|node| node.name.clone());
        self.answer(external.chain(nodes).chain([topology::OUTSIDE.to_owned()])).await?;
        step!(
            "network ready: {} nodes, leaf, {} external hosts",
            self.members.len(),
            topology::FABRIC_TENANTS.len()
        );
        Ok(())
    }

    /// Writes the rule by which Calico drops what a pod sends from an address that is not its own.
    pub async fn reverse_path_rule(&self, node: &Node) -> Result<()> {
        let command = Command {
            netns: Some(node.name.clone()),
            argv: vec!["nft".into(), "-f".into(), "-".into()],
            stdin: topology::REVERSE_PATH_RULE.to_owned(),
            timeout_ms: 30_000,
            ..Command::default()
        };
        let output = self.nodes().exec(command).await?;
        anyhow::ensure!(output.code == 0, "Calico's reverse path rule on {}: {}", node.name, output.stderr);
        Ok(())
    }
}

/// Applies the first batch, then the others at once.
async fn apply(nodes: &Nodes, make: Batch, batches: Vec<Batch>) -> Result<()> {
    one(nodes, make).await?;
    try_join_all(batches.into_iter().map(|batch| one(nodes, batch))).await?;
    Ok(())
}

async fn one(nodes: &Nodes, batch: Batch) -> Result<()> {
    if let Some(netns) = batch.netns.as_deref().filter(|_| !batch.sysctls.is_empty()) {
        nodes.sysctl(netns, batch.sysctls).await?;
    }
    nodes.ip(batch.netns.as_deref(), batch.ip).await
}
