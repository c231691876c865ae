//! Model to bytes and back, and the digest that names those bytes.
//!
//! Encoding is deterministic (prost writes fields in the order of their numbers, and the model holds ordered lists),
//! so equal models have equal digests.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::{model, names, wire};

/// SHA-256 of an encoded message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of these bytes.
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// From the wire; `None` for an empty field (the sender holds nothing) or one that is no digest.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To the wire.
    pub fn to_wire(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// The first 12 hexadecimal digits: enough to tell versions apart in a log.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a received message cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no message of that type.
    #[error("not a message of this contract: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The bytes are not those that the digest names.
    #[error("the body does not match its digest")]
    DigestMismatch,
    /// A field holds what it must not.
    #[error("{field}: `{value}`: {reason}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What it held.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither an underlay nor the explicit word that nothing is wanted.
    #[error("the configuration has no underlay and does not say explicit_empty")]
    AmbiguousEmpty,
}

/// A message that can be encoded, named by a digest, and decoded again.
pub trait Codec: Sized {
    /// Encoded form.
    fn encode(&self) -> Vec<u8>;
    /// From its encoded form.
    fn decode(body: &[u8]) -> Result<Self, DecodeError>;

    /// Encoded form with its digest.
    fn to_payload(&self) -> wire::Payload {
        let body = self.encode();
        wire::Payload { digest: Digest::of(&body).to_wire(), body }
    }

    /// Checks the digest, then decodes.
    fn from_payload(payload: &wire::Payload) -> Result<(Digest, Self), DecodeError> {
        let digest = Digest::of(&payload.body);
        if Digest::from_wire(&payload.digest) != Some(digest) {
            return Err(DecodeError::DigestMismatch);
        }
        Ok((digest, Self::decode(&payload.body)?))
    }
}

/// A message with gRPC's prefix, a flag for compression and its length: as it stands in a stream, so that many streams can
/// send the same octets.
pub fn framed(message: wire::from_controller::Message) -> Vec<u8> {
    let message = wire::FromController { message: Some(message) };
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(1 + size_of::<u32>() + length);
    frame.push(0);
    frame.extend(u32::try_from(length).expect("a configuration has less than 4 GiB").to_be_bytes());
    message.encode_raw(&mut frame);
    frame
}

fn field<T: FromStr>(field: &'static str, value: &str) -> Result<T, DecodeError>
where
    T::Err: fmt::Display,
{
    value.parse().map_err(|e: T::Err| DecodeError::Field {
        field,
        value: value.to_owned(),
        reason: e.to_string(),
    })
}

fn list<T: FromStr>(name: &'static str, values: &[String]) -> Result<Vec<T>, DecodeError>
where
    T::Err: fmt::Display,
{
    values.iter().map(|v| field(name, v)).collect()
}

fn strings<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn vni(name: &'static str, value: u32) -> Result<u32, DecodeError> {
    if (1..=names::VNI_MAX).contains(&value) {
        return Ok(value);
    }
    Err(DecodeError::Field { field: name, value: value.to_string(), reason: "a VNI is 1 to 16777215".into() })
}

fn narrow<T: TryFrom<u32>>(name: &'static str, value: u32) -> Result<T, DecodeError> {
    T::try_from(value).map_err(|_| DecodeError::Field {
        field: name,
        value: value.to_string(),
        reason: "out of range".into(),
    })
}

/// Takes a value that becomes part of a name, a path or a command on a node only where it can do no more there.
fn only<T: fmt::Display>(
    name: &'static str,
    value: T,
    holds: impl Fn(&T) -> bool,
    reason: &str,
) -> Result<T, DecodeError> {
    if holds(&value) {
        return Ok(value);
    }
    Err(DecodeError::Field { field: name, value: value.to_string(), reason: reason.to_owned() })
}

/// As an object of Kubernetes is named. Counters of the guard are named after tenants.
fn object_name(name: &'static str, value: String) -> Result<String, DecodeError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let holds = |value: &String| (1..=253).contains(&value.len()) && value.chars().all(plain);
    only(name, value, holds, "lower-case letters, digits, - and . alone")
}

fn device_name(value: String) -> Result<String, DecodeError> {
    only("underlay.interfaces", value, |value| names::is_device(value), "no name of a device")
}

fn pool_from_wire(w: &wire::Pool) -> Result<model::Pool, DecodeError> {
    let cidr: IpNet = field("tenants.pools.cidr", &w.cidr)?;
    let block_size: u8 = narrow("tenants.pools.blockSize", w.block_size)?;
    let cidr = only("tenants.pools.cidr", cidr, |net| *net == net.trunc(), "has bits beyond its length")?;
    let range = cidr.prefix_len()..=cidr.max_prefix_len();
    let holds = |size: &u8| range.contains(size);
    Ok(model::Pool {
        cidr,
        block_size: only("tenants.pools.blockSize", block_size, holds, "does not fit the pool")?,
    })
}

impl Codec for model::Guard {
    fn encode(&self) -> Vec<u8> {
        wire::Guard {
            tenants: self
                .tenants
                .iter()
                .map(|t| wire::GuardTenant { name: t.name.clone(), vni: t.vni, pools: strings(&t.pools) })
                .collect(),
            quarantined: strings(&self.quarantined),
            services: self.services.iter().map(service_to_wire).collect(),
        }
        .encode_to_vec()
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let w = wire::Guard::decode(body)?;
        Ok(Self {
            tenants: w
                .tenants
                .into_iter()
                .map(|t| {
                    Ok(model::GuardTenant {
                        name: object_name("guard.tenants.name", t.name)?,
                        vni: vni("guard.tenants.vni", t.vni)?,
                        pools: list("guard.tenants.pools", &t.pools)?,
                    })
                })
                .collect::<Result<_, DecodeError>>()?,
            quarantined: list("guard.quarantined", &w.quarantined)?,
            services: w.services.into_iter().map(service_from_wire).collect::<Result<_, _>>()?,
        })
    }
}

fn service_to_wire(service: &model::SharedService) -> wire::SharedService {
    let endpoint = |e: &model::Endpoint| {
        let protocol = match e.protocol {
            model::Protocol::Tcp => wire::Protocol::Tcp,
            model::Protocol::Udp => wire::Protocol::Udp,
            model::Protocol::Sctp => wire::Protocol::Sctp,
        };
        wire::Endpoint { address: e.address.to_string(), protocol: protocol.into(), port: e.port.into() }
    };
    wire::SharedService {
        name: service.name.clone(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }
}

fn service_from_wire(w: wire::SharedService) -> Result<model::SharedService, DecodeError> {
    let endpoint = |w: wire::Endpoint| {
        let protocol = match wire::Protocol::try_from(w.protocol) {
            Ok(wire::Protocol::Tcp) => model::Protocol::Tcp,
            Ok(wire::Protocol::Udp) => model::Protocol::Udp,
            Ok(wire::Protocol::Sctp) => model::Protocol::Sctp,
            Ok(wire::Protocol::Unspecified) | Err(_) => {
                return Err(DecodeError::Field {
                    field: "guard.services.endpoints.protocol",
                    value: w.protocol.to_string(),
                    reason: "neither TCP, UDP nor SCTP".into(),
                });
            }
        };
        Ok(model::Endpoint {
            address: field("guard.services.endpoints.address", &w.address)?,
            protocol,
            port: narrow("guard.services.endpoints.port", w.port)?,
        })
    };
    let endpoints = w.endpoints.into_iter().map(endpoint).collect::<Result<_, DecodeError>>()?;
    Ok(model::SharedService { name: w.name, endpoints })
}

impl Codec for model::NodeConfig {
    fn encode(&self) -> Vec<u8> {
        wire::NodeConfig {
            node: self.node.clone(),
            underlay: self.underlay.as_ref().map(underlay_to_wire),
            tenants: self.tenants.iter().map(tenant_to_wire).collect(),
            explicit_empty: self.underlay.is_none(),
        }
        .encode_to_vec()
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let w = wire::NodeConfig::decode(body)?;
        if w.explicit_empty != w.underlay.is_none() || (w.underlay.is_none() && !w.tenants.is_empty()) {
            return Err(DecodeError::AmbiguousEmpty);
        }
        Ok(Self {
            node: w.node,
            underlay: w.underlay.map(underlay_from_wire).transpose()?,
            tenants: w.tenants.into_iter().map(tenant_from_wire).collect::<Result<_, _>>()?,
        })
    }
}

fn underlay_to_wire(u: &model::Underlay) -> wire::Underlay {
    wire::Underlay {
        name: u.name.clone(),
        asn: u.asn,
        vtep: u.vtep.to_string(),
        router_id: u.router_id.to_string(),
        neighbors: u
            .neighbors
            .iter()
            .map(|n| wire::Neighbor {
                address: n.address.to_string(),
                asn: n.asn,
                hold_time: n.hold_time.into(),
                password: n.password.as_ref().map(|password| wire::Password {
                    text: password.reveal().to_owned(),
                    salt: password.salt().to_owned(),
                }),
            })
            .collect(),
        interfaces: u.interfaces.clone(),
        mtu: u.mtu.unwrap_or(0),
        shared: strings(&u.shared),
        graceful_restart: u.graceful_restart,
        calico_asn: u.calico_asn,
    }
}

fn underlay_from_wire(w: wire::Underlay) -> Result<model::Underlay, DecodeError> {
    Ok(model::Underlay {
        name: w.name,
        asn: w.asn,
        vtep: field("underlay.vtep", &w.vtep)?,
        router_id: field("underlay.routerId", &w.router_id)?,
        neighbors: w
            .neighbors
            .into_iter()
            .map(|n| {
                Ok(model::Neighbor {
                    address: field("underlay.neighbors.address", &n.address)?,
                    asn: n.asn,
                    hold_time: narrow("underlay.neighbors.holdTime", n.hold_time)?,
                    password: n.password.as_ref().map(password_from_wire).transpose()?,
                })
            })
            .collect::<Result<_, DecodeError>>()?,
        interfaces: w.interfaces.into_iter().map(device_name).collect::<Result<_, _>>()?,
        mtu: (w.mtu != 0).then_some(w.mtu),
        shared: list("underlay.shared", &w.shared)?,
        graceful_restart: w.graceful_restart,
        calico_asn: w.calico_asn,
    })
}

fn password_from_wire(w: &wire::Password) -> Result<model::Password, DecodeError> {
    model::Password::new(&w.text, &w.salt).map_err(|error| DecodeError::Field {
        field: "underlay.neighbors.password",
        value: model::REDACTED.to_owned(),
        reason: error.to_string(),
    })
}

fn tenant_to_wire(t: &model::Tenant) -> wire::Tenant {
    wire::Tenant {
        name: t.name.clone(),
        vni: t.vni,
        link_index: t.link_index,
        host_v4: t.host_v4.to_string(),
        host_v6: t.host_v6.to_string(),
        pools: t
            .pools
            .iter()
            .map(|p| wire::Pool { cidr: p.cidr.to_string(), block_size: p.block_size.into() })
            .collect(),
        import_rts: strings(&t.import_rts),
        export_rts: strings(&t.export_rts),
        shared: strings(&t.shared),
        max_prefixes: t.max_prefixes,
        advertise_pods: t.advertise_pods,
        services: t.services.clone(),
    }
}

fn tenant_from_wire(w: wire::Tenant) -> Result<model::Tenant, DecodeError> {
    // The router's end is the next address.
    let even = "is no host's end of a link: those are even";
    let host_v4: Ipv4Addr = field("tenants.hostV4", &w.host_v4)?;
    let host_v6: Ipv6Addr = field("tenants.hostV6", &w.host_v6)?;
    Ok(model::Tenant {
        vni: vni("tenants.vni", w.vni)?,
        name: object_name("tenants.name", w.name)?,
        link_index: w.link_index,
        host_v4: only("tenants.hostV4", host_v4, |address| address.to_bits() % 2 == 0, even)?,
        host_v6: only("tenants.hostV6", host_v6, |address| address.to_bits() % 2 == 0, even)?,
        pools: w.pools.iter().map(pool_from_wire).collect::<Result<_, _>>()?,
        import_rts: list("tenants.importRts", &w.import_rts)?,
        export_rts: list("tenants.exportRts", &w.export_rts)?,
        shared: list("tenants.shared", &w.shared)?,
        max_prefixes: w.max_prefixes,
        advertise_pods: w.advertise_pods,
        services: w.services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> model::NodeConfig {
        model::NodeConfig {
            node: "n1".into(),
            underlay: Some(model::Underlay {
                name: "fabric".into(),
                asn: 65001,
                vtep: "10.255.0.1".parse().unwrap(),
                router_id: "10.255.0.1".parse().unwrap(),
                neighbors: vec![model::Neighbor {
                    address: "192.0.2.1".parse().unwrap(),
                    asn: 65100,
                    hold_time: 9,
                    password: None,
                }],
                interfaces: vec!["eth1".into()],
                mtu: Some(9000),
                shared: vec!["10.96.0.1/32".parse().unwrap()],
                graceful_restart: true,
                calico_asn: 64512,
            }),
            tenants: vec![model::Tenant {
                name: "red".into(),
                vni: 1001,
                link_index: 1,
                host_v4: "169.254.192.2".parse().unwrap(),
                host_v6: "fd00::2".parse().unwrap(),
                pools: vec![model::Pool { cidr: "10.200.0.0/16".parse().unwrap(), block_size: 26 }],
                import_rts: vec!["*:1001".parse().unwrap()],
                export_rts: vec!["65001:1001".parse().unwrap()],
                shared: vec!["2001:db8::/64".parse().unwrap()],
                max_prefixes: 1000,
                advertise_pods: true,
                services: vec!["kube-system/kube-dns".into()],
            }],
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let config = config();
        let (digest, back) = model::NodeConfig::from_payload(&config.to_payload()).unwrap();
        assert_eq!(back, config);
        assert_eq!(digest, Digest::of(&config.encode()));
        let guard = model::Guard {
            tenants: vec![model::GuardTenant {
                name: "red".into(),
                vni: 1001,
                pools: vec!["10.200.0.0/16".parse().unwrap()],
            }],
            quarantined: vec!["10.9.0.0/16".parse().unwrap()],
            services: vec![model::SharedService {
                name: "kube-system/kube-dns".into(),
                endpoints: vec![
                    model::Endpoint {
                        address: "10.244.0.5".parse().unwrap(),
                        protocol: model::Protocol::Udp,
                        port: 53,
                    },
                    model::Endpoint {
                        address: "fd00:244::5".parse().unwrap(),
                        protocol: model::Protocol::Tcp,
                        port: 53,
                    },
                ],
            }],
        };
        assert_eq!(model::Guard::from_payload(&guard.to_payload()).unwrap().1, guard);
    }

    #[test]
    fn a_changed_body_is_refused() {
        let mut payload = config().to_payload();
        *payload.body.last_mut().unwrap() ^= 1;
        assert!(matches!(model::NodeConfig::from_payload(&payload), Err(DecodeError::DigestMismatch)));
    }

    #[test]
    fn empty_must_be_said() {
        let empty = model::NodeConfig { node: "n1".into(), underlay: None, tenants: vec![] };
        assert_eq!(model::NodeConfig::decode(&empty.encode()).unwrap(), empty);
        let silent = wire::NodeConfig { node: "n1".into(), ..Default::default() }.encode_to_vec();
        assert!(matches!(model::NodeConfig::decode(&silent), Err(DecodeError::AmbiguousEmpty)));
    }

    #[test]
    fn a_password_goes_over_the_wire_and_into_no_text() {
        const SECRET: &str = "s3cr3t-Word";
        let with = |text: &str, salt: &str| {
            let mut config = config();
            let underlay = config.underlay.as_mut().unwrap();
            underlay.neighbors[0].password = Some(model::Password::new(text, salt).unwrap());
            config
        };
        let config = with(SECRET, "uid");
        let payload = config.to_payload();
        let back = model::NodeConfig::from_payload(&payload).unwrap().1;
        assert_eq!(back, config);
        assert_eq!(back.underlay.unwrap().neighbors[0].password.as_ref().unwrap().reveal(), SECRET);
        let digest = |config: &model::NodeConfig| Digest::of(&config.encode());
        assert_ne!(digest(&config), digest(&with("another", "uid")));
        assert_ne!(digest(&config), digest(&with(SECRET, "other")), "who guesses the word has no digest yet");

        let mut w = wire::NodeConfig::decode(payload.body.as_slice()).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        for text in [format!("{config:?}"), format!("{payload:?}"), format!("{w:?}"), json] {
            assert!(!text.contains(SECRET), "{text}");
        }
        let message = wire::FromController { message: Some(wire::from_controller::Message::Config(payload)) };
        // As bytes a Debug would print it.
        let octets = format!("{:?}", SECRET.as_bytes());
        let octets = octets.trim_matches(['[', ']']);
        assert!(!format!("{message:?}").contains(octets), "{message:?}");

        // A line of its own would be a command to FRR.
        let injected = format!("{SECRET}\nno router bgp");
        w.underlay.as_mut().unwrap().neighbors[0].password.as_mut().unwrap().text = injected;
        let error = model::NodeConfig::decode(&w.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains("underlay.neighbors.password") && !error.contains(SECRET), "{error}");
    }

    #[test]
    fn a_bad_field_is_named() {
        type Spoil = fn(&mut wire::NodeConfig);
        let bad: [(Spoil, &str, &str); 8] = [
            (|w| w.tenants[0].vni = 0, "tenants.vni", "`0`"),
            (|w| w.tenants[0].name = "a\" drop; flush ruleset".into(), "tenants.name", "flush"),
            (|w| w.tenants[0].host_v4 = "255.255.255.255".into(), "tenants.hostV4", "even"),
            (|w| w.tenants[0].host_v6 = "fd00::3".into(), "tenants.hostV6", "even"),
            (|w| w.tenants[0].pools[0].block_size = 33, "tenants.pools.blockSize", "`33`"),
            (|w| w.tenants[0].pools[0].cidr = "10.200.0.1/16".into(), "tenants.pools.cidr", "beyond"),
            (
                |w| w.underlay.as_mut().unwrap().interfaces[0] = "../../x".into(),
                "underlay.interfaces",
                "../../x",
            ),
            (
                |w| w.underlay.as_mut().unwrap().interfaces[0] = "sixteen-letters!".into(),
                "underlay.interfaces",
                "device",
            ),
        ];
        for (spoil, field, word) in bad {
            let mut w = wire::NodeConfig::decode(config().encode().as_slice()).unwrap();
            spoil(&mut w);
            let error = model::NodeConfig::decode(&w.encode_to_vec()).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(word), "{error}");
        }
    }
}
