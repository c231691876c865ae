//! BGPFilters and BGPPeers: what BIRD tells the routers of each tenant.
//!
//! A BGPFilter that Calico's renderer cannot use stops BIRD's configuration on all nodes of the cluster, so every rule
//! made here follows from a pool that was found valid: its prefix length is not above its block size.

use std::{collections::BTreeMap, net::IpAddr};

use calico_vni_crds::{
    Tenant as TenantObject,
    calico::{
        BgpFilter, BgpFilterRule, BgpFilterSpec, BgpPeer, BgpPeerSpec, Calico, CalicoApi, FilterAction,
        MatchOperator, PrefixLength,
    },
    keys,
    tenant::Advertise,
};
use calico_vni_proto::names;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::placement::Placement;
use crate::{
    Plan, Snapshot,
    validate::{Pool, Tenant, Validated},
};

/// Names of a tenant's BGPFilter and IPv4 BGPPeer, and of its IPv6 BGPPeer.
pub(super) fn object_names(tenant: &str) -> [String; 2] {
    [format!("calico-vni-{tenant}"), format!("calico-vni-{tenant}-v6")]
}

/// All filters and peers.
pub(super) fn objects(snapshot: &Snapshot, valid: &Validated<'_>, placement: &Placement, plan: &mut Plan) {
    let standing: BTreeMap<&str, &BgpPeer> = snapshot.peers.iter().map(|p| (p.name(), p)).collect();
    for (t, tenant) in valid.tenants.iter().enumerate() {
        let active = placement.active[t];
        // One that has to go keeps its session, over which nothing is said, until the last label is off.
        if !active && !placement.is_labelled(t) {
            continue;
        }
        let [name, name_v6] = object_names(&tenant.name);
        let pools: Vec<&Pool<'_>> =
            tenant.pools.iter().filter(|_| active).map(|&p| &valid.pools[p]).collect();
        for (v6, peer) in [(false, &name), (true, &name_v6)] {
            let kept = standing.get(peer.as_str());
            let wanted = if active { pools.iter().any(|p| is_v6(p) == v6) } else { kept.is_some() };
            let spec = match (wanted, router(valid, tenant, v6)) {
                (false, _) => None,
                (true, Some((address, asn))) => Some(peer_spec(tenant, &name, address, asn)),
                // No Underlay is accepted: what stands stays.
                (true, None) => kept.map(|peer| peer.spec.clone()),
            };
            if let Some(spec) = spec {
                let mut object = owned(snapshot.calico_api, peer, spec, tenant);
                // Of the two the peer alone: the garbage collector would take a filter before its peer, which is then open.
                object.metadata.owner_references =
                    tenant.object.and_then(|t| owner(&t.metadata)).map(|owner| vec![owner]);
                plan.peers.insert(peer.clone(), object);
            }
        }
        let filter: BgpFilter =
            owned(snapshot.calico_api, &name, filter_spec(&pools, tenant.settings.advertise), tenant);
        plan.filters.insert(name, filter);
    }
}

/// The router's end of the tenant's link, and its ASN.
fn router(valid: &Validated<'_>, tenant: &Tenant<'_>, v6: bool) -> Option<(IpAddr, i32)> {
    let fabric = valid.fabric()?;
    let link = tenant.standing()?.link_index;
    let address = if v6 {
        IpAddr::from((u128::from(names::host_v6(fabric.link_v6, link)) + 1).to_be_bytes())
    } else {
        IpAddr::from((u32::from(names::host_v4(fabric.link_v4, link)) + 1).to_be_bytes())
    };
    Some((address, i32::try_from(fabric.asn).ok()?))
}

fn peer_spec(tenant: &Tenant<'_>, filter: &str, address: IpAddr, asn: i32) -> BgpPeerSpec {
    BgpPeerSpec {
        node: None,
        node_selector: Some(format!("{} == '{}'", keys::ready_label(&tenant.name), keys::READY)),
        peer_ip: Some(address.to_string()),
        as_number: Some(asn),
        source_address: Some("None".to_owned()),
        filters: Some(vec![filter.to_owned()]),
    }
}

fn owned<S: calico_vni_crds::calico::CalicoSpec>(
    api: CalicoApi,
    name: &str,
    spec: S,
    tenant: &Tenant<'_>,
) -> Calico<S> {
    let mut object = Calico::new(api, name, spec);
    object.metadata.labels = Some(
        [
            (keys::MANAGED_BY.to_owned(), keys::MANAGED_BY_TENANT.to_owned()),
            (keys::OWNER.to_owned(), tenant.name.clone()),
        ]
        .into(),
    );
    object
}

fn owner(meta: &ObjectMeta) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: TenantObject::api_version(&()).into_owned(),
        kind: TenantObject::kind(&()).into_owned(),
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        controller: Some(true),
        block_owner_deletion: Some(false),
    })
}

fn is_v6(pool: &Pool<'_>) -> bool {
    matches!(pool.cidr, Some(IpNet::V6(_)))
}

fn filter_spec(pools: &[&Pool<'_>], advertise: Advertise) -> BgpFilterSpec {
    let family = |v6: bool| -> Vec<&Pool<'_>> { pools.iter().copied().filter(|p| is_v6(p) == v6).collect() };
    BgpFilterSpec {
        export_v4: export(&family(false), advertise),
        import_v4: vec![reject()],
        export_v6: export(&family(true), advertise),
        import_v6: vec![reject()],
    }
}

fn reject() -> BgpFilterRule {
    BgpFilterRule { action: FilterAction::Reject, ..BgpFilterRule::default() }
}

/// Rules for one family.
///
/// What came from other nodes is never told on. With a single pool Calico's own aggregation then says what is right:
/// the block by its owner, a borrowed address by its borrower. With several pools, or one that is kept from all other
/// peers, only explicit acceptance can say it, and aggregation does not apply.
fn export(pools: &[&Pool<'_>], advertise: Advertise) -> Vec<BgpFilterRule> {
    let foreign = BgpFilterRule { source: Some("RemotePeers".to_owned()), ..reject() };
    let within = |net: IpNet, operator, action| BgpFilterRule {
        action,
        cidr: Some(net.to_string()),
        match_operator: Some(operator),
        ..BgpFilterRule::default()
    };
    let nets = pools.iter().filter_map(|p| Some((p.cidr?, p.block_size)));
    if let [pool] = pools
        && pool.object.spec.disable_bgp_export != Some(true)
        && advertise == Advertise::Blocks
    {
        let only = nets.map(|(net, _)| within(net, MatchOperator::NotIn, FilterAction::Reject));
        return std::iter::once(foreign).chain(only).collect();
    }
    if pools.is_empty() {
        return vec![reject()];
    }
    let mut rules = vec![foreign];
    for (net, block_size) in nets {
        rules.push(BgpFilterRule {
            prefix_length: Some(PrefixLength { min: Some(net.prefix_len()), max: Some(block_size) }),
            ..within(net, MatchOperator::In, FilterAction::Accept)
        });
        if advertise == Advertise::Pods {
            let host = net.max_prefix_len();
            rules.push(BgpFilterRule {
                prefix_length: Some(PrefixLength { min: Some(host), max: Some(host) }),
                interface: Some("cali*".to_owned()),
                ..within(net, MatchOperator::In, FilterAction::Accept)
            });
        }
    }
    rules.push(reject());
    rules
}
