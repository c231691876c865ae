//! The guard: all tenants' pools, and the prefixes of pools that are quarantined.

use calico_vni_crds::calico::CalicoApi;
use calico_vni_proto::model::{Guard, GuardTenant};
use ipnet::IpNet;

use crate::{
    Snapshot, prefix,
    validate::{Claim, Pool, Underlay, Validated},
};

/// The same for every node. A pool is in it from the moment that its tenant's VNI is known, before any node carries
/// the tenant; until then it is quarantined. Services are followed by who knows all of this.
pub(super) fn guard(snapshot: &Snapshot, valid: &Validated<'_>) -> Guard {
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
            Claim::Plain => open.extend(plain(snapshot, valid, net)),
            // Those in the guard are taken away again below.
            _ => closed.push(net),
        }
    }
    // What no pod should have for an address is not shut to everybody because a pool claims it. But a prefix so wide
    // that whole pools lie in it opens none of them.
    let narrow = |net: &IpNet| !closed.iter().any(|pool| net.contains(pool));
    for settings in valid.underlays.iter().filter_map(Underlay::accepted) {
        open.extend(settings.prefixes().map(|(_, net)| net).filter(narrow));
    }
    open.extend(valid.services.iter().map(|service| service.net).filter(narrow));
    Guard { tenants, quarantined: prefix::subtract(&closed, &open), services: Vec::new() }
}

/// What of a plain pool is open: all of it, but for tenants' pools that lie within. The storage group alone lets such
/// pools be, and Calico gives addresses of both; so what a pod there has is not told by its address, and nothing may fall
/// to the flat network. Blocks that were there before the tenant's pool are the plain pool's for certain.
fn plain(snapshot: &Snapshot, valid: &Validated<'_>, net: IpNet) -> Vec<IpNet> {
    if snapshot.calico_api != CalicoApi::CrdV1 {
        return vec![net];
    }
    let within = |p: &&Pool<'_>| {
        p.claim != Claim::Plain && p.cidr.is_some_and(|inner| net.contains(&inner) && net != inner)
    };
    let inner: Vec<&Pool<'_>> = valid.pools.iter().filter(within).collect();
    let nets: Vec<IpNet> = inner.iter().filter_map(|p| p.cidr).collect();
    let mut open = prefix::subtract(&[net], &nets);
    for pool in inner {
        let Some(created) = &pool.object.metadata.creation_timestamp else { continue };
        let before = snapshot.blocks.iter().filter(|b| b.created.is_some_and(|at| at < created.0));
        let blocks = before.map(|block| block.net);
        open.extend(blocks.filter(|block| pool.cidr.is_some_and(|cidr| cidr.contains(block))));
    }
    open
}
