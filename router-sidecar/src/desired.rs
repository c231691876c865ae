//! From a node's configuration to everything that has to stand on the node. Pure.
//!
//! What this module makes is compared with what was read ([`crate::observe`]) by [`crate::diff`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use calico_vni_proto::{
    model::{Guard, NodeConfig, Tenant, Underlay},
    names,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};

use crate::{
    guard::{self, Ruleset},
    rules::Steering,
    state::{Address, Kind, LOOPBACK, Link, Mac, NetState, Port, Route, Target, Uplink},
};

/// Metric of the last resort in a tenant's table: the one that FRR's documentation and the kernel's VRF documentation
/// use for it, high enough for every other route to come first.
pub const LAST_RESORT_METRIC: u32 = 4_278_198_272;

/// Metric of our other IPv6 routes: the kernel's default (`IP6_RT_PRIO_USER`), written out so that it can be compared.
const V6_METRIC: u32 = 1024;

/// Octets of Ethernet where neither the underlay nor an uplink says anything.
const ETHERNET_MTU: u32 = 1500;

/// Octets of the outer headers of VXLAN: Ethernet 14, UDP 8, VXLAN 8 and the IP header (RFC 7348 section 5).
const fn overhead(vtep: IpAddr) -> u32 {
    match vtep {
        IpAddr::V4(_) => 14 + 8 + 8 + 20,
        IpAddr::V6(_) => 14 + 8 + 8 + 40,
    }
}

/// The guard that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardWanted {
    /// Nothing was ever heard: what stands is left standing.
    AsItIs,
    /// This one.
    Is(Box<Ruleset>),
    /// None: everything of ours leaves the node.
    Absent,
}

/// All that has to stand on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The guard.
    pub guard: GuardWanted,
    /// The host's namespace.
    pub host: NetState,
    /// The router's namespace.
    pub router: NetState,
    /// Whose packets go into which table, in the host's namespace.
    pub steering: Steering,
    /// Interfaces that belong in the router's namespace.
    pub uplinks: Vec<String>,
    /// What FRR is to carry.
    pub config: NodeConfig,
}

/// What `config` and `guard` ask for, on a node whose uplinks are or were as `uplinks` tells.
pub fn desired(config: &NodeConfig, guard: Option<&Guard>, uplinks: &BTreeMap<String, Uplink>) -> Desired {
    let ruleset = guard
        .map(|guard| Ruleset { router: guard::Router::new(config, uplinks), ..Ruleset::new(guard, config) });
    let mut services: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    for (vni, _, here) in ruleset.iter().flat_map(Ruleset::local) {
        services.insert(vni, here.services.iter().map(|endpoint| endpoint.address).collect());
    }
    let mut desired = Desired {
        guard: ruleset.map_or(GuardWanted::AsItIs, |ruleset| GuardWanted::Is(Box::new(ruleset))),
        host: NetState::default(),
        router: NetState::default(),
        steering: Steering::default(),
        uplinks: Vec::new(),
        config: config.clone(),
    };
    if let Some(underlay) = &config.underlay {
        desired.uplinks.clone_from(&underlay.interfaces);
        router_base(&mut desired.router, underlay, uplinks);
        let mtu = tenant_mtu(underlay, uplinks);
        let mut steered = Vec::new();
        for tenant in &config.tenants {
            router_tenant(&mut desired.router, underlay, tenant, mtu);
            let by_main = by_main(underlay, tenant, services.remove(&tenant.vni).unwrap_or_default());
            host_tenant(&mut desired.host, &by_main, tenant, mtu);
            steered.push((tenant, by_main));
        }
        desired.steering = Steering::new(steered);
    }
    desired
}

/// Nothing of ours: what `cleanup` brings about.
pub fn nothing(node: &str) -> Desired {
    Desired {
        guard: GuardWanted::Absent,
        host: NetState::default(),
        router: NetState::default(),
        steering: Steering::default(),
        uplinks: Vec::new(),
        config: NodeConfig { node: node.to_owned(), underlay: None, tenants: Vec::new() },
    }
}

/// Octets that fit into the tunnel.
fn tenant_mtu(underlay: &Underlay, uplinks: &BTreeMap<String, Uplink>) -> u32 {
    let of_uplinks = || underlay.interfaces.iter().filter_map(|name| uplinks.get(name)).map(|u| u.mtu).min();
    underlay.mtu.or_else(of_uplinks).unwrap_or(ETHERNET_MTU).saturating_sub(overhead(underlay.vtep))
}

/// The router's MAC address in a tenant: locally administered, and the same whenever its bridge is made again, since
/// other routers hold it. For an IPv4 VTEP its last four octets are the VTEP, so that no two routers of a fabric
/// share one.
fn router_mac(vtep: IpAddr, vni: u32) -> Mac {
    let hash = match vtep {
        IpAddr::V4(_) => Sha256::digest(vni.to_be_bytes()),
        IpAddr::V6(v6) => Sha256::digest([v6.octets().as_slice(), vni.to_be_bytes().as_slice()].concat()),
    };
    let mut mac = [0; 6];
    mac.copy_from_slice(&hash[..6]);
    if let IpAddr::V4(v4) = vtep {
        mac[2..].copy_from_slice(&v4.octets());
    }
    // IEEE 802: bit 0 of the first octet is multicast, bit 1 is locally administered.
    mac[0] = (mac[0] & 0b1111_1100) | 0b10;
    Mac(mac)
}

fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn link_net(address: impl Into<IpAddr>) -> IpNet {
    let address = address.into();
    let length = if address.is_ipv4() { 31 } else { 127 };
    IpNet::new_assert(address, length)
}

fn default_of(v6: bool) -> IpNet {
    if v6 { Ipv6Net::default().into() } else { Ipv4Net::default().into() }
}

fn last_resort(table: u32, v6: bool) -> Route {
    Route { table, to: default_of(v6), metric: LAST_RESORT_METRIC, target: Target::Unreachable }
}

fn rp_filter(dev: &str) -> String {
    format!("net/ipv4/conf/{dev}/rp_filter")
}

/// What the router's namespace needs before its first tenant.
fn router_base(router: &mut NetState, underlay: &Underlay, uplinks: &BTreeMap<String, Uplink>) {
    router.sysctls.insert("net/ipv4/ip_forward".into(), "1".into());
    router.sysctls.insert("net/ipv6/conf/all/forwarding".into(), "1".into());
    for dev in ["all", "default"] {
        router.sysctls.insert(rp_filter(dev), "0".into());
    }
    // What listens outside of all VRFs, BGP with the fabric and the tunnels, hears nothing from inside one.
    for kind in ["tcp", "udp", "raw"] {
        router.sysctls.insert(format!("net/ipv4/{kind}_l3mdev_accept"), "0".into());
    }
    router.links.insert(LOOPBACK.into(), Link::up(Kind::Given));
    router.addresses.insert(Address {
        dev: LOOPBACK.into(),
        net: host_prefix(underlay.vtep),
        link_scope: false,
    });
    for name in &underlay.interfaces {
        router.links.insert(name.clone(), Link { mtu: underlay.mtu, ..Link::up(Kind::Given) });
        router.sysctls.insert(rp_filter(name), "0".into());
        router.addresses.extend(uplinks.get(name).into_iter().flat_map(|uplink| uplink.addresses.clone()));
    }
}

/// A tenant in the router's namespace.
fn router_tenant(router: &mut NetState, underlay: &Underlay, tenant: &Tenant, mtu: u32) {
    let vni = tenant.vni;
    let table = names::table(vni);
    let mtu = Some(mtu);
    let (vrf, bridge, vxlan, link) =
        (names::vrf(vni), names::bridge(vni), names::vxlan(vni), names::router_link(vni));

    for dev in [&vrf, &bridge, &link] {
        router.sysctls.insert(rp_filter(dev), "0".into());
    }
    router.links.insert(vrf.clone(), Link { mtu, ..Link::up(Kind::Vrf { table }) });
    router.links.insert(
        bridge.clone(),
        Link {
            mtu,
            master: Some(vrf.clone()),
            mac: Some(router_mac(underlay.vtep, vni)),
            link_local: Some(false),
            ..Link::up(Kind::Bridge)
        },
    );
    router.links.insert(
        vxlan,
        Link {
            mtu,
            master: Some(bridge),
            link_local: Some(false),
            port: Some(Port { learning: false, neigh_suppress: true }),
            ..Link::up(Kind::Vxlan {
                vni,
                local: Some(underlay.vtep),
                port: names::VXLAN_PORT,
                learning: false,
            })
        },
    );
    router
        .links
        .insert(link.clone(), Link { mtu, master: Some(vrf), ..Link::up(Kind::Veth { paired: true }) });
    router.addresses.insert(Address {
        dev: link.clone(),
        net: link_net(tenant.router_v4()),
        link_scope: false,
    });
    if tenant.has_v6() {
        router.addresses.insert(Address { dev: link, net: link_net(tenant.router_v6()), link_scope: false });
    }
    router.routes.extend([last_resort(table, false), last_resort(table, true)]);
}

/// What a tenant reaches by the main table: prefixes, and the addresses of services, of both families.
fn by_main(underlay: &Underlay, tenant: &Tenant, services: BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
    let shared = underlay.shared.iter().chain(&tenant.shared).map(IpNet::trunc);
    shared.chain(services.into_iter().map(host_prefix)).collect()
}

/// A tenant in the host's namespace.
fn host_tenant(host: &mut NetState, by_main: &BTreeSet<IpNet>, tenant: &Tenant, mtu: u32) {
    let table = names::table(tenant.vni);
    let dev = names::host_link(tenant.vni);

    host.links.insert(dev.clone(), Link { mtu: Some(mtu), ..Link::up(Kind::Veth { paired: true }) });
    // Loose: what comes in by the tenant's link has its way back in the tenant's table, not in main.
    host.sysctls.insert(rp_filter(&dev), "2".into());
    host.addresses.insert(Address { dev: dev.clone(), net: link_net(tenant.host_v4), link_scope: true });
    host_table(host, by_main, tenant, table, &dev, false);
    if tenant.has_v6() {
        // IPv6 knows no such scope for an address that is not link-local.
        host.addresses.insert(Address { dev: dev.clone(), net: link_net(tenant.host_v6), link_scope: false });
        host_table(host, by_main, tenant, table, &dev, true);
    }
}

/// One family of a tenant's table in the host's namespace.
fn host_table(
    host: &mut NetState,
    by_main: &BTreeSet<IpNet>,
    tenant: &Tenant,
    table: u32,
    dev: &str,
    v6: bool,
) {
    let metric = if v6 { V6_METRIC } else { 0 };
    let gateway: IpAddr = if v6 { tenant.router_v6().into() } else { tenant.router_v4().into() };
    let via = Target::Via { gateway, dev: dev.to_owned() };
    host.routes.insert(Route { table, to: default_of(v6), metric, target: via });
    host.routes.insert(last_resort(table, v6));

    // The address that Calico gives every pod as its gateway; for IPv6 it is the interface's link-local one.
    let pod_gateway = if v6 {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10))
    } else {
        host_prefix(Ipv4Addr::new(169, 254, 1, 1).into())
    };
    let by_main = by_main.iter().copied().filter(|to| matches!(to, IpNet::V6(_)) == v6);
    for to in by_main.chain([pod_gateway]) {
        host.routes.insert(Route { table, to, metric, target: Target::Throw });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, tenant, uplink};

    fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
        values.into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn a_tenant_in_the_host() {
        let mut red = tenant("red", 1001, &["10.200.0.0/16"]);
        red.shared = vec!["10.0.0.1/32".parse().unwrap(), "2001:db8::1/128".parse().unwrap()];
        let desired = desired(&config(vec![red]), None, &BTreeMap::new());
        assert_eq!(texts(&desired.host.addresses), ["169.254.192.2/31 dev cv1001 scope link"]);
        assert_eq!(
            texts(&desired.host.routes),
            [
                "0.0.0.0/0 via 169.254.192.3 dev cv1001 metric 0 table 1000001001",
                "unreachable 0.0.0.0/0 metric 4278198272 table 1000001001",
                "throw 10.0.0.1/32 metric 0 table 1000001001",
                "throw 10.96.0.1/32 metric 0 table 1000001001",
                "throw 169.254.1.1/32 metric 0 table 1000001001",
            ]
        );
        assert_eq!(desired.host.sysctls["net/ipv4/conf/cv1001/rp_filter"], "2");
    }

    #[test]
    fn ipv6_only_where_a_pool_asks_for_it() {
        let red = tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"]);
        let desired = desired(&config(vec![red]), None, &BTreeMap::new());
        assert!(texts(&desired.host.addresses).contains(&"fd00:ffff::2/127 dev cv1001".to_owned()));
        let routes = texts(&desired.host.routes);
        assert!(routes.contains(&"::/0 via fd00:ffff::3 dev cv1001 metric 1024 table 1000001001".to_owned()));
        assert!(routes.contains(&"throw fe80::/10 metric 1024 table 1000001001".to_owned()));
        assert!(texts(&desired.router.addresses).contains(&"fd00:ffff::3/127 dev h1001".to_owned()));
    }

    #[test]
    fn the_tunnel_leaves_room_for_its_headers() {
        let uplinks = BTreeMap::from([("eth1".to_owned(), uplink("eth1", 9000, &["192.0.2.3/31"]))]);
        let mut config = config(vec![tenant("red", 1001, &["10.200.0.0/16"])]);
        let mtu = |config: &NodeConfig| desired(config, None, &uplinks).router.links["h1001"].mtu;
        assert_eq!(mtu(&config), Some(8950));
        let underlay = config.underlay.as_mut().unwrap();
        underlay.mtu = Some(1600);
        underlay.vtep = "2001:db8::7".parse().unwrap();
        assert_eq!(mtu(&config), Some(1530));
    }

    #[test]
    fn an_uplink_keeps_its_addresses() {
        let uplinks = BTreeMap::from([("eth1".to_owned(), uplink("eth1", 1500, &["192.0.2.3/31"]))]);
        let desired = desired(&config(vec![]), None, &uplinks);
        assert_eq!(texts(&desired.router.addresses), ["192.0.2.3/31 dev eth1", "10.255.0.7/32 dev lo"]);
    }

    #[test]
    fn router_macs_are_stable_local_and_distinct() {
        let mac = |vtep: &str, vni| router_mac(vtep.parse().unwrap(), vni);
        assert_eq!(mac("10.255.0.7", 1001), mac("10.255.0.7", 1001));
        assert!(mac("10.255.0.7", 1001).to_string().ends_with(":0a:ff:00:07"));
        assert_ne!(mac("10.255.0.7", 1001), mac("10.255.0.8", 1001));
        assert_ne!(mac("10.255.0.7", 1001), mac("10.255.0.7", 1002));
        assert_ne!(mac("2001:db8::7", 1001), mac("2001:db8::8", 1001));
        for vni in 1..200 {
            assert_eq!(mac("2001:db8::7", vni).0[0] & 0b11, 0b10);
        }
    }

    #[test]
    fn without_an_underlay_nothing_is_wanted() {
        let empty = NodeConfig { node: "n1".into(), underlay: None, tenants: vec![] };
        let desired = desired(&empty, None, &BTreeMap::new());
        assert_eq!((desired.host, desired.router), (NetState::default(), NetState::default()));
    }
}
