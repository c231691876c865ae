//! The API server's objects, read once as Calico reads them, for all nodes together. Pure.
//!
//! Nothing here fails: what Calico passes over (a pool without a prefix, a selector that does not parse, a peer without
//! an address) is passed over.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use calico_vni_crds::{
    calico::{BgpFilter, BgpPeer, BlockAffinity, DEFAULT_ASN, Encapsulation, IpPool},
    keys::CALICO_NODE_ASN,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::{
    Family,
    filter::{Functions, functions},
    selector::Selector,
    state::{CalicoState, NODE_IPV4, NODE_IPV6},
};

/// State of a block that its node may announce as a whole.
pub const CONFIRMED: &str = "confirmed";

/// All that the nodes' configurations are made of.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeFacts>,
    /// ASN of the nodes that have none of their own.
    pub asn: u32,
    /// Whether all nodes peer with each other.
    pub mesh: bool,
    /// BGPPeers by name, those of the same address and port in the order in which Calico prefers them.
    pub peers: BTreeMap<String, PeerFacts>,
    /// Pools by name.
    pub pools: BTreeMap<String, PoolFacts>,
    /// BGPFilters by name.
    pub filters: BTreeMap<String, BgpFilter>,
    /// Their functions, for each family the same on all nodes.
    pub functions: BTreeMap<Family, Functions>,
    /// Blocks by node, without those that are only asked for.
    pub blocks: BTreeMap<String, Vec<BlockFacts>>,
}

/// A node.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Its IPv4 address, if it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// Its own ASN, if it has one.
    pub asn: Option<u32>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NodeFacts {
    /// Its address in a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::from),
            Family::V6 => self.ipv6.map(IpAddr::from),
        }
    }
}

/// A BGPPeer.
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// Nodes that have it.
    pub scope: Scope,
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port, if it is said.
    pub port: Option<u16>,
    /// The peer's ASN.
    pub asn: Option<u32>,
    /// Whether BIRD uses the node's address as its own.
    pub node_address: bool,
    /// Names of BGPFilters, in order.
    pub filters: Vec<String>,
    /// What the Secret holds that the peer names. Reading BGPPeers never sets it: tenants' peers have none, and the stand-in
    /// follows no Secrets.
    pub password: Option<String>,
}

/// Nodes of a BGPPeer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Neither `node` nor `nodeSelector`.
    Global,
    /// By `node`.
    Node(String),
    /// By `nodeSelector`, which Calico prefers where both are given.
    Selected(Selector),
    /// By a `nodeSelector` that does not parse.
    Nobody,
}

impl Scope {
    /// Whether a node is meant; a global peer means no node in particular.
    pub fn names(&self, node: &str, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Global | Self::Nobody => false,
            Self::Node(name) => name == node,
            Self::Selected(selector) => selector.matches(labels),
        }
    }
}

/// An IPPool.
#[derive(Debug, Clone)]
pub struct PoolFacts {
    /// The pool.
    pub cidr: IpNet,
    /// `disableBGPExport`.
    pub hidden: bool,
    /// Whether Felix programs other nodes' blocks, since the pool is encapsulated.
    pub encapsulated: bool,
}

/// A block that a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockFacts {
    /// The block.
    pub cidr: IpNet,
    /// Whether it is announced as a whole.
    pub confirmed: bool,
}

impl Cluster {
    /// Reads the objects.
    pub fn new(state: &CalicoState) -> Self {
        let settings = state.configurations.iter().find(|config| config.name() == "default");
        let asn = settings.and_then(|config| u32::try_from(config.spec.as_number?).ok());
        let filters: BTreeMap<_, _> =
            state.filters.iter().map(|filter| (filter.name().to_owned(), filter.as_ref().clone())).collect();
        let mut blocks = BTreeMap::<String, Vec<BlockFacts>>::new();
        for (node, block) in state.affinities.iter().filter_map(|affinity| block(affinity)) {
            blocks.entry(node).or_default().push(block);
        }
        for of_node in blocks.values_mut() {
            of_node.sort_unstable();
        }
        Self {
            nodes: state.nodes.iter().filter_map(|node| named_node(node)).collect(),
            asn: asn.unwrap_or(DEFAULT_ASN),
            mesh: settings.and_then(|config| config.spec.node_to_node_mesh_enabled).unwrap_or(true),
            peers: state
                .peers
                .iter()
                .filter_map(|peer| Some((peer.name().to_owned(), read_peer(peer)?)))
                .collect(),
            pools: state
                .pools
                .iter()
                .filter_map(|pool| Some((pool.name().to_owned(), read_pool(pool)?)))
                .collect(),
            functions: Family::ALL.map(|family| (family, functions(filters.values(), family))).into(),
            filters,
            blocks,
        }
    }

    /// ASN of a node.
    pub fn asn_of(&self, node: &NodeFacts) -> u32 {
        node.asn.unwrap_or(self.asn)
    }
}

fn named_node(node: &Node) -> Option<(String, NodeFacts)> {
    let annotation = |key| node.metadata.annotations.as_ref()?.get(key);
    let address = |key| -> Option<IpAddr> { annotation(key)?.split('/').next()?.parse().ok() };
    let facts = NodeFacts {
        ipv4: address(NODE_IPV4).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
        ipv6: address(NODE_IPV6).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
        asn: annotation(CALICO_NODE_ASN).and_then(|asn| asn.parse().ok()),
        labels: node.metadata.labels.clone().unwrap_or_default(),
    };
    Some((node.metadata.name.clone()?, facts))
}

fn read_peer(peer: &BgpPeer) -> Option<PeerFacts> {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let spec = &peer.spec;
    let text = given(&spec.peer_ip)?;
    let (address, port) = match text.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), Some(socket.port())),
        Err(_) => (text.parse().ok()?, None),
    };
    let scope = match (given(&spec.node_selector), given(&spec.node)) {
        (Some(selector), _) => Selector::parse(&selector).map_or(Scope::Nobody, Scope::Selected),
        (None, Some(node)) => Scope::Node(node),
        (None, None) => Scope::Global,
    };
    Some(PeerFacts {
        scope,
        address,
        port: port.filter(|port| *port != 0),
        asn: spec.as_number.and_then(|asn| u32::try_from(asn).ok()).filter(|asn| *asn != 0),
        node_address: spec.source_address.as_deref() != Some("None"),
        filters: spec.filters.clone().unwrap_or_default(),
        password: None,
    })
}

fn read_pool(pool: &IpPool) -> Option<PoolFacts> {
    let encapsulates = |mode: Option<Encapsulation>| mode.unwrap_or_default() != Encapsulation::Never;
    Some(PoolFacts {
        cidr: pool.spec.cidr.parse::<IpNet>().ok()?.trunc(),
        hidden: pool.spec.disable_bgp_export == Some(true),
        encapsulated: encapsulates(pool.spec.vxlan_mode) || encapsulates(pool.spec.ipip_mode),
    })
}

fn block(affinity: &BlockAffinity) -> Option<(String, BlockFacts)> {
    let spec = &affinity.spec;
    let state = spec.state.as_deref().unwrap_or_default();
    if spec.is_deleted() || state == "pending" || spec.kind.as_deref() == Some("virtual") {
        return None;
    }
    // What is on its way to be released keeps its blackhole and is no longer announced as a whole.
    let confirmed = state.is_empty() || state == CONFIRMED;
    Some((spec.node.clone(), BlockFacts { cidr: spec.cidr.parse().ok()?, confirmed }))
}
