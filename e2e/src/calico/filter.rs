//! BGPFilters as functions of BIRD, one for each family and direction that has rules. Pure.
//!
//! A function ends by `accept`, by `reject`, or by falling through to what the peer's filter says next. All filters of
//! the cluster are in every node's file, whether a peer there names them or not; so one that BIRD cannot parse stops
//! the configuration of all nodes. [`Functions::refused`] tells that without running BIRD.

use std::fmt::Write as _;

use calico_vni_crds::calico::{BgpFilter, BgpFilterRule, BgpFilterSpec, FilterAction, MatchOperator};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::Family;

/// Longest name of a symbol in Calico's BIRD.
const MAX_SYMBOL: usize = 64;

/// Why a file is not handed to BIRD.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A rule of a BGPFilter does not make a statement of BIRD.
    #[error("BGPFilter {filter}, {list}[{index}]: {why}")]
    Rule {
        /// Name of the filter.
        filter: String,
        /// `exportV4`, `importV4`, `exportV6` or `importV6`.
        list: String,
        /// Place in that list, from 0.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// The node has no IPv4 address, of which BIRD makes its router ID in both families.
    #[error("Node {0} has no annotation {annotation}", annotation = super::state::NODE_IPV4)]
    NoAddress(String),
    /// A peer without an ASN.
    #[error("BGPPeer {0} has no asNumber")]
    NoAsn(String),
}

/// Direction of routes, seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the peer.
    Import,
    /// To the peer.
    Export,
}

impl Direction {
    /// The rules of a filter for one family in this direction.
    pub fn rules(self, family: Family, spec: &BgpFilterSpec) -> &[BgpFilterRule] {
        match (self, family) {
            (Self::Import, Family::V4) => &spec.import_v4,
            (Self::Import, Family::V6) => &spec.import_v6,
            (Self::Export, Family::V4) => &spec.export_v4,
            (Self::Export, Family::V6) => &spec.export_v6,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Export => "export",
        }
    }
}

/// The functions of all filters, for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Functions {
    /// BIRD's text.
    pub text: String,
    /// What in it BIRD would refuse.
    pub refused: Option<Refused>,
}

/// Renders all filters, in the order given.
pub fn functions<'a>(filters: impl IntoIterator<Item = &'a BgpFilter>, family: Family) -> Functions {
    let mut all = Functions::default();
    for filter in filters {
        for direction in [Direction::Import, Direction::Export] {
            let rules = direction.rules(family, &filter.spec);
            if rules.is_empty() {
                continue;
            }
            let _ = writeln!(all.text, "function {}() {{", function_name(filter.name(), direction, family));
            for (index, rule) in rules.iter().enumerate() {
                let (statement, fault) = statement(rule, family);
                let _ = writeln!(all.text, "  {statement}");
                all.refused = all.refused.or(fault.map(|why| Refused::Rule {
                    filter: filter.name().to_owned(),
                    list: format!("{}{}", direction.word(), family.upper()),
                    index,
                    why,
                }));
            }
            all.text.push_str("}\n");
        }
    }
    all
}

/// Name of a filter's function, in quotes. A name too long for BIRD is cut and gets a part of its hash.
pub fn function_name(filter: &str, direction: Direction, family: Family) -> String {
    let tail = format!("_{}Filter{}", direction.word(), family.upper());
    let room = MAX_SYMBOL - "bgp_".len() - tail.len();
    let name = if filter.len() <= room {
        filter.to_owned()
    } else {
        let hash = hex::encode_upper(Sha256::digest(filter.as_bytes()));
        format!("{}_{}", &filter[..room - 17], &hash[..16])
    };
    format!("'bgp_{name}{tail}'")
}

/// A rule as a statement, and what BIRD (or confd itself) has against it.
fn statement(rule: &BgpFilterRule, family: Family) -> (String, Option<String>) {
    let mut conditions = Vec::new();
    let mut fault = None;
    if let Some(cidr) = &rule.cidr {
        let prefix = match &rule.prefix_length {
            None => cidr.clone(),
            Some(length) => {
                let own = cidr.parse::<IpNet>().map_or(0, |net| net.prefix_len());
                let min = length.min.map_or(own, |min| min.max(own));
                let max = length.max.map_or(family.max_len(), |max| max.min(family.max_len()));
                if min > max {
                    fault = Some(format!(
                        "prefixLength of {cidr} leaves no length: from {min} to {max}; set min <= max and max >= {own}"
                    ));
                }
                format!("[ {cidr}{{{min},{max}}} ]")
            }
        };
        fault = fault.or(prefix_fault(cidr, family));
        let operator = match rule.match_operator {
            Some(MatchOperator::Equal) => "=",
            Some(MatchOperator::NotEqual) => "!=",
            Some(MatchOperator::In) => "~",
            Some(MatchOperator::NotIn) => "!~",
            None => {
                fault = fault.or(Some(format!("cidr {cidr} without a matchOperator")));
                ""
            }
        };
        conditions.push(format!("net {operator} {prefix}"));
    }
    match rule.source.as_deref() {
        None | Some("") => {}
        Some("RemotePeers") => conditions.push("defined(source) && source ~ [ RTS_BGP ]".to_owned()),
        Some(other) => fault = fault.or(Some(format!("source {other:?} is not RemotePeers"))),
    }
    if let Some(interface) = rule.interface.as_deref().filter(|name| !name.is_empty()) {
        if interface.contains(['"', '\n']) {
            fault = fault.or(Some(format!("interface {interface:?} cannot be quoted for BIRD")));
        }
        conditions.push(format!("defined(ifname) && ifname ~ \"{interface}\""));
    }
    let action = match rule.action {
        FilterAction::Accept => "accept;",
        FilterAction::Reject => "reject;",
    };
    let conditions: Vec<_> = conditions.iter().map(|condition| format!("({condition})")).collect();
    let text = match conditions.as_slice() {
        [] => action.to_owned(),
        _ => format!("if {} then {action}", grouped(&conditions)),
    };
    (text, fault)
}

fn grouped(conditions: &[String]) -> String {
    if let [only] = conditions { only.clone() } else { format!("({})", conditions.join(" && ")) }
}

fn prefix_fault(cidr: &str, family: Family) -> Option<String> {
    match cidr.parse::<IpNet>() {
        Err(_) => Some(format!("cidr {cidr:?} is no prefix")),
        Ok(net) if Family::of(net.addr()) != family => Some(format!("cidr {cidr} is not {family}")),
        Ok(net) if net.trunc() != net => Some(format!("cidr {cidr} has host bits; write {}", net.trunc())),
        Ok(_) => None,
    }
}
