//! The guard: all tenants' pools, and the prefixes of pools that are quarantined.

use calico_vni_proto::model::{Guard, GuardTenant};
use ipnet::IpNet;

use crate::{
    prefix,
    validate::{Claim, Underlay, Validated},
};

/// The same for every node. A pool is in it from the moment that its tenant's VNI is known, before any node carries
/// the tenant; until then it is quarantined.
pub(super) fn guard(valid: &Validated<'_>) -> Guard {
    let mut tenants = Vec::new();
    let mut open = Vec::new();
    for tenant in &valid.tenants {
        let Some(vni) = tenant.vni.filter(|_| tenant.is_accepted() && !tenant.pools.is_empty()) else {
            continue;
        };
        let pools: Vec<IpNet> = tenant.pools.iter().filter_map(|&p| valid.pools[p].cidr).collect();
        open.extend(&pools);
        tenants.push(GuardTenant { name: tenant.name.clone(), vni, pools });
    }
    tenants.sort_by_key(|t| t.vni);
    let mut closed = Vec::new();
    for pool in &valid.pools {
        let Some(net) = pool.cidr else { continue };
        match pool.claim {
            Claim::Plain => open.push(net),
            // Those in the guard are taken away again below.
            _ => closed.push(net),
        }
    }
    // What no pod should have for an address is not shut to everybody because a pool claims it. But a prefix so wide
    // that whole pools lie in it opens none of them.
    for settings in valid.underlays.iter().filter_map(Underlay::accepted) {
        let narrow = |net: &IpNet| !closed.iter().any(|pool| net.contains(pool));
        open.extend(settings.prefixes().map(|(_, net)| net).filter(narrow));
    }
    Guard { tenants, quarantined: prefix::subtract(&closed, &open), services: Vec::new() }
}
