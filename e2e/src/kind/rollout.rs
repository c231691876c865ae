//! Other versions of the programs, and none for a while: what stands on the nodes stays.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};

use super::{
    cluster::{Cluster, NEXT, until},
    fabric, install, uninstall,
};
use crate::{chart, step};

/// Upgrades to images of another tag, and rolls back.
pub async fn upgrade_and_back(cluster: &Cluster) -> Result<()> {
    let before = standing(cluster).await?;
    let tags = [format!("controller.image.tag={NEXT}"), format!("router.image.tag={NEXT}")];
    let folder = chart::folder()?;
    let upgrade = ["upgrade", "calico-vni", &folder, "--reuse-values", "--set", &tags[0], "--set", &tags[1]];
    cluster.helm(&upgrade).await?;
    run_all(cluster, NEXT).await?;
    install::connected(cluster).await?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: upgraded; what stands on the nodes is the same");

    cluster.helm(&["rollback", "calico-vni", "1"]).await?;
    run_all(cluster, env!("CARGO_PKG_VERSION")).await?;
    install::connected(cluster).await?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: rolled back; what stands on the nodes is the same");
    Ok(())
}

/// Uninstalls the programs while tenants are there, and installs them again: that is no order to take tenants away.
pub async fn taken_away_and_back(cluster: &Cluster) -> Result<()> {
    let before = standing(cluster).await?;
    cluster.helm(&["uninstall", "calico-vni"]).await?;
    until("our pods to go", async || {
        let pods = pods(cluster).await?;
        ensure!(pods.is_empty(), "{} pods", pods.len());
        Ok(())
    })
    .await?;
    similar(&before, &standing(cluster).await?)?;
    install::chart(cluster).await?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: the programs were gone and came again; what stands on the nodes is the same");
    Ok(())
}

/// Waits until all pods of ours run that tag, and no other.
async fn run_all(cluster: &Cluster, tag: &str) -> Result<()> {
    until(&format!("all pods to run {tag}"), async || {
        let pods = pods(cluster).await?;
        let containers = pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(|spec| &spec.containers);
        let images: BTreeSet<&str> = containers.filter_map(|container| container.image.as_deref()).collect();
        ensure!(images.iter().all(|image| image.ends_with(&format!(":{tag}"))), "{images:?}");
        ensure!(pods.len() == cluster.nodes.len() + 2, "{} pods", pods.len());
        Ok(())
    })
    .await
}

async fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), "calico-vni");
    Ok(pods.list(&ListParams::default().labels("app.kubernetes.io/name=calico-vni")).await?.items)
}

/// What stands on the nodes: the router's namespace by its number, its addresses, and our traces on the host.
async fn standing(cluster: &Cluster) -> Result<Vec<String>> {
    let mut standing = Vec::new();
    for node in &cluster.nodes {
        let name = &node.name;
        standing.push(format!("{name}: router {}", node.router().await?));
        let addresses = fabric::inside(cluster, name, &["ip", "-o", "-4", "address"]).await?;
        // `valid_lft forever` and the like follow the address.
        let words = |line: &str| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ");
        standing.extend(addresses.lines().map(|line| format!("{name}: {}", words(line))));
        standing.extend(uninstall::on_node(node).await?.into_iter().map(|trace| format!("{name}: {trace}")));
    }
    Ok(standing)
}

fn similar(before: &[String], after: &[String]) -> Result<()> {
    let [before, after] = [before, after].map(|lines| lines.iter().collect::<BTreeSet<_>>());
    let gone: Vec<_> = before.difference(&after).collect();
    let new: Vec<_> = after.difference(&before).collect();
    ensure!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}, new: {new:#?}");
    Ok(())
}
