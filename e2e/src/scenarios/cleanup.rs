//! `calico-vni-router cleanup` leaves nothing of ours on a node and gives the interface back as it was.

use anyhow::{Result, ensure};

use crate::{step, topology::Node, world::World};

/// Cleans node n2 up, with its agent stopped. The node is of no use afterwards.
pub async fn play(world: &mut World) -> Result<()> {
    let node = world.lab.members[1].clone();
    let host = node.name.as_str();
    ensure!(as_before(world, &node).await.is_err(), "nothing of ours is seen on {host}");
    world.lab.nodes().kill(&format!("{host}-agent")).await?;

    print!("{}", world.router(&node).cleanup(world).await?);

    as_before(world, &node).await?;
    step!("node {host} is as it was before");
    Ok(())
}

/// Fails unless the node has its interface back and nothing of ours is left on it.
pub async fn as_before(world: &World, node: &Node) -> Result<()> {
    let nodes = world.lab.nodes();
    let look = async |argv: &[&str]| nodes.run(&node.name, argv).await;
    let address = format!("{}/24", node.fabric_address());
    let addresses = look(&["ip", "-o", "addr"]).await?;
    ensure!(addresses.contains(&address), "eth1 has not come back with {address}: {addresses}");
    let links = look(&["ip", "-o", "link"]).await?;
    ensure!(links.lines().any(|l| l.contains(" eth1") && l.contains("UP")), "eth1 is not up: {links}");
    ensure!(!links.contains(" cv"), "links of ours: {links}");
    for family in ["-4", "-6"] {
        let rules = look(&["ip", family, "rule"]).await?;
        // All but the kernel's own, which are 0, 32766 and 32767.
        let ours = |rule: &&str| {
            let preference = rule.split(':').next().and_then(|number| number.trim().parse().ok());
            preference.is_none_or(|n: u32| (1..32_766).contains(&n))
        };
        let ours: Vec<&str> = rules.lines().filter(ours).collect();
        ensure!(ours.is_empty(), "rules of ours: {ours:?}");
        let routes = look(&["ip", family, "route", "show", "table", "all", "proto", "118"]).await?;
        ensure!(routes.trim().is_empty(), "routes of ours: {routes}");
    }
    let tables = look(&["nft", "list", "tables"]).await?;
    ensure!(tables.contains("calico-rpf") && !tables.contains("calico-vni"), "tables: {tables}");
    let namespaces = look(&["ip", "netns"]).await?;
    ensure!(!namespaces.lines().any(|name| name.starts_with(&node.router())), "namespaces: {namespaces}");
    Ok(())
}
