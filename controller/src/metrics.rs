//! What the controller measures of itself, and the probes that follow from its gate. No I/O; [`calico_vni_telemetry`] serves
//! it.
//!
//! A label is a word of ours, a reason, or the name of a pool that is quarantined, of which only so many are told: never a
//! node, a pod or a prefix.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use calico_vni_planner::Plan;
use calico_vni_telemetry::{Maker, Metrics as Told, Readiness, Source};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    apply::write::{Key, WriteError},
    grpc::{Gate, door::Door},
    rollout::{Part, Told as Rollout},
};

/// Quarantined pools that are told by name; all of them are counted.
const POOLS: usize = 500;
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

/// What is served: the metrics, with what is looked at when somebody asks.
pub struct Served {
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Whether agents are let in, and to which table.
    pub gate: watch::Receiver<Gate>,
    /// Whether this controller leads.
    pub leads: watch::Receiver<bool>,
    /// Who refuses agents and viewers.
    pub door: Arc<Door>,
}

impl Source for Served {
    fn metrics(&self) -> String {
        let Self { metrics, .. } = self;
        let (standing, versions) = match &*self.gate.borrow() {
            Gate::Open(agents) => (agents.standing(), agents.versions()),
            Gate::Preparing { .. } | Gate::Standby { .. } => Default::default(),
        };
        {
            let _whole = metrics.told.hold();
            metrics.leads.set((*self.leads.borrow()).into());
            metrics.connected.set(number(standing.connected));
            metrics.in_step.set(number(standing.in_step));
            metrics.refused.inner().store(self.door.refused(), Ordering::Relaxed);
            metrics.viewers_refused.inner().store(self.door.viewers_refused(), Ordering::Relaxed);
            metrics.versions.clear();
            for (version, count) in few(versions) {
                metrics.versions.get_or_create(&OfVersion { version }).set(number(count));
            }
        }
        metrics.told.text()
    }

    fn readiness(&self) -> Readiness {
        match &*self.gate.borrow() {
            Gate::Open(_) => Readiness::Ready("leads, and has read everything".to_owned()),
            Gate::Standby { reason } => Readiness::Ready(reason.clone()),
            Gate::Preparing { missing } => Readiness::Missing(missing.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use calico_vni_crds::{TenantStatus, UnderlayStatus};
    use calico_vni_proto::wire;
    use calico_vni_telemetry::testing::{Scrape, assert_documented};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        agents::{Agents, tests::offer},
        rollout::Unit,
    };

    fn served(gate: Gate) -> (Served, watch::Sender<Gate>, watch::Sender<bool>) {
        let (gate, leads) = (watch::Sender::new(gate), watch::Sender::new(true));
        let served = Served {
            metrics: Arc::default(),
            gate: gate.subscribe(),
            leads: leads.subscribe(),
            door: Door::open(),
        };
        (served, gate, leads)
    }

    fn scrape(served: &Served) -> Scrape {
        Scrape::parse(&served.metrics()).unwrap()
    }

    fn plan(quarantined: impl IntoIterator<Item = (String, &'static str)>) -> Plan {
        let condition = |type_: &str, status: &str| Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let of = |status| vec![condition("Accepted", "True"), condition("Programmed", status)];
        let tenant = |status| TenantStatus { conditions: of(status), ..TenantStatus::default() };
        let underlay = UnderlayStatus { conditions: of("True"), ..UnderlayStatus::default() };
        Plan {
            tenant_status: [("red".to_owned(), tenant("True")), ("blue".to_owned(), tenant("False"))].into(),
            underlay_status: [("fabric".to_owned(), underlay)].into(),
            quarantined: quarantined.into_iter().collect(),
            ..Plan::default()
        }
    }

    fn rollout(part: Part, stopped: bool) -> Rollout {
        let unit = Unit { underlay: "fabric".to_owned(), part };
        Rollout { unit, stopped, held: 7, trying: 1, message: String::new() }
    }

    fn applied(config: &[u8], error: &str) -> wire::Applied {
        let digest = |body: &[u8]| calico_vni_proto::codec::Digest::of(body).to_wire();
        wire::Applied {
            config_digest: digest(config),
            guard_digest: digest(b"g"),
            tenants: vec![wire::TenantResult { name: "red".into(), vni: 1001, error: error.into() }],
        }
    }

    /// One that has a series of each metric.
    fn full() -> Served {
        let (served, gate, _) = served(Gate::Preparing { missing: String::new() });
        let m = Arc::clone(&served.metrics);
        m.planned(&plan([("p".to_owned(), "NatOutgoing"), ("q".to_owned(), "NatOutgoing")]));
        m.rolling(&[rollout(Part::Tenant("red".to_owned()), true), rollout(Part::Underlay, false)]);
        m.pass(Duration::from_millis(7));
        m.stage(Stage::Plan, Duration::from_millis(3));
        let key = |op| Key { kind: "Node", name: "n1".to_owned(), op };
        m.wrote(&key("label"), None);
        m.wrote(&key("label"), Some(&WriteError::Conflict));
        let agents = Agents::new(Arc::new(Notify::new()), CancellationToken::new(), m);
        let session = agents.join("n1", "0.1.0", None);
        agents.offer([("n1".to_owned(), offer(b"g", b"a"))].into());
        session.applied(applied(b"a", "no"));
        session.applied(applied(b"a", ""));
        session.rejected(wire::Rejected { digest: vec![7; 32], reason: "bad".into() });
        // The session ends with this, and stays in the table for as long as it is not dropped.
        std::mem::forget(session);
        gate.send_replace(Gate::Open(agents));
        served
    }

    #[test]
    fn every_metric_is_told_and_documented() {
        let scrape = scrape(&full());
        let value = |name: &str, labels: &[(&str, &str)]| {
            scrape.value(&format!("calico_vni_controller_{name}"), labels)
        };
        assert_eq!(value("leads", &[]), Some(1.0));
        assert_eq!(value("tenants", &[("condition", "Programmed"), ("status", "False")]), Some(1.0));
        assert_eq!(value("quarantined_pools", &[("reason", "NatOutgoing")]), Some(2.0));
        assert_eq!(value("pool_quarantined", &[("pool", "q"), ("reason", "NatOutgoing")]), Some(1.0));
        let write = |result| [("kind", "Node"), ("op", "label"), ("result", result)];
        assert_eq!(value("writes_total", &write("done")), Some(1.0));
        assert_eq!(value("writes_total", &write("conflict")), Some(1.0));
        assert_eq!((value("agents_connected", &[]), value("agents_in_step", &[])), (Some(1.0), Some(1.0)));
        assert_eq!(value("agents", &[("version", "0.1.0")]), Some(1.0));
        assert_eq!((value("offers_total", &[]), value("rejections_total", &[])), (Some(1.0), Some(1.0)));
        assert_eq!(value("results_total", &[("result", "partial")]), Some(1.0));
        assert_eq!(value("results_total", &[("result", "complete")]), Some(1.0));
        assert_eq!(value("acknowledge_duration_seconds_count", &[]), Some(1.0), "from offer to first word");
        assert_eq!(value("stage_duration_seconds_count", &[("stage", "plan")]), Some(1.0));
        let rollout = |part, state| [("part", part), ("state", state)];
        assert_eq!(value("rollouts", &rollout("tenant", "stopped")), Some(1.0));
        assert_eq!(value("rollouts", &rollout("underlay", "running")), Some(1.0));
        assert_eq!(value("rollout_nodes", &rollout("tenant", "held")), Some(7.0));
        assert_eq!(value("rollout_nodes", &rollout("underlay", "trying")), Some(1.0));
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        assert_documented(&docs, "Of the controller", &scrape);
    }

    #[test]
    fn labels_are_bounded_and_what_is_over_is_gone() {
        let (served, ..) = served(Gate::Standby { reason: String::new() });
        let many = (0..2000).map(|i| (format!("pool-{i:04}"), "PoolOverlap"));
        served.metrics.planned(&plan(many));
        let seen = scrape(&served);
        assert_eq!(seen.series("calico_vni_controller_pool_quarantined").len(), POOLS);
        let all = [("reason", "PoolOverlap")];
        assert_eq!(seen.value("calico_vni_controller_quarantined_pools", &all), Some(2000.0));
        served.metrics.planned(&plan([]));
        assert_eq!(scrape(&served).series("calico_vni_controller_pool_quarantined"), []);
        assert_eq!(scrape(&served).series("calico_vni_controller_quarantined_pools"), []);
        assert_eq!(scrape(&served).series("calico_vni_controller_tenants").len(), 3);
        served.metrics.rolling(&[rollout(Part::Underlay, false)]);
        served.metrics.rests();
        assert_eq!(scrape(&served).series("calico_vni_controller_rollouts"), []);
        assert_eq!(scrape(&served).series("calico_vni_controller_tenants"), []);

        let versions = (0..30).map(|i| (format!("v{i:02}"), 30 - i)).collect();
        let few = few(versions);
        assert_eq!((few.len(), few["v00"], few[OTHER]), (VERSIONS + 1, 30, (1..=20).sum()));
    }

    #[test]
    fn who_leads_is_ready_when_everything_is_read_and_who_stands_by_is_ready() {
        let missing = "the first list of IPPool".to_owned();
        let (served, gate, leads) = served(Gate::Preparing { missing: missing.clone() });
        assert_eq!(served.readiness(), Readiness::Missing(missing));
        gate.send_replace(Gate::Standby { reason: "standby; other leads".to_owned() });
        leads.send_replace(false);
        assert_eq!(served.readiness(), Readiness::Ready("standby; other leads".to_owned()));
        assert_eq!(scrape(&served).value("calico_vni_controller_leads", &[]), Some(0.0));
        let agents = Agents::new(Arc::default(), CancellationToken::new(), Arc::default());
        gate.send_replace(Gate::Open(agents));
        assert!(matches!(served.readiness(), Readiness::Ready(_)));
    }
}
