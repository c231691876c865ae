//! Forbidden stays forbidden while things change. Flows of all kinds, forbidden and permitted, go on through every
//! transition: of the forbidden ones nothing arrives, and of the permitted ones it is told how long they were gone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    matrix::{Cell, Kind, Place, Way, expected},
    nodes::protocol::FlowResult,
    steady::{self, Steady},
    step, wait,
    world::{PATIENCE, World},
};

mod boot;
mod node;
mod tenant;

/// Milliseconds from one round of requests to the next.
const PAUSE_MS: u64 = 100;

/// Rounds that go on before and after what happens.
const ROUNDS: u64 = 10;

/// Plays all transitions.
pub async fn play(world: &mut World) -> Result<()> {
    node::play(world).await?;
    tenant::play(world).await?;
    boot::play(world).await
}

/// Plays the loss of a VRF's device alone.
pub async fn vrf_deleted(world: &mut World) -> Result<()> {
    node::vrf_deleted(world).await
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
        let through = Self {
            steady: Steady::start(world.lab.nodes(), Duration::from_millis(PAUSE_MS), flows).await?,
            places,
            cells,
        };
        through.flow().await?;
        Ok(through)
    }

    /// Waits until from now on every permitted flow has been answered and every flow has gone through some rounds.
    pub async fn flow(&self) -> Result<()> {
        self.rounds(true).await
    }

    /// Waits until every flow has gone through some more rounds, whether or not anything is answered.
    pub async fn go_on(&self) -> Result<()> {
        self.rounds(false).await
    }

    async fn rounds(&self, answered: bool) -> Result<()> {
        let before = self.steady.so_far().await?;
        wait::until("all flows to go on", PATIENCE, async || {
            let now = self.steady.so_far().await?;
            let requests = |result: &FlowResult| result.sent + result.refused;
            for ((cell, before), now) in self.cells.iter().zip(&before).zip(&now) {
                let what = || format!("{} to {}", self.places[cell.from].name, self.places[cell.to].name);
                ensure!(requests(now) >= requests(before) + ROUNDS, "{}: too few requests", what());
                ensure!(
                    !answered || !cell.reach || now.answered > before.answered,
                    "{}: no answer, {now:?}",
                    what()
                );
            }
            Ok(())
        })
        .await
    }

    /// Lets the flows go on for some more rounds, ends them and judges: nothing forbidden may have arrived.
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
