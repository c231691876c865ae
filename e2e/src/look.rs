//! What scenarios look at: the leaf's routes, a node's sessions, and every trace that a tenant leaves anywhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    leaf,
    topology::Node,
    world::{World, frr_dir},
};

/// The leaf's type-5 routes, as FRR prints them.
pub async fn leaf_type5(world: &World) -> Result<String> {
    let texts = world.lab.nodes().vty(leaf::BGPD, &["show bgp l2vpn evpn route type prefix"]).await?;
    texts.into_iter().next().context("bgpd printed nothing")
}

/// Whether that text holds the type-5 route of a prefix.
pub fn has_type5(text: &str, prefix: IpNet) -> bool {
    text.contains(&format!("[5]:[0]:[{}]:[{}]", prefix.prefix_len(), prefix.addr()))
}

/// Blocks that nodes hold of a pool.
pub async fn blocks(world: &World, pool: IpNet) -> Result<Vec<(String, IpNet)>> {
    let json = world.kubectl(&["get", &world.resource("blockaffinities"), "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&json)?;
    let mut blocks = Vec::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let (node, cidr) = (item["spec"]["node"].as_str(), item["spec"]["cidr"].as_str());
        let (node, cidr) = node.zip(cidr).context("a BlockAffinity without node or cidr")?;
        let cidr: IpNet = cidr.parse()?;
        if pool.contains(&cidr) {
            blocks.push((node.to_owned(), cidr));
        }
    }
    Ok(blocks)
}

/// A BGP session between a node's router and its BIRD, as the router has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Milliseconds since it came up.
    pub uptime_ms: u64,
    /// How often it has come up since the router started.
    pub times_up: u64,
}

/// The session of a tenant on a node; an error if it is not up.
pub async fn session(world: &World, node: &Node, vni: u32) -> Result<Session> {
    let socket = format!("{}/bgpd.vty", frr_dir(&node.name));
    let command = format!("show bgp vrf vrf{vni} neighbors json");
    let text = world.lab.nodes().vty(&socket, &[&command]).await?.concat();
    let all: Value =
        serde_json::from_str(&text).with_context(|| format!("bgpd of {} printed {text}", node.name))?;
    let neighbor = all.as_object().and_then(|all| all.values().find(|n| n["bgpState"].is_string()));
    let neighbor = neighbor.with_context(|| format!("{} has no session in vrf{vni}", node.name))?;
    ensure!(
        neighbor["bgpState"] == "Established",
        "session of vrf{vni} on {} is {}",
        node.name,
        neighbor["bgpState"]
    );
    Ok(Session {
        uptime_ms: neighbor["bgpTimerUpMsec"].as_u64().context("a session without uptime")?,
        times_up: neighbor["connectionsEstablished"].as_u64().context("a session without a count")?,
    })
}

/// The sessions of a tenant on all nodes.
pub async fn sessions(world: &World, vni: u32) -> Result<BTreeMap<String, Session>> {
    let mut sessions = BTreeMap::new();
    for node in &world.lab.members {
        sessions.insert(node.name.clone(), session(world, node, vni).await?);
    }
    Ok(sessions)
}

/// Places where a tenant leaves something, each with whether it is there.
pub async fn traces(world: &World, tenant: &str, vni: u32, pool: IpNet) -> Result<BTreeMap<String, bool>> {
    let mut traces = BTreeMap::new();
    let object = format!("calico-vni-{tenant}");
    for (what, kind, name) in [
        ("Tenant", "tenants.calico-vni.io".to_owned(), tenant),
        ("BGPPeer", world.resource("bgppeers"), &object),
        ("BGPFilter", world.resource("bgpfilters"), &object),
    ] {
        let found = world.kubectl(&["get", &kind, name, "--ignore-not-found", "-o", "name"]).await?;
        traces.insert(what.to_owned(), !found.trim().is_empty());
    }
    let label = format!("tenant.calico-vni.io/{tenant}");
    let labelled = world.kubectl(&["get", "nodes", "-l", &label, "-o", "name"]).await?;
    traces.insert("Node label".to_owned(), !labelled.trim().is_empty());

    let text = leaf_type5(world).await?;
    let mut at_leaf = false;
    for (_, block) in blocks(world, pool).await? {
        at_leaf |= has_type5(&text, block);
    }
    traces.insert("type-5 route at the leaf".to_owned(), at_leaf);

    let nodes = world.lab.nodes();
    for node in &world.lab.members {
        let (host, router) = (node.name.as_str(), node.router());
        let table = (1_000_000_000 + u64::from(vni)).to_string();
        let prefix = format!("{}/", pool.network());
        // Words that only this tenant's things contain, in what each command prints.
        for (what, netns, argv, word) in [
            ("link", host, &["ip", "-o", "link"][..], format!("cv{vni}")),
            ("rule", host, &["ip", "rule"], table.clone()),
            ("route", host, &["ip", "route", "show", "table", "all"], format!("table {table}")),
            ("guard", host, &["nft", "list", "table", "inet", "calico-vni"], prefix),
            ("VRF", &router, &["ip", "-o", "link"], format!("vrf{vni}")),
            ("VXLAN device", &router, &["ip", "-o", "link"], format!("vx{vni}")),
            ("bridge", &router, &["ip", "-o", "link"], format!("br{vni}")),
            ("router's link", &router, &["ip", "-o", "link"], format!(" h{vni}")),
            ("VRF's routes", &router, &["ip", "route", "show", "table", "all"], format!("table {table}")),
        ] {
            let text = nodes.run(netns, argv).await?;
            traces.insert(format!("{what} on {host}"), text.contains(&word));
        }
        let sockets = nodes.run(host, &["ls", &frr_dir(host)]).await?;
        // From FRR 10 on mgmtd has what zebra had of VRFs.
        for (what, daemons) in [("zebra's", &["zebra.vty", "mgmtd.vty"][..]), ("bgpd's", &["bgpd.vty"])] {
            let mut config = String::new();
            for daemon in daemons.iter().filter(|daemon| sockets.lines().any(|socket| socket == **daemon)) {
                let socket = format!("{}/{daemon}", frr_dir(host));
                config += &nodes.vty(&socket, &["enable", "show running-config"]).await?.concat();
            }
            ensure!(config.contains("frr version"), "no configuration of FRR's on {host}: {config}");
            traces.insert(format!("{what} configuration on {host}"), config.contains(&vni.to_string()));
        }
        let bird = nodes
            .bird(&crate::sink::control_socket(host, crate::calico::Family::V4), "show protocols")
            .await?;
        traces.insert(format!("BIRD's peer on {host}"), bird.contains(&bird_peer(world, tenant).await?));
    }
    Ok(traces)
}

/// How BIRD calls the session with a tenant's router: Calico names it by the peer's address.
async fn bird_peer(world: &World, tenant: &str) -> Result<String> {
    let args = ["get", "tenants", tenant, "--ignore-not-found", "-o", "jsonpath={.status.linkIndex}"];
    // A tenant that is gone has no index; the lab's tenants are numbered from 1 and `withdraw` takes the first.
    let index: u32 = world.kubectl(&args).await?.parse().unwrap_or(1);
    let router = u32::from(std::net::Ipv4Addr::new(169, 254, 192, 0)) + 2 * index + 1;
    Ok(std::net::Ipv4Addr::from(router).to_string().replace('.', "_"))
}

/// Names of those that are there, or that are not.
pub fn which(traces: &BTreeMap<String, bool>, there: bool) -> BTreeSet<&str> {
    traces.iter().filter(|(_, t)| **t == there).map(|(name, _)| name.as_str()).collect()
}
