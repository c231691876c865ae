//! What the agent measures of itself, and what it tells when it is asked. No I/O; [`calico_vni_telemetry`] serves it.
//!
//! Tenants are labels, pods and prefixes never.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use calico_vni_telemetry::{Maker, Metrics as Telling, Readiness, Source};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tokio::sync::watch;

use crate::{
    executor::Outcome,
    last_good::Told,
    report::{Health, Report},
};

/// In the place of a tenant whose packets were dropped; no tenant can have that name.
const QUARANTINED: &str = "(quarantined)";

const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOp {
    op: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSession {
    scope: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTenant {
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNotice {
    reason: String,
}

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    reconcile: Histogram,
    ops: Family<OfOp, Counter>,
    applied_at: Gauge<f64, AtomicU64>,
    connected: Gauge,
    in_step: Gauge,
    tenants: Gauge,
    failed: Gauge,
    frr_up: Gauge,
    sessions: Family<OfSession, Gauge>,
    prefixes: Family<OfTenant, Gauge>,
    dropped_packets: Family<OfTenant, Counter>,
    dropped_bytes: Family<OfTenant, Counter>,
    notices: Family<OfNotice, Gauge>,
    telling: Telling,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut maker = Maker::new("calico_vni_agent", env!("CARGO_PKG_VERSION"));
        let m = &mut maker;
        Self {
            reconcile: m.seconds(
                "reconcile_duration",
                "Time of a round: a look at the node, what is missing, and another look",
                Histogram::new(SECONDS),
            ),
            ops: m.make("ops", "Changes to the node by kind, and by result: done or failed"),
            applied_at: m.seconds(
                "applied_timestamp",
                "When a round last found or made everything as it is wanted, in Unix time; 0 for not yet",
                Gauge::default(),
            ),
            connected: m.make("connected", "1 while the stream to the controller stands"),
            in_step: m.make("in_step", "1 while the node is as the configuration says that was taken last"),
            tenants: m.make("tenants", "Tenants that the node is to carry"),
            failed: m.make("tenants_failed", "Of these, those that do not stand"),
            frr_up: m.make("frr_up", "1 while FRR answers"),
            sessions: m.make(
                "bgp_sessions",
                "BGP sessions of the router, by scope (fabric or tenant) and state (established or down)",
            ),
            prefixes: m.make("prefixes", "Routes that the router takes from this node's BIRD"),
            dropped_packets: m.make(
                "guard_dropped_packets",
                "Packets that the guard dropped since it was first loaded; those of quarantined pools as (quarantined)",
            ),
            dropped_bytes: m.make("guard_dropped_bytes", "The octets of these packets"),
            notices: m.make(
                "notices",
                "What an operator is told of the node, by reason; reasons are those of troubleshooting.md",
            ),
            telling: maker.done(),
        }
    }
}

impl Metrics {
    /// A round took so long; `in_step` where it ended with nothing missing.
    pub fn round(&self, took: Duration, in_step: bool) {
        self.reconcile.observe(took.as_secs_f64());
        if in_step {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.applied_at.set(now.as_secs_f64());
        }
    }

    /// Changes were tried.
    pub fn tried(&self, outcome: &Outcome) {
        for ((op, done), count) in &outcome.tried {
            let result = if *done { "done" } else { "failed" };
            self.ops.get_or_create(&OfOp { op, result }).inc_by(*count);
        }
    }

    fn health(&self, health: Option<&Health>) {
        let nothing = Health::default();
        let health = health.unwrap_or(&nothing);
        self.frr_up.set(health.frr_running.into());
        self.sessions.clear();
        self.prefixes.clear();
        for scope in ["fabric", "tenant"] {
            for state in ["established", "down"] {
                self.sessions.get_or_create(&OfSession { scope, state }).set(0);
            }
        }
        for session in &health.sessions {
            let scope = if session.tenant.is_empty() { "fabric" } else { "tenant" };
            let state = if session.established { "established" } else { "down" };
            self.sessions.get_or_create(&OfSession { scope, state }).inc();
            if !session.tenant.is_empty() {
                let tenant = session.tenant.clone();
                self.prefixes.get_or_create(&OfTenant { tenant }).inc_by(session.prefixes_received.into());
            }
        }
        self.dropped_packets.clear();
        self.dropped_bytes.clear();
        for drops in &health.drops {
            let tenant = if drops.tenant.is_empty() { QUARANTINED } else { &drops.tenant };
            let tenant = OfTenant { tenant: tenant.to_owned() };
            self.dropped_packets.get_or_create(&tenant).inc_by(drops.packets);
            self.dropped_bytes.get_or_create(&tenant).inc_by(drops.bytes);
        }
        self.notices.clear();
        for notice in &health.notices {
            self.notices.get_or_create(&OfNotice { reason: notice.reason.clone() }).inc();
        }
    }
}

/// What is served: the metrics, with what is looked at when somebody asks.
pub struct Served {
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// What is wanted.
    pub told: watch::Receiver<Told>,
    /// How the last round ended.
    pub report: watch::Receiver<Report>,
    /// FRR and its sessions.
    pub health: watch::Receiver<Option<Health>>,
    /// Whether the stream to the controller stands.
    pub connected: watch::Receiver<bool>,
}

/// How the node stands.
enum Standing {
    /// As it is wanted.
    InStep,
    /// It works, but for some tenants: how many of how many, and why the first does not.
    Partly(usize, usize, String),
    /// It does not work, and why.
    Not(String),
}

impl Served {
    fn standing(&self) -> Standing {
        let told = self.told.borrow();
        let report = self.report.borrow();
        let Some(config) = &told.config else {
            return Standing::Not("a configuration: nothing was taken from a controller so far".to_owned());
        };
        if report.config != Some(config.digest) || report.guard != told.guard.as_ref().map(|held| held.digest)
        {
            return Standing::Not(format!("the end of the first round with configuration {}", config.digest));
        }
        let frr_answers = self.health.borrow().as_ref().is_some_and(|health| health.frr_running);
        if config.value.underlay.is_some() && !frr_answers {
            return Standing::Not("FRR, which does not answer".to_owned());
        }
        let failed = || report.tenants.iter().filter_map(|t| Some((&t.name, t.error.as_ref()?)));
        match (failed().next(), failed().count(), report.tenants.len()) {
            (None, ..) => Standing::InStep,
            (Some((name, why)), failed, all) if failed == all => {
                Standing::Not(format!("every tenant; {name}: {why}"))
            }
            (Some((name, why)), failed, all) => Standing::Partly(failed, all, format!("{name}: {why}")),
        }
    }
}

impl Source for Served {
    fn metrics(&self) -> String {
        let Self { metrics, .. } = self;
        let in_step = matches!(self.standing(), Standing::InStep);
        {
            let _whole = metrics.telling.hold();
            let report = self.report.borrow();
            let failed = report.tenants.iter().filter(|tenant| tenant.error.is_some()).count();
            metrics.connected.set((*self.connected.borrow()).into());
            metrics.in_step.set(in_step.into());
            metrics.tenants.set(number(report.tenants.len()));
            metrics.failed.set(number(failed));
            metrics.health(self.health.borrow().as_ref());
        }
        metrics.telling.text()
    }

    fn readiness(&self) -> Readiness {
        let from = if *self.connected.borrow() {
            "connected to the controller"
        } else {
            "from its last good configuration, without a controller"
        };
        match self.standing() {
            Standing::InStep => Readiness::Ready(format!("in step, {from}")),
            Standing::Partly(failed, all, first) => {
                Readiness::Ready(format!("{failed} of {all} tenants do not stand ({first}), {from}"))
            }
            Standing::Not(missing) => Readiness::Missing(missing),
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use calico_vni_proto::{
        codec::{Codec as _, Digest},
        model::Guard,
        wire,
    };
    use calico_vni_telemetry::testing::{Scrape, assert_documented, get};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        last_good::Held,
        report::TenantReport,
        testing::{config, tenant},
    };

    struct Agent {
        served: Arc<Served>,
        told: watch::Sender<Told>,
        report: watch::Sender<Report>,
        health: watch::Sender<Option<Health>>,
        connected: watch::Sender<bool>,
    }

    impl Agent {
        fn new() -> Self {
            let told = watch::Sender::new(Told::default());
            let report = watch::Sender::new(Report::default());
            let (health, connected) = (watch::Sender::new(None), watch::Sender::new(false));
            let served = Arc::new(Served {
                metrics: Arc::default(),
                told: told.subscribe(),
                report: report.subscribe(),
                health: health.subscribe(),
                connected: connected.subscribe(),
            });
            Self { served, told, report, health, connected }
        }

        fn told(&self) -> Digest {
            let tenants =
                vec![tenant("red", 1001, &["10.200.0.0/16"]), tenant("blue", 1002, &["10.201.0.0/16"])];
            let value = config(tenants);
            let digest = Digest::of(&value.encode());
            self.told.send_modify(|told| told.config = Some(Held { digest, value }));
            digest
        }

        fn reports(&self, config: Digest, errors: [Option<&str>; 2]) {
            let tenants = [("red", 1001), ("blue", 1002)].into_iter().zip(errors);
            let tenants = tenants.map(|((name, vni), error)| TenantReport {
                name: name.to_owned(),
                vni,
                error: error.map(str::to_owned),
            });
            let guard = self.told.borrow().guard.as_ref().map(|held| held.digest);
            self.report.send_replace(Report { guard, config: Some(config), tenants: tenants.collect() });
        }

        fn frr(&self, frr_running: bool) {
            self.health.send_replace(Some(Health { frr_running, ..Health::default() }));
        }

        fn missing(&self) -> String {
            match self.served.readiness() {
                Readiness::Missing(what) => what,
                Readiness::Ready(how) => panic!("it is ready: {how}"),
            }
        }

        fn ready(&self) -> String {
            match self.served.readiness() {
                Readiness::Ready(how) => how,
                Readiness::Missing(what) => panic!("it misses {what}"),
            }
        }

        fn value(&self, name: &str) -> Option<f64> {
            let scrape = Scrape::parse(&self.served.metrics()).unwrap();
            scrape.value(&format!("calico_vni_agent_{name}"), &[])
        }
    }

    #[test]
    fn it_is_ready_when_the_node_works_with_or_without_a_controller() {
        let agent = Agent::new();
        assert!(agent.missing().contains("configuration"));
        let digest = agent.told();
        assert!(agent.missing().contains("first round"));
        agent.reports(digest, [None, None]);
        assert!(agent.missing().contains("FRR"), "it has said nothing yet");
        agent.frr(false);
        assert!(agent.missing().contains("FRR"));
        assert_eq!(agent.value("in_step"), Some(0.0));
        agent.frr(true);
        assert!(agent.ready().contains("last good configuration"));
        assert_eq!((agent.value("in_step"), agent.value("connected")), (Some(1.0), Some(0.0)));
        agent.connected.send_replace(true);
        assert!(agent.ready().contains("connected"));

        agent.reports(digest, [Some("no device"), None]);
        let how = agent.ready();
        assert!(how.contains("1 of 2 tenants") && how.contains("red: no device"), "{how}");
        assert_eq!((agent.value("in_step"), agent.value("tenants_failed")), (Some(0.0), Some(1.0)));
        agent.reports(digest, [Some("no netlink"), Some("no netlink")]);
        assert!(agent.missing().contains("every tenant"));

        // A new guard is not in force before a round was made with it.
        agent.reports(digest, [None, None]);
        let guard = Guard::default();
        let held = Held { digest: Digest::of(&guard.encode()), value: guard };
        agent.told.send_modify(|told| told.guard = Some(held));
        assert!(agent.missing().contains("first round"));
    }

    #[test]
    fn a_node_that_carries_nothing_needs_no_frr() {
        let agent = Agent::new();
        let value =
            calico_vni_proto::model::NodeConfig { node: "n1".into(), underlay: None, tenants: vec![] };
        let digest = Digest::of(&value.encode());
        agent.told.send_modify(|told| told.config = Some(Held { digest, value }));
        agent.report.send_replace(Report { config: Some(digest), ..Report::default() });
        assert!(agent.ready().starts_with("in step"));
    }

    #[tokio::test]
    async fn every_metric_is_told_and_documented() {
        let agent = Agent::new();
        let digest = agent.told();
        agent.reports(digest, [None, None]);
        let session = |tenant: &str, established, prefixes_received| wire::Session {
            tenant: tenant.into(),
            established,
            prefixes_received,
            ..Default::default()
        };
        let drops = |tenant: &str, packets| wire::Drops { tenant: tenant.into(), vni: 0, packets, bytes: 9 };
        agent.health.send_replace(Some(Health {
            frr_running: true,
            sessions: vec![
                session("", true, 7),
                session("", false, 0),
                session("red", true, 2),
                session("red", true, 3),
            ],
            notices: vec![wire::Notice { reason: "IPVS".into(), ..Default::default() }],
            drops: vec![drops("red", 4), drops("", 5)],
            ..Health::default()
        }));
        let metrics = &agent.served.metrics;
        metrics.round(Duration::from_millis(20), true);
        let outcome =
            Outcome { tried: [(("frr", true), 2), (("route-add", false), 1)].into(), ..Outcome::default() };
        metrics.tried(&outcome);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let source: Arc<dyn Source> = Arc::clone(&agent.served) as _;
        tokio::spawn(calico_vni_telemetry::serve(listener, source));
        let (status, text) = get(address, "/metrics").await;
        let scrape = Scrape::parse(&text).unwrap();
        assert_eq!(status, 200);
        let value =
            |name: &str, labels: &[(&str, &str)]| scrape.value(&format!("calico_vni_agent_{name}"), labels);
        let sessions = |scope, state| value("bgp_sessions", &[("scope", scope), ("state", state)]);
        assert_eq!((sessions("fabric", "established"), sessions("fabric", "down")), (Some(1.0), Some(1.0)));
        assert_eq!((sessions("tenant", "established"), sessions("tenant", "down")), (Some(2.0), Some(0.0)));
        assert_eq!(value("prefixes", &[("tenant", "red")]), Some(5.0));
        assert_eq!(value("guard_dropped_packets_total", &[("tenant", "red")]), Some(4.0));
        assert_eq!(value("guard_dropped_packets_total", &[("tenant", QUARANTINED)]), Some(5.0));
        assert_eq!(value("guard_dropped_bytes_total", &[("tenant", "red")]), Some(9.0));
        assert_eq!(value("notices", &[("reason", "IPVS")]), Some(1.0));
        assert_eq!(value("ops_total", &[("op", "frr"), ("result", "done")]), Some(2.0));
        assert_eq!(value("ops_total", &[("op", "route-add"), ("result", "failed")]), Some(1.0));
        assert!(value("applied_timestamp_seconds", &[]).unwrap() > 1.7e9);
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        assert_documented(&docs, "Of the agent", &scrape);

        assert_eq!(get(address, "/readyz").await.0, 200);
        agent.frr(false);
        let (status, body) = get(address, "/readyz").await;
        assert!(status == 503 && body.contains("FRR"), "{status} {body}");
        let scrape = Scrape::parse(&get(address, "/metrics").await.1).unwrap();
        assert_eq!(scrape.series("calico_vni_agent_prefixes"), [], "what is not known is not told");
    }
}
