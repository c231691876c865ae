//! When the controller is gone, traffic is not: nothing moves, and a new controller finds everything in step.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::demo::{RED, all_cells};
use crate::{look, step, wait, world::World};

/// Kills the controller, looks around, starts it again.
pub async fn play(world: &mut World) -> Result<()> {
    let before = look::sessions(world, 1001).await?;
    let versions = owned_versions(world).await?;
    world.kill_controller().await?;
    step!("controller killed");
    all_cells(world, &["red", "blue"]).await?;
    world.start_controller().await?;
    wait::until("the agents to be back", Duration::from_secs(90), async || {
        let ready = world
            .kubectl(&["get", "underlay", "fabric", "-o", "jsonpath={.status.nodes.programmed}"])
            .await?;
        ensure!(ready == world.lab.members.len().to_string(), "{ready} nodes programmed");
        Ok(())
    })
    .await?;
    let after = look::sessions(world, 1001).await?;
    for (node, was) in before {
        ensure!(after[&node].times_up == was.times_up, "{node}: {was:?} then {:?}", after[&node]);
    }
    ensure!(owned_versions(world).await? == versions, "a new controller wrote what stood as it should");
    let traces = look::traces(world, super::demo::RED_TENANT, 1001, RED.parse()?).await?;
    ensure!(look::which(&traces, false).is_empty(), "missing: {:?}", look::which(&traces, false));
    Ok(())
}

/// Names and resource versions of all generated objects: what changes when anybody writes them.
pub async fn owned_versions(world: &World) -> Result<String> {
    let kinds = format!("{},{}", world.resource("bgpfilters"), world.resource("bgppeers"));
    let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{\"\\n\"}{end}";
    world.kubectl(&["get", &kinds, "-o", path]).await
}
