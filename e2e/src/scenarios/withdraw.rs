//! Without the annotation a tenant stays for its live pods; with the last of them everything of it goes; and with the
//! annotation again everything is back with the same link index.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::demo::{PODS, RED, RED_TENANT, RED_V6, all_cells, route_at_leaf};
use crate::{
    look, step, wait,
    world::{PATIENCE, World},
};

/// How long everything may take to go.
const GONE: Duration = Duration::from_mins(2);

/// Looks for every trace before, after, and when it is back.
pub async fn play(world: &mut World) -> Result<()> {
    let pools = world.resource("ippools");
    let index = link_index(world).await?;
    // The twin of what follows: each look sees what it looks for while it is there.
    let before = look::traces(world, RED_TENANT, 1001, RED.parse()?).await?;
    ensure!(look::which(&before, false).is_empty(), "not there before: {:?}", look::which(&before, false));

    world.kubectl(&["annotate", &pools, "red", "red-v6", "calico-vni.io/vni-"]).await?;
    wait::until("red to be told as leaving", PATIENCE, async || {
        let pools = world.kubectl(&["get", "tenants", RED_TENANT, "-o", "jsonpath={.status.pools}"]).await?;
        ensure!(pools.contains("Leaving"), "pools {pools}");
        Ok(())
    })
    .await?;
    all_cells(world, &["red", "blue"]).await?;
    step!("red's pods live on in its VRF without the annotation");

    world.remove_pods("red", &["red", "red-v6"]).await?;
    let took = Instant::now();
    wait::until("every trace of red to be gone", GONE, async || {
        let traces = look::traces(world, RED_TENANT, 1001, RED.parse()?).await?;
        ensure!(look::which(&traces, true).is_empty(), "still there: {:?}", look::which(&traces, true));
        Ok(())
    })
    .await?;
    step!("all {} traces of red gone after {:.1} s", before.len(), took.elapsed().as_secs_f64());

    let again = Instant::now();
    world.add_pods("red", Some("red"), PODS).await?;
    world.kubectl(&["annotate", &pools, "red", "red-v6", "calico-vni.io/vni=1001"]).await?;
    for pool in [RED, RED_V6] {
        route_at_leaf(world, pool.parse()?, again).await?;
    }
    let now = link_index(world).await?;
    ensure!(now == index, "link index was {index} and is {now}");
    step!("red is back with link index {now}");
    all_cells(world, &["red", "blue"]).await
}

async fn link_index(world: &World) -> Result<String> {
    let index = world.kubectl(&["get", "tenants", RED_TENANT, "-o", "jsonpath={.status.linkIndex}"]).await?;
    ensure!(!index.is_empty(), "{RED_TENANT} has no link index");
    Ok(index)
}
