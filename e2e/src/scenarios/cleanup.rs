//! `calico-vni-router cleanup` leaves nothing of ours on a node and gives the interface back as it was.

use anyhow::{Result, ensure};

use crate::{step, world::World};

/// Cleans node n2 up, with its agent stopped. The last scenario: the node is of no use afterwards.
pub async fn play(world: &mut World) -> Result<()> {
    let node = world.lab.members[1].clone();
    let (host, nodes) = (node.name.as_str(), world.lab.nodes());
    let address = format!("{}/24", node.fabric_address());
    ensure!(
        !nodes.run(host, &["ip", "-o", "addr"]).await?.contains(&address),
        "the interface is not with the router"
    );
    nodes.kill(&format!("{host}-agent")).await?;

    print!("{}", world.router(&node).cleanup(world).await?);

    let addresses = nodes.run(host, &["ip", "-o", "addr"]).await?;
    ensure!(addresses.contains(&address), "eth1 did not come back with {address}: {addresses}");
    let links = nodes.run(host, &["ip", "-o", "link"]).await?;
    ensure!(links.lines().any(|l| l.contains(" eth1") && l.contains("UP")), "eth1 is not up: {links}");
    ensure!(!links.contains(" cv"), "links of ours: {links}");
    let rules = nodes.run(host, &["ip", "rule"]).await?;
    ensure!(!rules.contains("10000010"), "rules of ours: {rules}");
    let routes = nodes.run(host, &["ip", "route", "show", "table", "all"]).await?;
    ensure!(!routes.contains("10000010"), "routes of ours: {routes}");
    let tables = nodes.run(host, &["nft", "list", "tables"]).await?;
    ensure!(tables.contains("calico-rpf") && !tables.contains("calico-vni"), "tables: {tables}");
    step!("node {host} is as it was before");
    Ok(())
}
