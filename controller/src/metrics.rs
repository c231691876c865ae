//! What the controller measures of itself. No I/O; [`crate::served`] gives it out.
//!
//! A label is a word of ours, a reason, or the name of a pool that is quarantined, of which only so many are told: never a
//! node, a pod or a prefix.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use calico_vni_planner::Plan;
use calico_vni_telemetry::{Maker, Metrics as Told};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tokio::time::Instant;

use crate::{
    apply::write::{Key, WriteError},
    rollout::{Part, Told as Rollout},
};

/// Quarantined pools that are told by name; all of them are counted.
pub(crate) const POOLS: usize = 500;
/// Versions of agents that are told apart; an agent says its own, so there could be as many as agents.
const VERSIONS: usize = 10;
/// What the agents of further versions count as.
const OTHER: &str = "other";

/// From a millisecond, which a small cluster takes, to what is a fault.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A part of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The stores into a snapshot.
    Observe,
    /// The snapshot into a plan.
    Plan,
    /// What has to be kept before it is used.
    Prepare,
    /// What goes before nodes are told.
    Withdraw,
    /// What nodes are offered.
    Publish,
    /// What comes after nodes were told, and statuses.
    Establish,
}

impl Stage {
    const fn word(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Withdraw => "withdraw",
            Self::Publish => "publish",
            Self::Establish => "establish",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfObjects {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCondition {
    condition: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWrite {
    kind: &'static str,
    op: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVersion {
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRollout {
    part: &'static str,
    state: &'static str,
}

type Gauges<L> = Family<L, Gauge>;
type Counters<L> = Family<L, Counter>;

/// What is looked at when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Whether this controller leads.
    pub leads: bool,
    /// Agents that are connected.
    pub connected: usize,
    /// Of these, those that hold what they are offered.
    pub in_step: usize,
    /// How many of them are of which version.
    pub versions: BTreeMap<String, usize>,
    /// Agents that were refused so far.
    pub refused: u64,
    /// Viewers that were refused so far.
    pub viewers_refused: u64,
}

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    leads: Gauge,
    reconcile: Histogram,
    stage: Family<OfStage, Histogram>,
    plan: Gauges<OfObjects>,
    tenants: Gauges<OfCondition>,
    underlays: Gauges<OfCondition>,
    quarantined: Gauges<OfReason>,
    pools: Gauges<OfPool>,
    writes: Counters<OfWrite>,
    connected: Gauge,
    in_step: Gauge,
    versions: Gauges<OfVersion>,
    refused: Counter,
    viewers_refused: Counter,
    offered: Counter,
    applied: Counters<OfResult>,
    rejected: Counter,
    acknowledge: Histogram,
    rollouts: Gauges<OfRollout>,
    rolling: Gauges<OfRollout>,
    told: Told,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut maker = Maker::new("calico_vni_controller", env!("CARGO_PKG_VERSION"));
        let m = &mut maker;
        Self {
            leads: m.make("leads", "1 where this controller leads, 0 where it stands by"),
            reconcile: m.seconds(
                "reconcile_duration",
                "Time of a pass, from the snapshot to the last write",
                Histogram::new(SECONDS),
            ),
            stage: m.seconds(
                "stage_duration",
                "Time of each stage of a pass: observe, plan, prepare, withdraw, publish, establish",
                Family::new_with_constructor(|| Histogram::new(SECONDS)),
            ),
            plan: m.make(
                "plan_objects",
                "Objects of the last plan: node, tenant, pool (of tenants), peer, filter, label, namespace",
            ),
            tenants: m.make(
                "tenants",
                "Tenants by condition and its status; how many there are is the sum over one condition",
            ),
            underlays: m.make("underlays", "Underlays by condition and its status"),
            quarantined: m.make(
                "quarantined_pools",
                "Pools that would be a tenant's and cannot be, by why; reasons are those of troubleshooting.md",
            ),
            pools: m.make("pool_quarantined", "1 for each of these pools, with why; the first 500 by name"),
            writes: m.make(
                "writes",
                "Writes to the API server, by what became of them: done, conflict, gone, refused, unclear",
            ),
            connected: m.make("agents_connected", "Agents that are connected"),
            in_step: m.make(
                "agents_in_step",
                "Connected agents whose last result is of the guard and the configuration that they are offered now",
            ),
            versions: m.make(
                "agents",
                "Connected agents by version; those of others than the ten most frequent are `other`",
            ),
            refused: m.make(
                "agents_refused",
                "Agents that were refused for what they are or say: no valid token, or one of another node",
            ),
            viewers_refused: m.make(
                "viewers_refused",
                "Requests of people who wanted to know what routers say and had no token for it",
            ),
            offered: m.make("offers", "Changed offers that were put up for connected agents"),
            applied: m.make("results", "Results of agents: complete, or partial where some tenant failed"),
            rejected: m.make("rejections", "Payloads that agents could not take at all"),
            acknowledge: m.seconds(
                "acknowledge_duration",
                "Time from a changed offer to the agent's word that it holds it",
                Histogram::new(SECONDS),
            ),
            rollouts: m.make(
                "rollouts",
                "Roll-outs by what changes (tenant, underlay, or node for what is not known) and state: running or stopped",
            ),
            rolling: m.make(
                "rollout_nodes",
                "Nodes of these, held back until their turn or trying what changes; one counts for each change that it waits for",
            ),
            told: maker.done(),
        }
    }
}

impl Metrics {
    /// A stage took so long.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.stage.get_or_create(&OfStage { stage: stage.word() }).observe(took.as_secs_f64());
    }

    /// Does that, and measures it.
    pub async fn timed<T>(&self, stage: Stage, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        self.stage(stage, began.elapsed());
        done
    }

    /// A pass took so long.
    pub fn pass(&self, took: Duration) {
        self.reconcile.observe(took.as_secs_f64());
    }

    /// What the last plan holds.
    pub fn planned(&self, plan: &Plan) {
        let _whole = self.told.hold();
        let sizes = [
            ("node", plan.nodes.len()),
            ("tenant", plan.guard.tenants.len()),
            ("pool", plan.guard.tenants.iter().map(|tenant| tenant.pools.len()).sum()),
            ("peer", plan.peers.len()),
            ("filter", plan.filters.len()),
            ("label", plan.labels.values().map(std::collections::BTreeSet::len).sum()),
            ("namespace", plan.namespaces.len()),
        ];
        for (kind, size) in sizes {
            self.plan.get_or_create(&OfObjects { kind }).set(number(size));
        }
        conditions(&self.tenants, plan.tenant_status.values().map(|status| &status.conditions));
        conditions(&self.underlays, plan.underlay_status.values().map(|status| &status.conditions));
        self.quarantined.clear();
        for reason in plan.quarantined.values() {
            self.quarantined.get_or_create(&OfReason { reason }).inc();
        }
        self.pools.clear();
        for (pool, reason) in plan.quarantined.iter().take(POOLS) {
            self.pools.get_or_create(&OfPool { pool: pool.clone(), reason }).set(1);
        }
    }

    /// How the roll-outs of changes stand.
    pub fn rolling(&self, told: &[Rollout]) {
        let _whole = self.told.hold();
        self.rollouts.clear();
        self.rolling.clear();
        for Rollout { unit, stopped, held, trying, .. } in told {
            let part = match unit.part {
                Part::Tenant(_) => "tenant",
                Part::Underlay => "underlay",
                Part::Whole => "node",
            };
            let state = if *stopped { "stopped" } else { "running" };
            self.rollouts.get_or_create(&OfRollout { part, state }).inc();
            for (state, nodes) in [("held", held), ("trying", trying)] {
                self.rolling.get_or_create(&OfRollout { part, state }).inc_by(number(*nodes));
            }
        }
    }

    /// This controller leads no more: what it planned is not what holds now.
    pub fn rests(&self) {
        let _whole = self.told.hold();
        self.plan.clear();
        self.tenants.clear();
        self.underlays.clear();
        self.quarantined.clear();
        self.pools.clear();
        self.rollouts.clear();
        self.rolling.clear();
    }

    /// What became of a write.
    pub fn wrote(&self, key: &Key, error: Option<&WriteError>) {
        let result = match error {
            None => "done",
            Some(WriteError::Conflict) => "conflict",
            Some(WriteError::Gone) => "gone",
            Some(WriteError::Refused(_)) => "refused",
            Some(WriteError::Unclear(_)) => "unclear",
        };
        self.writes.get_or_create(&OfWrite { kind: key.kind, op: key.op, result }).inc();
    }

    /// A changed offer was put up for a connected agent.
    pub fn offered(&self) {
        self.offered.inc();
    }

    /// An agent said what stands.
    pub fn applied(&self, complete: bool) {
        let result = if complete { "complete" } else { "partial" };
        self.applied.get_or_create(&OfResult { result }).inc();
    }

    /// An agent refused what it was sent.
    pub fn rejected(&self) {
        self.rejected.inc();
    }

    /// An agent holds what it was offered so long ago.
    pub fn acknowledged(&self, after: Duration) {
        self.acknowledge.observe(after.as_secs_f64());
    }

    /// All of it, in the text format of OpenMetrics.
    pub fn text(&self, now: Now) -> String {
        {
            let _whole = self.told.hold();
            self.leads.set(now.leads.into());
            self.connected.set(number(now.connected));
            self.in_step.set(number(now.in_step));
            self.refused.inner().store(now.refused, Ordering::Relaxed);
            self.viewers_refused.inner().store(now.viewers_refused, Ordering::Relaxed);
            self.versions.clear();
            for (version, count) in few(now.versions) {
                self.versions.get_or_create(&OfVersion { version }).set(number(count));
            }
        }
        self.told.text()
    }
}

fn conditions<'a>(family: &Gauges<OfCondition>, all: impl Iterator<Item = &'a Vec<Condition>>) {
    family.clear();
    for Condition { type_, status, .. } in all.flatten() {
        family.get_or_create(&OfCondition { condition: type_.clone(), status: status.clone() }).inc();
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The most frequent versions, and the rest together.
fn few(versions: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let mut ordered: Vec<(String, usize)> = versions.into_iter().collect();
    ordered.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let rest: usize = ordered.drain(VERSIONS.min(ordered.len())..).map(|(_, count)| count).sum();
    ordered.extend((rest > 0).then(|| (OTHER.to_owned(), rest)));
    ordered.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_versions_are_told_apart() {
        let versions = (0..30).map(|i| (format!("v{i:02}"), 30 - i)).collect();
        let few = few(versions);
        assert_eq!((few.len(), few["v00"], few[OTHER]), (VERSIONS + 1, 30, (1..=20).sum()));
    }
}
