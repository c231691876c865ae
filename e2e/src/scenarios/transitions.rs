//! Forbidden stays forbidden while things change. Flows of all kinds, forbidden and permitted, go on through every
//! transition: of the forbidden ones nothing arrives, and of the permitted ones it is told how long they were gone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::keys::VNI;

use crate::{
    matrix::{Cell, Kind, Place, Way, expected},
    nodes::protocol::FlowResult,
    steady::{self, Steady},
    step, wait,
    world::{PATIENCE, World},
};

/// From one round of requests to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Rounds that go on before and after what happens.
const ROUNDS: u64 = 10;

/// Pools of tenant grey, which comes in this scenario.
const GREY: [(&str, &str); 2] = [("grey", "10.203.0.0/16"), ("grey-v6", "fd00:203::/64")];

/// Plays all transitions.
pub async fn play(world: &mut World) -> Result<()> {
    agent_killed(world).await?;
    tenant_added(world).await?;
    guard_flushed(world).await
}

/// Flows that go on through one transition.
pub struct Through {
    places: Vec<Place>,
    cells: Vec<Cell>,
    steady: Steady,
}

impl Through {
    /// Starts a flow for each ordered pair of these places, and waits until all permitted ones are answered and some
    /// rounds have gone by. The ways take turns, so that a round is a quarter of the full matrix.
    pub async fn start(world: &World, places: Vec<Place>) -> Result<Self> {
        let mut cells = Vec::new();
        let mut turn = Way::ALL.into_iter().cycle();
        for (i, from) in places.iter().enumerate() {
            for (j, to) in places.iter().enumerate().filter(|(j, _)| *j != i) {
                let way = turn.next().context("a cycle has no end")?;
                cells.push(Cell { from: i, to: j, way, reach: expected(from, to) });
            }
        }
        let flows = cells.iter().map(|cell| steady::flow(cell, &places)).collect();
        let through = Self { steady: Steady::start(world.lab.nodes(), PAUSE, flows).await?, places, cells };
        through.flow().await?;
        Ok(through)
    }

    /// Waits until from now on every permitted flow has been answered and every flow has gone through some rounds.
    pub async fn flow(&self) -> Result<()> {
        let before = self.steady.so_far().await?;
        wait::until("all flows to go on", PATIENCE, async || {
            let now = self.steady.so_far().await?;
            let requests = |result: &FlowResult| result.sent + result.refused;
            for ((cell, before), now) in self.cells.iter().zip(&before).zip(&now) {
                let what = || format!("{} to {}", self.places[cell.from].name, self.places[cell.to].name);
                ensure!(requests(now) >= requests(before) + ROUNDS, "{}: too few requests", what());
                ensure!(!cell.reach || now.answered > before.answered, "{}: no answer, {now:?}", what());
            }
            Ok(())
        })
        .await
    }

    /// Lets the flows go on for some more rounds, ends them and judges.
    pub async fn end(self, what: &str) -> Result<()> {
        self.flow().await?;
        let results = self.steady.stop().await?;
        let sum = steady::judge(&self.places, &self.cells, &results).with_context(|| what.to_owned())?;
        step!(
            "{what}: of {} forbidden packets none arrived; of {} permitted ones {} had no answer, the longest gap was {:.1} s",
            sum.forbidden,
            sum.permitted,
            sum.lost,
            sum.longest_gap.as_secs_f64()
        );
        Ok(())
    }
}

/// One pod of each pool on each node, the external hosts of these tenants, the nodes and the host outside.
pub fn places(world: &World, tenants: &[&str]) -> Vec<Place> {
    let mut places = world.places(tenants);
    places.retain(|place| match &place.kind {
        Kind::Pod { tenant, .. } => {
            place.name.ends_with("-a")
                && tenant.as_ref().is_none_or(|tenant| tenants.contains(&tenant.as_str()))
        }
        Kind::External { .. } | Kind::Node | Kind::Outside => true,
        Kind::Service => false,
    });
    places
}

async fn agent_killed(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.router(node).kill_agent(world).await?;
    through.flow().await?;
    world.router(node).start_agent(world).await?;
    world.in_step(node, PATIENCE).await?;
    through.end("agent killed and started again").await
}

/// Its pods exist before any node has heard of it, as it is when a pool is annotated and pods are made at once.
async fn tenant_added(world: &mut World) -> Result<()> {
    let others = Through::start(world, places(world, &["red", "blue"])).await?;
    for (name, cidr) in GREY {
        world.put_pool(name, cidr).await?;
    }
    world.annotate_pools(&GREY.map(|(name, _)| name), VNI, "1004").await?;
    world.add_pods("grey", Some("grey"), 1).await?;
    let mine = Through::start(world, places(world, &["grey", "red"])).await?;
    world.programmed("vni-1004").await?;
    mine.end("tenant added, flows of its own pods").await?;
    others.end("tenant added, flows of the others").await
}

async fn guard_flushed(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.lab.nodes().run(&node.name, &["nft", "flush", "ruleset"]).await?;
    world.lab.reverse_path_rule(node).await?;
    wait::until("the guard to be back", PATIENCE, async || {
        let tables = world.lab.nodes().run(&node.name, &["nft", "list", "tables"]).await?;
        ensure!(tables.contains("inet calico-vni"), "{tables}");
        Ok(())
    })
    .await?;
    world.in_step(node, PATIENCE).await?;
    through.end("all nft rules of a node flushed").await
}
