//! docs/operations.md, "Uninstall", with tenants in use: the chart's release goes by helm, and nothing of ours is left, neither on
//! the nodes nor in the API.
//!
//! The chart's objects are installed over those that the lab applied. There is no kubelet here, so what it would do when pods
//! go is done for it: agent and FRR of each node are asked to end, each first on one of the nodes.

use anyhow::{Context as _, Result, bail, ensure};
use calico_vni_crds::keys;

use super::cleanup::as_before;
use crate::{
    chart,
    release::Release,
    remains, step, wait,
    world::{PATIENCE, World},
};

/// Plays it. The last scenario: nothing is left to play with.
pub async fn play(world: &mut World) -> Result<()> {
    world
        .helm(&[
            "install",
            "calico-vni",
            &chart::folder(Release::This)?,
            "--take-ownership",
            "--force-conflicts",
        ])
        .await?;
    let before = ours(world).await?;
    ensure!(before.len() > 20, "too little of ours is seen: {before:#?}");
    for node in &world.lab.members {
        ensure!(as_before(world, node).await.is_err(), "nothing of ours is seen on {}", node.name);
    }

    world.remove_pods("red", &["red", "red-v6"]).await?;
    world.remove_pods("blue", &["blue", "blue-v6"]).await?;
    let pools = world.resource("ippools");
    for key in [keys::VNI, keys::TENANT] {
        world.kubectl(&["annotate", &pools, "--all", &format!("{key}-")]).await?;
    }
    world.kubectl(&["delete", "tenants.calico-vni.io", "--all", "--timeout=180s"]).await?;
    step!("pods and Tenants are gone");
    world.kubectl(&["delete", "underlays.calico-vni.io", "--all", "--timeout=60s"]).await?;
    for node in &world.lab.members {
        let address = format!("{}/24", node.fabric_address());
        wait::until(&format!("{} to have its interface back", node.name), PATIENCE, async || {
            let addresses = world.lab.nodes().run(&node.name, &["ip", "-o", "addr"]).await?;
            ensure!(addresses.contains(&address), "it has: {addresses}");
            Ok(())
        })
        .await?;
    }
    step!("the Underlay is gone, and every node has its interface back");

    world.helm(&["uninstall", "calico-vni"]).await?;
    let [first, second] = &world.lab.members[..] else { bail!("the lab has two nodes") };
    // The pods of a node go in any order, and an agent may come once more.
    world.router(first).stop_agent(world).await?;
    world.router(first).start_agent(world).await?;
    world.in_step(first, PATIENCE).await?;
    world.router(first).stop_agent(world).await?;
    let left = as_before(world, first).await.err().context("FRR runs on in no namespace by name")?;
    ensure!(left.to_string().contains("namespaces"), "more than that: {left}");
    world.router(first).stop_frr(world).await?;
    world.router(second).stop_frr(world).await?;
    world.router(second).stop_agent(world).await?;
    world.stop_controller().await?;
    world.kubectl(&["delete", "namespace", "calico-vni", "--timeout=120s"]).await?;
    let definitions = ["tenants.calico-vni.io", "underlays.calico-vni.io"];
    world.kubectl(&[&["delete", "crd", "--timeout=60s"][..], &definitions].concat()).await?;
    world.kubectl(&["annotate", "nodes", "--all", &format!("{}-", keys::ROUTER_INDEX)]).await?;

    for node in &world.lab.members {
        as_before(world, node).await?;
    }
    let left = ours(world).await?;
    ensure!(left.is_empty(), "of {} things of ours in the API these are left: {left:#?}", before.len());
    step!("the nodes are as they were, and of {} things of ours in the API none is left", before.len());
    Ok(())
}

/// What of ours is in the API.
async fn ours(world: &World) -> Result<Vec<String>> {
    let kubectl = async |arguments: &[&str]| world.kubectl(arguments).await;
    let all = remains::in_api(kubectl, world.calico.group()).await?;
    Ok(all.into_iter().filter(|thing| thing.contains("calico-vni")).collect())
}
