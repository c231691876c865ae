//! One change to the node: what [`crate::diff`] plans, dry run prints, and [`crate::executor`] carries out.

use std::fmt;

use calico_vni_proto::names;

use crate::{
    frr_port,
    guard::Ruleset,
    rules::change::Change,
    state::{Address, Kind, Link, LinkChange, Route, Space, vni_of_link, vni_of_table},
};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Puts the guard in the place of what stands.
    GuardLoad(Box<Ruleset>),
    /// Deletes the guard.
    GuardDelete,
    /// Changes the policy rules of one family in the host's namespace.
    Rules(Box<Change>),
    /// Adds a route.
    RouteAdd(Space, Route),
    /// Deletes a route.
    RouteDelete(Space, Route),
    /// Adds an address.
    AddressAdd(Space, Address),
    /// Deletes an address.
    AddressDelete(Space, Address),
    /// Makes a device in the router's namespace.
    LinkAdd(String, Box<Link>),
    /// Makes the pair of veths of a tenant.
    VethAdd {
        /// The tenant.
        vni: u32,
        /// Octets of a packet on either end.
        mtu: u32,
    },
    /// Changes a device.
    LinkSet(Space, String, Box<LinkChange>),
    /// Deletes a device; of a veth both ends go.
    LinkDelete(Space, String),
    /// Sets a kernel switch: path below `/proc/sys`, value.
    Sysctl(Space, String, String),
    /// Records how an interface stands, and moves it from the host's namespace into the router's.
    UplinkTake(String),
    /// Moves an interface back, as it was recorded.
    UplinkReturn(String),
    /// Changes FRR's configuration.
    Frr(frr_port::Change),
}

impl Op {
    /// The tenant that fails alone when this fails; `None`: it is for all of the node.
    pub fn vni(&self) -> Option<u32> {
        match self {
            // Rules of all tenants lie in one trie.
            Self::GuardLoad(_)
            | Self::GuardDelete
            | Self::Rules(_)
            | Self::UplinkTake(_)
            | Self::UplinkReturn(_) => None,
            Self::RouteAdd(_, route) | Self::RouteDelete(_, route) => vni_of_table(route.table),
            Self::AddressAdd(space, address) | Self::AddressDelete(space, address) => {
                vni_of_link(*space, &address.dev)
            }
            Self::LinkAdd(name, _) => vni_of_link(Space::Router, name),
            Self::VethAdd { vni, .. } => Some(*vni),
            Self::LinkSet(space, name, _) | Self::LinkDelete(space, name) => vni_of_link(*space, name),
            Self::Sysctl(space, path, _) => {
                path.split('/').find_map(|component| vni_of_link(*space, component))
            }
            Self::Frr(change) => change.vni,
        }
    }

    /// One word for what it does.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::GuardLoad(_) => "guard-load",
            Self::GuardDelete => "guard-delete",
            Self::Rules(_) => "rules",
            Self::RouteAdd(..) => "route-add",
            Self::RouteDelete(..) => "route-delete",
            Self::AddressAdd(..) => "address-add",
            Self::AddressDelete(..) => "address-delete",
            Self::LinkAdd(..) => "link-add",
            Self::VethAdd { .. } => "veth-add",
            Self::LinkSet(..) => "link-set",
            Self::LinkDelete(..) => "link-delete",
            Self::Sysctl(..) => "sysctl",
            Self::UplinkTake(_) => "uplink-take",
            Self::UplinkReturn(_) => "uplink-return",
            Self::Frr(_) => "frr",
        }
    }

    /// The first line of what it says: changes of FRR and of the rules list all that they write.
    pub fn headline(&self) -> String {
        self.to_string().lines().next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuardLoad(ruleset) => write!(f, "host: guard load ({ruleset})"),
            Self::GuardDelete => write!(f, "host: guard delete"),
            Self::Rules(change) => write!(f, "host: {change}"),
            Self::RouteAdd(space, route) => write!(f, "{space}: route add {route}"),
            Self::RouteDelete(space, route) => write!(f, "{space}: route del {route}"),
            Self::AddressAdd(space, address) => write!(f, "{space}: address add {address}"),
            Self::AddressDelete(space, address) => write!(f, "{space}: address del {address}"),
            Self::LinkAdd(name, link) => write!(f, "router: link add {name} {}", Kinds(&link.kind)),
            Self::VethAdd { vni, mtu } => {
                let (router, host) = (names::router_link(*vni), names::host_link(*vni));
                write!(f, "router: link add {router} type veth mtu {mtu} peer {host} in host")
            }
            Self::LinkSet(space, name, change) => write!(f, "{space}: link set {name} {change}"),
            Self::LinkDelete(space, name) => write!(f, "{space}: link del {name}"),
            Self::Sysctl(space, path, value) => write!(f, "{space}: sysctl {path}={value}"),
            Self::UplinkTake(name) => write!(f, "host: uplink {name} move to router"),
            Self::UplinkReturn(name) => write!(f, "router: uplink {name} move to host"),
            Self::Frr(change) => fmt::Display::fmt(change, f),
        }
    }
}

/// A kind as `ip link` would have it.
struct Kinds<'a>(&'a Kind);

impl fmt::Display for Kinds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Vrf { table } => write!(f, "type vrf table {table}"),
            Kind::Bridge => write!(f, "type bridge"),
            Kind::Vxlan { vni, local, port, learning } => {
                write!(f, "type vxlan id {vni} dstport {port}")?;
                if let Some(local) = local {
                    write!(f, " local {local}")?;
                }
                f.write_str(if *learning { " learning" } else { " nolearning" })
            }
            Kind::Veth { .. } => write!(f, "type veth"),
            Kind::Given => write!(f, "given"),
            Kind::Foreign(kind) => write!(f, "type {kind}"),
        }
    }
}
