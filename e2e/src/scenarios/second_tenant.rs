//! A tenant that comes later never resets the sessions of those that are there.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::demo::{all_cells, route_at_leaf};
use crate::{look, step, world::World};

/// Pool of tenant green.
pub const GREEN: &str = "10.202.0.0/16";

/// Adds green and compares red's and blue's sessions before and after.
pub async fn play(world: &mut World) -> Result<()> {
    let (started, mut before) = (Instant::now(), Vec::new());
    for vni in [1001, 1002] {
        before.push((vni, look::sessions(world, vni).await?));
    }
    let spec =
        serde_json::json!({ "cidr": GREEN, "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false });
    world.apply(&world.manifest("IPPool", "green", &spec)).await?;
    world.kubectl(&["annotate", &world.resource("ippools"), "green", "calico-vni.io/vni=1003"]).await?;
    world.add_pods("green", Some("green"), 1).await?;
    route_at_leaf(world, GREEN.parse()?, started).await?;
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

#[allow(clippy::cast_precision_loss)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
