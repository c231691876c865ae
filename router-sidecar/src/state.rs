//! What can stand on a node: devices, addresses, routes, rules and switches of the two network namespaces.
//!
//! The same types say what is wanted ([`crate::desired`]) and what was read ([`crate::netlink`]), so that
//! [`crate::diff`] compares like with like. An attribute that is `None` in the wanted state is left as the kernel
//! has it. Nothing here does I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use calico_vni_proto::names;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One of the two network namespaces of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The host's, where pods' interfaces and Calico live.
    Host,
    /// The router's, where FRR, the VRFs and the uplinks live.
    Router,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Router => "router",
        })
    }
}

/// A MAC address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let octets = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&octets.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a device is, with the settings that cannot be changed after its creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VRF device and its routing table.
    Vrf {
        /// Routing table.
        table: u32,
    },
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan {
        /// VNI.
        vni: u32,
        /// Local tunnel end point; `None` when it has none.
        local: Option<IpAddr>,
        /// UDP port, host order.
        port: u16,
        /// Whether it learns remote MAC addresses from the packets it gets.
        learning: bool,
    },
    /// One end of a virtual Ethernet pair.
    Veth {
        /// Whether its other end is the one of the same tenant in the other namespace.
        paired: bool,
    },
    /// A device that somebody else made: the loopback or an uplink.
    Given,
    /// A device that carries one of our names and is none of ours.
    Foreign(String),
}

/// Settings of a bridge port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Whether the bridge learns MAC addresses behind it.
    pub learning: bool,
    /// Whether the bridge answers ARP and neighbour discovery in the place of those behind it.
    pub neigh_suppress: bool,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: Kind,
    /// Administratively up.
    pub up: bool,
    /// Octets of a packet.
    pub mtu: Option<u32>,
    /// Name of the VRF or bridge it belongs to.
    pub master: Option<String>,
    /// MAC address.
    pub mac: Option<Mac>,
    /// Whether the kernel gives it an IPv6 link-local address.
    pub link_local: Option<bool>,
    /// Settings as a bridge port.
    pub port: Option<Port>,
}

impl Link {
    /// A device that is up, everything else as the kernel has it.
    pub fn up(kind: Kind) -> Self {
        Self { kind, up: true, mtu: None, master: None, mac: None, link_local: None, port: None }
    }
}

/// The part of a device that has to change; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Put it up or down.
    pub up: Option<bool>,
    /// Octets of a packet.
    pub mtu: Option<u32>,
    /// Name of the VRF or bridge it is to belong to.
    pub master: Option<String>,
    /// MAC address.
    pub mac: Option<Mac>,
    /// Whether the kernel gives it an IPv6 link-local address.
    pub link_local: Option<bool>,
    /// Settings as a bridge port.
    pub port: Option<Port>,
}

impl LinkChange {
    /// What is missing for `observed` to be as `desired`. The kinds are equal already.
    pub fn between(desired: &Link, observed: &Link) -> Self {
        fn differing<T: Clone + PartialEq>(desired: Option<&T>, observed: Option<&T>) -> Option<T> {
            desired.filter(|d| observed != Some(*d)).cloned()
        }
        Self {
            up: (desired.up != observed.up).then_some(desired.up),
            mtu: differing(desired.mtu.as_ref(), observed.mtu.as_ref()),
            master: differing(desired.master.as_ref(), observed.master.as_ref()),
            mac: differing(desired.mac.as_ref(), observed.mac.as_ref()),
            link_local: differing(desired.link_local.as_ref(), observed.link_local.as_ref()),
            port: differing(desired.port.as_ref(), observed.port.as_ref()),
        }
    }

    /// Whether nothing has to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if let Some(master) = &self.master {
            words.push(format!("master {master}"));
        }
        if let Some(mac) = self.mac {
            words.push(format!("address {mac}"));
        }
        if let Some(mtu) = self.mtu {
            words.push(format!("mtu {mtu}"));
        }
        if let Some(on) = self.link_local {
            words.push(format!("addrgenmode {}", if on { "eui64" } else { "none" }));
        }
        if let Some(port) = self.port {
            let word = |on| if on { "on" } else { "off" };
            words.push(format!(
                "learning {} neigh_suppress {}",
                word(port.learning),
                word(port.neigh_suppress)
            ));
        }
        if let Some(up) = self.up {
            words.push(if up { "up" } else { "down" }.to_owned());
        }
        f.write_str(&words.join(" "))
    }
}

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Device.
    pub dev: String,
    /// Address with its prefix length.
    pub net: IpNet,
    /// Reachable on the link alone (`scope link`), so that the kernel never takes it as source for other places.
    pub link_scope: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}{}", self.net, self.dev, if self.link_scope { " scope link" } else { "" })
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// To a router on a link.
    Via {
        /// The router.
        gateway: IpAddr,
        /// The link.
        dev: String,
    },
    /// Back to the rules: the look-up goes on with the next one.
    Throw,
    /// Refused, with an ICMP message to the sender.
    Unreachable,
    /// Something that we never make; kept so that it can be named when it is deleted.
    Other(String),
}

/// A route of ours: its protocol is [`names::PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
    /// Metric; lower is preferred.
    pub metric: u32,
    /// Where it leads.
    pub target: Target,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Via { .. } => {}
            Target::Throw => f.write_str("throw ")?,
            Target::Unreachable => f.write_str("unreachable ")?,
            Target::Other(kind) => write!(f, "{kind} ")?,
        }
        write!(f, "{}", self.to)?;
        if let Target::Via { gateway, dev } = &self.target {
            write!(f, " via {gateway} dev {dev}")?;
        }
        write!(f, " metric {} table {}", self.metric, self.table)
    }
}

/// What a rule does with a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Looks the destination up in a table.
    Lookup {
        /// The table.
        table: u32,
        /// Results of this prefix length or shorter do not count.
        suppress_prefixlength: Option<u8>,
    },
    /// Goes on at another preference.
    Goto(u32),
    /// Goes on at the next rule.
    Nop,
    /// Drops the packet without a word.
    Blackhole,
    /// Something that we never make, or for packets that we never ask for; kept so that it can be named when it is
    /// deleted.
    Other(u8),
}

/// A policy rule of ours: its protocol is [`names::PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Preference; lower comes first.
    pub pref: u32,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Source prefix; `None` is all of the family.
    pub from: Option<IpNet>,
    /// Destination prefix; `None` is all of the family.
    pub to: Option<IpNet>,
    /// Interface that it came in by; `lo` for what the node itself sends, and for most looks at the way back. `None` is
    /// every one.
    pub iif: Option<String>,
    /// Bits that its mark has, all of them; `None` is any mark.
    pub mark: Option<u32>,
    /// What it does.
    pub action: Action,
}

impl Rule {
    /// For every packet of the family.
    pub fn all(pref: u32, v6: bool, action: Action) -> Self {
        Self { pref, v6, from: None, to: None, iif: None, mark: None, action }
    }

    /// How many of the things that a rule can ask for it leaves out.
    pub fn leaves_out(&self) -> usize {
        let suppress = matches!(self.action, Action::Lookup { suppress_prefixlength: Some(_), .. });
        [self.from.is_some(), self.to.is_some(), self.iif.is_some(), self.mark.is_some(), suppress]
            .into_iter()
            .filter(|asked| !asked)
            .count()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} ", self.pref)?;
        match &self.from {
            Some(from) => write!(f, "from {from} ")?,
            None => write!(f, "from all {}", if self.v6 { "(IPv6) " } else { "" })?,
        }
        if let Some(to) = &self.to {
            write!(f, "to {to} ")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, "iif {iif} ")?;
        }
        if let Some(mark) = self.mark {
            write!(f, "fwmark {mark:#x}/{mark:#x} ")?;
        }
        match &self.action {
            Action::Lookup { table, suppress_prefixlength } => {
                if *table == MAIN {
                    f.write_str("lookup main")?;
                } else {
                    write!(f, "lookup {table}")?;
                }
                if let Some(length) = suppress_prefixlength {
                    write!(f, " suppress_prefixlength {length}")?;
                }
                Ok(())
            }
            Action::Goto(pref) => write!(f, "goto {pref}"),
            Action::Nop => f.write_str("nop"),
            Action::Blackhole => f.write_str("blackhole"),
            Action::Other(action) => write!(f, "action {action}"),
        }
    }
}

/// The main routing table (`RT_TABLE_MAIN`).
pub const MAIN: u32 = 254;

/// The loopback device's name.
pub const LOOPBACK: &str = "lo";

/// One network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// By name. Observed: devices with our names, the loopback, and all others as [`Kind::Given`].
    pub links: BTreeMap<String, Link>,
    /// Observed: all but IPv6 link-local ones.
    pub addresses: BTreeSet<Address>,
    /// Observed: those of them that carry our mark ([`names::PROTOCOL`] as address protocol, Linux 5.18 and later).
    pub marked: BTreeSet<Address>,
    /// Ours alone.
    pub routes: BTreeSet<Route>,
    /// Ours alone, in the order in which the kernel walks them. What is wanted of them depends on what stands
    /// ([`crate::rules::change`]) and is not told here.
    pub rules: Vec<Rule>,
    /// Kernel switches by their path below `/proc/sys`, as `net/ipv4/ip_forward`. Observed: those asked for.
    pub sysctls: BTreeMap<String, String>,
}

/// An uplink as it was before it left the host's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Octets of a packet.
    pub mtu: u32,
    /// Its addresses, link-local IPv6 ones excepted.
    pub addresses: Vec<Address>,
    /// Routes by it in the main table that the kernel does not make from addresses.
    pub routes: Vec<UplinkRoute>,
}

/// A route by an uplink, as it stood in the host's main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkRoute {
    /// Destination.
    pub to: IpNet,
    /// Router on the link; absent: the destination is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Metric.
    pub metric: u32,
    /// Routing protocol number: who made it.
    pub protocol: u8,
    /// The gateway is taken as on the link even where no address says so.
    #[serde(default)]
    pub onlink: bool,
}

/// The VNI that a device name stands for, if it is one of ours in that namespace.
pub fn vni_of_link(space: Space, name: &str) -> Option<u32> {
    let prefixes: &[&str] = match space {
        Space::Host => &["cv"],
        Space::Router => &["vrf", "br", "vx", "h"],
    };
    prefixes.iter().find_map(|prefix| names::vni_of(name, prefix))
}

/// The VNI that a routing table stands for, if it is one of ours.
pub fn vni_of_table(table: u32) -> Option<u32> {
    table.checked_sub(names::TABLE_BASE).filter(|vni| (1..=names::VNI_MAX).contains(vni))
}
