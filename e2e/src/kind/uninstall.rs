//! Everything is taken away as docs/operations.md says, and nothing is left.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::calico::CalicoApi;
use serde_json::Value;

use super::{
    cluster::{Cluster, until},
    node::{Node, UPLINK},
};
use crate::{remains, step};

/// Takes all of it away; what is there then has to be what was there before.
pub async fn all(cluster: &Cluster, before: &BTreeSet<String>) -> Result<()> {
    let traces_of_ours = traces(cluster).await?;
    ensure!(traces_of_ours.len() > before.len() + 20, "too little is seen: {traces_of_ours:?}");

    cluster.kubectl(&["delete", "blockaffinities.projectcalico.org", "--all"]).await?;
    cluster.kubectl(&["annotate", "ippools.projectcalico.org", "--all", "calico-vni.io/vni-"]).await?;
    cluster.kubectl(&["delete", "tenants.calico-vni.io", "--all", "--timeout=120s"]).await?;
    cluster.kubectl(&["delete", "underlays.calico-vni.io", "--all", "--timeout=60s"]).await?;
    for node in &cluster.nodes {
        until(&format!("{} to have its interface back", node.name), async || {
            let addresses = node.net(&["ip", "-4", "-o", "address", "show", "dev", UPLINK]).await?;
            ensure!(addresses.contains("192.0.2.2/24"), "it has: {addresses}");
            Ok(())
        })
        .await?;
    }
    step!("kind: Tenants and Underlay are gone, and every node has its interface back");

    cluster.helm(&["uninstall", "calico-vni"]).await?;
    cluster.kubectl(&["delete", "namespace", "calico-vni", "--timeout=120s"]).await?;
    cluster
        .kubectl(&["delete", "crd", "tenants.calico-vni.io", "underlays.calico-vni.io", "--timeout=60s"])
        .await?;
    cluster.kubectl(&["annotate", "nodes", "--all", "calico-vni.io/router-index-"]).await?;
    cluster.kubectl(&["delete", "ippools.projectcalico.org", "--all"]).await?;
    until("nothing to be left", async || {
        let now = traces(cluster).await?;
        let left: Vec<&String> = now.difference(before).collect();
        let lost: Vec<&String> = before.difference(&now).collect();
        ensure!(left.is_empty() && lost.is_empty(), "left: {left:#?}, lost: {lost:#?}");
        Ok(())
    })
    .await?;
    step!("kind: uninstalled; nothing is left on the nodes or in the API");
    Ok(())
}

/// All that could be of ours, on nodes and in the API.
pub async fn traces(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for node in &cluster.nodes {
        traces.extend(on_node(node).await?.into_iter().map(|trace| format!("{}: {trace}", node.name)));
    }
    let calico = CalicoApi::V3.group();
    traces
        .extend(remains::in_api(async |arguments: &[&str]| cluster.kubectl(arguments).await, calico).await?);
    Ok(traces)
}

/// What the node's network and its folders hold, but for what comes and goes with pods.
pub async fn on_node(node: &Node) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for family in ["-4", "-6"] {
        let rules = node.net(&["ip", family, "rule"]).await?;
        traces.extend(rules.lines().map(|rule| format!("rule {family} {rule}")));
        let routes = node.net(&["ip", family, "route", "show", "table", "all", "proto", "118"]).await?;
        traces.extend(routes.lines().map(|route| format!("route {family} {route}")));
    }
    let links: Value = serde_json::from_str(&node.net(&["ip", "-json", "address"]).await?)?;
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().context("a link without a name")?;
        if name.starts_with("veth") {
            continue;
        }
        let addresses = link["addr_info"].as_array().into_iter().flatten().filter(|a| a["scope"] == "global");
        let addresses: Vec<_> = addresses.map(|a| a["local"].to_string()).collect();
        traces.insert(format!(
            "link {name} {} mtu {} {}",
            link["operstate"],
            link["mtu"],
            addresses.join(" ")
        ));
    }
    let tables: Value = serde_json::from_str(&node.tables().await?)?;
    for table in tables["nftables"].as_array().into_iter().flatten() {
        let (family, name) = (&table["table"]["family"], table["table"]["name"].as_str());
        traces.extend(
            name.filter(|name| name.contains("vni")).map(|name| format!("nft table {family} {name}")),
        );
    }
    let list = "ls -d /run/netns/calico-vni; find /var/lib/calico-vni -type f; true";
    let files = node.exec(&["sh", "-c", &format!("{{ {list}; }} 2>/dev/null")]).await?;
    traces.extend(files.lines().map(|file| format!("file {file}")));
    Ok(traces)
}
