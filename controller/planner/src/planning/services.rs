//! Shared services: the endpoints that tenants reach outside their VRFs.
//!
//! A service is opened by address, protocol and port of its endpoints, never by address alone. An endpoint in a tenant's
//! pool is never opened: it would be a hole between that tenant and all others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico_vni_proto::model::{Endpoint, Guard, Protocol, SharedService};
use ipnet::IpNet;
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use super::told::{Told, some_of};
use crate::{
    Snapshot,
    prefix::{Span, span},
    reason,
    validate::Validated,
};

/// Label of a slice with the name of its Service (`discovery.k8s.io/v1`).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The services that tenants name.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Those with endpoints, by name.
    pub shared: Vec<SharedService>,
    /// What has to be told of each tenant that names some.
    pub told: Vec<Option<Told>>,
}

/// Follows the services that accepted tenants name, given all pools that the guard knows.
pub(super) fn follow(snapshot: &Snapshot, valid: &Validated<'_>, guard: &Guard) -> Services {
    let named: BTreeSet<&str> = (valid.tenants.iter())
        .filter(|t| t.is_accepted())
        .flat_map(|t| t.settings.services.iter().map(String::as_str))
        .collect();
    let closed = Closed::of(snapshot, guard);
    let mut open: BTreeMap<&str, BTreeSet<Endpoint>> = BTreeMap::new();
    let mut refused: BTreeMap<&str, BTreeMap<IpAddr, String>> = BTreeMap::new();
    for slice in &snapshot.endpoint_slices {
        let Some(name) = service(slice).and_then(|name| named.get(name.as_str()).copied()) else { continue };
        for endpoint in endpoints(slice) {
            match closed.holder(endpoint.address) {
                Some(holder) => {
                    refused.entry(name).or_default().insert(endpoint.address, holder);
                }
                None => {
                    open.entry(name).or_default().insert(endpoint);
                }
            }
        }
    }
    let told = valid.tenants.iter().map(|tenant| {
        let services = &tenant.settings.services;
        if services.is_empty() || !tenant.is_accepted() {
            return None;
        }
        let mut in_tenant = services.iter().filter_map(|name| {
            let (address, holder) = refused.get(name.as_str())?.first_key_value()?;
            Some(format!(
                "spec.sharedServices.services: `{name}` has endpoint {address} in {holder}, which is not opened to others; run its pods in a pool that is no tenant's"
            ))
        });
        if let Some(first) = in_tenant.next() {
            let message = some_of(std::iter::once(first).chain(in_tenant));
            return Some(Told { holds: false, reason: reason::ENDPOINT_IN_TENANT, message });
        }
        let empty: Vec<String> =
            services.iter().filter(|s| !open.contains_key(s.as_str())).map(|s| format!("`{s}`")).collect();
        Some(if empty.is_empty() {
            let message = format!("its pods reach {}", some_of(services.iter().cloned()));
            Told { holds: true, reason: reason::REACHABLE, message }
        } else {
            let message = format!(
                "spec.sharedServices.services: no EndpointSlice holds an endpoint of {}; check the names, or whether the services' pods are ready",
                some_of(empty.into_iter())
            );
            Told { holds: false, reason: reason::NO_ENDPOINTS, message }
        })
    });
    let told = told.collect();
    let carried = valid.tenants.iter().filter(|t| t.is_accepted() && !t.pools.is_empty());
    let carried: BTreeSet<&str> =
        carried.flat_map(|t| t.settings.services.iter().map(String::as_str)).collect();
    open.retain(|name, _| carried.contains(name));
    let shared = open.into_iter().map(|(name, endpoints)| SharedService {
        name: name.to_owned(),
        endpoints: endpoints.into_iter().collect(),
    });
    Services { shared: shared.collect(), told }
}

/// `namespace/name` of the Service whose slice it is.
fn service(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref()?))
}

/// Endpoints that answer. Slices of names (`FQDN`) hold no address.
fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: Vec<(Protocol, u16)> = (slice.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                Some(_) => return None,
            };
            let number = u16::try_from(port.port?).ok().filter(|port| *port > 0)?;
            Some((protocol, number))
        })
        .collect();
    let addresses = (slice.endpoints.iter().flatten().filter(|e| answers(e)))
        .flat_map(|e| &e.addresses)
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .filter(|&address| match address {
            IpAddr::V4(v4) => slice.address_type == "IPv4" && is_unicast(address) && !v4.is_link_local(),
            IpAddr::V6(v6) => {
                slice.address_type == "IPv6" && is_unicast(address) && !v6.is_unicast_link_local()
            }
        });
    addresses
        .flat_map(|address| ports.iter().map(move |&(protocol, port)| Endpoint { address, protocol, port }))
        .collect()
}

fn is_unicast(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

/// Ready; or going, but still serving: what is under way may end there. A condition that is not told is a good one.
fn answers(endpoint: &SliceEndpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else { return true };
    conditions.ready != Some(false) || conditions.serving == Some(true)
}

/// Where no endpoint may be.
struct Closed<'g> {
    /// Tenants' pools and what is quarantined, which are disjoint.
    pools: Vec<(Span, IpNet, Option<&'g str>)>,
    /// Live blocks.
    blocks: Vec<Span>,
}

impl<'g> Closed<'g> {
    fn of(snapshot: &Snapshot, guard: &'g Guard) -> Self {
        let tenants =
            guard.tenants.iter().flat_map(|t| t.pools.iter().map(|net| (*net, Some(t.name.as_str()))));
        let all = tenants.chain(guard.quarantined.iter().map(|net| (*net, None)));
        let mut pools: Vec<_> = all.map(|(net, tenant)| (span(&net), net, tenant)).collect();
        pools.sort_unstable();
        let blocks = snapshot.blocks.iter().filter(|_| !guard.quarantined.is_empty());
        let mut blocks: Vec<Span> = blocks.map(|block| span(&block.net)).collect();
        blocks.sort_unstable();
        Self { pools, blocks }
    }

    /// In words, what holds the address. In quarantine only pods are looked for: a bad pool, however wide, does not shut a
    /// service that runs on nodes.
    fn holder(&self, address: IpAddr) -> Option<String> {
        let (v6, first, _) = span(&address.into());
        let within = |&(w6, start, end): &Span| w6 == v6 && start <= first && first <= end;
        let before = |&(w6, start, _): &Span| (w6, start) <= (v6, first);
        let after = self.pools.partition_point(|(span, ..)| before(span));
        let (_, net, tenant) = self.pools[..after].last().filter(|(span, ..)| within(span))?;
        if let Some(tenant) = tenant {
            return Some(format!("pool {net} of Tenant `{tenant}`"));
        }
        let block = self.blocks[..self.blocks.partition_point(before)].last();
        block.is_some_and(within).then(|| format!("{net}, which is quarantined"))
    }
}
