//! The BGP sessions of one node: the mesh, global peers, and peers of that node. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Family,
    cluster::{Cluster, NodeFacts, PeerFacts, Scope},
    filter::Refused,
};

/// A session of BIRD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Name of the protocol in BIRD: `Mesh_…`, `Global_…` or `Node_…` with the peer's address.
    pub name: String,
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port, if it is not BGP's own.
    pub port: Option<u16>,
    /// The peer's ASN.
    pub asn: u32,
    /// BIRD's own address in the session; none means that of the interface.
    pub source: Option<IpAddr>,
    /// Whether BIRD waits for the peer to connect.
    pub passive: bool,
    /// Names of BGPFilters, in order; those that do not exist are passed over, silently, as in Calico.
    pub filters: Vec<String>,
    /// Password for TCP MD5 signatures (RFC 2385), written as it is: a `"` in it ends BIRD's string.
    pub password: Option<String>,
}

/// The sessions of a node in one family, by name.
pub fn sessions(
    cluster: &Cluster,
    name: &str,
    node: &NodeFacts,
    family: Family,
) -> Result<Vec<Session>, Refused> {
    let Some(own) = node.address(family) else { return Ok(Vec::new()) };
    let mut sessions: Vec<_> = mesh(cluster, node, own, family).collect();
    for (peer_name, kind, peer) in chosen(cluster, name, node, family) {
        if peer.address == own {
            continue;
        }
        let port = peer.port.map(|port| format!("_port_{port}")).unwrap_or_default();
        let is_node = cluster.nodes.values().any(|other| other.address(family) == Some(peer.address));
        sessions.push(Session {
            name: format!("{kind}_{}{port}", symbol(peer.address)),
            address: peer.address,
            port: peer.port,
            asn: peer.asn.ok_or_else(|| Refused::NoAsn(peer_name.to_owned()))?,
            source: peer.node_address.then_some(own),
            passive: kind == "Global" && is_node && waits(own, peer.address),
            filters: peer.filters.clone(),
            password: peer.password.clone(),
        });
    }
    sessions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sessions)
}

/// All other nodes with an address. No BGPFilter ever applies to these.
fn mesh(cluster: &Cluster, node: &NodeFacts, own: IpAddr, family: Family) -> impl Iterator<Item = Session> {
    let asn = cluster.asn_of(node);
    let others = cluster.mesh.then_some(&cluster.nodes).into_iter().flat_map(BTreeMap::values);
    others.filter_map(move |other| {
        let address = other.address(family).filter(|address| *address != own)?;
        Some(Session {
            name: format!("Mesh_{}", symbol(address)),
            address,
            port: None,
            asn: other.asn.unwrap_or(asn),
            source: Some(own),
            passive: waits(own, address),
            filters: Vec::new(),
            password: None,
        })
    })
}

/// The BGPPeers of a node. Of equal address and port the first by name counts (in Calico itself, whichever comes
/// first), and a global one before one that names the node.
fn chosen<'a>(
    cluster: &'a Cluster,
    name: &str,
    node: &NodeFacts,
    family: Family,
) -> impl Iterator<Item = (&'a str, &'static str, &'a PeerFacts)> {
    let mut by_target = BTreeMap::new();
    let of_family = || cluster.peers.iter().filter(|(_, peer)| Family::of(peer.address) == family);
    let global =
        of_family().filter(|(_, peer)| peer.scope == Scope::Global).map(|(of, peer)| (of, "Global", peer));
    let own = of_family()
        .filter(|(_, peer)| peer.scope.names(name, &node.labels))
        .map(|(of, peer)| (of, "Node", peer));
    for (peer_name, kind, peer) in global.chain(own) {
        by_target.entry((peer.address, peer.port)).or_insert((peer_name.as_str(), kind, peer));
    }
    by_target.into_values()
}

/// Of two nodes one has to wait, so that they do not both connect: the one whose address is less, as a text.
fn waits(own: IpAddr, peer: IpAddr) -> bool {
    peer.to_string() > own.to_string()
}

fn symbol(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "_")
}
