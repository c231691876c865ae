//! Statuses of Tenants and Underlays: which have to be written, with the right times in their conditions. Pure; the
//! time is passed in.

use std::collections::BTreeMap;

use calico_vni_crds::{TenantStatus, Underlay, UnderlayStatus, tenant::NodeCounts};
use calico_vni_planner::{
    Plan, Snapshot,
    plan::{About, Notice},
    reason,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::{
    agents::VERSION,
    apply::write::{Version, Write},
    rollout::{Part, Told},
};

/// How many nodes a message names.
const NAMED: usize = 3;

/// A condition that is there from the first time on that it is False. Where it holds, its reason is its own name.
struct Occasional {
    kind: &'static str,
    fine: &'static str,
}

/// Of a roll-out.
const ROLLED_OUT: Occasional =
    Occasional { kind: reason::ROLLED_OUT, fine: "all nodes that can be reached have what is wanted" };
/// Of the versions of agents.
const VERSIONS_AGREE: Occasional = Occasional {
    kind: reason::VERSIONS_AGREE,
    fine: "all agents that are connected are of this controller's version",
};

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The write.
    pub write: Write,
    /// Whether it is to be written at once: the entries of a Tenant's pools are also what remembers a pool that leaves.
    pub urgent: bool,
}

/// The statuses that differ from what stands by more than a time. While `awaiting` routers that may be about to connect
/// again, what routers alone can say is not counted down: after a restart of the controller nothing is worse than before.
pub fn reports(plan: &Plan, snapshot: &Snapshot, now: Timestamp, awaiting: bool) -> Vec<Report> {
    let tenants = snapshot.tenants.iter().filter_map(|tenant| {
        let planned = plan.tenant_status.get(&tenant.name_any())?;
        let mut planned = planned.clone();
        if let (true, Some(standing)) = (awaiting, &tenant.status) {
            keep_tenant_counts(&mut planned, standing);
        }
        let status = Box::new(tenant_status(&planned, tenant.status.as_ref(), now)?);
        let urgent = tenant.status.as_ref().map_or(&[][..], |standing| &standing.pools) != status.pools;
        Some(Report { write: Write::TenantStatus { at: Version::of(tenant), status }, urgent })
    });
    let underlays = snapshot.underlays.iter().filter_map(|underlay| {
        let planned = plan.underlay_status.get(&underlay.name_any())?;
        let mut planned = planned.clone();
        if let (true, Some(standing)) = (awaiting, &underlay.status) {
            keep_underlay_counts(&mut planned, standing);
        }
        let status = Box::new(underlay_status(&planned, underlay.status.as_ref(), now)?);
        let write = Write::UnderlayStatus { at: Version::of(underlay), status };
        Some(Report { write, urgent: false })
    });
    tenants.chain(underlays).collect()
}

/// How many percent of the nodes of each Underlay may be unavailable for a change.
pub fn shares(snapshot: &Snapshot) -> BTreeMap<String, u8> {
    let share = |underlay: &Underlay| (underlay.name_any(), underlay.spec.rollout.max_unavailable_percent);
    snapshot.underlays.iter().map(share).collect()
}

/// What statuses say beyond the plan.
pub struct Beyond<'a> {
    /// Roll-outs that are under way or stopped.
    pub told: &'a [Told],
    /// Nodes whose agents are of another version, with that.
    pub others: &'a BTreeMap<String, String>,
    /// Some routers may be about to connect again: until they do, what stood of both stands.
    pub awaiting: bool,
}

/// Adds to the plan's statuses how the roll-out of changes stands and which agents are of another version, and to its notices
/// which roll-outs are stopped. These conditions are there from the first time on that they are False.
pub fn tell(plan: &mut Plan, beyond: &Beyond<'_>, snapshot: &Snapshot) {
    let mut tenants: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    let mut underlays: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    for told in beyond.told {
        match &told.unit.part {
            Part::Tenant(name) => tenants.entry(name).or_default().push(told),
            Part::Whole | Part::Underlay => underlays.entry(&told.unit.underlay).or_default().push(told),
        }
    }
    let mut skew: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, version) in beyond.others {
        let underlay = plan.nodes.get(node).and_then(|config| config.underlay.as_ref());
        if let Some(underlay) = underlay {
            skew.entry(&underlay.name).or_default().push(format!("{node} has {version}"));
        }
    }
    let skew: BTreeMap<String, String> =
        skew.into_iter().map(|(u, nodes)| (u.to_owned(), skewed(&nodes))).collect();
    let mut notices = Vec::new();
    for tenant in &snapshot.tenants {
        let name = tenant.name_any();
        let Some(status) = plan.tenant_status.get_mut(&name) else { continue };
        let standing = tenant.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let wrong = tenants.get(name.as_str()).map(|told| rolling(told));
        notices.extend(stopped(About::Tenant(name), wrong.as_ref()));
        occasional(&mut status.conditions, standing, beyond.awaiting, &ROLLED_OUT, wrong);
    }
    for underlay in &snapshot.underlays {
        let name = underlay.name_any();
        let Some(status) = plan.underlay_status.get_mut(&name) else { continue };
        let standing = underlay.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let wrong = underlays.get(name.as_str()).map(|told| rolling(told));
        let skew = skew.get(&name).map(|message| (reason::VERSION_SKEW, message.clone()));
        notices.extend(stopped(About::Underlay(name), wrong.as_ref()));
        occasional(&mut status.conditions, standing, beyond.awaiting, &ROLLED_OUT, wrong);
        occasional(&mut status.conditions, standing, beyond.awaiting, &VERSIONS_AGREE, skew);
    }
    plan.notices.extend(notices);
}

/// Why a condition is False, in one word, and what it says.
type Wrong = (&'static str, String);

/// How the roll-outs of one object stand; of several Underlays the stopped ones matter most.
fn rolling(told: &[&Told]) -> Wrong {
    let stopped = told.iter().any(|told| told.stopped);
    let matter = told.iter().filter(|told| told.stopped == stopped);
    let messages: Vec<&str> = matter.map(|told| told.message.as_str()).collect();
    let reason = if stopped { reason::ROLL_OUT_STOPPED } else { reason::ROLLING_OUT };
    (reason, messages.join("; "))
}

fn stopped(about: About, wrong: Option<&Wrong>) -> Option<Notice> {
    let (reason, message) = wrong.filter(|(reason, _)| *reason == reason::ROLL_OUT_STOPPED)?;
    Some(Notice { about, reason: (*reason).to_owned(), message: message.clone() })
}

fn skewed(nodes: &[String]) -> String {
    let more = match nodes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let named = nodes[..nodes.len().min(NAMED)].join("; ");
    format!(
        "{named}{more}, and this controller is {VERSION}: what stands goes on, and each ignores what it does not know of the other's; update the older ones"
    )
}

/// Adds a condition that is not there before it is False once.
fn occasional(
    conditions: &mut Vec<Condition>,
    standing: &[Condition],
    awaiting: bool,
    of: &Occasional,
    wrong: Option<Wrong>,
) {
    let before = standing.iter().find(|condition| condition.type_ == of.kind);
    let (status, reason, message) = match (wrong, before) {
        (Some((reason, message)), _) => ("False", reason.to_owned(), message),
        (None, None) => return,
        (None, Some(before)) if awaiting => return conditions.push(before.clone()),
        (None, Some(_)) => ("True", of.kind.to_owned(), of.fine.to_owned()),
    };
    conditions.push(Condition {
        type_: of.kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: conditions.first().and_then(|condition| condition.observed_generation),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    });
}

/// The status to write; `None` when the standing one says the same. An allocation that stands is never taken back.
fn tenant_status(
    planned: &TenantStatus,
    standing: Option<&TenantStatus>,
    now: Timestamp,
) -> Option<TenantStatus> {
    let mut status = planned.clone();
    if let Some(standing) = standing {
        status.vni = status.vni.or(standing.vni);
        status.link_index = status.link_index.or(standing.link_index);
    }
    date(&mut status.conditions, standing.map_or(&[], |s| &s.conditions), now);
    (standing != Some(&status)).then_some(status)
}

fn underlay_status(
    planned: &UnderlayStatus,
    standing: Option<&UnderlayStatus>,
    now: Timestamp,
) -> Option<UnderlayStatus> {
    let mut status = planned.clone();
    date(&mut status.conditions, standing.map_or(&[], |s| &s.conditions), now);
    (standing != Some(&status)).then_some(status)
}

fn keep_tenant_counts(planned: &mut TenantStatus, standing: &TenantStatus) {
    if planned.prefixes < standing.prefixes {
        planned.prefixes = standing.prefixes;
    }
    if said(planned.nodes.as_ref()) < said(standing.nodes.as_ref()) {
        planned.nodes.clone_from(&standing.nodes);
        keep_conditions(&mut planned.conditions, &standing.conditions);
    }
}

fn keep_underlay_counts(planned: &mut UnderlayStatus, standing: &UnderlayStatus) {
    let established = |status: &UnderlayStatus| status.sessions.as_ref().map(|s| s.established);
    if established(planned) < established(standing) {
        planned.sessions.clone_from(&standing.sessions);
    }
    if said(planned.nodes.as_ref()) < said(standing.nodes.as_ref()) {
        planned.nodes.clone_from(&standing.nodes);
        keep_conditions(&mut planned.conditions, &standing.conditions);
    }
}

/// How many nodes have said that they do or do not do what they should.
fn said(nodes: Option<&NodeCounts>) -> u32 {
    nodes.map_or(0, |nodes| nodes.programmed.saturating_add(nodes.degraded))
}

/// Of the conditions that follow from routers, those that were told of the same generation.
fn keep_conditions(planned: &mut [Condition], standing: &[Condition]) {
    for condition in planned.iter_mut().filter(|c| matches!(c.type_.as_str(), "Programmed" | "Degraded")) {
        let before = standing
            .iter()
            .find(|c| c.type_ == condition.type_ && c.observed_generation == condition.observed_generation);
        if let Some(before) = before {
            condition.clone_from(before);
        }
    }
}

/// A condition whose status is as before keeps its time, whatever else it says now.
fn date(conditions: &mut [Condition], standing: &[Condition], now: Timestamp) {
    for condition in conditions {
        let before = standing.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status);
        condition.last_transition_time = before.map_or(Time(now), |c| c.last_transition_time.clone());
    }
}

/// What a Tenant's users wait for, as far as it is so.
pub fn true_conditions(status: &TenantStatus) -> Vec<&Condition> {
    let awaited =
        |c: &&Condition| matches!(c.type_.as_str(), "Accepted" | "Programmed") && c.status == "True";
    status.conditions.iter().filter(awaited).collect()
}

#[cfg(test)]
mod tests {
    use calico_vni_planner::plan::NodePlan;

    use super::*;
    use crate::rollout::Unit;

    fn condition(kind: &str, status: &str, message: &str, at: i64) -> Condition {
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: "R".into(),
            message: message.into(),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::from_second(at).unwrap()),
        }
    }

    fn status(conditions: Vec<Condition>) -> TenantStatus {
        TenantStatus { vni: Some(1001), link_index: Some(1), conditions, ..TenantStatus::default() }
    }

    #[test]
    fn times_alone_are_no_difference() {
        let standing = status(vec![condition("Accepted", "True", "ok", 100)]);
        let planned = status(vec![condition("Accepted", "True", "ok", 0)]);
        let now = Timestamp::from_second(200).unwrap();
        assert_eq!(tenant_status(&planned, Some(&standing), now), None);
        assert_eq!(
            tenant_status(&planned, None, now),
            Some(status(vec![condition("Accepted", "True", "ok", 200)]))
        );
    }

    #[test]
    fn a_time_changes_with_the_status_not_with_the_words() {
        let standing = status(vec![
            condition("Accepted", "True", "ok", 100),
            condition("Programmed", "False", "0/1", 100),
        ]);
        let planned =
            status(vec![condition("Accepted", "True", "fine", 0), condition("Programmed", "True", "1/1", 0)]);
        let written = tenant_status(&planned, Some(&standing), Timestamp::from_second(200).unwrap()).unwrap();
        assert_eq!(written.conditions[0], condition("Accepted", "True", "fine", 100));
        assert_eq!(written.conditions[1], condition("Programmed", "True", "1/1", 200));
        let so: Vec<_> = true_conditions(&written).into_iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(so, ["Accepted", "Programmed"]);
        assert_eq!(true_conditions(&standing).len(), 1);
    }

    #[test]
    fn an_allocation_is_never_lost() {
        let standing = status(vec![]);
        let planned = TenantStatus { prefixes: Some(3), ..TenantStatus::default() };
        let written = tenant_status(&planned, Some(&standing), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((written.vni, written.link_index, written.prefixes), (Some(1001), Some(1), Some(3)));
    }

    #[test]
    fn a_restart_counts_nothing_down_before_routers_had_their_time() {
        let nodes = |programmed| {
            Some(NodeCounts {
                desired: 2,
                programmed,
                ready: format!("{programmed}/2"),
                ..NodeCounts::default()
            })
        };
        let of = |programmed, prefixes, holds| TenantStatus {
            nodes: nodes(programmed),
            prefixes: Some(prefixes),
            ..status(vec![
                condition("Programmed", holds, "text", 100),
                condition("Accepted", "True", holds, 100),
            ])
        };
        let standing = of(2, 9, "True");
        let mut planned = of(1, 0, "False");
        keep_tenant_counts(&mut planned, &standing);
        assert_eq!((&planned.nodes, planned.prefixes), (&standing.nodes, Some(9)));
        assert_eq!(planned.conditions[0], standing.conditions[0]);
        assert_eq!(planned.conditions[1].message, "False", "what follows from objects is as true as ever");

        let mut better = of(2, 10, "True");
        keep_tenant_counts(&mut better, &of(1, 9, "False"));
        assert_eq!(better, of(2, 10, "True"));

        // A changed spec is told at once.
        let mut changed = of(0, 9, "False");
        changed.conditions[0].observed_generation = Some(2);
        keep_tenant_counts(&mut changed, &standing);
        assert_eq!(changed.conditions[0].status, "False");
    }

    #[test]
    fn a_roll_out_is_told_where_it_belongs_and_stays_told_when_it_is_done() {
        let unit = |underlay: &str, part| Unit { underlay: underlay.to_owned(), part };
        let told = |underlay, part, stopped, message: &str| Told {
            unit: unit(underlay, part),
            stopped,
            held: 0,
            trying: 0,
            message: message.to_owned(),
        };
        let red = || Part::Tenant("red".to_owned());
        let snapshot = |conditions: Vec<Condition>| {
            let mut tenant = calico_vni_crds::Tenant::new("red", calico_vni_crds::TenantSpec::default());
            tenant.status = Some(status(conditions));
            Snapshot { tenants: vec![tenant], ..Snapshot::default() }
        };
        let planned_while = |told: &[Told], standing: Vec<Condition>, awaiting| {
            let beyond = Beyond { told, others: &BTreeMap::new(), awaiting };
            let mut plan = Plan::default();
            let accepted = vec![condition("Accepted", "True", "ok", 0)];
            plan.tenant_status.insert("red".to_owned(), status(accepted));
            tell(&mut plan, &beyond, &snapshot(standing));
            let condition = plan.tenant_status["red"].conditions.get(1).cloned();
            let condition = condition.map(|c| (c.status, c.reason, c.message, c.observed_generation));
            (condition, plan.notices)
        };
        let planned = |told: &[Told], standing| planned_while(told, standing, false);
        assert_eq!(planned(&[], vec![]), (None, [].into()), "it never had one");
        let of_others =
            [told("a", Part::Underlay, true, "x"), told("a", Part::Tenant("blue".into()), true, "y")];
        assert_eq!(planned(&of_others, vec![]).0, None);

        let rolling = [told("a", red(), false, "1 of 3"), told("b", red(), false, "2 of 3")];
        let (condition, notices) = planned(&rolling, vec![]);
        let text = "1 of 3; 2 of 3".to_owned();
        assert_eq!(condition, Some(("False".into(), "RollingOut".into(), text, Some(1))));
        assert_eq!(notices, [].into());

        let stopped = [rolling[0].clone(), told("b", red(), true, "n1: no")];
        let (condition, notices) = planned(&stopped, vec![]);
        assert_eq!(condition, Some(("False".into(), "RollOutStopped".into(), "n1: no".into(), Some(1))));
        assert_eq!(notices.first().unwrap().about, About::Tenant("red".to_owned()));

        let before = || vec![self::condition("RolledOut", "False", "1 of 3", 0)];
        let (done, _) = planned(&[], before());
        let done = done.map(|(status, reason, ..)| (status, reason));
        assert_eq!(done, Some(("True".into(), "RolledOut".into())));
        // Who does not know yet how it stands says nothing else.
        let (kept, _) = planned_while(&[], before(), true);
        assert_eq!(kept, Some(("False".into(), "R".into(), "1 of 3".into(), Some(1))));
    }

    #[test]
    fn agents_of_other_versions_are_told_on_their_underlay() {
        let underlay = |name: &str| {
            let spec = serde_json::json!({
                "asn": 65001, "vtepCIDR": "10.255.0.0/24",
                "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }], "interfaces": [{ "name": "eth1" }],
            });
            Underlay::new(name, serde_json::from_value(spec).unwrap())
        };
        let snapshot = Snapshot { underlays: vec![underlay("a"), underlay("b")], ..Snapshot::default() };
        let config = |node: &str, underlay: &str| NodePlan {
            node: node.to_owned(),
            underlay: Some(calico_vni_proto::model::Underlay {
                name: underlay.to_owned(),
                asn: 65001,
                vtep: std::net::Ipv4Addr::LOCALHOST.into(),
                router_id: std::net::Ipv4Addr::LOCALHOST,
                neighbors: vec![],
                interfaces: vec![],
                mtu: None,
                shared: vec![],
                graceful_restart: true,
                calico_asn: 64512,
            }),
            tenants: vec![],
        };
        let mut plan = Plan::default();
        for name in ["a", "b"] {
            plan.underlay_status.insert(name.to_owned(), UnderlayStatus::default());
        }
        for node in ["n1", "n2", "n3", "n4", "n5"] {
            plan.nodes.insert(node.to_owned(), config(node, if node == "n5" { "b" } else { "a" }));
        }
        let others = ["n1", "n2", "n3", "n4", "elsewhere"];
        let others = others.map(|node| (node.to_owned(), "0.0.9".to_owned())).into();
        tell(&mut plan, &Beyond { told: &[], others: &others, awaiting: false }, &snapshot);
        let [condition] = &plan.underlay_status["a"].conditions[..] else { panic!("{plan:?}") };
        let told = (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str());
        assert_eq!(told, ("VersionsAgree", "False", "VersionSkew"));
        let text = &condition.message;
        assert!(text.starts_with("n1 has 0.0.9; ") && text.contains("and 1 more"), "{text}");
        assert!(text.contains(VERSION), "{text}");
        assert_eq!(plan.underlay_status["b"].conditions, [], "nothing is wrong there, nor ever was");
    }
}
