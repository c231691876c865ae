//! What a cluster with Calico holds, an Underlay, and tenants. Without VRF devices in the kernel a tenant gets as far as its
//! nodes' saying so; with them it is programmed.

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::{
    calico::{BlockAffinity, CalicoApi},
    tenant::Tenant,
    underlay::Underlay,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{
    Api,
    api::{ListParams, PostParams},
};

use super::cluster::{Cluster, until};
use crate::{calico::ipam, paths, site, step};

/// Calico's definitions and settings.
pub async fn calico(cluster: &Cluster) -> Result<()> {
    let definitions = paths::crate_root().join("calico-crds/v3");
    cluster.kubectl(&["apply", "-f", definitions.to_str().context("path of the checkout")?]).await?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await?;
    let ipam = paths::checkout().join("examples/ipam.yaml");
    cluster.kubectl(&["apply", "-f", ipam.to_str().context("path of the checkout")?]).await?;
    cluster.apply("{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {asNumber: 64512}}").await?;
    step!("kind: Calico's definitions");
    Ok(())
}

/// An Underlay, until every router follows it.
pub async fn underlay(cluster: &Cluster) -> Result<()> {
    let file = paths::checkout().join("examples/underlay.yaml");
    cluster.kubectl(&["apply", "-f", file.to_str().context("path of the checkout")?]).await?;
    let all = u32::try_from(cluster.nodes.len())?;
    until("all nodes to follow the Underlay", async || {
        let underlay = Api::<Underlay>::all(cluster.client.clone()).get("fabric").await?;
        let status = underlay.status.unwrap_or_default();
        let nodes = status.nodes.unwrap_or_default();
        ensure!(nodes.programmed == all && nodes.desired == all, "nodes: {nodes:?}, {:?}", status.conditions);
        Ok(())
    })
    .await?;
    for node in &cluster.nodes {
        let devices = inside(cluster, &node.name, &["ip", "-brief", "address"]).await?;
        ensure!(
            devices.contains("10.255.0."),
            "{}: its router has no tunnel end point: {devices}",
            node.name
        );
        ensure!(
            devices.contains("192.0.2.2/24"),
            "{}: the uplink has lost its address: {devices}",
            node.name
        );
    }
    step!("kind: {all} of {all} routers follow the Underlay, with their uplinks in their namespaces");
    Ok(())
}

/// A pool with a block on each worker, which is annotated with a VNI.
pub async fn tenant(cluster: &Cluster, pool: &str, vni: u32, cidr: &str) -> Result<()> {
    cluster
        .apply(&format!(
            "{{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {{name: {pool}}}, spec: {{cidr: {cidr}, vxlanMode: Never, \
             ipipMode: Never, natOutgoing: false, assignmentMode: Manual, allowedUses: [Workload]}}}}"
        ))
        .await?;
    let blocks = Api::<BlockAffinity>::all_with(cluster.client.clone(), &CalicoApi::V3);
    let workers = cluster.nodes.iter().filter(|node| node.name.contains("worker"));
    for (node, block) in workers.zip(cidr.parse::<IpNet>()?.subnets(26)?) {
        blocks.create(&PostParams::default(), &ipam::affinity(CalicoApi::V3, &node.name, block)).await?;
    }
    cluster
        .kubectl(&["annotate", "ippools.projectcalico.org", pool, &format!("calico-vni.io/vni={vni}")])
        .await?;
    if site::kernel_has_vrf().await? { programmed(cluster, vni).await } else { told(cluster, vni).await }
}

async fn programmed(cluster: &Cluster, vni: u32) -> Result<()> {
    until(&format!("VNI {vni} to be programmed"), async || {
        let nodes = status(cluster, vni).await?.nodes.unwrap_or_default();
        ensure!(nodes.programmed == 2 && nodes.desired == 2, "nodes: {nodes:?}");
        let labelled = labelled(cluster, vni).await?;
        ensure!(labelled.len() == 2, "labelled: {labelled:?}");
        Ok(())
    })
    .await?;
    step!("kind: VNI {vni} stands on 2 of 2 nodes, and their Nodes are labelled");
    Ok(())
}

/// Both nodes say what the kernel lacks, and neither gets the label that would bring BIRD a peer.
async fn told(cluster: &Cluster, vni: u32) -> Result<()> {
    until(&format!("the status of VNI {vni} to say that there is no VRF"), async || {
        let status = status(cluster, vni).await?;
        let problems = status.nodes.unwrap_or_default().problems;
        let without = problems.iter().filter(|problem| problem.message.contains("type vrf")).count();
        ensure!(without == 2, "{problems:?}");
        let degraded = status.conditions.iter().find(|c| c.type_ == "Degraded").context("no Degraded")?;
        ensure!(degraded.status == "True" && degraded.message.contains("type vrf"), "{degraded:?}");
        let underlay = Api::<Underlay>::all(cluster.client.clone()).get("fabric").await?;
        let fit = underlay.status.unwrap_or_default().conditions.into_iter().find(|c| c.type_ == "NodesFit");
        let fit = fit.context("no NodesFit")?;
        ensure!(fit.status == "False" && fit.message.contains("makes no VRF device"), "{fit:?}");
        Ok(())
    })
    .await?;
    let labelled = labelled(cluster, vni).await?;
    ensure!(labelled.is_empty(), "labelled though nothing stands: {labelled:?}");
    let peers = cluster.kubectl(&["get", "bgppeers.projectcalico.org", "-o", "name"]).await?;
    ensure!(peers.contains(&format!("calico-vni-vni-{vni}")), "the tenant's peer is not there: {peers}");
    step!("kind: this kernel has no VRF: VNI {vni} says so on both nodes, and no Node is labelled");
    Ok(())
}

async fn status(cluster: &Cluster, vni: u32) -> Result<calico_vni_crds::tenant::TenantStatus> {
    let tenant = Api::<Tenant>::all(cluster.client.clone()).get(&format!("vni-{vni}")).await?;
    Ok(tenant.status.unwrap_or_default())
}

async fn labelled(cluster: &Cluster, vni: u32) -> Result<Vec<String>> {
    let label = format!("tenant.calico-vni.io/vni-{vni}");
    let nodes =
        Api::<KubeNode>::all(cluster.client.clone()).list(&ListParams::default().labels(&label)).await?;
    Ok(nodes.into_iter().filter_map(|node| node.metadata.name).collect())
}

/// Runs a command of the node's in its router's network namespace.
pub async fn inside(cluster: &Cluster, node: &str, command: &[&str]) -> Result<String> {
    let node = cluster.nodes.iter().find(|n| n.name == node).context("no such node")?;
    node.exec(&[&["nsenter", "--net=/run/netns/calico-vni", "--"], command].concat()).await
}
