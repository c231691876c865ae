//! What Calico and the nodes have to be like, and are not: for conditions and for Events.

use std::collections::{BTreeMap, BTreeSet};

use super::told::{Told, some_of};
use crate::{
    Snapshot,
    plan::{About, Notice},
    reason,
    validate::{Seat, Underlay, Validated, Verdict, preconditions},
};

/// Conditions of an Underlay beyond those on its own spec.
pub(super) fn of_underlay(
    snapshot: &Snapshot,
    valid: &Validated<'_>,
    underlay: &Underlay<'_>,
) -> Vec<(&'static str, Told)> {
    let nodes: Vec<&str> = underlay.nodes.iter().map(|&n| valid.nodes[n].name).collect();
    let of_nodes = |reason: &str| -> Vec<String> {
        let found = |node: &&str| -> Option<String> {
            let wrong = preconditions::of_node(snapshot, node);
            wrong.into_iter().find(|v| v.reason == reason).map(|v| v.message)
        };
        nodes.iter().filter_map(found).collect()
    };
    let mut ebpf = of_nodes(reason::EBPF_DATA_PLANE);
    if let Err(verdict) = &underlay.settings
        && verdict.reason == reason::EBPF_DATA_PLANE
    {
        ebpf.insert(0, verdict.message.clone());
    }
    let mut tables = of_nodes(reason::ROUTE_TABLES_OVERLAP);
    tables.splice(0..0, preconditions::of_cluster(snapshot).map(|v| v.message));
    let noticed = nodes.iter().filter_map(|node| Some((node, snapshot.agents.get(*node)?)));
    let noticed: Vec<String> = noticed
        .filter_map(|(node, agent)| {
            let first = agent.notices.iter().find(|n| n.tenant.is_none())?;
            Some(format!("{node}: {}", first.message))
        })
        .collect();
    let told = |wrong: Vec<String>, bad, good, fine: &str| {
        if wrong.is_empty() {
            Told { holds: true, reason: good, message: fine.to_owned() }
        } else {
            Told { holds: false, reason: bad, message: some_of(wrong.into_iter()) }
        }
    };
    vec![
        (
            "DataPlaneSupported",
            told(
                ebpf,
                reason::EBPF_DATA_PLANE,
                reason::SUPPORTED,
                "Felix is not known to use its eBPF data plane",
            ),
        ),
        (
            "RouteTablesFree",
            told(
                tables,
                reason::ROUTE_TABLES_OVERLAP,
                reason::ROUTE_TABLES_FREE,
                "Felix takes none of the tenants' routing tables for itself",
            ),
        ),
        (
            "NodesFit",
            told(
                noticed,
                reason::NODE_NOTICES,
                reason::HEALTHY,
                "no router tells of anything wrong with its node",
            ),
        ),
    ]
}

/// What the routers tell of their nodes that concerns one tenant, by its name.
pub(super) fn by_tenant<'s>(snapshot: &'s Snapshot, valid: &Validated<'_>) -> BTreeMap<&'s str, String> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in &valid.nodes {
        let mut told_here = BTreeSet::new();
        for told in snapshot.agents.get(node.name).into_iter().flat_map(|agent| &agent.notices) {
            let Some(tenant) = told.tenant.as_deref().filter(|tenant| told_here.insert(*tenant)) else {
                continue;
            };
            found.entry(tenant).or_default().push(format!("{}: {}", node.name, told.message));
        }
    }
    found.into_iter().map(|(tenant, nodes)| (tenant, some_of(nodes.into_iter()))).collect()
}

/// The same for Events: on each Node of ours, and for the whole cluster on the Underlays.
pub(super) fn notices(snapshot: &Snapshot, valid: &Validated<'_>) -> BTreeSet<Notice> {
    let notice = |about, verdict: Verdict| Notice {
        about,
        reason: verdict.reason.to_owned(),
        message: verdict.message,
    };
    let mut notices = BTreeSet::new();
    if let Some(verdict) = preconditions::of_cluster(snapshot) {
        for underlay in &valid.underlays {
            notices.insert(notice(About::Underlay(underlay.name.to_owned()), verdict.clone()));
        }
    }
    for node in valid.nodes.iter().filter(|node| node.seat != Seat::Nowhere) {
        for verdict in preconditions::of_node(snapshot, node.name) {
            notices.insert(notice(About::Node(node.name.to_owned()), verdict));
        }
        for told in snapshot.agents.get(node.name).into_iter().flat_map(|agent| &agent.notices) {
            let message = match &told.tenant {
                Some(tenant) => format!("Tenant `{tenant}`: {}", told.message),
                None => told.message.clone(),
            };
            notices.insert(Notice {
                about: About::Node(node.name.to_owned()),
                reason: told.reason.clone(),
                message,
            });
        }
    }
    notices
}
