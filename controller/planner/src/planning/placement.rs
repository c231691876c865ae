//! Which node carries which tenant, and which tenants' peers it may have.

use std::{collections::HashMap, sync::Arc};

use calico_vni_crds::{
    keys,
    tenant::{Advertise, Placement as Where},
};
use calico_vni_proto::{
    model::{Pool as ModelPool, Tenant as ModelTenant, Underlay as ModelUnderlay},
    names,
};
use kube::core::SelectorExt;

use crate::{
    Plan, Snapshot,
    plan::{NodePlan, TenantAllocation},
    prefix::{Span, span},
    snapshot::Agent,
    validate::{Node, Seat, Tenant, Validated},
};

/// Which node carries which tenant. Numbers are places in the lists of [`Validated`].
#[derive(Debug)]
pub(super) struct Placement {
    /// Of each node, in order.
    pub nodes: Vec<OnNode>,
    /// Tenants that may be carried: accepted, allocated, with a pool.
    pub active: Vec<bool>,
    /// How many nodes have each tenant's label.
    labelled: Vec<u32>,
}

/// The tenants of one node.
#[derive(Debug, Default)]
pub(super) struct OnNode {
    /// It should carry these.
    pub desired: Vec<usize>,
    /// It carries these still, for their label stands.
    pub leaving: Vec<usize>,
    /// Their label should stand.
    pub ready: Vec<usize>,
    /// Of those that it should carry, the ones that only linger: no block of theirs is left here.
    pub lingering: Vec<usize>,
    /// Whether a label stands that names a Tenant there is, or was.
    labelled: bool,
    /// Labels stand with which BIRD meets another ASN than the router is to have: they go before anything changes.
    changing: bool,
    /// Value of its labels, where that is not the plain one.
    value: Option<String>,
}

impl Placement {
    /// Places all tenants.
    pub(super) fn of(snapshot: &Snapshot, valid: &Validated<'_>) -> Self {
        let by_name: HashMap<&str, usize> =
            valid.tenants.iter().enumerate().map(|(t, tenant)| (tenant.name.as_str(), t)).collect();
        let active: Vec<bool> = valid
            .tenants
            .iter()
            .map(|t| t.is_accepted() && t.standing().is_some() && !t.pools.is_empty())
            .collect();
        let mut desired = hosted(snapshot, valid, &active);
        let everywhere: Vec<usize> = (0..active.len())
            .filter(|&t| active[t] && valid.tenants[t].settings.placement == Where::AllNodes)
            .collect();
        let by_vni: HashMap<u32, usize> =
            valid.tenants.iter().enumerate().filter_map(|(t, tenant)| Some((tenant.vni?, t))).collect();
        let mut labelled = vec![0; active.len()];
        let nodes = valid.nodes.iter().enumerate().map(|(n, node)| {
            let standing: Vec<usize> =
                node.ready.iter().filter_map(|name| by_name.get(name).copied()).collect();
            for &t in &standing {
                labelled[t] += 1;
            }
            let agent = snapshot.agents.get(node.name);
            let answering = match agent {
                Some(agent) if !agent.awaited => Some(programmed(agent, valid, &by_vni)),
                _ => None,
            };
            let answers = |t: usize| answering.as_ref().unwrap_or(&standing).contains(&t);
            let mut on_node = OnNode { labelled: !node.ready.is_empty(), ..OnNode::default() };
            match node.seat {
                Seat::In { underlay, .. } if other_values(valid, node, underlay) => {
                    on_node.changing = true;
                    on_node.leaving = standing;
                }
                Seat::In { underlay, .. } => {
                    let asn = valid.underlays[underlay].object.spec.asn;
                    on_node.value = Some(valid.ready_value(asn).into_owned()).filter(|v| v != keys::READY);
                    // Of a router that comes from another Underlay it is not yet what stands that answers.
                    let arrived = agent.and_then(|a| a.asn).is_none_or(|has| has == asn);
                    let mut wanted = std::mem::take(&mut desired[n]);
                    wanted.extend(&everywhere);
                    wanted.sort_unstable();
                    wanted.dedup();
                    wanted.retain(|&t| selects(&valid.tenants[t], node));
                    let (lingering, leaving) = (standing.iter().copied())
                        .filter(|t| wanted.binary_search(t).is_err())
                        .partition(|&t| active[t] && lingers(snapshot, node, &valid.tenants[t]));
                    (on_node.lingering, on_node.leaving) = (lingering, leaving);
                    wanted.extend(&on_node.lingering);
                    wanted.sort_unstable();
                    let answers = |t: &usize| answers(*t) && (arrived || standing.contains(t));
                    on_node.ready = wanted.iter().copied().filter(answers).collect();
                    on_node.desired = wanted;
                }
                // Its router stays as it is, and so do the labels that are still true.
                Seat::Waiting | Seat::Ambiguous(_) => {
                    let value = node.ready_values.first().copied();
                    on_node.value = value.filter(|v| *v != keys::READY).map(str::to_owned);
                    on_node.desired = standing.iter().copied().filter(|&t| active[t]).collect();
                    on_node.ready = on_node.desired.iter().copied().filter(|&t| answers(t)).collect();
                }
                Seat::Nowhere => {}
            }
            on_node
        });
        let nodes = nodes.collect();
        Self { nodes, active, labelled }
    }

    /// Whether some node has the tenant's label.
    pub(super) fn is_labelled(&self, tenant: usize) -> bool {
        self.labelled[tenant] > 0
    }

    /// Labels and configurations of all nodes.
    pub(super) fn into_plan(self, valid: &Validated<'_>, plan: &mut Plan) {
        let models: Vec<Option<Arc<ModelTenant>>> = (valid.tenants.iter().zip(&valid.running))
            .map(|(tenant, running)| tenant_model(tenant, (*running)?, valid).map(Arc::new))
            .collect();
        let names: Vec<Arc<str>> = valid.tenants.iter().map(|tenant| tenant.name.as_str().into()).collect();
        let labels = valid.nodes.iter().zip(&self.nodes).map(|(node, on_node)| {
            let ready = on_node.ready.iter().map(|&t| Arc::clone(&names[t]));
            (node.name.to_owned(), ready.collect())
        });
        plan.labels = labels.collect();
        for (node, on_node) in valid.nodes.iter().zip(self.nodes) {
            let lingering = on_node.lingering.iter().map(|&t| valid.tenants[t].name.clone());
            plan.lingering.extend(lingering.map(|tenant| (node.name.to_owned(), tenant)));
            if let Some(value) = on_node.value {
                plan.label_values.insert(node.name.to_owned(), value);
            }
            let config = match node.seat {
                _ if on_node.changing => continue,
                Seat::In { underlay, index: Some(index), .. } => {
                    let mut tenants = Vec::with_capacity(on_node.desired.len() + on_node.leaving.len());
                    let carried = on_node.desired.iter().chain(&on_node.leaving);
                    tenants.extend(carried.filter_map(|&t| models[t].clone()));
                    tenants.sort_by_key(|t| t.vni);
                    NodePlan {
                        node: node.name.to_owned(),
                        underlay: underlay_model(valid, underlay, index, node),
                        tenants,
                    }
                }
                // Labels go first; when they are gone, so does all else.
                Seat::Nowhere if !on_node.labelled => {
                    NodePlan { node: node.name.to_owned(), underlay: None, tenants: Vec::new() }
                }
                _ => continue,
            };
            plan.nodes.insert(node.name.to_owned(), config);
        }
    }
}

/// Of each node, the active tenants in whose pools it holds a block.
fn hosted(snapshot: &Snapshot, valid: &Validated<'_>, active: &[bool]) -> Vec<Vec<usize>> {
    // Accepted pools are disjoint, so the one that may hold a block is the last that begins no later.
    let mut pools: Vec<(Span, usize)> = Vec::new();
    for pool in &valid.pools {
        if let (Some(t), Some(net)) = (pool.accepted().filter(|&t| active[t]), pool.cidr) {
            pools.push((span(&net), t));
        }
    }
    pools.sort_unstable();
    let by_name: HashMap<&str, usize> =
        valid.nodes.iter().enumerate().map(|(n, node)| (node.name, n)).collect();
    let mut hosted = vec![Vec::new(); valid.nodes.len()];
    for block in snapshot.blocks.iter() {
        let Some(&node) = by_name.get(block.node.as_str()) else { continue };
        let (v6, first, last) = span(&block.net);
        let after = pools.partition_point(|((w6, start, _), _)| (*w6, *start) <= (v6, first));
        if let Some(((w6, _, end), t)) = after.checked_sub(1).map(|i| pools[i])
            && w6 == v6
            && last <= end
        {
            hosted[node].push(t);
        }
    }
    hosted
}

fn selects(tenant: &Tenant<'_>, node: &Node<'_>) -> bool {
    tenant.settings.node_selector.as_ref().is_none_or(|selector| selector.matches(node.labels))
}

/// Whether the node's labels have another value than they should in that Underlay.
fn other_values(valid: &Validated<'_>, node: &Node<'_>, underlay: usize) -> bool {
    if node.ready_values.is_empty() {
        return false;
    }
    let value = valid.ready_value(valid.underlays[underlay].object.spec.asn);
    node.ready_values.iter().any(|v| **v != *value)
}

/// Whether a tenant whose label stands and which has no block here any more stays for a while. One that is being deleted,
/// has lost its pools, or may not be on this node by its selector does not: whoever said so wants it gone.
fn lingers(snapshot: &Snapshot, node: &Node<'_>, tenant: &Tenant<'_>) -> bool {
    let over = &snapshot.lingered;
    selects(tenant, node) && (over.is_empty() || !over.contains(&(node.name.to_owned(), tenant.name.clone())))
}

/// The tenants of which the node's router says that they stand.
fn programmed(agent: &Agent, valid: &Validated<'_>, by_vni: &HashMap<u32, usize>) -> Vec<usize> {
    if !agent.frr_running {
        return Vec::new();
    }
    let stands = |(name, vni): &(String, u32)| {
        let t = *by_vni.get(vni)?;
        (valid.tenants[t].name == *name && !agent.failed.contains_key(name)).then_some(t)
    };
    agent.programmed.iter().filter_map(stands).collect()
}

fn tenant_model(
    tenant: &Tenant<'_>,
    allocated: TenantAllocation,
    valid: &Validated<'_>,
) -> Option<ModelTenant> {
    let fabric = valid.fabric()?;
    let settings = &tenant.settings;
    Some(ModelTenant {
        name: tenant.name.clone(),
        vni: allocated.vni,
        link_index: allocated.link_index,
        host_v4: names::host_v4(fabric.link_v4, allocated.link_index),
        host_v6: names::host_v6(fabric.link_v6, allocated.link_index),
        pools: (tenant.pools.iter())
            .filter_map(|&p| {
                Some(ModelPool { cidr: valid.pools[p].cidr?, block_size: valid.pools[p].block_size })
            })
            .collect(),
        import_rts: settings.import.clone(),
        export_rts: settings.export.clone(),
        shared: settings.shared.clone(),
        max_prefixes: settings.max_prefixes,
        advertise_pods: settings.advertise == Advertise::Pods,
        services: settings.services.clone(),
    })
}

fn underlay_model(
    valid: &Validated<'_>,
    underlay: usize,
    index: u32,
    node: &Node<'_>,
) -> Option<ModelUnderlay> {
    let settings = valid.underlays[underlay].accepted()?;
    let vtep = std::net::Ipv4Addr::from(u32::from(settings.vtep.network()) + index);
    Some(ModelUnderlay {
        name: valid.underlays[underlay].name.to_owned(),
        asn: settings.asn,
        vtep: vtep.into(),
        router_id: vtep,
        neighbors: settings.neighbors.clone(),
        interfaces: settings.interfaces.clone(),
        mtu: settings.mtu,
        shared: settings.shared.clone(),
        graceful_restart: settings.graceful_restart,
        calico_asn: node.calico_asn,
    })
}
