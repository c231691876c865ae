//! Tenants in use see nothing of it when the chart becomes that of another version, nor when it goes back.
//!
//! There is no kubelet here, so what the cluster's own controllers would do is done for them: processes are started anew of which
//! the workload's template has changed, unless it says that its pods stay until they are deleted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::underlay::Underlay;
use kube::Api;
use serde_json::Value;

use super::{
    demo,
    flows::{Flows, all_in_step},
};
use crate::{
    chart,
    release::Release,
    wait,
    world::{PATIENCE, World},
};

/// The Underlay's condition that says whether agents and controller are of one version.
const VERSIONS_AGREE: &str = "VersionsAgree";

/// Upgrades by docs/operations.md, goes back, and upgrades again.
pub async fn play(world: &mut World) -> Result<()> {
    ensure!(world.release == Release::Previous, "this begins with the release before this one");
    let (old, new) = (Release::Previous.version()?, Release::This.version()?);
    ensure!(old != new, "both releases are {old}");
    let chart = chart::folder(Release::Previous)?;
    world.helm(&["install", "calico-vni", &chart, "--take-ownership", "--force-conflicts"]).await?;

    let chart = chart::folder(Release::This)?;
    for (to, command) in [
        (Release::This, vec!["upgrade", "calico-vni", &chart]),
        (Release::Previous, vec!["rollback", "calico-vni"]),
        (Release::This, vec!["upgrade", "calico-vni", &chart]),
    ] {
        let (old, new) = (world.release.version()?, to.version()?);
        let flows = Flows::start(world).await?;
        let before = workloads(world).await?;
        world.release = to;
        if to == Release::This {
            world.apply_definitions().await?;
        }
        // What the lab itself has applied is kubectl's, field by field.
        world.helm(&[&command[..], &["--force-conflicts"]].concat()).await?;
        follow(world, &before, &workloads(world).await?, &old).await?;
        flows
            .end(&format!("by `helm {}`: controller and agents {old} replaced by {new}", command[0]))
            .await?;
    }
    demo::all_cells(world, &["red", "blue"]).await
}

/// A Deployment or a DaemonSet.
#[derive(Debug)]
struct Workload {
    template: Value,
    /// Its pods are replaced when they are deleted.
    on_delete: bool,
}

/// Those of the chart, by name.
async fn workloads(world: &World) -> Result<BTreeMap<String, Workload>> {
    let list = ["-n", "calico-vni", "get", "deployments,daemonsets", "-o", "json"];
    let list: Value = serde_json::from_str(&world.kubectl(&list).await?)?;
    let items = list["items"].as_array().context("a list without items")?;
    let each = items.iter().map(|object| {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let spec = &object["spec"];
        let on_delete = spec["updateStrategy"]["type"] == "OnDelete";
        Ok((name.to_owned(), Workload { template: spec["template"].clone(), on_delete }))
    });
    each.collect()
}

/// Starts anew what is to be, as it is now. That may be controller and agents alone.
async fn follow(
    world: &mut World,
    before: &BTreeMap<String, Workload>,
    after: &BTreeMap<String, Workload>,
    old: &str,
) -> Result<()> {
    ensure!(before.keys().eq(after.keys()), "workloads before {before:?}, after {after:?}");
    let changed = after.iter().filter(|(name, workload)| workload.template != before[*name].template);
    let (stay, replaced): (Vec<_>, Vec<_>) = changed.partition(|(_, workload)| workload.on_delete);
    let names = |workloads: &[(&String, &Workload)]| {
        workloads.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    ensure!(names(&replaced) == "calico-vni-agent, calico-vni-controller", "replaced: {}", names(&replaced));
    ensure!(names(&stay) == "calico-vni-frr", "of another version, and not replaced: {}", names(&stay));
    world.stop_controller().await?;
    world.start_controller().await?;
    let others: Vec<String> =
        world.lab.members.iter().map(|node| format!("{} has {old}", node.name)).collect();
    versions(world, "False", &others).await?;
    for node in &world.lab.members {
        world.router(node).stop_agent(world).await?;
        world.router(node).start_agent(world).await?;
        world.in_step(node, PATIENCE).await?;
    }
    versions(world, "True", &[]).await?;
    all_in_step(world).await
}

/// Waits until the Underlay's condition of the agents' versions has this status and says these words.
async fn versions(world: &World, status: &str, words: &[String]) -> Result<()> {
    let underlays = Api::<Underlay>::all(world.client.clone());
    wait::until("the Underlay to say which versions there are", PATIENCE, async || {
        let conditions = underlays.get("fabric").await?.status.unwrap_or_default().conditions;
        let told = conditions.iter().find(|condition| condition.type_ == VERSIONS_AGREE);
        let told = told.with_context(|| format!("no {VERSIONS_AGREE}"))?;
        let all = words.iter().all(|word| told.message.contains(word));
        ensure!(told.status == status && all, "{told:?}");
        Ok(())
    })
    .await
}
