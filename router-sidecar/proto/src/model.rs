//! What a node is to carry, in types that cannot hold nonsense.
//!
//! The planner makes it, the agent obeys it; [`crate::codec`] carries it between them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All tenant pools of the cluster, the same for every node: what the guard drops by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    /// Ordered by VNI.
    pub tenants: Vec<GuardTenant>,
    /// Prefixes whose pods reach their own node and nothing else. Disjoint from all tenants' pools.
    pub quarantined: Vec<IpNet>,
    /// Services that tenants may reach outside their VRF, ordered by name; a tenant names those it may reach.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub services: Vec<SharedService>,
}

/// A service outside of all VRFs. It answers tenants; it opens no connection into one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedService {
    /// `namespace/name` of the Service.
    pub name: String,
    /// Where its packets go once the node has translated the service's address, in order.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address of a pod or a node.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port, host order.
    pub port: u16,
}

/// Transport protocol of a service's port, as Kubernetes names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One tenant as the guard sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardTenant {
    /// Tenant's name.
    pub name: String,
    /// 1 to 16777215.
    pub vni: u32,
    /// Pools of both families, disjoint from every other tenant's.
    pub pools: Vec<IpNet>,
}

/// What one node carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Kubernetes node name.
    pub node: String,
    /// Absent: nothing of ours is wanted on the node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub underlay: Option<Underlay>,
    /// Ordered by VNI. Empty when there is no underlay.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tenants: Vec<Tenant>,
}

/// The node's side of the fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Underlay {
    /// Underlay's name.
    pub name: String,
    /// ASN of all routers.
    pub asn: u32,
    /// VXLAN tunnel end point.
    pub vtep: IpAddr,
    /// BGP identifier (RFC 6286): the VTEP where that is IPv4.
    pub router_id: Ipv4Addr,
    /// BGP neighbours in the fabric.
    pub neighbors: Vec<Neighbor>,
    /// Interfaces that move into the router's namespace.
    pub interfaces: Vec<String>,
    /// Octets on the underlay; absent: as its interfaces have it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    /// Prefixes that every tenant of the node reaches by the main table.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shared: Vec<IpNet>,
    /// Keep forwarding over a restart of BGP (RFC 4724).
    pub graceful_restart: bool,
    /// ASN of this node's BIRD.
    pub calico_asn: u32,
}

/// A BGP neighbour in the fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbor {
    /// Its address, on a link of one of the underlay's interfaces.
    pub address: IpAddr,
    /// Its ASN.
    pub asn: u32,
    /// Seconds; keepalive is a third of it (RFC 4271 section 4.4).
    pub hold_time: u16,
    /// Of the session's segments (RFC 2385).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub password: Option<Password>,
}

/// What stands in the place of a password wherever somebody could read it.
pub const REDACTED: &str = "***";

/// Octets of the longest password: `TCP_MD5SIG_MAXKEYLEN` of Linux.
pub const PASSWORD_MAX: usize = 80;

/// A password that FRR can be given. It is shown nowhere: printed or serialized it is [`REDACTED`].
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    text: String,
    salt: String,
}

/// Why a text can be no password. It does not say the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// It is none.
    #[error("is empty")]
    Empty,
    /// The kernel takes no more.
    #[error("has more than {PASSWORD_MAX} characters")]
    Long,
    /// FRR's configuration is lines of words, and `|` begins a filter there.
    #[error("holds white space (a line end at its end?), a `|`, or something else than printable ASCII")]
    Unprintable,
}

impl Password {
    /// That text. The salt has to be as hard to guess as a random number, and the same for as long as the text is.
    pub fn new(text: &str, salt: &str) -> Result<Self, PasswordError> {
        if text.is_empty() {
            return Err(PasswordError::Empty);
        }
        if text.len() > PASSWORD_MAX {
            return Err(PasswordError::Long);
        }
        if !text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'|') {
            return Err(PasswordError::Unprintable);
        }
        Ok(Self { text: text.to_owned(), salt: salt.to_owned() })
    }

    /// The text itself: for FRR and for the wire.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What keeps digests from telling it.
    pub fn salt(&self) -> &str {
        &self.salt
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text, "").map_err(serde::de::Error::custom)
    }
}

/// A tenant on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Tenant's name.
    pub name: String,
    /// 1 to 16777215.
    pub vni: u32,
    /// 1 and up: the number in the route distinguisher.
    pub link_index: u32,
    /// Host's end of the /31 to the VRF; the router's is the next address.
    pub host_v4: Ipv4Addr,
    /// Host's end of the /127 to the VRF; the router's is the next address.
    pub host_v6: Ipv6Addr,
    /// Pools of both families.
    pub pools: Vec<Pool>,
    /// Route targets to import; empty: every one whose number is the VNI, whatever its ASN.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub import_rts: Vec<RouteTarget>,
    /// Route targets to export; empty: the underlay's ASN with the VNI.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub export_rts: Vec<RouteTarget>,
    /// Prefixes that this tenant reaches by the main table, beyond the underlay's.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shared: Vec<IpNet>,
    /// Routes taken from BIRD before the session is closed.
    pub max_prefixes: u32,
    /// Every pod's own route instead of the blocks'.
    pub advertise_pods: bool,
    /// Services of the [`Guard`] that this tenant may reach, by name, in order. One that the guard does not hold is
    /// not reachable.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub services: Vec<String>,
}

impl Tenant {
    /// Router's end of the IPv4 link.
    pub fn router_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.host_v4) + 1)
    }

    /// Router's end of the IPv6 link.
    pub fn router_v6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.host_v6) + 1)
    }

    /// Whether a pool of that family is among the tenant's.
    pub fn has_v4(&self) -> bool {
        self.pools.iter().any(|p| matches!(p.cidr, IpNet::V4(_)))
    }

    /// Whether a pool of that family is among the tenant's.
    pub fn has_v6(&self) -> bool {
        self.pools.iter().any(|p| matches!(p.cidr, IpNet::V6(_)))
    }
}

/// A Calico pool of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The pool.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_size: u8,
}

/// A route target, kept in its canonical text: `65000:1001`, `192.0.2.1:1001` or `*:1001`.
///
/// The three forms are a two-octet AS, an IPv4 address, or a four-octet AS with its number (RFC 4360 section 4,
/// RFC 5668), and FRR's wildcard, which matches every administrator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RouteTarget(String);

impl RouteTarget {
    /// Whether it matches every administrator; such a target can be imported, not exported.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no route target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no route target: write ASN:NUMBER, IPv4:NUMBER or *:NUMBER (a number above 65535 needs a two-octet ASN)"
)]
pub struct RouteTargetError(String);

impl FromStr for RouteTarget {
    type Err = RouteTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RouteTargetError(text.to_owned());
        let (administrator, number) = text.split_once(':').ok_or_else(error)?;
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<u32>().ok()).flatten();
        let number = digits(number).ok_or_else(error)?;
        let (administrator, limit) = if administrator == "*" {
            ("*".to_owned(), u32::MAX)
        } else if let Some(asn) = digits(administrator) {
            (asn.to_string(), if asn > u32::from(u16::MAX) { u32::from(u16::MAX) } else { u32::MAX })
        } else {
            (administrator.parse::<Ipv4Addr>().map_err(|_| error())?.to_string(), u32::from(u16::MAX))
        };
        if number > limit {
            return Err(error());
        }
        Ok(Self(format!("{administrator}:{number}")))
    }
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RouteTarget {
    type Error = RouteTargetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RouteTarget> for String {
    fn from(rt: RouteTarget) -> Self {
        rt.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_word_and_is_not_shown() {
        let all: String = ('!'..='~').filter(|c| *c != '|').collect();
        for good in [&all[..PASSWORD_MAX], &all[all.len() - PASSWORD_MAX..], "a"] {
            let password = Password::new(good, "salt").unwrap();
            assert_eq!((password.reveal(), format!("{password:?}").as_str()), (good, REDACTED));
        }
        for (bad, why) in [
            (String::new(), PasswordError::Empty),
            ("a".repeat(81), PasswordError::Long),
            ("two words".into(), PasswordError::Unprintable),
            ("line\n".into(), PasswordError::Unprintable),
            ("a|b".into(), PasswordError::Unprintable),
            ("\u{e4}".into(), PasswordError::Unprintable),
        ] {
            assert_eq!(Password::new(&bad, ""), Err(why));
        }
    }

    #[test]
    fn route_targets() {
        for good in ["65000:1001", "*:1001", "192.0.2.1:65535", "4200000000:65535", "65535:4294967295"] {
            assert_eq!(good.parse::<RouteTarget>().unwrap().as_str(), good);
        }
        assert_eq!("065000:01".parse::<RouteTarget>().unwrap().as_str(), "65000:1");
        for bad in [
            "",
            "1001",
            "a:1",
            "*:",
            "1:-1",
            "+1:1",
            "65536:65536",
            "192.0.2.1:65536",
            "192.0.2:1",
            "1:4294967296",
            "1:2:3",
        ] {
            assert!(bad.parse::<RouteTarget>().is_err(), "{bad}");
        }
    }
}
