//! A node boots while API server and controller are away: what the agent kept has to bring everything up.

use anyhow::{Result, ensure};

use super::{Through, places};
use crate::{
    nodes::client::Nodes,
    topology::Node,
    wait,
    world::{PATIENCE, World},
};

/// Plays it on node n1.
pub async fn play(world: &mut World) -> Result<()> {
    let node = world.lab.members[0].clone();
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    world.kill_controller().await?;
    world.api.pause()?;
    let result = boot(world, &node).await;
    let went_on = match &result {
        Ok(()) => through.flow().await,
        Err(_) => Ok(()),
    };
    // Whatever came of it, later scenarios need them.
    world.api.resume()?;
    world.start_controller().await?;
    result?;
    went_on?;
    world.in_step(&node, PATIENCE).await?;
    through.end("a node booted with API server and controller away").await
}

/// Takes down all that a boot takes away, and starts what a boot starts. Pods are wired when the guard stands, as the
/// agent's pod is asked to be the first on its node.
async fn boot(world: &World, node: &Node) -> Result<()> {
    let nodes = world.lab.nodes();
    let (host, router) = (node.name.as_str(), world.router(node));
    let pods = PodRoutes::of(nodes, host).await?;
    pods.unwire(nodes, host).await?;
    router.kill_agent(world).await?;
    router.kill_frr(world).await?;
    nodes.run(&node.router(), &["ip", "link", "set", "eth1", "netns", host]).await?;
    nodes.ip(None, vec![format!("netns del {}", node.router())]).await?;
    for family in ["-4", "-6"] {
        nodes.run(host, &["ip", family, "rule", "flush", "protocol", "118"]).await?;
        nodes.run(host, &["ip", family, "route", "flush", "table", "all", "proto", "118"]).await?;
    }
    nodes.run(host, &["nft", "flush", "ruleset"]).await?;
    let address = format!("addr add {}/24 dev eth1", node.fabric_address());
    nodes.ip(Some(host), vec![address, "link set eth1 up".to_owned()]).await?;
    world.lab.reverse_path_rule(node).await?;

    router.make_namespace(world).await?;
    router.start_frr(world).await?;
    router.start_agent(world).await?;
    wait::until(&format!("the guard of {host}"), PATIENCE, async || {
        nodes.run(host, &["nft", "list", "table", "inet", "calico-vni"]).await.map(drop)
    })
    .await?;
    pods.wire(nodes, host).await?;
    world.in_step(node, PATIENCE).await
}

/// The routes to a node's pods, which are gone while their interfaces are down.
struct PodRoutes {
    interfaces: Vec<String>,
    routes: Vec<String>,
}

impl PodRoutes {
    async fn of(nodes: &Nodes, host: &str) -> Result<Self> {
        let (mut interfaces, mut routes) = (Vec::new(), Vec::new());
        for (family, kernels) in [("-4", "none"), ("-6", "fe80::/64")] {
            let text = nodes.run(host, &["ip", family, "route", "show"]).await?;
            for line in text.lines().filter(|line| line.contains(" dev cali") && !line.starts_with(kernels)) {
                let mut words = line.split_whitespace();
                let to = words.next().unwrap_or_default();
                let interface = words.skip_while(|word| *word != "dev").nth(1).unwrap_or_default();
                interfaces.push(interface.to_owned());
                let scope = if family == "-4" { " scope link" } else { "" };
                routes.push(format!("route replace {to} dev {interface}{scope} metric 1024"));
            }
        }
        interfaces.sort();
        interfaces.dedup();
        ensure!(!interfaces.is_empty(), "{host} has no pods");
        Ok(Self { interfaces, routes })
    }

    async fn unwire(&self, nodes: &Nodes, host: &str) -> Result<()> {
        let lines = self.interfaces.iter().map(|interface| format!("link set {interface} down"));
        nodes.ip(Some(host), lines.collect()).await
    }

    async fn wire(&self, nodes: &Nodes, host: &str) -> Result<()> {
        let lines = self.interfaces.iter().map(|interface| format!("link set {interface} up"));
        nodes.ip(Some(host), lines.chain(self.routes.iter().cloned()).collect()).await
    }
}
