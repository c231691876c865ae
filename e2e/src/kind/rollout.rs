//! Other versions of the programs, and none for a while: what stands on the nodes stays.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};

use super::{
    cluster::{Cluster, NEXT, until},
    fabric, install, uninstall, viewer,
};
use crate::{chart, release::Release, step};

/// Upgrades to images of another tag, and rolls back: controllers and agents become others, and no pod of FRR does.
pub async fn upgrade_and_back(cluster: &Cluster) -> Result<()> {
    let this = env!("CARGO_PKG_VERSION");
    let (before, frr) = (standing(cluster).await?, frr(cluster).await?);
    upgrade(cluster).await?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: upgraded; no pod of FRR was touched, and what stands on the nodes is the same");

    cluster.helm(&["rollback", "calico-vni", "1"]).await?;
    run_all(cluster, this, this).await?;
    install::connected(cluster).await?;
    similar(&frr, &self::frr(cluster).await?)?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: rolled back; no pod of FRR was touched, and what stands on the nodes is the same");
    Ok(())
}

/// Upgrades, and has FRR follow as docs/operations.md says: its pods are deleted node by node.
pub async fn upgrade_with_frr(cluster: &Cluster) -> Result<()> {
    let before = standing(cluster).await?;
    upgrade(cluster).await?;
    for node in &cluster.nodes {
        let pods = ["-n", "calico-vni", "delete", "pod", "-l", "app.kubernetes.io/component=frr"];
        let here = format!("spec.nodeName={}", node.name);
        cluster.kubectl(&[&pods[..], &["--field-selector", &here]].concat()).await?;
    }
    run_all(cluster, NEXT, NEXT).await?;
    install::looks(cluster).await?;
    similar(&before, &standing(cluster).await?)?;
    step!("kind: FRR is of the new version too, and what stands on the nodes is the same");
    Ok(())
}

/// Upgrades, and waits until controllers and agents are of the new version, and the agents connected.
async fn upgrade(cluster: &Cluster) -> Result<()> {
    let frr = frr(cluster).await?;
    let tags = [format!("controller.image.tag={NEXT}"), format!("router.image.tag={NEXT}")];
    let folder = chart::folder(Release::This)?;
    let upgrade = ["upgrade", "calico-vni", &folder, "--reuse-values", "--set", &tags[0], "--set", &tags[1]];
    cluster.helm(&upgrade).await?;
    run_all(cluster, NEXT, env!("CARGO_PKG_VERSION")).await?;
    install::connected(cluster).await?;
    similar(&frr, &self::frr(cluster).await?)?;
    let nodes: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let told = format!("{0} of {0} pods are of before it was changed, on {1}", nodes.len(), nodes.join(", "));
    until("the doctor to tell of FRR's pods", async || {
        let (_, text) = viewer::vni(None, "doctor").await?;
        ensure!(text.contains(&told), "{told}: {text}");
        Ok(())
    })
    .await
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

/// Waits until controllers and agents run that tag and no other, and FRR its own.
async fn run_all(cluster: &Cluster, tag: &str, frr: &str) -> Result<()> {
    until(&format!("controllers and agents to run {tag}, and FRR {frr}"), async || {
        let pods = pods(cluster).await?;
        let mut images = BTreeSet::new();
        for container in pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(|spec| &spec.containers) {
            let image = container.image.as_deref().unwrap_or_default();
            let tag = image.rsplit_once(':').map_or(image, |(_, tag)| tag);
            images.insert((container.name.as_str(), tag));
        }
        ensure!(images == BTreeSet::from([("agent", tag), ("controller", tag), ("frr", frr)]), "{images:?}");
        ensure!(pods.len() == 2 * cluster.nodes.len() + 2, "{} pods", pods.len());
        Ok(())
    })
    .await
}

/// The containers of FRR that run, each by its own number: one that was started again has another.
async fn frr(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = pods(cluster).await?.into_iter().filter_map(|pod| pod.status);
    let containers = pods.flat_map(|status| status.container_statuses.unwrap_or_default());
    let ids = containers.filter(|container| container.name == "frr").filter_map(|frr| frr.container_id);
    let ids: Vec<String> = ids.collect();
    ensure!(ids.len() == cluster.nodes.len(), "containers of FRR: {ids:?}");
    Ok(ids)
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
