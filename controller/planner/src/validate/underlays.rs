//! Underlays: parsed, then compared with each other, with the nodes and with Calico's own settings.

use std::{collections::BTreeSet, net::IpAddr};

use calico_vni_crds::{
    self as crds,
    calico::DEFAULT_ASN,
    keys,
    underlay::{InterfaceMode, VniRange},
};
use calico_vni_proto::{
    model::{Neighbor, PASSWORD_MAX, Password, REDACTED},
    names::{self, VNI_MAX},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kube::core::{Selector, SelectorExt};

use super::{Age, Node, Seat, ServicePrefix, Verdict, age};
use crate::{Snapshot, prefix, reason, snapshot::Passwords};

/// An Underlay.
#[derive(Debug)]
pub struct Underlay<'a> {
    /// As it stands.
    pub object: &'a crds::Underlay,
    /// Its name.
    pub name: &'a str,
    /// Its age.
    pub age: Age<'a>,
    /// What it says, or what is wrong with it.
    pub settings: Result<Settings, Verdict>,
    /// Nodes that it selects.
    pub nodes: Vec<usize>,
    selector: Option<Selector>,
}

/// What an Underlay says, in types that hold nothing else.
#[derive(Clone, Debug)]
pub struct Settings {
    /// ASN of the routers; at most 2147483647.
    pub asn: u32,
    /// Tunnel end points.
    pub vtep: Ipv4Net,
    /// Links between host and VRF.
    pub link_v4: Ipv4Net,
    /// The same for IPv6.
    pub link_v6: Ipv6Net,
    /// Peers in the fabric.
    pub neighbors: Vec<Neighbor>,
    /// Interfaces that move.
    pub interfaces: Vec<String>,
    /// MTU in octets.
    pub mtu: Option<u32>,
    /// What all tenants reach by the main table, in order.
    pub shared: Vec<IpNet>,
    /// VNIs to allocate.
    pub vni_range: Option<VniRange>,
    /// RFC 4724.
    pub graceful_restart: bool,
}

impl Settings {
    /// How many tenants fit.
    pub fn link_capacity(&self) -> u32 {
        names::link_capacity_v4(self.link_v4)
    }

    /// Prefixes in which no pod may live, with the field that each is from.
    pub fn prefixes(&self) -> impl Iterator<Item = (&'static str, IpNet)> {
        self.own_prefixes().into_iter().chain(self.shared.iter().map(|net| ("sharedCIDRs", *net)))
    }

    /// Those of them that the routers take addresses of.
    fn own_prefixes(&self) -> [(&'static str, IpNet); 3] {
        [
            ("vtepCIDR", self.vtep.into()),
            ("hostLinkCIDR", self.link_v4.into()),
            ("hostLinkCIDRv6", self.link_v6.into()),
        ]
    }

    /// How many routers fit: all addresses but the first and the last.
    pub fn router_capacity(&self) -> u32 {
        u32::try_from((1u64 << (32 - self.vtep.prefix_len())) - 2).unwrap_or(u32::MAX)
    }
}

impl Underlay<'_> {
    /// What it says, where that can be obeyed.
    pub fn accepted(&self) -> Option<&Settings> {
        self.settings.as_ref().ok()
    }
}

/// ASN of Calico's nodes.
pub(super) fn calico_asn(snapshot: &Snapshot) -> u32 {
    let default = snapshot.bgp_configurations.iter().find(|c| c.name() == "default");
    default.and_then(|c| c.spec.as_number).and_then(|n| u32::try_from(n).ok()).unwrap_or(DEFAULT_ASN)
}

/// All Underlays that are not being deleted, by name.
pub(super) fn parse(snapshot: &Snapshot) -> Vec<Underlay<'_>> {
    let mut underlays: Vec<Underlay<'_>> = snapshot
        .underlays
        .iter()
        .filter(|object| object.metadata.deletion_timestamp.is_none())
        .map(|object| {
            let selector = Selector::try_from(object.spec.node_selector.clone().unwrap_or_default());
            let settings = match &selector {
                Ok(_) => settings(&object.spec, &snapshot.passwords),
                Err(error) => Err(Verdict::new(
                    reason::INVALID_SELECTOR,
                    format!(
                        "spec.nodeSelector: {error}; write matchLabels or matchExpressions as in a Deployment"
                    ),
                )),
            };
            Underlay {
                object,
                name: object.metadata.name.as_deref().unwrap_or_default(),
                age: age(&object.metadata),
                settings,
                nodes: Vec::new(),
                selector: selector.ok(),
            }
        })
        .collect();
    underlays.sort_by_key(|u| u.name);
    underlays
}

/// Whether a value of a ready label is one of ours: [`keys::READY`], or with the ASN that the router answers with.
pub(super) fn is_ready_value(value: &str) -> bool {
    value.strip_prefix(keys::READY).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('-').is_some_and(|asn| asn.parse::<u32>().is_ok())
    })
}

/// The ASN whose BGPPeers and labels carry no ASN in their names and values: that of the oldest Underlay that is accepted
/// or has running nodes. One that carries it already goes on so, whoever comes and goes: a change would end sessions.
pub(super) fn plain_asn(snapshot: &Snapshot, underlays: &[Underlay<'_>], nodes: &[Node<'_>]) -> Option<u32> {
    let named: BTreeSet<u32> = snapshot.peers.iter().filter_map(|peer| asn_of(peer.name())).collect();
    let runs = |underlay: &&Underlay<'_>| {
        let waits = |&n: &usize| nodes[n].seat == Seat::Waiting && !nodes[n].ready.is_empty();
        underlay.accepted().is_some() || underlay.nodes.iter().any(waits)
    };
    let plain = underlays.iter().filter(runs).filter(|u| !named.contains(&u.object.spec.asn));
    plain.min_by_key(|u| u.age).map(|u| u.object.spec.asn)
}

/// The ASN in the name of a BGPPeer of ours. No tenant's name holds a dot.
pub(crate) fn asn_of(peer: &str) -> Option<u32> {
    let (_, asn) = peer.strip_suffix("-v6").unwrap_or(peer).rsplit_once('.')?;
    asn.parse().ok()
}

/// Finds the nodes of each, also of those that cannot be obeyed.
pub(super) fn select(underlays: &mut [Underlay<'_>], nodes: &[Node<'_>]) {
    for underlay in underlays {
        let Some(selector) = &underlay.selector else { continue };
        underlay.nodes = (0..nodes.len()).filter(|&n| selector.matches(nodes[n].labels)).collect();
    }
}

/// Compares each with Calico's settings, with the Services and with the accepted ones that are older; returns the oldest
/// accepted one.
pub(super) fn judge(
    underlays: &mut [Underlay<'_>],
    nodes: &[Node<'_>],
    services: &[ServicePrefix<'_>],
    calico_asn: u32,
) -> Option<usize> {
    let mut by_age: Vec<usize> = (0..underlays.len()).collect();
    by_age.sort_by_key(|&u| underlays[u].age);
    let mut accepted: Vec<usize> = Vec::new();
    for &u in &by_age {
        let Ok(settings) = &underlays[u].settings else { continue };
        let mut older = accepted.iter().filter_map(|&o| Some((underlays[o].name, underlays[o].accepted()?)));
        let verdict = same_asn(settings, &underlays[u].nodes, nodes, calico_asn)
            .or_else(|| holds_services(settings, services))
            .or_else(|| older.next().and_then(|(name, first)| differs(settings, name, first)))
            .or_else(|| {
                let defending = by_age.iter().take_while(|&&o| o != u).filter(|&&o| {
                    underlays[o].accepted().is_some() || has_running_nodes(underlays, o, u, &accepted, nodes)
                });
                defending.copied().find_map(|o| shares_vteps(settings, &underlays[o]))
            });
        match verdict {
            None => accepted.push(u),
            Some(verdict) => underlays[u].settings = Err(verdict),
        }
    }
    accepted.first().copied()
}

fn same_asn(settings: &Settings, selected: &[usize], nodes: &[Node<'_>], calico_asn: u32) -> Option<Verdict> {
    let asn = settings.asn;
    let whose = if asn == calico_asn {
        "Calico's own (BGPConfiguration `default`, asNumber)".to_owned()
    } else {
        let node = selected.iter().map(|&n| &nodes[n]).find(|n| n.calico_asn == asn)?;
        format!("that of Calico's node `{}` (annotation {})", node.name, keys::CALICO_NODE_ASN)
    };
    Some(Verdict::new(
        reason::ASN_CONFLICT,
        format!(
            "spec.asn: {asn} is {whose}; BIRD and the router speak eBGP, so give the routers an ASN of their own"
        ),
    ))
}

/// What Services share with others' addresses is theirs. `sharedCIDRs` alone may hold them: that is what it is for.
fn holds_services(settings: &Settings, services: &[ServicePrefix<'_>]) -> Option<Verdict> {
    settings.own_prefixes().into_iter().find_map(|(field, net)| {
        let service = services.iter().find(|s| prefix::overlap(&s.net, &net))?;
        Some(Verdict::new(
            reason::OVERLAPPING_CIDRS,
            format!(
                "spec.{field}: {net} overlaps {} ({}); Services answer at those addresses, so give the Underlay a prefix of its own",
                service.net, service.from
            ),
        ))
    })
}

fn differs(settings: &Settings, name: &str, first: &Settings) -> Option<Verdict> {
    let same = settings.link_v4 == first.link_v4 && settings.link_v6 == first.link_v6;
    (!same).then(|| {
        Verdict::new(
            reason::DIFFERENT_HOST_LINKS,
            format!(
                "spec.hostLinkCIDR, hostLinkCIDRv6: {}, {} differ from {}, {} of Underlay `{name}`; one BGPPeer serves all nodes, so use those here too",
                settings.link_v4, settings.link_v6, first.link_v4, first.link_v6
            ),
        )
    })
}

/// Whether an Underlay that is not accepted has nodes all the same, which keep a number: what they run with stays theirs,
/// unless the newcomer selects them itself or an accepted one does. Of Underlays that are younger nothing depends on it.
fn has_running_nodes(
    underlays: &[Underlay<'_>],
    refused: usize,
    newcomer: usize,
    accepted: &[usize],
    nodes: &[Node<'_>],
) -> bool {
    let takes_over = |o: usize, n: &usize| underlays[o].nodes.binary_search(n).is_ok();
    let mut keeping = underlays[refused].nodes.iter().filter(|n| nodes[**n].keeps_a_number());
    keeping.any(|n| !takes_over(newcomer, n) && !accepted.iter().any(|&o| takes_over(o, n)))
}

fn shares_vteps(settings: &Settings, other: &Underlay<'_>) -> Option<Verdict> {
    let vtep = prefix::parse(&other.object.spec.vtep_cidr).ok()?;
    prefix::overlap(&settings.vtep.into(), &vtep).then(|| {
        Verdict::new(
            reason::OVERLAPPING_CIDRS,
            format!(
                "spec.vtepCIDR: {} overlaps {vtep} of Underlay `{}`; tunnel end points are unique in the fabric, so give this one a prefix of its own",
                settings.vtep, other.name
            ),
        )
    })
}

fn settings(spec: &crds::UnderlaySpec, passwords: &Passwords) -> Result<Settings, Verdict> {
    if spec.asn == 0 || i32::try_from(spec.asn).is_err() {
        return Err(Verdict::new(
            reason::INVALID_ASN,
            format!("spec.asn: {} is not 1 to 2147483647, which is what Calico's BGPPeer can hold", spec.asn),
        ));
    }
    let vtep = match cidr("vtepCIDR", &spec.vtep_cidr)? {
        IpNet::V4(net) if net.prefix_len() <= 30 => net,
        IpNet::V4(net) => return Err(invalid("vtepCIDR", &net, "has no room: give it at least a /30")),
        IpNet::V6(net) => {
            return Err(Verdict::new(
                reason::IPV6_VTEP,
                format!("spec.vtepCIDR: {net} is IPv6, which is not supported yet; give it an IPv4 prefix"),
            ));
        }
    };
    let link_v4 = match cidr("hostLinkCIDR", &spec.host_link_cidr)? {
        IpNet::V4(net) if net.prefix_len() <= 30 => net,
        net => return Err(invalid("hostLinkCIDR", &net, "must be IPv4 and at least a /30")),
    };
    let link_v6 = match cidr("hostLinkCIDRv6", &spec.host_link_cidr_v6)? {
        IpNet::V6(net) if net.prefix_len() <= 96 + link_v4.prefix_len() => net,
        net => {
            let way_out = format!(
                "must be IPv6 and at least a /{}, to hold as many links as hostLinkCIDR",
                96 + link_v4.prefix_len()
            );
            return Err(invalid("hostLinkCIDRv6", &net, &way_out));
        }
    };
    if prefix::overlap(&vtep.into(), &link_v4.into()) {
        return Err(Verdict::new(
            reason::OVERLAPPING_CIDRS,
            format!(
                "spec.vtepCIDR: {vtep} overlaps spec.hostLinkCIDR {link_v4}; give the tunnel end points a prefix of their own"
            ),
        ));
    }
    let mut shared = spec.shared_cidrs.iter().map(|text| shared_cidr(text)).collect::<Result<Vec<_>, _>>()?;
    shared.sort_unstable();
    shared.dedup();
    Ok(Settings {
        asn: spec.asn,
        vtep,
        link_v4,
        link_v6,
        neighbors: neighbors(spec, passwords)?,
        interfaces: interfaces(spec)?,
        mtu: mtu(spec.mtu)?,
        shared,
        vni_range: vni_range(spec.vni_range)?,
        graceful_restart: spec.graceful_restart,
    })
}

fn invalid(field: &str, value: &dyn std::fmt::Display, way_out: &str) -> Verdict {
    Verdict::new(reason::INVALID_CIDR, format!("spec.{field}: `{value}` {way_out}"))
}

fn cidr(field: &str, text: &str) -> Result<IpNet, Verdict> {
    prefix::parse(text).map_err(|error| invalid(field, &text, &error.to_string()))
}

fn shared_cidr(text: &str) -> Result<IpNet, Verdict> {
    match cidr("sharedCIDRs", text)? {
        net if net.prefix_len() == 0 => Err(invalid(
            "sharedCIDRs",
            &net,
            "would lead everything past the VRFs; name the services' prefixes",
        )),
        net => Ok(net),
    }
}

fn neighbors(spec: &crds::UnderlaySpec, passwords: &Passwords) -> Result<Vec<Neighbor>, Verdict> {
    let wrong = |message: String| Verdict::new(reason::INVALID_NEIGHBOR, message);
    if spec.neighbors.is_empty() {
        return Err(wrong("spec.neighbors: is empty; name at least one BGP neighbour in the fabric".into()));
    }
    let mut parsed = Vec::with_capacity(spec.neighbors.len());
    for (i, n) in spec.neighbors.iter().enumerate() {
        let address: IpAddr = n.address.parse().map_err(|_| {
            wrong(format!(
                "spec.neighbors[{i}].address: `{}` is no IP address; write it as 192.0.2.1",
                n.address
            ))
        })?;
        if parsed.iter().any(|p: &Neighbor| p.address == address) {
            return Err(wrong(format!("spec.neighbors[{i}].address: {address} is there twice; remove one")));
        }
        if n.asn == 0 {
            return Err(wrong(format!("spec.neighbors[{i}].asn: 0 is no ASN; write that of {address}")));
        }
        if n.hold_time_seconds < 3 {
            return Err(wrong(format!(
                "spec.neighbors[{i}].holdTimeSeconds: {} is below 3, the least that BGP allows",
                n.hold_time_seconds
            )));
        }
        let secret = n.password_secret_ref.as_ref();
        let password = secret.map(|secret| password(i, &secret.name, passwords)).transpose()?;
        parsed.push(Neighbor { address, asn: n.asn, hold_time: n.hold_time_seconds, password });
    }
    // The first neighbour is as good as the last; in order, a change of the manifest's order changes no router.
    parsed.sort_by_key(|n| n.address);
    Ok(parsed)
}

/// The password that a Secret holds. Where there is none nothing is planned for the Underlay's nodes, so that the sessions
/// that stand keep the one that they have.
fn password(neighbor: usize, name: &str, passwords: &Passwords) -> Result<Password, Verdict> {
    let field = format!("spec.neighbors[{neighbor}].passwordSecretRef.name: `{name}`");
    let key = keys::BGP_PASSWORD_KEY;
    let not_found = |message| Verdict::new(reason::PASSWORD_NOT_FOUND, message);
    let Passwords::Read(secrets) = passwords else {
        return Ok(Password::new(REDACTED, "").expect("it is a word"));
    };
    let secret = secrets.get(name).ok_or_else(|| {
        let label = format!("{}={}", keys::BGP_PASSWORD, keys::BGP_PASSWORD_YES);
        not_found(format!(
            "{field}: no Secret of that name has the label {label} in the controller's namespace; make it there, or `kubectl label secret {name} {label}`; sessions that stand keep their password"
        ))
    })?;
    let octets = secret.password.as_deref().ok_or_else(|| {
        not_found(format!(
            "{field}: the Secret has no key `{key}`; put the password there; sessions that stand keep theirs"
        ))
    })?;
    // What is no text is nothing printable either.
    let text = std::str::from_utf8(octets).unwrap_or("\0");
    Password::new(text, &secret.uid).map_err(|error| {
        Verdict::new(
            reason::INVALID_PASSWORD,
            format!(
                "{field}: its key `{key}` {error}; write 1 to {PASSWORD_MAX} printable characters there, as by `kubectl create secret generic {name} --from-literal={key}=...`"
            ),
        )
    })
}

fn interfaces(spec: &crds::UnderlaySpec) -> Result<Vec<String>, Verdict> {
    let wrong = |message: String| Verdict::new(reason::INVALID_INTERFACE, message);
    if spec.interfaces.is_empty() {
        return Err(wrong(
            "spec.interfaces: is empty; name at least one interface that leads to the fabric".into(),
        ));
    }
    let mut names = Vec::with_capacity(spec.interfaces.len());
    for (i, interface) in spec.interfaces.iter().enumerate() {
        let name = &interface.name;
        // What the kernel's dev_valid_name refuses.
        let bad = name.is_empty() || name.len() > 15 || name == "." || name == "..";
        if bad || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            return Err(wrong(format!(
                "spec.interfaces[{i}].name: `{name}` is no interface's name; see `ip link` on a node"
            )));
        }
        let InterfaceMode::Move = interface.mode;
        names.push(name.clone());
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn mtu(mtu: Option<u32>) -> Result<Option<u32>, Verdict> {
    match mtu {
        Some(mtu) if !(1280..=65_535).contains(&mtu) => {
            Err(Verdict::new(reason::INVALID_MTU, format!("spec.mtu: {mtu} is not 1280 to 65535")))
        }
        fine => Ok(fine),
    }
}

fn vni_range(range: Option<VniRange>) -> Result<Option<VniRange>, Verdict> {
    match range {
        Some(VniRange { min, max }) if min == 0 || max > VNI_MAX || min > max => Err(Verdict::new(
            reason::INVALID_VNI_RANGE,
            format!(
                "spec.vniRange: {min} to {max} is no range of VNIs; min is 1 or more, max at most {VNI_MAX}, and min not above max"
            ),
        )),
        fine => Ok(fine),
    }
}
