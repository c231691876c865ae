//! What statuses tell of nodes, routers and sessions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::{Underlay, tenant::NodeCounts};
use calico_vni_planner::{Plan, reason};
use ipnet::IpNet;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};

use super::{
    controller::trouble,
    facts::{Facts, Part},
    finding::Finding,
    planned, told,
};
use crate::conditions;

/// All of it. To be asked only while statuses are not old.
pub fn check(facts: &Facts, plan: &Plan) -> Vec<Finding> {
    let said = said(facts, plan);
    let mut found = grouped(&said);
    let unwell: BTreeSet<&str> = said.iter().map(|said| said.node.as_str()).collect();
    let mut unheard = 0;
    for underlay in &facts.snapshot.underlays {
        let (away, findings) = agents(facts, plan, underlay, &unwell);
        unheard += away;
        found.extend(findings);
        found.extend(sessions(plan, underlay, away, &said));
    }
    found.extend(stopped(facts));
    let excused = unheard > 0 || !unwell.is_empty();
    for tenant in &facts.snapshot.tenants {
        if !excused {
            found.extend(pending(tenant));
            found.extend(routes(facts, plan, tenant));
        }
    }
    found
}

/// Something that an agent says of its node, to a Tenant or an Underlay.
struct Said {
    finding: Finding,
    node: String,
    to: String,
}

/// All that agents say.
fn said(facts: &Facts, plan: &Plan) -> Vec<Said> {
    let names: Vec<String> =
        facts.snapshot.nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let underlay = |node: &str| {
        let on = plan.nodes.get(node).and_then(|node| node.underlay.as_ref());
        on.map_or_else(|| "NAME".to_owned(), |underlay| underlay.name.clone())
    };
    let mut all = Vec::new();
    let mut say = |to: &str, counts: Option<&NodeCounts>, notices: Option<&Condition>| {
        let problems = counts.into_iter().flat_map(|counts| &counts.problems);
        let problems = problems.map(|problem| (problem.node.as_str(), problem.message.as_str()));
        let noticed = notices.map_or_else(Vec::new, |condition| told::by_node(&condition.message, &names));
        for (node, message) in problems.chain(noticed) {
            all.push(Said {
                finding: told::finding(node, message, &facts.namespace, &underlay(node)),
                node: node.to_owned(),
                to: to.to_owned(),
            });
        }
    };
    let notices = |conditions: &[Condition], kind: &str| {
        let noticed = |c: &&Condition| c.type_ == kind && c.reason == reason::NODE_NOTICES;
        conditions.iter().find(noticed).cloned()
    };
    for underlay in &facts.snapshot.underlays {
        let name = underlay.metadata.name.as_deref().unwrap_or_default();
        let Some(status) = &underlay.status else { continue };
        let notices = notices(&status.conditions, "NodesFit");
        say(&format!("Underlay {name}"), status.nodes.as_ref(), notices.as_ref());
    }
    for tenant in &facts.snapshot.tenants {
        let name = tenant.metadata.name.as_deref().unwrap_or_default();
        let Some(status) = &tenant.status else { continue };
        let notices = notices(&status.conditions, "Degraded");
        say(&format!("Tenant {name}"), status.nodes.as_ref(), notices.as_ref());
    }
    all
}

/// One finding for what one node says to several.
fn grouped(said: &[Said]) -> Vec<Finding> {
    let mut groups: BTreeMap<(String, String), (Finding, BTreeSet<&str>)> = BTreeMap::new();
    for Said { finding, to, .. } in said {
        let key = (finding.about.clone(), finding.reason.clone());
        let group = groups.entry(key).or_insert_with(|| (finding.clone(), BTreeSet::new()));
        group.1.insert(to);
    }
    let told = |(mut finding, to): (Finding, BTreeSet<&str>)| {
        let to: Vec<&str> = to.into_iter().collect();
        finding.cause = format!("{} (told to {})", finding.cause, to.join(", "));
        finding
    };
    groups.into_values().map(told).collect()
}

/// Nodes of an Underlay of which nothing is heard: how many, and what is known of them.
fn agents(facts: &Facts, plan: &Plan, underlay: &Underlay, unwell: &BTreeSet<&str>) -> (u32, Vec<Finding>) {
    let name = underlay.metadata.name.as_deref().unwrap_or_default();
    let of_it = |node: &&calico_vni_planner::plan::NodePlan| {
        node.underlay.as_ref().is_some_and(|underlay| underlay.name == name)
    };
    let members: Vec<&str> = plan.nodes.values().filter(of_it).map(|node| node.node.as_str()).collect();
    // Without FRR an agent waits, so that comes first.
    let down = |node: &&str| [Part::Frr, Part::Agent].into_iter().find_map(|part| pod(facts, part, node));
    let mut found: Vec<Finding> = members.iter().filter_map(down).collect();
    let counts = underlay.status.as_ref().and_then(|status| status.nodes.clone()).unwrap_or_default();
    let away = counts.desired.saturating_sub(counts.programmed).saturating_sub(counts.degraded);
    if away > 0 && found.is_empty() {
        let candidates: Vec<&str> = members.iter().copied().filter(|node| !unwell.contains(node)).collect();
        let which = match (&candidates[..], away) {
            ([only], 1) => format!("of Node {only}"),
            (several, away) => format!("of {away} of the Nodes {}", several.join(", ")),
        };
        let cause = format!(
            "the agent {which} is not connected, or has not said yet what stands (status.nodes: {}); the status does not name it",
            counts.ready
        );
        found.push(
            Finding::problem(format!("Underlay {name}"), "AgentNotConnected", cause)
                .remedy("on the node: does `calico-vni-router run` run, and what does its log say after `dialling the controller again`?")
                .command(format!("kubectl -n {} get pods -o wide -l app.kubernetes.io/component=agent", facts.namespace))
                .command("calico-vni-router show --node NODE        # on the node")
                .fleeting(),
        );
    }
    (away, found)
}

/// What is wrong with a part's pod on a node, where a DaemonSet is to run it.
fn pod(facts: &Facts, part: Part, node: &str) -> Option<Finding> {
    let set = facts.daemon_set(part)?.metadata.name.clone().unwrap_or_default();
    let on = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let (reason, what, without) = match part {
        Part::Frr => ("FRRNotRunning", "FRR", "no tenant's route reaches the fabric, or comes from there"),
        _ => ("AgentNotRunning", "agent", "nothing new is programmed on the node, and what stands goes on"),
    };
    let cause = match facts.pods_of(part).find(on) {
        None => format!("no pod of DaemonSet {}/{set} runs on it, so it has no {what}", facts.namespace),
        Some(pod) => format!("its pod of {set} does not run: {}", trouble(pod)?),
    };
    Some(
        Finding::problem(format!("Node {node}"), reason, cause)
            .remedy(format!("the pod's events and log say why; without it {without}"))
            .command(format!(
                "kubectl -n {} get pods -o wide --field-selector spec.nodeName={node}",
                facts.namespace
            ))
            .command(format!("kubectl -n {} describe daemonset {set}", facts.namespace))
            .fleeting(),
    )
}

/// Sessions with the fabric that are down for none of the reasons that are told already.
fn sessions(plan: &Plan, underlay: &Underlay, away: u32, said: &[Said]) -> Option<Finding> {
    let name = underlay.metadata.name.as_deref()?;
    let sessions = underlay.status.as_ref()?.sessions.as_ref()?;
    let neighbors = u32::try_from(underlay.spec.neighbors.len()).ok()?;
    let is_why = |said: &&Said| {
        let on = plan.nodes.get(&said.node).and_then(|node| node.underlay.as_ref());
        on.is_some_and(|on| on.name == name)
            && ["FRRDown", "UplinkMissing"].contains(&said.finding.reason.as_str())
    };
    let excused: BTreeSet<&str> = said.iter().filter(is_why).map(|said| said.node.as_str()).collect();
    let excused = neighbors * (away + u32::try_from(excused.len()).ok()?);
    let down = sessions.configured.saturating_sub(sessions.established);
    if down <= excused {
        return None;
    }
    let peers: Vec<String> =
        underlay.spec.neighbors.iter().map(|n| format!("{} (AS {})", n.address, n.asn)).collect();
    let all = if sessions.established == 0 { ", on no node" } else { "" };
    let cause = format!(
        "{} of {} BGP sessions with {} are established{all}: what such a node announces does not reach the fabric",
        sessions.established,
        sessions.configured,
        peers.join(", ")
    );
    Some(
        Finding::problem(format!("Underlay {name}"), "SessionsDown", cause)
            .remedy(format!(
                "compare spec.neighbors[].asn with the switch's own ASN, and the switch's neighbour with spec.asn {}; then cable and addresses. `OpenSent` or `Idle` is a wrong ASN, `Connect` or `Active` is no way to the neighbour",
                underlay.spec.asn
            ))
            .command("kubectl vni sessions        # which, and in what state")
            .command("ip netns exec calico-vni ip -br addr        # on the node: the uplink and its address")
            .command(format!("kubectl edit underlays.calico-vni.io {name}"))
            .fleeting(),
    )
}

/// Changes that nodes refuse.
fn stopped(facts: &Facts) -> Vec<Finding> {
    let snapshot = &facts.snapshot;
    let underlays = snapshot.underlays.iter().filter_map(|underlay| {
        Some(("Underlay", underlay.metadata.name.as_deref()?, &underlay.status.as_ref()?.conditions))
    });
    let tenants = snapshot.tenants.iter().filter_map(|tenant| {
        Some(("Tenant", tenant.metadata.name.as_deref()?, &tenant.status.as_ref()?.conditions))
    });
    let finding = |(kind, name, conditions): (&str, &str, &Vec<Condition>)| {
        let stopped = |c: &&Condition| c.status == "False" && c.reason == reason::ROLL_OUT_STOPPED;
        let condition = conditions.iter().find(stopped)?;
        Some(
            Finding::problem(format!("{kind} {name}"), &condition.reason, &condition.message)
                .remedy("undo the change, or repair these nodes: it goes on by itself, and all others keep what they have")
                .command(format!("kubectl edit {}s.calico-vni.io {name}", kind.to_lowercase()))
                .fleeting(),
        )
    };
    underlays.chain(tenants).filter_map(finding).collect()
}

/// A tenant that is on its way for longer than it takes, while all routers are well.
fn pending(tenant: &calico_vni_crds::Tenant) -> Option<Finding> {
    let name = tenant.metadata.name.as_deref()?;
    let status = tenant.status.as_ref()?;
    let condition = status.conditions.iter().find(|c| {
        c.type_ == "Programmed" && [reason::PENDING, reason::TERMINATING].contains(&c.reason.as_str())
    })?;
    Some(
        Finding::problem(format!("Tenant {name}"), &condition.reason, &condition.message)
            .remedy("the controller's log names the node that it waits for; a deleted Tenant waits for the nodes that carry it")
            .command(format!("kubectl describe tenants.calico-vni.io {name}"))
            .fleeting(),
    )
}

/// A tenant whose blocks are not all with the routers.
fn routes(facts: &Facts, plan: &Plan, tenant: &calico_vni_crds::Tenant) -> Option<Finding> {
    let name = tenant.metadata.name.as_deref()?;
    let held = tenant.status.as_ref()?.prefixes?;
    let pools = plan.tenant_status.get(name)?.pools.iter().filter(|pool| pool.accepted);
    let pools: Vec<IpNet> = pools.filter_map(|pool| pool.cidr.parse().ok()).collect();
    let admitted = conditions::admitted(&facts.snapshot, name);
    let on = |(node, block): &(&str, IpNet)| {
        admitted.iter().any(|admitted| admitted == node) && pools.iter().any(|pool| pool.contains(block))
    };
    let blocks = u32::try_from(planned::blocks(facts).filter(on).count()).ok()?;
    let peers =
        plan.peers.keys().all(|peer| facts.snapshot.peers.iter().any(|standing| standing.name() == peer));
    if held >= blocks || !peers {
        return None;
    }
    let cause = format!(
        "its routers hold {held} routes from BIRD, and its nodes have {blocks} blocks: on some node BIRD does not meet its router, or does not announce"
    );
    Some(
        Finding::problem(format!("Tenant {name}"), "RoutesMissing", cause)
            .remedy("on its nodes: is the peer in BIRD and established? If it is not there, see confd's log in calico-node; `Idle (PfxCt)` in FRR is more routes than spec.maxPrefixes")
            .command(format!("kubectl vni routes {name}"))
            .command("kubectl -n calico-system exec ds/calico-node -c calico-node -- birdcl show protocols")
            .fleeting(),
    )
}
