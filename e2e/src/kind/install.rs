//! The chart's installation, and what agents and controller say of each other.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use super::cluster::{Cluster, until};
use crate::{chart, release::Release, site, step};

/// Installs it, and waits until both controllers are ready and every agent is at the one that leads, over TLS and with its token.
pub async fn chart(cluster: &Cluster) -> Result<()> {
    let began = std::time::Instant::now();
    let folder = chart::folder(Release::This)?;
    let mut install = vec!["install", "calico-vni", &folder, "--create-namespace"];
    // A roll-out stops at a node all of whose tenants fail. Here that has to be let pass.
    if !site::kernel_has_vrf().await? {
        install.extend(["--set", "router.maxUnavailable=100%"]);
    }
    cluster.helm(&install).await?;
    let controllers = ["rollout", "status", "deployment/calico-vni-controller", "--timeout=180s"];
    cluster.kubectl(&[&["-n", "calico-vni"][..], &controllers].concat()).await?;
    connected(cluster).await?;
    for node in &cluster.nodes {
        node.router().await?;
    }
    step!("kind: installed, and every agent is connected, after {:.1} s", began.elapsed().as_secs_f32());
    Ok(())
}

/// The pod of the controller that leads.
pub async fn leader(cluster: &Cluster) -> Result<String> {
    let lease =
        Api::<Lease>::namespaced(cluster.client.clone(), "calico-vni").get("calico-vni-controller").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    let (pod, _) = holder.split_once('_').context("nobody holds the Lease")?;
    Ok(pod.to_owned())
}

/// Waits until the leader has heard every agent.
pub async fn connected(cluster: &Cluster) -> Result<()> {
    until("every agent to be connected", async || {
        let leader = leader(cluster).await?;
        let log = cluster.kubectl(&["-n", "calico-vni", "logs", &leader]).await?;
        for node in &cluster.nodes {
            let line = format!("agent connected node=\"{}\"", node.name);
            ensure!(log.contains(&line), "{leader} has not said `{line}`");
        }
        Ok(())
    })
    .await
}

/// Fails if the API server has refused a controller anything.
pub async fn nothing_forbidden(cluster: &Cluster) -> Result<()> {
    let log = cluster.logs("controller").await?;
    ensure!(log.contains("agent connected"), "these are no logs of a controller: {log}");
    let refused: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
    ensure!(refused.is_empty(), "the controller lacks rights:\n{}", refused.join("\n"));
    step!("kind: the API server has refused the controller nothing");
    Ok(())
}

/// The commands by which docs/operations.md looks at a node, with what a container of ours may do.
pub async fn looks(cluster: &Cluster) -> Result<()> {
    let exec = ["-n", "calico-vni", "exec"];
    let vtysh = "daemonset/calico-vni-frr -- nsenter --net=/run/netns/calico-vni vtysh --vty_socket /var/run/frr/calico-vni -c";
    let summary = [vtysh.split(' ').collect(), vec!["show bgp l2vpn evpn summary"]].concat();
    let guard = "daemonset/calico-vni-agent -- nft list table inet calico-vni".split(' ').collect();
    let show = "daemonset/calico-vni-agent -- calico-vni-router show".split(' ').collect();
    for (command, told) in
        [(summary, "local AS number 65001"), (guard, "table inet calico-vni"), (show, "in step")]
    {
        let command = [&exec, command.as_slice()].concat();
        until(&format!("`kubectl {}` to say `{told}`", command.join(" ")), async || {
            let text = cluster.kubectl(&command).await?;
            ensure!(text.contains(told), "{text}");
            Ok(())
        })
        .await?;
    }
    step!("kind: vtysh, nft and `calico-vni-router show` answer in the pods");
    Ok(())
}
