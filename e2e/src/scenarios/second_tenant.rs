//! A tenant that comes later never resets the sessions of those that are there; it has two pools of each family, whose
//! pods reach each other on the node and across.

use std::time::Instant;

use anyhow::{Result, ensure};
use calico_vni_crds::keys::VNI;

use super::demo::{all_cells, route_at_leaf};
use crate::{look, step, world::World};

/// Pools of tenant green.
pub const GREEN: [(&str, &str); 4] = [
    ("green", "10.202.0.0/16"),
    ("green-v6", "fd00:202::/64"),
    ("green-more", "10.212.0.0/16"),
    ("green-more-v6", "fd00:212::/64"),
];

/// Adds green and compares red's and blue's sessions before and after.
pub async fn play(world: &mut World) -> Result<()> {
    let (started, mut before) = (Instant::now(), Vec::new());
    for vni in [1001, 1002] {
        before.push((vni, look::sessions(world, vni).await?));
    }
    add_green(world, started).await?;
    let elapsed = u64::try_from(started.elapsed().as_millis())?;
    for (vni, before) in before {
        let after = look::sessions(world, vni).await?;
        for (node, was) in before {
            let is = after[&node];
            ensure!(
                is.times_up == was.times_up,
                "vrf{vni} on {node}: its session came up again, {was:?} then {is:?}"
            );
            // A second of slack, since the first look was not at one moment.
            let expected = was.uptime_ms + elapsed.saturating_sub(1_000);
            ensure!(
                is.uptime_ms >= expected,
                "vrf{vni} on {node}: uptime {} ms, not {expected}",
                is.uptime_ms
            );
            step!(
                "vrf{vni} on {node}: up for {:.1} s, then {:.1} s",
                seconds(was.uptime_ms),
                seconds(is.uptime_ms)
            );
        }
    }
    all_cells(world, &["red", "blue", "green"]).await
}

/// Makes tenant green with a pod of each pool on every node, unless it is there, and waits for its routes at the leaf.
pub async fn add_green(world: &mut World, started: Instant) -> Result<()> {
    if world.tenant("vni-1003").await.is_ok() {
        return Ok(());
    }
    for (name, cidr) in GREEN {
        world.put_pool(name, cidr).await?;
    }
    world.annotate_pools(&GREEN.map(|(name, _)| name), VNI, "1003").await?;
    world.add_pods("green", Some("green"), 1).await?;
    world.add_lettered_pods("green-more", Some("green"), 'b'..='b').await?;
    for (_, cidr) in GREEN {
        route_at_leaf(world, cidr.parse()?, started).await?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
