//! Nodes: which underlay each belongs to, and its number there.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::keys;
use k8s_openapi::api::core::v1 as core;

use super::{Age, Underlay, age, underlays};
use crate::Snapshot;

/// A Node.
#[derive(Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its age.
    pub age: Age<'a>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Tenants whose ready label stands on it, in order.
    pub ready: Vec<&'a str>,
    /// The values that those labels have; more than one only where somebody else wrote some.
    pub ready_values: BTreeSet<&'a str>,
    /// ASN of its BIRD.
    pub calico_asn: u32,
    /// Where it belongs.
    pub seat: Seat,
    kept_index: Option<u32>,
}

impl Node<'_> {
    /// Whether it has been given a number, in whichever Underlay.
    pub(super) fn keeps_a_number(&self) -> bool {
        self.kept_index.is_some()
    }

    /// Whether it keeps a number though no accepted Underlay selects it.
    pub fn holds_a_number_elsewhere(&self) -> bool {
        matches!(self.seat, Seat::Nowhere | Seat::Waiting) && self.kept_index.is_some()
    }
}

/// Where a Node belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// No Underlay selects it.
    Nowhere,
    /// Only Underlays that are not accepted select it: what it has stays.
    Waiting,
    /// These accepted Underlays select it: what it has stays.
    Ambiguous(Vec<usize>),
    /// An accepted Underlay alone selects it.
    In {
        /// The Underlay.
        underlay: usize,
        /// Its number there, where that stands in the cluster.
        index: Option<u32>,
        /// Whether the Underlay has no number left for it.
        full: bool,
    },
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// All Nodes, by name.
pub(super) fn parse(snapshot: &Snapshot, calico_asn: u32) -> Vec<Node<'_>> {
    let mut nodes: Vec<Node<'_>> = snapshot.nodes.iter().map(|n| node(n, calico_asn)).collect();
    nodes.sort_by_key(|n| n.name);
    nodes
}

fn node(object: &core::Node, calico_asn: u32) -> Node<'_> {
    let labels = object.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
    let annotation = |key: &str| object.metadata.annotations.as_ref().and_then(|a| a.get(key));
    let (ready, values): (Vec<&str>, Vec<&str>) = labels
        .range(keys::READY_LABEL_PREFIX.to_owned()..)
        .map_while(|(key, value)| Some((key.strip_prefix(keys::READY_LABEL_PREFIX)?, value.as_str())))
        .filter(|(_, value)| underlays::is_ready_value(value))
        .unzip();
    Node {
        name: object.metadata.name.as_deref().unwrap_or_default(),
        age: age(&object.metadata),
        labels,
        ready,
        ready_values: values.into_iter().collect(),
        calico_asn: annotation(keys::CALICO_NODE_ASN).and_then(|text| asn(text)).unwrap_or(calico_asn),
        seat: Seat::Nowhere,
        kept_index: annotation(keys::ROUTER_INDEX).and_then(|text| text.parse().ok()),
    }
}

/// An ASN as Calico takes it: a number, or two joined by a dot (RFC 5396, asdot+).
fn asn(text: &str) -> Option<u32> {
    match text.split_once('.') {
        None => text.parse().ok(),
        Some((high, low)) => {
            Some(u32::from(high.parse::<u16>().ok()?) << 16 | u32::from(low.parse::<u16>().ok()?))
        }
    }
}

/// Gives each Node its seat, and returns the numbers that have to be kept before they are used.
pub(super) fn seat(nodes: &mut [Node<'_>], underlays: &[Underlay<'_>]) -> BTreeMap<String, u32> {
    let mut selected_by: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (u, underlay) in underlays.iter().enumerate() {
        for &n in &underlay.nodes {
            selected_by[n].push(u);
        }
    }
    // A Node that no accepted Underlay selects may have a router that still runs with its number, for it was not reached
    // or has to stay as it is: nobody new is given that number, wherever it was, until the annotation is taken off.
    let mut left: BTreeSet<u32> = BTreeSet::new();
    // Each accepted underlay: its nodes, oldest first, and numbers that others hold.
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut held: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
    for (n, by) in selected_by.into_iter().enumerate() {
        let accepted: Vec<usize> =
            by.iter().copied().filter(|&u| underlays[u].accepted().is_some()).collect();
        nodes[n].seat = match accepted[..] {
            [underlay] => {
                members.entry(underlay).or_default().push(n);
                Seat::In { underlay, index: None, full: false }
            }
            [] => {
                left.extend(nodes[n].kept_index);
                if by.is_empty() { Seat::Nowhere } else { Seat::Waiting }
            }
            _ => {
                // Its router runs on with the number it has, in whichever of them it was: nobody new is given that.
                for &u in &accepted {
                    held.entry(u).or_default().extend(nodes[n].kept_index);
                }
                Seat::Ambiguous(accepted)
            }
        };
    }
    let kept: BTreeSet<u32> = nodes.iter().filter_map(|n| n.kept_index).collect();
    let mut allocated = BTreeMap::new();
    for (u, mut members) in members {
        members.sort_by_key(|&n| nodes[n].age);
        let capacity = underlays[u].accepted().map_or(0, underlays::Settings::router_capacity);
        let mut taken = BTreeSet::new();
        let held = held.remove(&u).unwrap_or_default();
        let mut without = Vec::new();
        for n in members {
            match nodes[n].kept_index {
                Some(i) if (1..=capacity).contains(&i) && taken.insert(i) => {
                    nodes[n].seat = Seat::In { underlay: u, index: Some(i), full: false };
                }
                _ => without.push(n),
            }
        }
        let allowed = |i: &u32| !taken.contains(i) && !held.contains(i) && !left.contains(i);
        // A Node that came here from another Underlay may still run with its number there, so numbers that nobody has
        // anywhere are given first.
        let mut free = (1..=capacity)
            .filter(|i| allowed(i) && !kept.contains(i))
            .chain((1..=capacity).filter(|i| allowed(i) && kept.contains(i)));
        for n in without {
            match free.next() {
                Some(i) => {
                    allocated.insert(nodes[n].name.to_owned(), i);
                }
                None => nodes[n].seat = Seat::In { underlay: u, index: None, full: true },
            }
        }
    }
    allocated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asns_as_calico_takes_them() {
        assert_eq!(asn("64513"), Some(64513));
        assert_eq!(asn("1.10"), Some(65546));
        for bad in ["", "x", "4294967296", "65536.1", "1.2.3"] {
            assert_eq!(asn(bad), None, "{bad}");
        }
    }
}
