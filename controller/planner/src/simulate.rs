//! A plan carried out on paper: what the cluster will be like when the controller has done what the plan says and the
//! connected routers have obeyed. Tests follow a plan to its end by it, and the command line shows that end.

use std::{collections::BTreeSet, sync::Arc};

use calico_vni_crds::keys;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{Plan, Snapshot, plan};

/// Rounds after which a plan has to have come to rest: a tenant is made, kept, programmed, labelled; leaving takes as
/// many.
const ROUNDS: usize = 12;

/// The snapshot after this plan.
#[must_use]
pub fn carry_out(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let mut next = snapshot.clone();
    next.tenants
        .retain(|t| t.metadata.name.as_ref().is_none_or(|name| !plan.finished_tenants.contains(name)));
    next.tenants.retain(|t| {
        t.metadata
            .name
            .as_ref()
            .is_none_or(|name| !plan.tenants_to_delete.contains(name) || stands(snapshot, name))
    });
    for tenant in &mut next.tenants {
        let name = tenant.metadata.name.clone().unwrap_or_default();
        if plan.tenants_to_delete.contains(&name) {
            tenant.metadata.deletion_timestamp.get_or_insert(Time(Timestamp::UNIX_EPOCH));
        }
        if plan.finalizers.contains(&name) {
            let finalizers = tenant.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == keys::FINALIZER) {
                finalizers.push(keys::FINALIZER.to_owned());
            }
        }
        if let Some(status) = plan.tenant_status.get(&name) {
            tenant.status = Some(status.clone());
        }
        if let Some(allocated) = plan.allocations.tenants.get(&name) {
            let status = tenant.status.get_or_insert_default();
            (status.vni, status.link_index) = (Some(allocated.vni), Some(allocated.link_index));
        }
    }
    next.tenants.extend(plan.tenants.values().cloned());
    for underlay in &mut next.underlays {
        if let Some(status) = underlay.metadata.name.as_ref().and_then(|name| plan.underlay_status.get(name))
        {
            underlay.status = Some(status.clone());
        }
    }
    for node in &mut next.nodes {
        let node = Arc::make_mut(node);
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(index) = plan.allocations.nodes.get(&name) {
            node.metadata
                .annotations
                .get_or_insert_default()
                .insert(keys::ROUTER_INDEX.to_owned(), index.to_string());
        }
        let labels = node.metadata.labels.get_or_insert_default();
        labels.retain(|key, _| !key.starts_with(keys::READY_LABEL_PREFIX));
        for tenant in plan.labels.get(&name).into_iter().flatten() {
            let value = plan.label_values.get(&name).map_or(keys::READY, String::as_str);
            labels.insert(keys::ready_label(tenant), value.to_owned());
        }
        if let (Some(agent), Some(config)) = (next.agents.get_mut(&name), plan.nodes.get(&name))
            && agent.rejected.is_none()
        {
            let agent = Arc::make_mut(agent);
            let failed = &agent.failed;
            let programmed = config.tenants.iter().filter(|t| !failed.contains_key(&t.name));
            agent.asn = config.underlay.as_ref().map(|underlay| underlay.asn);
            agent.programmed = programmed.map(|t| (t.name.clone(), t.vni)).collect::<BTreeSet<_>>();
        }
    }
    for namespace in &mut next.namespaces {
        let entry = namespace.metadata.name.as_ref().and_then(|name| plan.namespaces.get(name));
        for (key, value) in entry.into_iter().flatten() {
            let annotations = namespace.metadata.annotations.get_or_insert_default();
            match value {
                Some(value) => annotations.insert(key.clone(), value.clone()),
                None => annotations.remove(key),
            };
        }
    }
    next.filters = plan.filters.values().cloned().collect();
    next.peers = plan.peers.values().cloned().collect();
    next
}

/// Whether something keeps a deleted Tenant in the cluster.
fn stands(snapshot: &Snapshot, name: &str) -> bool {
    let tenant = snapshot.tenants.iter().find(|t| t.metadata.name.as_deref() == Some(name));
    tenant.and_then(|t| t.metadata.finalizers.as_ref()).is_some_and(|f| !f.is_empty())
}

/// Where a snapshot comes to rest, and the plan there. `None` if it does not.
pub fn settle(snapshot: &Snapshot) -> Option<(Snapshot, Plan)> {
    let mut now = snapshot.clone();
    let mut planned = plan(&now);
    for _ in 0..ROUNDS {
        let next = carry_out(&now, &planned);
        let after = plan(&next);
        if after == planned && after.allocations.is_empty() && after.tenants.is_empty() {
            return Some((next, after));
        }
        (now, planned) = (next, after);
    }
    None
}
