//! A node's configuration taken apart into what is staged and what is not, and put together again. Pure.

use std::sync::Arc;

use calico_vni_planner::plan::NodePlan;
use calico_vni_proto::model::{Tenant, Underlay};

use super::Part;

/// What a unit is to become: a roll-out is of one of these, and another one begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Not known, and so the same for all.
    Whole,
    /// The same on all nodes of an Underlay.
    Underlay(Box<Underlay>),
    /// The same on all nodes.
    Tenant(Arc<Tenant>),
}

/// Whether the way from the one to the other has stages at all: both carry something, in one Underlay.
pub(super) fn is_staged(have: &NodePlan, want: &NodePlan) -> bool {
    match (&have.underlay, &want.underlay) {
        (Some(have), Some(want)) => have.name == want.name && have.asn == want.asn,
        _ => false,
    }
}

/// The parts that differ, with what they are to become.
pub(super) fn targets(have: &NodePlan, want: &NodePlan) -> Vec<(Part, Target)> {
    let mut targets = Vec::new();
    if let (Some(had), Some(wanted)) = (&have.underlay, &want.underlay) {
        let wanted = shared_part(wanted);
        if shared_part(had) != wanted {
            targets.push((Part::Underlay, Target::Underlay(Box::new(wanted))));
        }
    }
    for tenant in &want.tenants {
        if had(have, tenant).is_some_and(|had| **had != **tenant) {
            targets.push((Part::Tenant(tenant.name.clone()), Target::Tenant(Arc::clone(tenant))));
        }
    }
    targets
}

/// What is wanted, but for the parts whose turn it is not: those stay as they were, without what is to be closed.
pub(super) fn held(have: &NodePlan, want: &NodePlan, go: impl Fn(&Part) -> bool) -> NodePlan {
    let underlay = match (&have.underlay, &want.underlay) {
        (Some(had), Some(wanted)) if shared_part(had) != shared_part(wanted) && !go(&Part::Underlay) => {
            Some(held_underlay(had, wanted))
        }
        (_, wanted) => wanted.clone(),
    };
    let tenants = want.tenants.iter().map(|tenant| match had(have, tenant) {
        Some(had) if **had != **tenant && !go(&Part::Tenant(tenant.name.clone())) => {
            Arc::new(held_tenant(had, tenant))
        }
        _ => Arc::clone(tenant),
    });
    NodePlan { node: want.node.clone(), underlay, tenants: tenants.collect() }
}

/// The same tenant with the same numbers, where the node has it already. Other numbers are another tenant: they change
/// where nothing runs, and everywhere at once.
fn had<'a>(have: &'a NodePlan, tenant: &Tenant) -> Option<&'a Arc<Tenant>> {
    let numbers = |t: &Tenant| (t.vni, t.link_index, t.host_v4, t.host_v6);
    have.tenants.iter().find(|had| had.name == tenant.name && numbers(had) == numbers(tenant))
}

/// An Underlay without what is the node's own.
fn shared_part(underlay: &Underlay) -> Underlay {
    Underlay {
        vtep: std::net::Ipv4Addr::UNSPECIFIED.into(),
        router_id: std::net::Ipv4Addr::UNSPECIFIED,
        calico_asn: 0,
        ..underlay.clone()
    }
}

fn held_underlay(had: &Underlay, wanted: &Underlay) -> Underlay {
    Underlay {
        vtep: wanted.vtep,
        router_id: wanted.router_id,
        calico_asn: wanted.calico_asn,
        shared: both(&had.shared, &wanted.shared),
        ..had.clone()
    }
}

fn held_tenant(had: &Tenant, wanted: &Tenant) -> Tenant {
    let pools = had.pools.iter().filter(|pool| wanted.pools.iter().any(|p| p.cidr == pool.cidr));
    Tenant {
        pools: pools.copied().collect(),
        shared: both(&had.shared, &wanted.shared),
        services: both(&had.services, &wanted.services),
        ..had.clone()
    }
}

/// Those of the former that are among the latter.
fn both<T: Clone + PartialEq>(had: &[T], wanted: &[T]) -> Vec<T> {
    had.iter().filter(|item| wanted.contains(item)).cloned().collect()
}
