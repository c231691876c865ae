//! From what was observed to what is to be: linger → plan → roll-out → statuses. Keeps what one plan has to know of those
//! before it; no I/O.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use calico_vni_planner::{Plan, Snapshot, plan::NodePlan};
use tokio::time::Instant;

use crate::{
    linger::Linger,
    metrics::{Metrics, Stage},
    rollout::{Heard, Input, Rollouts},
    status::{self, Beyond},
};

/// Agents that lost their controller come again within 30 s; so long statuses count no router as lost.
const GRACE: Duration = Duration::from_secs(40);

/// Makes plans, one after the other.
pub struct Planning {
    began: Instant,
    linger: Linger,
    rollouts: Rollouts,
    metrics: Arc<Metrics>,
}

/// What is to be.
pub struct Planned {
    /// In the cluster.
    pub plan: Plan,
    /// On nodes, now: what each is let have.
    pub configs: BTreeMap<String, Arc<NodePlan>>,
    /// Some routers may be about to connect again: until then, what stood of them is told.
    pub grace: Option<Instant>,
}

impl Planning {
    /// A tenant stays on a node for `linger` after its last block has left.
    pub fn new(linger: Duration, metrics: Arc<Metrics>) -> Self {
        Self { began: Instant::now(), linger: Linger::new(linger), rollouts: Rollouts::default(), metrics }
    }

    /// Plans for what was observed at `now`. `others` are the nodes whose agents are of another version, with that.
    pub fn plan(
        &mut self,
        snapshot: &mut Snapshot,
        heard: &BTreeMap<String, Heard>,
        others: &BTreeMap<String, String>,
        now: Instant,
    ) -> Planned {
        self.linger.fill(snapshot, now);
        let started = Instant::now();
        let mut plan = calico_vni_planner::plan(snapshot);
        self.metrics.stage(Stage::Plan, started.elapsed());
        let shares = status::shares(snapshot);
        let configs = self.rollouts.advance(&Input { wanted: &plan.nodes, heard, shares: &shares }, now);
        let grace = Some(self.began + GRACE).filter(|end| {
            Instant::now() < *end && !plan.nodes.keys().all(|node| snapshot.agents.contains_key(node))
        });
        let beyond = Beyond { told: self.rollouts.told(), others, awaiting: grace.is_some() };
        status::tell(&mut plan, &beyond, snapshot);
        self.metrics.planned(&plan);
        self.metrics.rolling(self.rollouts.told());
        self.linger.follow(&plan, snapshot, now);
        Planned { plan, configs, grace }
    }

    /// When to plan again though nothing was told; `now` as of the last plan.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        [self.linger.next_due(now), self.rollouts.next_due()].into_iter().flatten().min()
    }
}
