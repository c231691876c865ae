//! BGPFilters and BGPPeers: what BIRD tells the routers of each tenant.
//!
//! A BGPFilter that Calico's renderer cannot use stops BIRD's configuration on all nodes of the cluster, so every rule
//! made here follows from a pool that was found valid: its prefix length is not above its block size.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

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
    validate::{Pool, Tenant, Underlay, Validated, asn_of},
};

/// Names of a tenant's BGPFilter and IPv4 BGPPeer, and of its IPv6 BGPPeer.
pub(super) fn object_names(tenant: &str) -> [String; 2] {
    [format!("calico-vni-{tenant}"), format!("calico-vni-{tenant}-v6")]
}

/// All filters and peers.
pub(super) fn objects(snapshot: &Snapshot, valid: &Validated<'_>, placement: &Placement, plan: &mut Plan) {
    let standing: BTreeMap<&str, &BgpPeer> = snapshot.peers.iter().map(|p| (p.name(), p)).collect();
    let asns: BTreeSet<u32> = valid.underlays.iter().filter_map(Underlay::accepted).map(|s| s.asn).collect();
    let values: BTreeSet<&str> = valid.nodes.iter().flat_map(|n| n.ready_values.iter().copied()).collect();
    for (t, tenant) in valid.tenants.iter().enumerate() {
        let active = placement.active[t];
        // One that has to go keeps its session, over which nothing is said, until the last label is off.
        if !active && !placement.is_labelled(t) {
            continue;
        }
        let [name, _] = object_names(&tenant.name);
        let pools: Vec<&Pool<'_>> =
            tenant.pools.iter().filter(|_| active).map(|&p| &valid.pools[p]).collect();
        let [_, plain_v6] = object_names(&tenant.name);
        let of_tenant =
            |peer: &str| peer == name || peer == plain_v6 || peer.starts_with(&format!("{name}."));
        let wanted = |peer: &str| {
            if active {
                pools.iter().any(|p| is_v6(p) == peer.ends_with("-v6"))
            } else {
                standing.contains_key(peer)
            }
        };
        let mut specs: BTreeMap<String, Option<BgpPeerSpec>> = BTreeMap::new();
        for &asn in &asns {
            let [peer, peer_v6] = peer_names(valid, &name, asn);
            for (peer, v6) in [(peer, false), (peer_v6, true)] {
                let spec = router(valid, t, v6)
                    .filter(|_| wanted(&peer))
                    .and_then(|address| peer_spec(tenant, &name, address, asn, &valid.ready_value(asn)));
                specs.insert(peer, spec);
            }
        }
        // What belongs to an Underlay that is not accepted stays while its nodes' labels stand.
        for (&peer, object) in standing.range(name.as_str()..).take_while(|(peer, _)| peer.starts_with(&name))
        {
            let value = match asn_of(peer) {
                Some(asn) => format!("{}-{asn}", keys::READY),
                None => keys::READY.to_owned(),
            };
            let stays = valid.fabric.is_none() || values.contains(value.as_str());
            if of_tenant(peer) && stays && wanted(peer) && !specs.contains_key(peer) {
                specs.insert(peer.to_owned(), Some(object.spec.clone()));
            }
        }
        for (peer, spec) in specs {
            let Some(spec) = spec else { continue };
            let mut object = owned(snapshot.calico_api, &peer, spec, tenant);
            // Of the two the peer alone: the garbage collector would take a filter before its peer, which is then open.
            object.metadata.owner_references =
                tenant.object.and_then(|t| owner(&t.metadata)).map(|owner| vec![owner]);
            plan.peers.insert(peer, object);
        }
        let filter: BgpFilter =
            owned(snapshot.calico_api, &name, filter_spec(&pools, tenant.settings.advertise), tenant);
        plan.filters.insert(name, filter);
    }
}

/// Names of a tenant's BGPPeers for routers of this ASN. A second ASN of the cluster is part of the name.
fn peer_names(valid: &Validated<'_>, name: &str, asn: u32) -> [String; 2] {
    if valid.plain_asn == Some(asn) {
        [name.to_owned(), format!("{name}-v6")]
    } else {
        [format!("{name}.{asn}"), format!("{name}.{asn}-v6")]
    }
}

/// The router's end of the tenant's link.
fn router(valid: &Validated<'_>, tenant: usize, v6: bool) -> Option<IpAddr> {
    let fabric = valid.fabric()?;
    let link = valid.running[tenant]?.link_index;
    Some(if v6 {
        IpAddr::from((u128::from(names::host_v6(fabric.link_v6, link)) + 1).to_be_bytes())
    } else {
        IpAddr::from((u32::from(names::host_v4(fabric.link_v4, link)) + 1).to_be_bytes())
    })
}

fn peer_spec(
    tenant: &Tenant<'_>,
    filter: &str,
    address: IpAddr,
    asn: u32,
    value: &str,
) -> Option<BgpPeerSpec> {
    Some(BgpPeerSpec {
        node: None,
        node_selector: Some(format!("{} == '{value}'", keys::ready_label(&tenant.name))),
        peer_ip: Some(address.to_string()),
        as_number: Some(i32::try_from(asn).ok()?),
        source_address: Some("None".to_owned()),
        filters: Some(vec![filter.to_owned()]),
    })
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
