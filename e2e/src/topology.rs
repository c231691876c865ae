//! The lab's network: which namespaces there are, how they are wired and addressed. Pure: it makes commands for
//! `ip -batch` and sysctls, and runs nothing.
//!
//! ```text
//!   pods ── n1 ──┐ lan 172.18.0.0/24 ┌── n2 ── pods
//!           │    └────── lan ────────┘    │
//!          eth1                          eth1       (the router's namespace takes it)
//!           └──── fabric 192.0.2.0/24 ────┘
//!                        leaf ── ext-red, ext-blue
//! ```

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Namespace of the flat network's bridge, and of its gateway.
pub const LAN: &str = "lan";

/// Namespace of the leaf.
pub const LEAF: &str = "leaf";

/// Gateway of the nodes in the flat network.
pub const LAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

/// The leaf on the fabric.
pub const LEAF_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The leaf's VXLAN tunnel end point.
pub const LEAF_VTEP: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 100);

/// ASN of the leaf.
pub const LEAF_ASN: u32 = 65_100;

/// ASN of the nodes' routers.
pub const ROUTER_ASN: u32 = 65_001;

/// Octets on the fabric's links: room for VXLAN's header around a full packet, as data centres have it.
const FABRIC_MTU: u32 = 9_000;

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

    /// Address in the flat network: the node's address for Calico and Kubernetes.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 0, 10 + self.number)
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
    /// The leaf's end of the link to the external host; the host's is the next address.
    pub gateway: Ipv4Addr,
}

impl FabricTenant {
    /// Namespace of the external host.
    pub fn host(&self) -> String {
        format!("ext-{}", self.name)
    }

    /// Address of the external host.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) + 1)
    }
}

/// The tenants that the fabric has from the beginning.
pub const FABRIC_TENANTS: [FabricTenant; 3] = [
    FabricTenant { name: "red", vni: 1001, gateway: Ipv4Addr::new(203, 0, 113, 16) },
    FabricTenant { name: "blue", vni: 1002, gateway: Ipv4Addr::new(203, 0, 113, 32) },
    FabricTenant { name: "green", vni: 1003, gateway: Ipv4Addr::new(203, 0, 113, 48) },
];

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
}

/// Everything but pods: first the batch that makes namespaces and links, then one for each namespace, in any order.
pub fn base(nodes: &[Node]) -> (Batch, Vec<Batch>) {
    let mut make = Batch::own();
    for netns in nodes.iter().map(|n| n.name.clone()).chain([LAN.into(), LEAF.into()]) {
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
    let mut batches = vec![lan(nodes), leaf(nodes)];
    batches.extend(nodes.iter().map(node));
    batches.extend(FABRIC_TENANTS.iter().map(external_host));
    (make, batches)
}

fn lan(nodes: &[Node]) -> Batch {
    let mut batch = Batch::of(LAN).forwarding().ip("link set lo up").ip("link add br0 type bridge");
    for node in nodes {
        batch = batch.ip(format!("link set {} master br0 up", node.name));
    }
    batch.ip(format!("addr add {LAN_GATEWAY}/24 dev br0")).ip("link set br0 up")
}

fn node(node: &Node) -> Batch {
    Batch::of(&node.name)
        .forwarding()
        .ip("link set lo up")
        .ip(format!("addr add {}/24 dev eth0", node.address()))
        .ip("link set eth0 up")
        .ip(format!("route add default via {LAN_GATEWAY}"))
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
        batch = batch
            .ip(format!("link add {name} type vrf table {vni}"))
            .ip(format!("link set {name} up"))
            .ip(format!("route add unreachable default metric 4278198272 table {vni}"))
            .ip(format!("link add br{vni} type bridge"))
            .ip(format!("link set br{vni} master {name} addrgenmode none"))
            .ip(format!("link add vx{vni} type vxlan id {vni} dstport 4789 local {LEAF_VTEP} nolearning"))
            .ip(format!("link set vx{vni} master br{vni} addrgenmode none"))
            .ip(format!("link set vx{vni} type bridge_slave learning off neigh_suppress on"))
            .ip(format!("link set br{vni} up"))
            .ip(format!("link set vx{vni} up"))
            .ip(format!("link set e-{name} master {name}"))
            .ip(format!("addr add {gateway}/31 dev e-{name}"))
            .ip(format!("link set e-{name} up"));
    }
    batch
}

fn external_host(tenant: &FabricTenant) -> Batch {
    Batch::of(&tenant.host())
        .ip("link set lo up")
        .ip(format!("addr add {}/31 dev eth0", tenant.host_address()))
        .ip("link set eth0 up")
        .ip(format!("route add default via {}", tenant.gateway))
}

/// A pod to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its node.
    pub node: String,
    /// Its namespace.
    pub netns: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Interface on the node, named as Calico names it.
    pub interface: String,
}

/// Gateway that Calico gives to every pod; the node answers for it by proxy ARP.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Metric that Calico's Felix gives to the route to a pod.
const POD_METRIC: u32 = 1_024;

/// Pods as Calico makes them: the batch that makes namespaces and links, then one for each namespace.
pub fn pods(links: &[PodLink]) -> (Batch, Vec<Batch>) {
    let mut make = Batch::own();
    let mut batches: Vec<Batch> = Vec::new();
    for PodLink { node, netns, address, interface } in links {
        make = make
            .ip(format!("netns add {netns}"))
            .ip(format!("link add {interface} netns {node} type veth peer name eth0 netns {netns}"));
        batches.push(
            Batch::of(netns)
                .ip("link set lo up")
                .ip(format!("addr add {address}/32 dev eth0"))
                .ip("link set eth0 up")
                .ip(format!("route add {POD_GATEWAY} dev eth0 scope link"))
                .ip(format!("route add default via {POD_GATEWAY}")),
        );
        let position = batches.iter().position(|b| b.netns.as_deref() == Some(node)).unwrap_or_else(|| {
            batches.push(Batch::of(node));
            batches.len() - 1
        });
        let batch = std::mem::take(&mut batches[position]);
        batches[position] = batch
            .sysctl(format!("net/ipv4/conf/{interface}/proxy_arp"), "1")
            .sysctl(format!("net/ipv4/neigh/{interface}/proxy_delay"), "0")
            .ip(format!("link set {interface} up"))
            .ip(format!("route add {address}/32 dev {interface} scope link metric {POD_METRIC}"));
    }
    (make, batches)
}

/// Takes a pod away: the node's end of the link goes with the namespace.
pub fn remove_pod(netns: &str) -> Batch {
    Batch::own().ip(format!("netns del {netns}"))
}

/// Calico's reverse path rule for pods (Felix, nftables data plane), which policy routing has to satisfy.
pub const REVERSE_PATH_RULE: &str = "table ip calico-rpf {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname \"cali*\" fib saddr . mark . iif oif 0 counter drop
	}
}
";

/// The pool that no tenant has.
pub fn default_pool() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pods_of_a_node_share_its_batch() {
        let link = |n: u8| PodLink {
            node: "n1".into(),
            netns: format!("p{n}"),
            address: Ipv4Addr::new(10, 0, 0, n),
            interface: format!("cali{n}"),
        };
        let (make, batches) = pods(&[link(1), link(2)]);
        assert_eq!(make.ip.len(), 4);
        assert_eq!(batches.len(), 3);
        let node = batches.iter().find(|b| b.netns.as_deref() == Some("n1")).unwrap();
        assert_eq!(node.sysctls.len(), 4);
        assert!(node.ip.contains(&"route add 10.0.0.2/32 dev cali2 scope link metric 1024".to_owned()));
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
