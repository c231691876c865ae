//! Tenants in use see nothing of it when controller and agents become those of another version.

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::underlay::Underlay;
use kube::Api;

use super::{
    demo,
    flows::{Flows, all_in_step},
};
use crate::{
    release::Release,
    wait,
    world::{PATIENCE, World},
};

/// The Underlay's condition that says whether agents and controller are of one version.
const VERSIONS_AGREE: &str = "VersionsAgree";

/// Replaces controller and agents, in the order of docs/operations.md, while FRR runs on.
pub async fn play(world: &mut World) -> Result<()> {
    ensure!(world.release == Release::Previous, "this begins with the release before this one");
    let (old, new) = (Release::Previous.version()?, Release::This.version()?);
    ensure!(old != new, "both releases are {old}");
    let flows = Flows::start(world).await?;
    world.release = Release::This;
    world.apply_definitions().await?;
    world.apply_rights().await?;
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
    all_in_step(world).await?;
    flows.end(&format!("controller and agents {old} replaced by {new}")).await?;
    demo::all_cells(world, &["red", "blue"]).await
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
