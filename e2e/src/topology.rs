//! The lab's network: which namespaces there are, how they are wired and addressed. Pure: it makes commands for
//! `ip -batch` and sysctls, and runs nothing.
//!
//! ```text
//!   pods ── n1 ──┐ lan 172.18.0.0/24 ┌── n2 ── pods
//!           │    └─ lan ── outside ──┘    │
//!          eth1                          eth1       (the router's namespace takes it)
//!           └──── fabric 192.0.2.0/24 ────┘
//!                leaf ── ext-red, ext-blue, ext-green
//! ```
//!
//! Everything but the fabric has both families; the fabric is IPv4, and tenants' IPv6 crosses it inside VXLAN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::calico::Family;

/// Namespace of the flat network's bridge, and of its gateway.
pub const LAN: &str = "lan";

/// Namespace of the leaf.
pub const LEAF: &str = "leaf";

/// Namespace of a host of the flat network that is no node.
pub const OUTSIDE: &str = "outside";

/// Gateway of the nodes in the flat network.
pub const LAN_GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(172, 18, 0, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1) };

/// The host of the flat network that is no node.
pub const OUTSIDE_ADDRESSES: Addresses = Addresses {
    v4: Ipv4Addr::new(172, 18, 0, 200),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0x200),
};

/// The leaf on the fabric.
pub const LEAF_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The leaf's VXLAN tunnel end point.
pub const LEAF_VTEP: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 100);

/// Lengths of the flat network's prefixes.
const LAN_LENGTHS: (u8, u8) = (24, 64);

/// ASN of the leaf.
pub const LEAF_ASN: u32 = 65_100;

/// ASN of the nodes' routers.
pub const ROUTER_ASN: u32 = 65_001;

/// Lengths of the prefixes between the leaf and an external host (RFC 3021, RFC 6164).
const LINK_LENGTHS: (u8, u8) = (31, 127);

/// Octets on the fabric's links: room for VXLAN's header around a full packet, as data centres have it.
const FABRIC_MTU: u32 = 9_000;

/// TCP port on which every place of the lab answers by a line.
pub const PORT: u16 = 8080;

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, global or unique local.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The one of that family.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both with the length of a host's prefix.
    fn hosts(self) -> [String; 2] {
        [format!("{}/32", self.v4), format!("{}/128", self.v6)]
    }
}

/// A node's name and number; everything else about it follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Kubernetes name, and name of its namespace.
    pub name: String,
    number: u8,
}

impl Node {
    /// The node of that number, from 1 to 9.
    pub fn new(number: u8) -> Self {
        assert!((1..=9).contains(&number), "addresses are made from one digit");
        Self { name: format!("n{number}"), number }
    }

    /// Addresses in the flat network: the node's for Calico and Kubernetes.
    pub fn addresses(&self) -> Addresses {
        let mut v6 = LAN_GATEWAY.v6.segments();
        v6[7] = 0x10 + u16::from(self.number);
        Addresses { v4: Ipv4Addr::new(172, 18, 0, 10 + self.number), v6: v6.into() }
    }

    /// Those addresses with the lengths of the flat network's prefixes.
    pub fn networks(&self) -> (Ipv4Net, Ipv6Net) {
        let Addresses { v4, v6 } = self.addresses();
        (Ipv4Net::new_assert(v4, LAN_LENGTHS.0), Ipv6Net::new_assert(v6, LAN_LENGTHS.1))
    }

    /// Address of its network interface on the fabric.
    pub fn fabric_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 10 + self.number)
    }

    /// Namespace of its router.
    pub fn router(&self) -> String {
        format!("{}-router", self.name)
    }
}

/// A tenant as the fabric knows it, with a host outside of the cluster in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FabricTenant {
    /// Name of the VRF on the leaf.
    pub name: &'static str,
    /// Its VNI.
    pub vni: u32,
    /// The leaf's end of the link to the external host, a /31 and a /127; the host's is the next address.
    pub gateway: Addresses,
}

impl FabricTenant {
    /// Namespace of the external host.
    pub fn host(&self) -> String {
        format!("ext-{}", self.name)
    }

    /// Addresses of the external host.
    pub fn host_addresses(&self) -> Addresses {
        let Addresses { v4, v6 } = self.gateway;
        Addresses { v4: Ipv4Addr::from_bits(v4.to_bits() + 1), v6: Ipv6Addr::from_bits(v6.to_bits() + 1) }
    }
}

/// The tenants that the fabric has from the beginning.
pub const FABRIC_TENANTS: [FabricTenant; 3] =
    [fabric_tenant("red", 1001, 16), fabric_tenant("blue", 1002, 32), fabric_tenant("green", 1003, 48)];

const fn fabric_tenant(name: &'static str, vni: u32, last: u8) -> FabricTenant {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x113, last as u16, 0, 0, 0, 0);
    FabricTenant { name, vni, gateway: Addresses { v4: Ipv4Addr::new(203, 0, 113, last), v6 } }
}

/// Commands for one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Namespace; absent: the node side's own.
    pub netns: Option<String>,
    /// Sysctls, written before the commands.
    pub sysctls: Vec<(String, String)>,
    /// Commands for `ip -batch`.
    pub ip: Vec<String>,
}

impl Batch {
    fn own() -> Self {
        Self::default()
    }

    fn of(netns: &str) -> Self {
        Self { netns: Some(netns.to_owned()), ..Self::default() }
    }

    fn ip(mut self, line: impl Into<String>) -> Self {
        self.ip.push(line.into());
        self
    }

    fn sysctl(mut self, name: impl Into<String>, value: &str) -> Self {
        self.sysctls.push((name.into(), value.to_owned()));
        self
    }

    /// A host that forwards. Reverse path filters are Calico's business and ours, not the kernel's.
    fn forwarding(self) -> Self {
        self.sysctl("net/ipv4/ip_forward", "1")
            .sysctl("net/ipv6/conf/all/forwarding", "1")
            .sysctl("net/ipv4/conf/all/rp_filter", "0")
            .sysctl("net/ipv4/conf/default/rp_filter", "0")
    }

    /// No wait for duplicates of IPv6 addresses on this interface (RFC 4862 section 5.4): there are none.
    fn no_dad(self, interface: &str) -> Self {
        self.sysctl(format!("net/ipv6/conf/{interface}/accept_dad"), "0")
    }

    /// An address of each family, with these lengths.
    fn addresses(self, Addresses { v4, v6 }: Addresses, lengths: (u8, u8), interface: &str) -> Self {
        self.ip(format!("addr add {v4}/{} dev {interface}", lengths.0))
            .ip(format!("addr add {v6}/{} dev {interface} nodad", lengths.1))
    }

    /// A default route of each family.
    fn default_by(self, Addresses { v4, v6 }: Addresses) -> Self {
        self.ip(format!("route add default via {v4}")).ip(format!("route add default via {v6}"))
    }
}

/// Everything but pods: first the batch that makes namespaces and links, then one for each namespace, in any order.
pub fn base(nodes: &[Node]) -> (Batch, Vec<Batch>) {
    let mut make = Batch::own();
    for netns in nodes.iter().map(|n| n.name.clone()).chain([LAN, LEAF, OUTSIDE].map(str::to_owned)) {
        make = make.ip(format!("netns add {netns}"));
    }
    for tenant in &FABRIC_TENANTS {
        make = make.ip(format!("netns add {}", tenant.host()));
        let (name, host) = (tenant.name, tenant.host());
        make = make.ip(format!("link add e-{name} netns {LEAF} type veth peer name eth0 netns {host}"));
    }
    for Node { name, .. } in nodes {
        make = make
            .ip(format!("link add {name} netns {LAN} type veth peer name eth0 netns {name}"))
            .ip(format!("link add {name} netns {LEAF} mtu {FABRIC_MTU} type veth peer name eth1 netns {name} mtu {FABRIC_MTU}"));
    }
    make = make.ip(format!("link add {OUTSIDE} netns {LAN} type veth peer name eth0 netns {OUTSIDE}"));
    let mut batches = vec![lan(nodes), leaf(nodes), outside()];
    batches.extend(nodes.iter().map(node));
    batches.extend(FABRIC_TENANTS.iter().map(external_host));
    (make, batches)
}

fn lan(nodes: &[Node]) -> Batch {
    let mut batch = Batch::of(LAN).forwarding().ip("link set lo up").ip("link add br0 type bridge");
    for port in nodes.iter().map(|node| node.name.as_str()).chain([OUTSIDE]) {
        batch = batch.ip(format!("link set {port} master br0 up"));
    }
    batch.addresses(LAN_GATEWAY, LAN_LENGTHS, "br0").ip("link set br0 up")
}

fn outside() -> Batch {
    Batch::of(OUTSIDE)
        .no_dad("eth0")
        .ip("link set lo up")
        .ip("link set eth0 up")
        .addresses(OUTSIDE_ADDRESSES, LAN_LENGTHS, "eth0")
        .default_by(LAN_GATEWAY)
}

fn node(node: &Node) -> Batch {
    Batch::of(&node.name)
        .forwarding()
        .no_dad("eth0")
        .ip("link set lo up")
        .ip("link set eth0 up")
        .addresses(node.addresses(), LAN_LENGTHS, "eth0")
        .default_by(LAN_GATEWAY)
        .ip(format!("addr add {}/24 dev eth1", node.fabric_address()))
        .ip("link set eth1 up")
}

fn leaf(nodes: &[Node]) -> Batch {
    let mut batch = Batch::of(LEAF)
        .forwarding()
        .ip("link set lo up")
        .ip(format!("addr add {LEAF_VTEP}/32 dev lo"))
        .ip(format!("link add fabric mtu {FABRIC_MTU} type bridge"));
    for node in nodes {
        batch = batch.ip(format!("link set {} master fabric up", node.name));
    }
    batch = batch.ip(format!("addr add {LEAF_ADDRESS}/24 dev fabric")).ip("link set fabric up");
    for FabricTenant { name, vni, gateway } in &FABRIC_TENANTS {
        // A table beyond those of the nodes, which live in other namespaces anyway.
        let port = format!("e-{name}");
        batch = batch
            .no_dad(&port)
            .ip(format!("link add {name} type vrf table {vni}"))
            .ip(format!("link set {name} up"))
            .ip(format!("route add unreachable default metric 4278198272 table {vni}"))
            .ip(format!("route add unreachable ::/0 metric 4278198272 table {vni}"))
            .ip(format!("link add br{vni} type bridge"))
            .ip(format!("link set br{vni} master {name} addrgenmode none"))
            .ip(format!("link add vx{vni} type vxlan id {vni} dstport 4789 local {LEAF_VTEP} nolearning"))
            .ip(format!("link set vx{vni} master br{vni} addrgenmode none"))
            .ip(format!("link set vx{vni} type bridge_slave learning off neigh_suppress on"))
            .ip(format!("link set br{vni} up"))
            .ip(format!("link set vx{vni} up"))
            .ip(format!("link set {port} master {name} up"))
            .addresses(*gateway, LINK_LENGTHS, &port);
    }
    batch
}

fn external_host(tenant: &FabricTenant) -> Batch {
    Batch::of(&tenant.host())
        .no_dad("eth0")
        .ip("link set lo up")
        .ip("link set eth0 up")
        .addresses(tenant.host_addresses(), LINK_LENGTHS, "eth0")
        .default_by(tenant.gateway)
}

/// A pod to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its node.
    pub node: Node,
    /// Its namespace.
    pub netns: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// Interface on the node, named as Calico names it.
    pub interface: String,
}

/// Gateway that Calico gives to every pod; the node answers for it by proxy ARP.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Hardware address that Calico gives to the node's end of every pod's link.
const POD_GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// The link-local address that follows from it (RFC 4291 appendix A): every pod's gateway for IPv6.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Metric that Calico's Felix gives to the route to a pod.
const POD_METRIC: u32 = 1_024;

/// Pods as Calico makes them: the batch that makes namespaces and links, then one for each namespace. The host outside
/// gets a route to each by the pod's node, as a data centre's routers have it.
pub fn pods(links: &[PodLink]) -> (Batch, Vec<Batch>) {
    let mut make = Batch::own();
    let mut batches: Vec<Batch> = vec![Batch::of(OUTSIDE)];
    for PodLink { node, netns, addresses, interface } in links {
        let host = &node.name;
        make = make.ip(format!("netns add {netns}")).ip(format!(
            "link add {interface} netns {host} address {POD_GATEWAY_MAC} type veth peer name eth0 netns {netns}"
        ));
        batches.push(
            Batch::of(netns)
                .no_dad("eth0")
                .ip("link set lo up")
                .ip("link set eth0 up")
                .addresses(*addresses, (32, 128), "eth0")
                .ip(format!("route add {POD_GATEWAY} dev eth0 scope link"))
                .ip(format!("route add default via {POD_GATEWAY}"))
                .ip(format!("route add default via {POD_GATEWAY_V6} dev eth0")),
        );
        let [v4, v6] = addresses.hosts();
        let by = node.addresses();
        let position = batches.iter().position(|b| b.netns.as_ref() == Some(host)).unwrap_or_else(|| {
            batches.push(Batch::of(host));
            batches.len() - 1
        });
        let batch = std::mem::take(&mut batches[position]);
        batches[position] = batch
            .sysctl(format!("net/ipv4/conf/{interface}/proxy_arp"), "1")
            .sysctl(format!("net/ipv4/neigh/{interface}/proxy_delay"), "0")
            .no_dad(interface)
            .ip(format!("link set {interface} up"))
            .ip(format!("route add {v4} dev {interface} scope link metric {POD_METRIC}"))
            .ip(format!("route add {v6} dev {interface} metric {POD_METRIC}"));
        let outside = std::mem::take(&mut batches[0]);
        batches[0] =
            outside.ip(format!("route add {v4} via {}", by.v4)).ip(format!("route add {v6} via {}", by.v6));
    }
    (make, batches)
}

/// Calico's reverse path rule for pods (Felix, nftables data plane), which policy routing has to satisfy.
pub const REVERSE_PATH_RULE: &str = "table inet calico-rpf {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname \"cali*\" fib saddr . mark . iif oif 0 counter drop
	}
}
";

/// The pools that no tenant has.
pub fn default_pools() -> (Ipv4Net, Ipv6Net) {
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0);
    (Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16), Ipv6Net::new_assert(v6, 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pods_of_a_node_share_its_batch() {
        let link = |n: u8| PodLink {
            node: Node::new(1),
            netns: format!("p{n}"),
            addresses: Addresses {
                v4: Ipv4Addr::new(10, 0, 0, n),
                v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()),
            },
            interface: format!("cali{n}"),
        };
        let (make, batches) = pods(&[link(1), link(2)]);
        assert_eq!(make.ip.len(), 4);
        assert_eq!(batches.len(), 4);
        let node = batches.iter().find(|b| b.netns.as_deref() == Some("n1")).unwrap();
        assert_eq!(node.sysctls.len(), 6);
        for line in [
            "route add 10.0.0.2/32 dev cali2 scope link metric 1024",
            "route add fd00::2/128 dev cali2 metric 1024",
        ] {
            assert!(node.ip.contains(&line.to_owned()), "{line}");
        }
        let outside = batches.iter().find(|b| b.netns.as_deref() == Some(OUTSIDE)).unwrap();
        assert!(outside.ip.contains(&"route add fd00::2/128 via 2001:db8:18::11".to_owned()), "{outside:?}");
    }

    #[test]
    fn every_namespace_is_made_before_it_is_used() {
        let (make, batches) = base(&[Node::new(1), Node::new(2)]);
        for batch in batches {
            let netns = batch.netns.unwrap();
            assert!(make.ip.contains(&format!("netns add {netns}")), "{netns}");
        }
        let first_link = make.ip.iter().position(|l| l.starts_with("link add n1")).unwrap();
        assert!(make.ip[first_link..].iter().all(|l| !l.starts_with("netns")));
    }
}
