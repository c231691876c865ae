//! The full matrix: tenants red, blue and green, the default pool, a shared service, external hosts, nodes and a host
//! outside, each to each, IPv4 and IPv6, ICMP and TCP, on one node and across.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::{demo::all_right, second_tenant::add_green};
use crate::{
    matrix::{Kind, Way},
    topology::Addresses,
    world::World,
};

/// Name of the shared service.
pub const DNS: &str = "dns";

/// Tries every cell and prints a table for each way.
pub async fn play(world: &mut World) -> Result<()> {
    add_green(world, Instant::now()).await?;
    add_dns(world).await?;
    let matrix = world.matrix(&world.places(&["red", "blue", "green"]), &Way::ALL).await?;
    for way in Way::ALL {
        println!("\n{way}:\n\n{}", matrix.table(&[way]));
    }
    all_right(&matrix);
    Ok(())
}

/// Makes a pod on n1 that plays the cluster's DNS, and has the Underlay share its addresses with all tenants; nothing if
/// it is there.
pub async fn add_dns(world: &mut World) -> Result<()> {
    if world.places(&[]).iter().any(|place| place.kind == Kind::Service) {
        return Ok(());
    }
    let node = world.lab.members[0].clone();
    let Addresses { v4, v6 } = world.add_service(DNS, &node).await?;
    let underlay: Value =
        serde_json::from_str(&world.kubectl(&["get", "underlay", "fabric", "-o", "json"]).await?)?;
    let mut shared = underlay["spec"]["sharedCIDRs"].as_array().cloned().unwrap_or_default();
    shared.extend([json!(format!("{v4}/32")), json!(format!("{v6}/128"))]);
    let patch = json!({ "spec": { "sharedCIDRs": shared } }).to_string();
    world.kubectl(&["patch", "underlay", "fabric", "--type=merge", "-p", &patch]).await?;
    Ok(())
}
