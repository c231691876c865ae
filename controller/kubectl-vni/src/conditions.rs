//! What conditions and labels say of Tenants, Underlays and Nodes. Pure.

use calico_vni_crds::keys;
use calico_vni_planner::{Snapshot, reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};

/// Those that say that something is wrong.
pub fn wrong(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    conditions.iter().filter(|condition| {
        let bad = if condition.type_ == "Degraded" { "True" } else { "False" };
        // Namespaces may come later, and a change that is on its way is none that went wrong.
        let fine = [reason::NO_NAMESPACES, reason::ROLLING_OUT].contains(&condition.reason.as_str());
        condition.status == bad && !fine
    })
}

/// Whether they speak of the object as it is now.
pub fn are_of_now(meta: &ObjectMeta, conditions: &[Condition]) -> bool {
    let seen = conditions.iter().filter_map(|condition| condition.observed_generation).min();
    meta.generation.is_none_or(|now| seen.is_some_and(|seen| seen >= now))
}

/// Nodes to which a tenant's BGPPeer is admitted, in order.
pub fn admitted(snapshot: &Snapshot, tenant: &str) -> Vec<String> {
    let label = keys::ready_label(tenant);
    let has = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get(&label).is_some_and(|value| value.starts_with(keys::READY))
    };
    let nodes = snapshot.nodes.iter().filter(|node| node.metadata.labels.as_ref().is_some_and(has));
    let mut names: Vec<String> = nodes.filter_map(|node| node.metadata.name.clone()).collect();
    names.sort_unstable();
    names
}
