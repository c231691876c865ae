//! What tenants have to be given: VNIs and links, the lowest that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::underlay::VniRange;

use super::{Pool, Tenant, Verdict};
use crate::{plan::TenantAllocation, reason};

/// Gives what is missing to the accepted tenants, oldest first, and a verdict to those for whom nothing is left.
/// Without a link capacity (no Underlay is accepted) nothing is given.
pub(super) fn tenants(
    tenants: &mut [Tenant<'_>],
    pools: &[Pool<'_>],
    ranges: &[VniRange],
    link_capacity: Option<u32>,
    carried: impl Fn(&str) -> bool,
) -> BTreeMap<String, TenantAllocation> {
    // Also what deleted and refused tenants have, and what pools ask for by their annotation.
    let taken_vnis: BTreeSet<u32> = (tenants.iter())
        .flat_map(|t| [t.given_vni(), t.kept_vni()])
        .chain(pools.iter().map(|p| p.annotated_vni))
        .flatten()
        .collect();
    let taken_links: BTreeSet<u32> = tenants.iter().filter_map(Tenant::kept_link).collect();
    let mut free_vnis = free_vnis(ranges, &taken_vnis);
    let mut free_links = (1..=link_capacity.unwrap_or(0)).filter(|i| !taken_links.contains(i));

    // One that no pool names any more is about to go.
    let wanting = |t: &Tenant<'_>| {
        t.object.is_some() && t.is_accepted() && t.standing().is_none() && (t.named || !t.managed)
    };
    let mut order: Vec<usize> = (0..tenants.len()).filter(|&t| wanting(&tenants[t])).collect();
    order.sort_by(|&a, &b| tenants[a].age().cmp(&tenants[b].age()));
    let mut allocated = BTreeMap::new();
    for t in order {
        // What routers run with is given up first, everywhere, and only then is the new written.
        if (tenants[t].kept_vni().is_some() || tenants[t].kept_link().is_some()) && carried(&tenants[t].name)
        {
            continue;
        }
        let Some(vni) = tenants[t].vni.or_else(|| free_vnis.next()) else {
            let why = if ranges.is_empty() {
                "and no accepted Underlay has a vniRange to take one from; set one of the two"
            } else {
                "and all VNIs of the Underlays' vniRange are in use; set it, or widen a range"
            };
            tenants[t].verdict = Some(Verdict::new(reason::NO_VNI, format!("spec.vni: is not set, {why}")));
            continue;
        };
        let Some(capacity) = link_capacity else { continue };
        let Some(link_index) = tenants[t].link_index.or_else(|| free_links.next()) else {
            tenants[t].verdict = Some(Verdict::new(
                reason::NO_LINK,
                format!(
                    "all {capacity} links of the Underlays' hostLinkCIDR are in use; widen it, or delete a Tenant"
                ),
            ));
            continue;
        };
        allocated.insert(tenants[t].name.clone(), TenantAllocation { vni, link_index });
    }
    allocated
}

/// The numbers with which routers may run each tenant: its own, or the ones that its status still keeps while it is to have
/// others, where those are nobody else's.
pub(super) fn running(tenants: &[Tenant<'_>]) -> Vec<Option<TenantAllocation>> {
    let mut vnis: BTreeMap<u32, u32> = BTreeMap::new();
    let mut links: BTreeMap<u32, u32> = BTreeMap::new();
    for tenant in tenants {
        tenant.kept_vni().into_iter().for_each(|vni| *vnis.entry(vni).or_default() += 1);
        tenant.kept_link().into_iter().for_each(|link| *links.entry(link).or_default() += 1);
    }
    let kept = |tenant: &Tenant<'_>| {
        let vni = tenant.kept_vni().filter(|vni| vnis[vni] == 1)?;
        let link_index = tenant.kept_link().filter(|link| *link > 0 && links[link] == 1)?;
        Some(TenantAllocation { vni, link_index })
    };
    tenants.iter().map(|t| t.standing().or_else(|| kept(t))).collect()
}

fn free_vnis<'a>(ranges: &[VniRange], taken: &'a BTreeSet<u32>) -> impl Iterator<Item = u32> + 'a {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|r| (r.min, r.max));
    // Where ranges overlap, a number is given once.
    let mut next = 0;
    ranges
        .into_iter()
        .flat_map(move |r| {
            let from = r.min.max(next);
            next = next.max(r.max + 1);
            from..=r.max
        })
        .filter(|vni| !taken.contains(vni))
}
