//! Flows that go on through something that may cost them nothing: each permitted request is answered, and nothing arrives of
//! what is forbidden.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::demo::RED_TENANT;
use crate::{
    matrix::{Cell, Place, Way, expected},
    nodes::protocol::FlowResult,
    steady::{self, Steady},
    step, wait,
    world::{PATIENCE, World},
};

/// Between two requests of a flow.
const PAUSE: Duration = Duration::from_millis(20);

/// Rounds of requests that go on before and after what happens.
const ROUNDS: u64 = 50;

/// Who speaks with whom, all the time: on a node, between nodes, out to the fabric and in.
const PERMITTED: [(&str, &str); 8] = [
    ("red-n1-a", "red-n1-b"),
    ("red-n1-a", "red-n2-a"),
    ("red-n2-a", "red-n1-a"),
    ("red-n1-a", "ext-red"),
    ("ext-red", "red-n2-a"),
    ("blue-n1-a", "blue-n2-a"),
    ("blue-n2-a", "ext-blue"),
    ("dflt-n1-a", "dflt-n2-a"),
];

/// Who tries all the time and reaches nobody: into another tenant, out of one and into one.
const FORBIDDEN: [(&str, &str); 6] = [
    ("red-n1-a", "blue-n1-a"),
    ("blue-n1-a", "red-n2-a"),
    ("red-n2-a", "dflt-n1-a"),
    ("dflt-n1-a", "red-n1-a"),
    ("ext-blue", "red-n2-a"),
    ("outside", "blue-n1-a"),
];

/// The flows of one happening.
pub struct Flows {
    places: Vec<Place>,
    cells: Vec<Cell>,
    steady: Steady,
}

impl Flows {
    /// Starts them, and waits until they flow.
    pub async fn start(world: &World) -> Result<Self> {
        let places = world.places(&["red", "blue"]);
        let find = |name: &str| places.iter().position(|p| p.name == name).with_context(|| name.to_owned());
        let mut cells = Vec::new();
        let permitted = PERMITTED.map(|pair| (pair, true));
        for ((from, to), reach) in permitted.into_iter().chain(FORBIDDEN.map(|pair| (pair, false))) {
            let (from, to) = (find(from)?, find(to)?);
            ensure!(expected(&places[from], &places[to]) == reach, "this flow is in the wrong table");
            // Echo requests alone: a TCP that is knocked at this often answers no more than twice a second.
            cells.extend(Way::ICMP.map(|way| Cell { from, to, way, reach }));
        }
        let flows = cells.iter().map(|cell| steady::flow(cell, &places)).collect();
        let steady = Steady::start(world.lab.nodes(), PAUSE, flows).await?;
        let flows = Self { places, cells, steady };
        flows.go_on().await?;
        Ok(flows)
    }

    /// Waits until every flow has been answered, or tried in vain, so many more times.
    pub async fn go_on(&self) -> Result<()> {
        let before = self.steady.so_far().await?;
        wait::until("all flows to go on", PATIENCE, async || {
            let now = self.steady.so_far().await?;
            for ((cell, before), now) in self.cells.iter().zip(&before).zip(&now) {
                let rounds =
                    |result: &FlowResult| if cell.reach { result.answered } else { requests(result) };
                ensure!(rounds(now) >= rounds(before) + ROUNDS, "{now:?}");
            }
            Ok(())
        })
        .await
    }

    /// Ends them. Each request has to have been answered, and of those that are forbidden none has to have arrived.
    pub async fn end(self, what: &str) -> Result<()> {
        self.go_on().await?;
        let results = self.steady.stop().await?;
        let lost: Vec<String> = self
            .cells
            .iter()
            .zip(&results)
            .filter(|(cell, _)| cell.reach)
            .filter_map(|(cell, result)| lost(&self.places, cell, result))
            .collect();
        let sum = steady::judge(&self.places, &self.cells, &results).with_context(|| what.to_owned())?;
        ensure!(lost.is_empty(), "{what}: of {} packets were lost: {}", sum.permitted, lost.join("; "));
        step!(
            "{what}: of {} packets none was lost, and of {} forbidden ones none arrived",
            sum.permitted,
            sum.forbidden
        );
        Ok(())
    }
}

/// How often it was tried.
fn requests(result: &FlowResult) -> u64 {
    result.sent + result.refused
}

/// What a flow has lost, if anything.
fn lost(places: &[Place], cell: &Cell, result: &FlowResult) -> Option<String> {
    let FlowResult { sent, refused, arrived, answered, longest_gap_ms, error } = result;
    (*answered < requests(result)).then(|| {
        format!(
            "{} to {} by {}: {sent} sent, {refused} refused ({error}), {arrived} arrived, {answered} answered, longest gap {longest_gap_ms} ms",
            places[cell.from].name, places[cell.to].name, cell.way
        )
    })
}

/// Waits until nobody has anything left to do.
pub async fn all_in_step(world: &World) -> Result<()> {
    for tenant in [RED_TENANT, "blue"] {
        world.programmed(tenant).await?;
    }
    for node in &world.lab.members {
        world.in_step(node, PATIENCE).await?;
    }
    Ok(())
}
