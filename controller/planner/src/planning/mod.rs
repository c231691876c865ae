//! From a snapshot to its plan, step by step.

mod calico;
mod guard;
mod health;
mod namespaces;
mod placement;
mod services;
mod status;
mod told;

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::{self as crds, TenantSpec, calico::Calico, keys};

use self::placement::Placement;
use crate::{
    Plan, Snapshot,
    plan::{About, Notice},
    reason,
    validate::{Claim, Pool, Seat, Tenant, Validated, Verdict, validate},
};

/// What the cluster should hold, given what was observed of it.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let valid = validate(snapshot);
    let placement = Placement::of(snapshot, &valid);
    let mut plan = Plan {
        tenants: tenants_to_make(&valid),
        tenants_to_delete: names(&valid, |t| t.object.is_some() && t.managed && !t.named && !t.deleting),
        finalizers: names(&valid, |t| t.object.is_some() && !t.deleting),
        guard: guard::guard(snapshot, &valid),
        quarantined: quarantined(&valid),
        ..Plan::default()
    };
    calico::objects(snapshot, &valid, &placement, &mut plan);
    plan.finished_tenants = finished(snapshot, &valid, &placement);
    let services = services::follow(snapshot, &valid, &plan.guard);
    plan.guard.services = services.shared;
    let namespaces = namespaces::assign(snapshot, &valid);
    plan.namespaces = namespaces.annotations;
    status::report(snapshot, &valid, &placement, &[namespaces.told, services.told], &mut plan);
    plan.notices = notices(&valid);
    plan.notices.extend(namespaces.notices);
    plan.notices.extend(health::notices(snapshot, &valid));
    placement.into_plan(&valid, &mut plan);
    plan.allocations = valid.allocations;
    plan
}

fn names(valid: &Validated<'_>, which: impl Fn(&Tenant<'_>) -> bool) -> BTreeSet<String> {
    valid.tenants.iter().filter(|t| which(t)).map(|t| t.name.clone()).collect()
}

fn tenants_to_make(valid: &Validated<'_>) -> BTreeMap<String, crds::Tenant> {
    let made = valid.tenants.iter().filter(|t| t.object.is_none()).map(|t| {
        let mut tenant = crds::Tenant::new(
            &t.name,
            TenantSpec { vni: t.vni, max_prefixes: t.settings.max_prefixes, ..TenantSpec::default() },
        );
        tenant.metadata.labels =
            Some([(keys::MANAGED_BY.to_owned(), keys::MANAGED_BY_ANNOTATION.to_owned())].into());
        (t.name.clone(), tenant)
    });
    made.collect()
}

/// Deleted tenants of which nothing is left, neither in the cluster nor on a router that can be asked.
fn finished(snapshot: &Snapshot, valid: &Validated<'_>, placement: &Placement) -> BTreeSet<String> {
    let deleting = valid.tenants.iter().enumerate().filter(|(_, t)| t.deleting);
    let mut left: BTreeSet<&str> = deleting
        .filter(|&(t, _)| !placement.is_labelled(t))
        // Pools that no annotation would quarantine once their Tenant is gone.
        .filter(|&(t, _)| !valid.pools.iter().any(|p| p.leaving && p.claim == Claim::Tenant(t)))
        .map(|(_, tenant)| tenant.name.as_str())
        .collect();
    if left.is_empty() {
        return BTreeSet::new();
    }
    let standing: BTreeSet<&str> =
        snapshot.peers.iter().map(Calico::name).chain(snapshot.filters.iter().map(Calico::name)).collect();
    left.retain(|name| {
        let [plain, v6] = calico::object_names(name);
        // A BGPPeer for a second ASN has that in its name, after a dot.
        let of_tenant =
            |object: &&str| **object == plain || **object == v6 || object.starts_with(&format!("{plain}."));
        !standing.iter().any(of_tenant)
    });
    // A router whose Node is gone can be told nothing, so nothing waits for it.
    for agent in valid.nodes.iter().filter_map(|node| snapshot.agents.get(node.name)) {
        for (name, _) in &agent.programmed {
            left.remove(name.as_str());
        }
    }
    left.into_iter().map(str::to_owned).collect()
}

fn quarantined(valid: &Validated<'_>) -> BTreeMap<String, &'static str> {
    let claimed = valid.pools.iter().filter(|pool| pool.claim != Claim::Plain);
    claimed.filter_map(|pool| Some((pool.name.to_owned(), pool.verdict.as_ref()?.reason))).collect()
}

fn notices(valid: &Validated<'_>) -> BTreeSet<Notice> {
    let notice = |about, verdict: &Verdict| Notice {
        about,
        reason: verdict.reason.to_owned(),
        message: verdict.message.clone(),
    };
    let mut notices = BTreeSet::new();
    for pool in &valid.pools {
        // That its Tenant goes is no surprise to whoever deleted it.
        if pool.leaving && pool.verdict.is_none() {
            notices.insert(notice(About::Pool(pool.name.to_owned()), &status::leaving(pool)));
        }
        if let Some(verdict) = &pool.told {
            notices.insert(notice(About::Pool(pool.name.to_owned()), verdict));
        }
        if let Some(verdict) = pool.verdict.as_ref().filter(|v| v.reason != reason::TENANT_TERMINATING) {
            notices.insert(notice(About::Pool(pool.name.to_owned()), verdict));
        }
    }
    for tenant in valid.tenants.iter().filter(|t| !t.deleting) {
        if let Some(verdict) = &tenant.verdict {
            notices.insert(notice(About::Tenant(tenant.name.clone()), verdict));
        }
    }
    for underlay in &valid.underlays {
        if let Err(verdict) = &underlay.settings {
            notices.insert(notice(About::Underlay(underlay.name.to_owned()), verdict));
        }
    }
    for node in &valid.nodes {
        let verdict = match &node.seat {
            Seat::Ambiguous(underlays) => {
                let names: Vec<_> =
                    underlays.iter().map(|&u| format!("`{}`", valid.underlays[u].name)).collect();
                Verdict::new(
                    reason::UNDERLAY_AMBIGUOUS,
                    format!(
                        "the Underlays {} all select this Node by spec.nodeSelector; its router stays as it is until one alone does",
                        names.join(", ")
                    ),
                )
            }
            Seat::In { underlay, full: true, .. } => {
                let name = valid.underlays[*underlay].name;
                let way_out = match valid.nodes.iter().find(|n| n.holds_a_number_elsewhere()) {
                    Some(left) => format!(
                        "take the annotation {} off Nodes that have left it (as `{}`), or make another Underlay and move Nodes to it",
                        keys::ROUTER_INDEX,
                        left.name
                    ),
                    None => "make another Underlay and move Nodes to it".to_owned(),
                };
                Verdict::new(
                    reason::NO_ROUTER_INDEX,
                    format!("all addresses of spec.vtepCIDR of Underlay `{name}` are in use; {way_out}"),
                )
            }
            _ => continue,
        };
        notices.insert(notice(About::Node(node.name.to_owned()), &verdict));
    }
    notices
}

/// Pools that name no tenant that there could be.
fn nobodys<'v, 'a>(valid: &'v Validated<'a>) -> impl Iterator<Item = &'v Pool<'a>> {
    valid.pools.iter().filter(|p| p.claim == Claim::Nobody)
}
