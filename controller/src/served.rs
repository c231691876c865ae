//! What is given out to whoever asks by HTTP: the metrics, with what is looked at when somebody asks, and the probes that follow
//! from the gate. [`calico_vni_telemetry`] serves it.

use std::sync::Arc;

use calico_vni_telemetry::{Readiness, Source};
use tokio::sync::watch;

use crate::{
    grpc::{Gate, door::Door},
    metrics::{Metrics, Now},
};

/// Where it is looked at.
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
        let (standing, versions) = match &*self.gate.borrow() {
            Gate::Open(agents) => (agents.standing(), agents.versions()),
            Gate::Preparing { .. } | Gate::Standby { .. } => Default::default(),
        };
        self.metrics.text(Now {
            leads: *self.leads.borrow(),
            connected: standing.connected,
            in_step: standing.in_step,
            versions,
            refused: self.door.refused(),
            viewers_refused: self.door.viewers_refused(),
        })
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
    use std::{path::Path, time::Duration};

    use calico_vni_crds::{TenantStatus, UnderlayStatus};
    use calico_vni_planner::Plan;
    use calico_vni_proto::wire;
    use calico_vni_telemetry::testing::{Scrape, assert_documented};
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{Condition, Time},
        jiff::Timestamp,
    };
    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        agents::{Agents, tests::offer},
        apply::write::{Key, WriteError},
        metrics::{POOLS, Stage},
        rollout::{Part, Told as Rollout, Unit},
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
