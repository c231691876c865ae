//! The guard of the router's namespace as a table of `nft`. Pure.
//!
//! Tunnels are spoken by routers of the fabric alone, and a tenant speaks to its router BGP and ICMP alone. What is
//! forwarded inside a VRF is none of its business.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use calico_vni_proto::{
    model::{NodeConfig, Tenant, Underlay},
    names,
};
use ipnet::IpNet;

use super::{disjoint, text::Table};
use crate::state::Uplink;

/// Counter of tunnel packets that come from no router of the fabric.
pub const COUNTER_TUNNEL: &str = "tunnel";

/// Counter of what a tenant says to the router itself, and has not to say.
pub const COUNTER_ROUTER: &str = "router";

/// What the router lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Interfaces that tunnel packets come in by.
    pub uplinks: Vec<String>,
    /// Disjoint prefixes of the links to the fabric. Who is on a link is a neighbour, no tunnel end point: those are
    /// learned by routing.
    pub on_link: Vec<IpNet>,
    /// The router's own addresses in the fabric.
    pub own: BTreeSet<IpAddr>,
    /// By VNI: host's and router's address of each family.
    pub links: BTreeMap<u32, [(IpAddr, IpAddr); 2]>,
}

impl Router {
    /// For this configuration, on a node whose uplinks are as `uplinks` tells.
    pub fn new(config: &NodeConfig, uplinks: &BTreeMap<String, Uplink>) -> Self {
        let Some(underlay) = &config.underlay else { return Self::default() };
        let addresses = || of_uplinks(underlay, uplinks);
        // A point-to-point link of one address has nobody else on it, and may carry the neighbour's tunnel address.
        let nets: Vec<IpNet> = addresses().filter(|net| net.prefix_len() < net.max_prefix_len()).collect();
        Self {
            uplinks: underlay.interfaces.clone(),
            on_link: disjoint(nets.iter()),
            own: addresses().map(|net| net.addr()).chain([underlay.vtep]).collect(),
            links: config.tenants.iter().map(|tenant| (tenant.vni, link(tenant))).collect(),
        }
    }
}

fn of_uplinks<'a>(
    underlay: &'a Underlay,
    uplinks: &'a BTreeMap<String, Uplink>,
) -> impl Iterator<Item = IpNet> + 'a {
    let known = underlay.interfaces.iter().filter_map(|name| uplinks.get(name));
    known.flat_map(|uplink| uplink.addresses.iter().map(|address| address.net))
}

fn link(tenant: &Tenant) -> [(IpAddr, IpAddr); 2] {
    [(tenant.host_v4.into(), tenant.router_v4().into()), (tenant.host_v6.into(), tenant.router_v6().into())]
}

/// The table. `digest` is kept inside of it.
pub(super) fn render(router: &Router, digest: &str) -> Table {
    let mut table = Table::default();
    table.counters([COUNTER_TUNNEL, COUNTER_ROUTER].map(str::to_owned));
    let uplinks: Vec<String> = router.uplinks.iter().map(|name| format!("\"{name}\"")).collect();
    table.set("uplinks".into(), "ifname", "", uplinks);
    for (digit, address, v6) in [('4', "ipv4_addr", false), ('6', "ipv6_addr", true)] {
        let nets = router.on_link.iter().filter(|net| matches!(net, IpNet::V6(_)) == v6);
        let nets: Vec<String> = nets.map(ToString::to_string).collect();
        table.set(format!("on-link{digit}"), address, "interval", nets);
        let own = router.own.iter().filter(|own| own.is_ipv6() == v6).map(ToString::to_string);
        table.set(format!("own{digit}"), address, "", own.collect());
        let links = router.links.values().map(|link| link[usize::from(v6)]);
        let ends: Vec<String> = links.clone().map(|(_, router)| router.to_string()).collect();
        table.set(format!("links{digit}"), address, "", ends);
        let pairs: Vec<String> = links.map(|(host, router)| format!("{host} . {router}")).collect();
        table.set(format!("pairs{digit}"), &format!("{address} . {address}"), "", pairs);
    }
    // Each packet comes by once more with the VRF as its interface, whichever of its ports it came in by: it was judged
    // by then.
    let inside = |vni: &u32| [(names::router_link(*vni), "host"), (names::bridge(*vni), "fabric")];
    let ways: Vec<String> = (router.links.keys().flat_map(inside))
        .map(|(name, side)| format!("\"{name}\" : goto from-{side}"))
        .collect();
    table.map("inside".into(), "ifname : verdict", "", ways);

    let foreign = format!("counter name \"{COUNTER_TUNNEL}\" drop");
    let mut tunnel = Vec::new();
    if !router.uplinks.is_empty() {
        tunnel.push(format!("iifname != @uplinks {foreign}"));
    }
    tunnel.push(format!("ip saddr @on-link4 {foreign}"));
    tunnel.push(format!("ip6 saddr @on-link6 {foreign}"));
    // Nobody announces it.
    tunnel.push(format!("fib saddr oif 0 {foreign}"));
    table.chain("from-tunnel", &tunnel);

    let refused = format!("counter name \"{COUNTER_ROUTER}\" drop");
    let own = [format!("ip daddr @own4 {refused}"), format!("ip6 daddr @own6 {refused}")];
    let icmp = ["meta l4proto { icmp, icmpv6 } return".to_owned()];
    let bgp = ["dport", "sport"].map(|port| {
        ["ip saddr . ip daddr @pairs4", "ip6 saddr . ip6 daddr @pairs6"]
            .map(|pair| format!("{pair} tcp {port} 179 return"))
    });
    let ends = [format!("ip daddr @links4 {refused}"), format!("ip6 daddr @links6 {refused}")];
    table.chain("from-host", &[&own[..], &icmp[..], bgp.as_flattened(), &ends[..]].concat());
    table.chain("from-fabric", &[&own[..], &icmp[..], &ends[..]].concat());
    table.chain(
        "prerouting",
        &[
            "type filter hook prerouting priority raw; policy accept;".to_owned(),
            // Before anything else, so that a tenant's own tunnels go on as what they are to us: its packets.
            "iifname vmap @inside".to_owned(),
            format!("udp dport {} ip daddr @own4 goto from-tunnel", names::VXLAN_PORT),
            format!("udp dport {} ip6 daddr @own6 goto from-tunnel", names::VXLAN_PORT),
        ],
    );
    table.chain("digest", &[format!("return comment \"{digest}\"")]);
    table
}
