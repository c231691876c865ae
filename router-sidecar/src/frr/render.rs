//! The desired configuration of FRR, from a node's configuration. Pure.

use std::net::{IpAddr, Ipv4Addr};

use calico_vni_proto::{
    model::{Neighbor, NodeConfig, Pool, RouteTarget, Tenant, Underlay},
    names,
};
use ipnet::IpNet;

use super::{
    config::{Block, Config, Family, Global, Instance, PREFIX, Section},
    version::Version,
};

/// Keepalive and hold time towards BIRD, seconds. BIRD takes the lower of the two hold times offered
/// (RFC 4271 section 4.2), so nobody has to configure it there.
const BIRD_TIMERS: &str = "3 9";

/// Seconds between attempts to connect. BIRD takes an incoming session at once, but dials only after its own delay.
const CONNECT_RETRY: u32 = 1;

/// Minutes until a session closed for too many prefixes is tried again; FRR's smallest.
const PREFIX_LIMIT_RESTART: u32 = 1;

/// Seconds for which route selection waits at start, where FRR would wait six minutes for a dead neighbour.
const SELECT_DEFER: u32 = 5;

/// What FRR has to be configured with so that the node carries `node`.
pub fn render(node: &NodeConfig, version: Version) -> Config {
    let Some(underlay) = &node.underlay else { return Config::default() };
    let mut tenants: Vec<Section> = node.tenants.iter().map(|t| tenant(underlay, t, version)).collect();
    tenants.sort_by_key(|section| section.vni);
    Config { global: global(underlay, version), tenants }
}

/// Nothing learned from one fabric neighbour goes out to another: the paths that leave are the router's own, and the
/// ones of this node's BIRD, which carry its ASN.
fn global(underlay: &Underlay, version: Version) -> Global {
    let list = |name: &str, seq: u32, pattern: &str| {
        format!("bgp as-path access-list {PREFIX}{name} seq {seq} permit {pattern}")
    };
    let map = |name: &str, matches: Option<&str>| Block {
        header: format!("route-map {PREFIX}{name} permit 10"),
        lines: matches.map(|list| format!("match as-path {PREFIX}{list}")).into_iter().collect(),
    };
    Global {
        lists: vec![
            list("router", 5, "^$"),
            list("node", 5, "^$"),
            list("node", 10, &format!("^{}$", underlay.calico_asn)),
        ],
        route_maps: vec![
            map("fabric-in", None),
            map("underlay-out", Some("router")),
            map("evpn-out", Some("node")),
        ],
        bgp: Some(default_instance(underlay, version)),
    }
}

fn default_instance(underlay: &Underlay, version: Version) -> Instance {
    let mut lines = instance_head(underlay, version);
    // Leaves of one rack often have an ASN each; without this only one of their paths would be used.
    lines.push("bgp bestpath as-path multipath-relax".to_owned());
    for neighbor in &underlay.neighbors {
        let Neighbor { address, asn, hold_time, password } = neighbor;
        let [remote, timers, connect] = session(*address, *asn, &format!("{} {hold_time}", hold_time / 3));
        // Right behind the neighbour itself, so that nothing is dialled without it.
        let password = password.iter().map(|word| format!("neighbor {address} password {}", word.reveal()));
        lines.extend([remote].into_iter().chain(password).chain([timers, connect]));
        if underlay.vtep.is_ipv4() && address.is_ipv6() {
            // An IPv4 end point behind an IPv6 next hop (RFC 8950).
            lines.push(format!("neighbor {address} capability extended-nexthop"));
        }
    }
    let both = |out: &str| -> Vec<String> {
        underlay.neighbors.iter().flat_map(|n| fabric_policy(n.address, out)).collect()
    };
    let vtep = underlay.vtep;
    let mut unicast = vec![format!("network {vtep}/{}", if vtep.is_ipv4() { 32 } else { 128 })];
    unicast.extend(both("underlay-out"));
    let mut evpn = both("evpn-out");
    evpn.push("advertise-all-vni".to_owned());
    let unicast_name = if vtep.is_ipv4() { "ipv4 unicast" } else { "ipv6 unicast" };
    Instance {
        header: format!("router bgp {}", underlay.asn),
        lines,
        families: vec![family(unicast_name, unicast), family("l2vpn evpn", evpn)],
    }
}

fn fabric_policy(peer: IpAddr, out: &str) -> [String; 4] {
    [
        format!("neighbor {peer} activate"),
        // All routers share an ASN, and with an eBGP fabric it is in the path of what the others announce.
        format!("neighbor {peer} allowas-in"),
        format!("neighbor {peer} route-map {PREFIX}fabric-in in"),
        format!("neighbor {peer} route-map {PREFIX}{out} out"),
    ]
}

fn tenant(underlay: &Underlay, tenant: &Tenant, version: Version) -> Section {
    let mut lists = Vec::new();
    let mut lines = instance_head(underlay, version);
    let mut families = Vec::new();
    let mut evpn = Vec::new();
    let peers =
        [(tenant.has_v4(), IpAddr::V4(tenant.host_v4)), (tenant.has_v6(), IpAddr::V6(tenant.host_v6))];
    for (_, peer) in peers.into_iter().filter(|(wanted, _)| *wanted) {
        let name = if peer.is_ipv4() { "ipv4 unicast" } else { "ipv6 unicast" };
        lines.extend(session(peer, underlay.calico_asn, BIRD_TIMERS));
        lists.extend(prefix_lists(tenant, peer.is_ipv4()));
        let mut unicast = bird_policy(tenant, peer);
        if version.loses_router_macs() {
            unicast.push("maximum-paths 1".to_owned());
        }
        families.push(family(name, unicast));
        evpn.push(format!("advertise {name}"));
    }
    evpn.push(format!("rd {}:{}", underlay.router_id, tenant.link_index));
    evpn.extend(imports(tenant, version).map(|rt| format!("route-target import {rt}")));
    evpn.extend(tenant.export_rts.iter().map(|rt| format!("route-target export {rt}")));
    families.push(family("l2vpn evpn", evpn));
    Section {
        vni: tenant.vni,
        tenant: tenant.name.clone(),
        vrf: true,
        l3vni: Some(tenant.vni),
        lists,
        bgp: Some(Instance {
            header: format!("router bgp {} vrf {}", underlay.asn, names::vrf(tenant.vni)),
            lines,
            families,
        }),
    }
}

/// Import targets to write. Releases without the wildcard import `*:VNI` as long as they are told nothing.
fn imports(tenant: &Tenant, version: Version) -> impl Iterator<Item = &RouteTarget> {
    let automatic = format!("*:{}", tenant.vni);
    let only_automatic = tenant.import_rts.iter().all(|rt| rt.as_str() == automatic);
    let skip = only_automatic && !version.takes_wildcard_target();
    tenant.import_rts.iter().filter(move |_| !skip)
}

/// From BIRD only the tenant's pools, to BIRD nothing.
fn bird_policy(tenant: &Tenant, peer: IpAddr) -> Vec<String> {
    let list = list_name(tenant.vni);
    vec![
        format!("neighbor {peer} activate"),
        format!(
            "neighbor {peer} maximum-prefix {} restart {PREFIX_LIMIT_RESTART}",
            tenant.max_prefixes.max(1)
        ),
        format!("neighbor {peer} prefix-list {list}-in in"),
        format!("neighbor {peer} prefix-list {list}-out out"),
    ]
}

fn list_name(vni: u32) -> String {
    format!("{PREFIX}{vni}")
}

fn prefix_lists(tenant: &Tenant, v4: bool) -> Vec<String> {
    let (keyword, host_bits) = if v4 { ("ip", 32) } else { ("ipv6", 128) };
    let list = list_name(tenant.vni);
    let mut pools: Vec<&Pool> =
        tenant.pools.iter().filter(|p| matches!(p.cidr, IpNet::V4(_)) == v4).collect();
    pools.sort();
    let mut rules = Vec::new();
    for Pool { cidr, block_size } in pools {
        rules.push(format!("{cidr} ge {} le {block_size}", cidr.prefix_len()));
        if tenant.advertise_pods && *block_size < host_bits {
            rules.push(format!("{cidr} ge {host_bits}"));
        }
    }
    // The numbers are the place in the list, five apart as FRR itself counts.
    let permits = (1..)
        .zip(rules)
        .map(|(i, rule)| format!("{keyword} prefix-list {list}-in seq {} permit {rule}", 5 * i));
    let mut lines: Vec<String> = permits.collect();
    lines.push(format!("{keyword} prefix-list {list}-out seq 5 deny any"));
    lines
}

/// The beginning of every instance. Graceful restart has to stand before the neighbours, whose sessions would have to
/// be reset for it otherwise.
fn instance_head(underlay: &Underlay, version: Version) -> Vec<String> {
    let router_id: Ipv4Addr = underlay.router_id;
    let mut lines = vec![format!("bgp router-id {router_id}"), "no bgp default ipv4-unicast".to_owned()];
    if underlay.graceful_restart {
        if version.defers_selection() {
            lines.push(format!("bgp graceful-restart select-defer-time {SELECT_DEFER}"));
        }
        lines.push("bgp graceful-restart".to_owned());
        lines.push("bgp graceful-restart preserve-fw-state".to_owned());
    }
    lines
}

fn session(peer: IpAddr, asn: u32, timers: &str) -> [String; 3] {
    [
        format!("neighbor {peer} remote-as {asn}"),
        format!("neighbor {peer} timers {timers}"),
        format!("neighbor {peer} timers connect {CONNECT_RETRY}"),
    ]
}

fn family(name: &str, lines: Vec<String>) -> Family {
    Family { name: name.to_owned(), lines }
}
