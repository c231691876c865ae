//! What happens to a tenant: it comes, its pool moves to another one, and a node is told an older configuration.

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::keys::VNI;

use super::{Through, places};
use crate::{
    matrix::{self, Cell, Kind, Place, Way},
    wait,
    world::{PATIENCE, World},
};

/// Pools of tenant grey, which comes in this scenario.
const GREY: [(&str, &str); 2] = [("grey", "10.203.0.0/16"), ("grey-v6", "fd00:203::/64")];

/// Plays them.
pub async fn play(world: &mut World) -> Result<()> {
    let node = world.lab.members[0].clone();
    let file = |name| world.router(&node).state_file(name);
    let (config, before) = (file("config.last-good"), file("config.before"));
    world.lab.nodes().run(&node.name, &["cp", &config, &before]).await?;
    tenant_added(world).await?;
    older_configuration(world, &config, &before).await?;
    pool_moved(world).await
}

/// Pools are annotated when they are made, and pods come when every node's guard holds the pools: from then on nothing
/// passes, while VRF, rules and routes are still to come.
async fn tenant_added(world: &mut World) -> Result<()> {
    let others = Through::start(world, places(world, &["red", "blue"])).await?;
    for (name, cidr) in GREY {
        world.put_pool(name, cidr).await?;
    }
    world.annotate_pools(&GREY.map(|(name, _)| name), VNI, "1004").await?;
    world.guarded(&GREY.map(|(_, cidr)| cidr), true).await?;
    world.add_pods("grey", Some("grey"), 1).await?;
    let mine = Through::start(world, places(world, &["grey", "red"])).await?;
    world.programmed("vni-1004").await?;
    mine.end("tenant added, flows of its own pods").await?;
    others.end("tenant added, flows of the others").await
}

/// With the controller away, node n1 goes back to the configuration that it had before grey came.
async fn older_configuration(world: &mut World, config: &str, before: &str) -> Result<()> {
    let through = Through::start(world, places(world, &["grey", "red", "blue"])).await?;
    let node = world.lab.members[0].clone();
    world.kill_controller().await?;
    world.router(&node).kill_agent(world).await?;
    world.lab.nodes().run(&node.name, &["mv", before, config]).await?;
    world.router(&node).start_agent(world).await?;
    world.in_step(&node, PATIENCE).await?;
    through.go_on().await?;
    world.start_controller().await?;
    world.programmed("vni-1004").await?;
    through.end("a node told an older configuration, and then the right one").await
}

/// Grey's pools go to blue while their pods live. Flows between the two are left out: those are what changes.
async fn pool_moved(world: &mut World) -> Result<()> {
    let without_blue: Vec<Place> =
        places(world, &["grey", "red"]).into_iter().filter(|place| !of(place, "blue")).collect();
    let through = Through::start(world, without_blue).await?;
    world.annotate_pools(&GREY.map(|(name, _)| name), VNI, "1002").await?;
    let all = places(world, &["grey", "blue"]);
    let find = |name: &str| all.iter().position(|place| place.name == name).context("a place");
    let (from, to) = (find("grey-n1-a")?, find("ext-blue")?);
    let cells = Way::ALL.map(|way| Cell { from, to, way, reach: true });
    wait::until("grey's pods to be blue's", PATIENCE, async || {
        let verdict = matrix::judge(&all, &cells, &world.probe(&all, &cells).await?);
        ensure!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("; "));
        Ok(())
    })
    .await?;
    through.end("pools moved from one tenant to another").await?;
    // Who comes later would take them for grey's still.
    world.remove_pods("grey", &GREY.map(|(name, _)| name)).await
}

fn of(place: &Place, whose: &str) -> bool {
    match &place.kind {
        Kind::Pod { tenant, .. } => tenant.as_deref() == Some(whose),
        Kind::External { tenant } => tenant == whose,
        Kind::Service | Kind::Node | Kind::Outside => false,
    }
}
