//! What is told of each Tenant and each Underlay.

use std::{collections::HashMap, sync::Arc};

use calico_vni_crds::{
    TenantStatus, UnderlayStatus,
    tenant::{NodeCounts, NodeProblem, PoolStatus},
    underlay::SessionCounts,
};
use calico_vni_proto::names;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    health, nobodys,
    placement::Placement,
    told::{NAMED, Told, few, some_of},
};
use crate::{
    Plan, Snapshot, reason,
    snapshot::Agent,
    validate::{Claim, Pool, Seat, Tenant, Underlay, Validated, Verdict},
};

/// How a tenant or an underlay fares on the nodes.
#[derive(Clone, Debug, Default)]
struct Tally {
    desired: u32,
    programmed: u32,
    /// Nodes with why, in order.
    degraded: Vec<(String, String)>,
    /// Nodes whose agents are not connected, in order.
    away: Vec<String>,
    /// Where sessions are down that should be up, in order.
    down: Vec<String>,
    /// Routes taken from BIRD.
    prefixes: u32,
}

impl Tally {
    fn counts(&self) -> NodeCounts {
        NodeCounts {
            desired: self.desired,
            programmed: self.programmed,
            degraded: count(self.degraded.len()),
            ready: format!("{}/{}", self.programmed, self.desired),
            problems: self
                .degraded
                .iter()
                .take(NAMED)
                .map(|(node, message)| NodeProblem { node: node.clone(), message: message.clone() })
                .collect(),
        }
    }

    /// Whether all nodes do what they should, and in one word why not.
    fn verdict(&self) -> (bool, &'static str) {
        match (self.programmed == self.desired, self.degraded.is_empty()) {
            (true, _) => (true, reason::PROGRAMMED),
            (false, true) => (false, reason::PENDING),
            (false, false) => (false, reason::NODES_DEGRADED),
        }
    }

    fn troubles(&self) -> String {
        some_of(self.degraded.iter().map(|(node, why)| format!("{node}: {why}")))
    }

    /// That, with all that is not as it should be; `sessions` says which sessions it is about.
    fn but(&self, what: &str, sessions: &str) -> String {
        let troubles = Some(self.troubles()).filter(|troubles| !troubles.is_empty());
        let away = few(&self.away).map(|nodes| format!("no agent is connected on {nodes}"));
        let down = few(&self.down).map(|places| format!("{sessions} is down on {places}"));
        [Some(what.to_owned()), troubles, away, down].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// Puts the statuses into the plan, with what was found of each tenant's namespaces and services.
pub(super) fn report(
    snapshot: &Snapshot,
    valid: &Validated<'_>,
    placement: &Placement,
    [namespaces, services]: &[Vec<Option<Told>>; 2],
    plan: &mut Plan,
) {
    let mut tenants = vec![Tally::default(); valid.tenants.len()];
    let mut underlays = vec![Tally::default(); valid.underlays.len()];
    let by_name: HashMap<&str, usize> =
        valid.tenants.iter().enumerate().map(|(t, tenant)| (tenant.name.as_str(), t)).collect();
    for (node, on_node) in valid.nodes.iter().zip(&placement.nodes) {
        let agent = snapshot.agents.get(node.name);
        for &t in &on_node.desired {
            tenants[t].desired += 1;
            if on_node.ready.binary_search(&t).is_ok() {
                tenants[t].programmed += 1;
            } else if let Some(why) = agent.and_then(|a| trouble(a, Some(&valid.tenants[t].name))) {
                tenants[t].degraded.push((node.name.to_owned(), why));
            } else if agent.is_none() {
                tenants[t].away.push(node.name.to_owned());
            }
        }
        for session in agent.iter().flat_map(|a| &a.sessions) {
            match (&session.tenant, &node.seat) {
                (None, Seat::In { underlay, .. }) if !session.established => {
                    underlays[*underlay].down.push(format!("{} with {}", node.name, session.peer));
                }
                (Some(name), _) => {
                    let Some(&t) = by_name.get(name.as_str()) else { continue };
                    tenants[t].prefixes = tenants[t].prefixes.saturating_add(session.prefixes_received);
                    // Before BIRD may have its peer there is nobody to answer.
                    if !session.established && on_node.ready.binary_search(&t).is_ok() {
                        tenants[t].down.push(node.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        if let Seat::In { underlay, index, .. } = node.seat {
            underlays[underlay].desired += 1;
            match agent.map(|a| trouble(a, None)) {
                Some(None) if index.is_some() => underlays[underlay].programmed += 1,
                Some(Some(why)) => underlays[underlay].degraded.push((node.name.to_owned(), why)),
                None => underlays[underlay].away.push(node.name.to_owned()),
                _ => {}
            }
        }
    }
    let pools = pool_statuses(valid);
    let mut noticed = health::by_tenant(snapshot, valid);
    for (t, tenant) in valid.tenants.iter().enumerate() {
        if tenant.object.is_some() {
            let mut status = tenant_status(
                valid,
                t,
                &tenants[t],
                &pools[t],
                noticed.remove(tenant.name.as_str()),
                programmed(snapshot, valid, placement, t, &tenants[t], plan),
            );
            status.prefixes = Some(tenants[t].prefixes);
            let generation = tenant.object.and_then(|o| o.metadata.generation);
            for (kind, told) in [("NamespacesAssigned", &namespaces[t]), ("ServicesReachable", &services[t])]
            {
                let told = told.clone().map(|t| condition(kind, t.holds, t.reason, t.message, generation));
                status.conditions.extend(told);
            }
            plan.tenant_status.insert(tenant.name.clone(), status);
        }
    }
    let quarantined: Vec<PoolStatus> = nobodys(valid).map(pool_status).collect();
    for (u, underlay) in valid.underlays.iter().enumerate() {
        let status = underlay_status(snapshot, valid, underlay, &underlays[u], &quarantined);
        plan.underlay_status.insert(underlay.name.to_owned(), status);
    }
}

/// Why a connected router does not do what it should, for one tenant or at all.
fn trouble(agent: &Agent, tenant: Option<&String>) -> Option<String> {
    if let Some(why) = tenant.and_then(|t| agent.failed.get(t)) {
        return Some(why.clone());
    }
    if let Some(why) = &agent.rejected {
        return Some(format!("its configuration was refused: {why}"));
    }
    (!agent.frr_running).then(|| "FRR does not answer".to_owned())
}

fn pool_status(pool: &Pool<'_>) -> PoolStatus {
    let leaving = (pool.leaving && pool.verdict.is_none()).then(|| leaving(pool));
    let verdict = pool.verdict.as_ref().or(leaving.as_ref());
    PoolStatus {
        name: pool.name.to_owned(),
        cidr: pool.object.spec.cidr.clone(),
        accepted: pool.verdict.is_none(),
        reason: verdict.map(|v| v.reason.to_owned()),
        message: verdict.map(|v| v.message.clone()),
    }
}

/// Why a pool that names no tenant is still in one.
pub(super) fn leaving(pool: &Pool<'_>) -> Verdict {
    let cidr = &pool.object.spec.cidr;
    Verdict::new(
        reason::LEAVING,
        format!(
            "it names this Tenant no more, but blocks of {cidr} are live: its pods stay in the VRF until the last of them is gone; delete them, or annotate the pool again"
        ),
    )
}

/// Of each tenant, the pools that name it.
fn pool_statuses(valid: &Validated<'_>) -> Vec<Vec<PoolStatus>> {
    let mut pools = vec![Vec::new(); valid.tenants.len()];
    for pool in &valid.pools {
        if let Claim::Tenant(t) = pool.claim {
            pools[t].push(pool_status(pool));
        }
    }
    pools
}

fn tenant_status(
    valid: &Validated<'_>,
    t: usize,
    tally: &Tally,
    pools: &[PoolStatus],
    noticed: Option<String>,
    (programmed, why, message): (bool, &'static str, String),
) -> TenantStatus {
    let tenant = &valid.tenants[t];
    // What is allocated now is told at once, so that writing the status can never undo the allocation.
    let allocated = valid.allocations.tenants.get(&tenant.name);
    let vni = allocated.map(|a| a.vni).or_else(|| tenant.kept_vni());
    let generation = tenant.object.and_then(|o| o.metadata.generation);
    let condition = |kind, holds, reason: &str, message| condition(kind, holds, reason, message, generation);
    let accepted = match &tenant.verdict {
        Some(verdict) => condition("Accepted", false, verdict.reason, verdict.message.clone()),
        None => condition("Accepted", true, reason::ACCEPTED, "its pods may live in the VRF".into()),
    };
    let refused: Vec<&PoolStatus> = pools.iter().filter(|p| !p.accepted).collect();
    let degraded = if !tally.degraded.is_empty() {
        condition("Degraded", true, reason::NODES_DEGRADED, tally.troubles())
    } else if !refused.is_empty() && !tenant.deleting {
        let named = refused.iter().map(|p| format!("{}: {}", p.name, p.message.clone().unwrap_or_default()));
        condition("Degraded", true, reason::POOLS_NOT_ACCEPTED, some_of(named))
    } else if let Some(message) = noticed {
        condition("Degraded", true, reason::NODE_NOTICES, message)
    } else {
        condition("Degraded", false, reason::HEALTHY, "no router and no pool has trouble".into())
    };
    TenantStatus {
        vni,
        link_index: allocated.map(|a| a.link_index).or_else(|| tenant.kept_link()),
        vrf: vni.map(names::vrf),
        accepted_pools: Some(format!("{}/{}", pools.len() - refused.len(), pools.len())),
        nodes: Some(tally.counts()),
        prefixes: None,
        conditions: vec![accepted, condition("Programmed", programmed, why, message), degraded],
        pools: pools.to_vec(),
    }
}

fn programmed(
    snapshot: &Snapshot,
    valid: &Validated<'_>,
    placement: &Placement,
    t: usize,
    tally: &Tally,
    plan: &Plan,
) -> (bool, &'static str, String) {
    let tenant: &Tenant<'_> = &valid.tenants[t];
    if tenant.deleting {
        let message = if plan.finished_tenants.contains(&tenant.name) {
            "nothing of it is left".to_owned()
        } else {
            format!("waits: {}", waits_for(snapshot, valid, t))
        };
        return (false, reason::TERMINATING, message);
    }
    if let Some(verdict) = &tenant.verdict {
        return (false, reason::NOT_ACCEPTED, format!("is not accepted: {}", verdict.message));
    }
    if valid.fabric.is_none() {
        let message = "no Underlay is accepted; make one, or see the conditions of those there are";
        return (false, reason::NO_UNDERLAY, message.into());
    }
    if tenant.pools.is_empty() {
        return (
            false,
            reason::NO_POOLS,
            "no accepted IPPool names it; annotate one, or see status.pools".into(),
        );
    }
    if !placement.active[t] {
        return (false, reason::PENDING, "its VNI and link are being kept before they are used".into());
    }
    match (tally.programmed, tally.desired) {
        (0, 0) => (true, reason::NO_NODES, "no node has to carry it yet".into()),
        (programmed, desired) => {
            let (holds, why) = tally.verdict();
            let stands = format!("stands on {programmed} of {desired} nodes");
            (holds, why, tally.but(&stands, "its session with BIRD"))
        }
    }
}

/// What a deleted tenant waits for.
fn waits_for(snapshot: &Snapshot, valid: &Validated<'_>, t: usize) -> String {
    let name = valid.tenants[t].name.as_str();
    let nodes = valid.nodes.iter().filter_map(|node| {
        let labelled = node.ready.contains(&name);
        let agent = snapshot.agents.get(node.name);
        let carried = agent.is_some_and(|a| a.programmed.iter().any(|(tenant, _)| tenant == name));
        let why = match agent.map(Arc::as_ref) {
            _ if !labelled && !carried => return None,
            None => "its agent is not connected".to_owned(),
            Some(Agent { rejected: Some(why), .. }) => format!("its agent refuses its configuration: {why}"),
            Some(Agent { awaited: true, .. }) => "its agent has not said yet what stands".to_owned(),
            Some(_) => "its router still carries it".to_owned(),
        };
        Some(format!("node {}: {why}", node.name))
    });
    let mut nodes = nodes.peekable();
    if nodes.peek().is_some() {
        return some_of(nodes);
    }
    let leaving = valid.pools.iter().filter(|p| p.leaving && p.claim == Claim::Tenant(t));
    let mut leaving = leaving.map(|p| format!("IPPool `{}`", p.name)).peekable();
    if leaving.peek().is_some() {
        return format!(
            "blocks are live of {}, which has no annotation to quarantine its pods by; delete those pods",
            some_of(leaving)
        );
    }
    "its BGPPeers and its BGPFilter are being deleted".to_owned()
}

fn underlay_status(
    snapshot: &Snapshot,
    valid: &Validated<'_>,
    underlay: &Underlay<'_>,
    tally: &Tally,
    quarantined: &[PoolStatus],
) -> UnderlayStatus {
    let generation = underlay.object.metadata.generation;
    let condition = |kind, holds, reason: &str, message| condition(kind, holds, reason, message, generation);
    let accepted = match &underlay.settings {
        Ok(_) => condition("Accepted", true, reason::ACCEPTED, "its nodes' routers follow it".into()),
        Err(verdict) => condition("Accepted", false, verdict.reason, verdict.message.clone()),
    };
    let (holds, why, message) = match (&underlay.settings, tally.programmed, tally.desired) {
        (Err(_), ..) => {
            (false, reason::NOT_ACCEPTED, "is not accepted; its nodes' routers stay as they are".into())
        }
        (Ok(_), 0, 0) => (
            false,
            reason::NO_NODES,
            "selects no node by spec.nodeSelector that no other Underlay selects too".into(),
        ),
        (Ok(_), programmed, desired) => {
            let (holds, why) = tally.verdict();
            let answer = format!("{programmed} of {desired} routers answer");
            (holds, why, tally.but(&answer, "a session with the fabric"))
        }
    };
    let pools = if quarantined.is_empty() {
        condition("PoolsAccepted", true, reason::ACCEPTED, "every annotated IPPool names a Tenant".into())
    } else {
        let named =
            quarantined.iter().map(|p| format!("{}: {}", p.name, p.message.clone().unwrap_or_default()));
        condition("PoolsAccepted", false, reason::POOLS_NOT_ACCEPTED, some_of(named))
    };
    let strict = snapshot.ipam_configs.iter().any(|c| c.name() == "default" && c.spec.strict_affinity);
    let strict = if strict {
        condition(
            "StrictAffinity",
            true,
            reason::STRICT,
            "nodes take addresses of their own blocks alone".into(),
        )
    } else {
        condition("StrictAffinity", false, reason::NOT_STRICT, STRICT_AFFINITY.into())
    };
    let conditions = [accepted, condition("Programmed", holds, why, message), pools, strict].into_iter();
    let more = health::of_underlay(snapshot, valid, underlay)
        .into_iter()
        .map(|(kind, told)| condition(kind, told.holds, told.reason, told.message));
    UnderlayStatus {
        nodes: Some(tally.counts()),
        sessions: Some(sessions(snapshot, valid, underlay)),
        quarantined_pools: quarantined.to_vec(),
        conditions: conditions.chain(more).collect(),
    }
}

/// Calico's own words for it: `calicoctl ipam configure`, documented with Calico's IPAM configuration.
const STRICT_AFFINITY: &str = "strictAffinity of Calico's IPAM is not on, so a pod may have an address of another node's block, \
    which is not announced; run `calicoctl ipam configure --strictaffinity=true`, or set spec.advertise: Pods on the Tenants";

fn sessions(snapshot: &Snapshot, valid: &Validated<'_>, underlay: &Underlay<'_>) -> SessionCounts {
    let neighbors = underlay.accepted().map_or(0, |s| s.neighbors.len());
    let (mut established, mut configured) = (0, 0);
    for &n in &underlay.nodes {
        let node = &valid.nodes[n];
        let Seat::In { underlay: u, index: Some(_), .. } = node.seat else { continue };
        if valid.underlays[u].name != underlay.name {
            continue;
        }
        configured += neighbors;
        let agent = snapshot.agents.get(node.name);
        established +=
            agent.map_or(0, |a| a.sessions.iter().filter(|s| s.tenant.is_none() && s.established).count());
    }
    SessionCounts {
        established: count(established),
        configured: count(configured),
        ready: format!("{established}/{configured}"),
    }
}

fn condition(kind: &str, holds: bool, reason: &str, message: String, generation: Option<i64>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
