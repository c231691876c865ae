//! Who reaches whom: the cells that have to be right, and the table that shows them. Pure; the probes are sent by others.
//!
//! A cell that must stay closed is right only when nothing arrived at its target: an answer that is missing could be
//! missing for many reasons. And it has twins: each target is also probed in the same way by somebody who may reach it,
//! each source also probes something that it may reach, and for those the same counters have to grow. A matrix without
//! such twins is refused.

use std::{fmt, fmt::Write as _};

use crate::{
    calico::Family,
    nodes::protocol::{Probe, Probed},
    topology::{Addresses, PORT},
};

/// What a place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod of a tenant, or of none, on a node.
    Pod {
        /// Tenant; absent: a pod of the default pool.
        tenant: Option<String>,
        /// Its node.
        node: String,
    },
    /// A pod of the default pool whose addresses are among the shared ones, as the cluster's DNS is.
    Service,
    /// A host of a tenant outside of the cluster.
    External {
        /// Tenant.
        tenant: String,
    },
    /// A node itself, as its kubelet speaks. Its name is the place's.
    Node,
    /// A host of the flat network that is no node.
    Outside,
}

/// Somewhere to probe from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Short name for the table.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// What it is.
    pub kind: Kind,
}

/// How a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Echo request and reply.
    Icmp,
    /// A connection to [`PORT`], up to the first octet of the answer.
    Tcp,
}

/// One way to try all cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// IPv4 or IPv6.
    pub family: Family,
    /// ICMP or TCP.
    pub protocol: Protocol,
}

impl Way {
    /// ICMP in both families.
    pub const ICMP: [Self; 2] = [
        Self { family: Family::V4, protocol: Protocol::Icmp },
        Self { family: Family::V6, protocol: Protocol::Icmp },
    ];

    /// Both protocols in both families.
    pub const ALL: [Self; 4] = [
        Self::ICMP[0],
        Self { family: Family::V4, protocol: Protocol::Tcp },
        Self::ICMP[1],
        Self { family: Family::V6, protocol: Protocol::Tcp },
    ];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Icmp => "ICMP",
            Protocol::Tcp => "TCP",
        };
        write!(f, "{protocol} over {}", self.family)
    }
}

/// One probe with what has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Index of the source.
    pub from: usize,
    /// Index of the target.
    pub to: usize,
    /// How.
    pub way: Way,
    /// Whether it has to answer.
    pub reach: bool,
}

/// Whether `from` has to reach `to`; if not, nothing that it sends may arrive there. The same for both families, for
/// ICMP and TCP, and wherever the two are, but for the two cells in which the node counts:
///
/// - A pod reaches its own node, at any address: the kernel delivers by the local table before any rule of ours, and
///   node-local DNS lives there. What a node's processes offer to tenants is the node's firewall's affair.
/// - A node reaches its own pods, as the kubelet must: what it sends itself is not forwarded, so neither the tenant's
///   rules (its source is no pod's) nor the guard (it hooks on forwarding) see it.
///
/// Another node's packet to a tenant's pod comes in by the flat network, where main has Calico's route to the block.
/// There the pod's own node forwards it, and its guard drops it. A tenant's pod that sends to another node's address
/// is routed by its tenant's table into the VRF, where nobody has that address.
pub fn expected(from: &Place, to: &Place) -> bool {
    use Kind::{External, Node, Outside, Pod, Service};
    match (&from.kind, &to.kind) {
        // The VRF, on the node and over the fabric.
        (
            Pod { tenant: Some(from), .. } | External { tenant: from },
            Pod { tenant: Some(to), .. } | External { tenant: to },
        ) => from == to,
        (Pod { tenant: Some(_), node }, Node) => *node == to.name,
        (Node, Pod { tenant: Some(_), node }) => *node == from.name,
        // Shared services go one way: what one sends to a tenant of its own accord is dropped by the guard. The flat
        // network is as Calico makes it.
        (Pod { tenant: Some(_), .. }, Service)
        | (
            Pod { tenant: None, .. } | Service | Node | Outside,
            Pod { tenant: None, .. } | Service | Node | Outside,
        ) => true,
        // Everything else that begins or ends in a VRF. External hosts have no way out of theirs at all.
        (Pod { tenant: Some(_), .. } | External { .. }, _)
        | (_, Pod { tenant: Some(_), .. } | External { .. }) => false,
    }
}

/// All cells of these places, for each of these ways.
///
/// # Panics
///
/// When a target that somebody must not reach is reached by nobody, or somebody who must not reach it reaches nothing:
/// such a matrix would be right without a network.
pub fn cells(places: &[Place], ways: &[Way]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &way in ways {
        for (i, from) in places.iter().enumerate() {
            for (j, to) in places.iter().enumerate() {
                if i != j {
                    cells.push(Cell { from: i, to: j, way, reach: expected(from, to) });
                }
            }
        }
    }
    for closed in cells.iter().filter(|c| !c.reach) {
        let open = |end: fn(&Cell) -> usize| {
            cells.iter().any(|c| c.reach && c.way == closed.way && end(c) == end(closed))
        };
        assert!(open(|c| c.to), "nothing shows that {} can be reached at all", places[closed.to].name);
        assert!(open(|c| c.from), "nothing shows that {} can send at all", places[closed.from].name);
    }
    cells
}

/// The probe of a cell. Those that must answer get more time, since a busy machine may be slow.
pub fn probe(cell: &Cell, places: &[Place]) -> Probe {
    let target = &places[cell.to];
    Probe {
        netns: places[cell.from].netns.clone(),
        source: None,
        target: target.addresses.of(cell.way.family),
        port: (cell.way.protocol == Protocol::Tcp).then_some(PORT),
        count: if cell.reach { 5 } else { 3 },
        timeout_ms: if cell.reach { 10_000 } else { 4_000 },
        count_in: Some(target.netns.clone()),
    }
}

/// What came of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing arrived, as it has to be.
    Closed,
    /// It arrived and was answered, as it has to be.
    Open,
    /// No answer came where one has to come.
    Lost,
    /// An answer came, or something arrived, where nothing may.
    Leak,
}

impl Outcome {
    fn of(cell: &Cell, result: &Probed) -> Self {
        let arrived = result.arrived.is_some_and(|packets| packets > 0);
        match (cell.reach, result.answered()) {
            (true, true) if arrived => Self::Open,
            // An answer to what never arrived: another host gave it, or the count is not to be trusted.
            (true, _) => Self::Lost,
            (false, false) if !arrived => Self::Closed,
            (false, _) => Self::Leak,
        }
    }
}

/// What came of a matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Cells that are right.
    pub right: usize,
    /// One line for each that is not.
    pub wrong: Vec<String>,
}

/// Compares what came with what had to.
pub fn judge(places: &[Place], cells: &[Cell], results: &[Probed]) -> Verdict {
    assert_eq!(cells.len(), results.len(), "a result for each cell");
    let mut verdict = Verdict::default();
    for (cell, result) in cells.iter().zip(results) {
        let (from, to, way) = (&places[cell.from].name, &places[cell.to].name, cell.way);
        let arrived = result.arrived.unwrap_or(0);
        let error = if result.error.is_empty() { "silence" } else { &result.error };
        match Outcome::of(cell, result) {
            Outcome::Open | Outcome::Closed => verdict.right += 1,
            Outcome::Lost => verdict.wrong.push(match result.answered_us {
                Some(_) => format!("{from} has an answer of {to} by {way}, where nothing arrived"),
                None => format!("{from} does not reach {to} by {way}: {error}; {arrived} packets arrived"),
            }),
            Outcome::Leak => verdict
                .wrong
                .push(format!("{from} reaches {to} by {way}, which it must not: {arrived} packets arrived")),
        }
    }
    verdict
}

/// The table: `ok` an answer that has to come, `.` nothing where nothing may arrive, `LEAK` and `LOST` where it is wrong.
/// Where cells differ in their way alone, the worst counts.
pub fn table(places: &[Place], cells: &[Cell], results: &[Probed]) -> String {
    let columns: Vec<usize> = (0..places.len()).filter(|&j| cells.iter().any(|c| c.to == j)).collect();
    let width = places.iter().map(|p| p.name.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}", "from \\ to");
    for &j in &columns {
        let _ = write!(text, "  {}", places[j].name);
    }
    text.push('\n');
    for (i, from) in places.iter().enumerate() {
        let _ = write!(text, "{:width$}", from.name);
        for &j in &columns {
            let of_pair = cells.iter().zip(results).filter(|(c, _)| c.from == i && c.to == j);
            let mark = match of_pair.map(|(c, r)| Outcome::of(c, r)).max() {
                None => " ",
                Some(Outcome::Closed) => ".",
                Some(Outcome::Open) => "ok",
                Some(Outcome::Lost) => "LOST",
                Some(Outcome::Leak) => "LEAK",
            };
            let _ = write!(text, "  {mark:^0$}", places[j].name.len());
        }
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn place(name: &str, kind: Kind) -> Place {
        let addresses = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
        Place { name: name.into(), netns: name.into(), addresses, kind }
    }

    fn pod(name: &str, tenant: Option<&str>, node: &str) -> Place {
        place(name, Kind::Pod { tenant: tenant.map(Into::into), node: node.into() })
    }

    fn places() -> Vec<Place> {
        vec![
            pod("red-1", Some("red"), "n1"),
            pod("red-2", Some("red"), "n2"),
            pod("blue-1", Some("blue"), "n1"),
            pod("blue-2", Some("blue"), "n2"),
            pod("dflt-1", None, "n1"),
            place("dns", Kind::Service),
            place("ext-red", Kind::External { tenant: "red".into() }),
            place("ext-blue", Kind::External { tenant: "blue".into() }),
            place("n1", Kind::Node),
            place("n2", Kind::Node),
            place("outside", Kind::Outside),
        ]
    }

    fn results(cells: &[Cell], answer: impl Fn(&Cell) -> bool) -> Vec<Probed> {
        let probed = |c| {
            let answered = answer(c);
            Probed { answered_us: answered.then_some(1), arrived: Some(answered.into()), ..Probed::default() }
        };
        cells.iter().map(probed).collect()
    }

    /// The whole truth, written a second time: who reaches whom, one line for each source.
    #[test]
    fn every_cell_is_as_it_is_written_here() {
        let places = places();
        let reached = |from: &Place| -> Vec<String> {
            places.iter().filter(|to| *to != from && expected(from, to)).map(|to| to.name.clone()).collect()
        };
        for (from, to) in [
            ("red-1", "red-2 dns ext-red n1"),
            ("red-2", "red-1 dns ext-red n2"),
            ("blue-1", "blue-2 dns ext-blue n1"),
            ("blue-2", "blue-1 dns ext-blue n2"),
            ("dflt-1", "dns n1 n2 outside"),
            ("dns", "dflt-1 n1 n2 outside"),
            ("ext-red", "red-1 red-2"),
            ("ext-blue", "blue-1 blue-2"),
            ("n1", "red-1 blue-1 dflt-1 dns n2 outside"),
            ("n2", "red-2 blue-2 dflt-1 dns n1 outside"),
            ("outside", "dflt-1 dns n1 n2"),
        ] {
            let from = places.iter().find(|p| p.name == from).unwrap();
            assert_eq!(reached(from).join(" "), to, "from {}", from.name);
        }
    }

    #[test]
    fn a_dead_network_and_an_open_one_are_both_wrong() {
        let places = places();
        let cells = cells(&places, &Way::ALL);
        assert_eq!(cells.len(), 4 * places.len() * (places.len() - 1));
        let right = judge(&places, &cells, &results(&cells, |c| c.reach));
        assert_eq!((right.right, right.wrong.len()), (cells.len(), 0));
        let dead = judge(&places, &cells, &results(&cells, |_| false));
        assert_eq!(dead.wrong.len(), cells.iter().filter(|c| c.reach).count());
        let open = judge(&places, &cells, &results(&cells, |_| true));
        assert_eq!(open.wrong.len(), cells.iter().filter(|c| !c.reach).count());
        let line = "red-1 reaches blue-1 by TCP over IPv6, which it must not: 1 packets arrived";
        assert!(open.wrong.contains(&line.to_owned()), "{:?}", open.wrong);
    }

    #[test]
    fn what_arrives_is_a_leak_without_any_answer_and_an_answer_to_nothing_is_none() {
        let places = places();
        let cells = cells(&places, &Way::ICMP);
        let mut results = results(&cells, |c| c.reach);
        let closed = cells.iter().position(|c| !c.reach).unwrap();
        let open = cells.iter().position(|c| c.reach).unwrap();
        results[closed].arrived = Some(1);
        results[open].arrived = Some(0);
        let verdict = judge(&places, &cells, &results);
        assert_eq!(verdict.wrong.len(), 2, "{:?}", verdict.wrong);
        let text = table(&places, &cells, &results);
        assert!(text.contains("LEAK") && text.contains("LOST"), "{text}");
    }

    #[test]
    #[should_panic(expected = "nothing shows that blue-1 can be reached at all")]
    fn a_target_that_nobody_reaches_proves_nothing() {
        cells(&[pod("red-1", Some("red"), "n1"), pod("blue-1", Some("blue"), "n1")], &Way::ICMP);
    }

    #[test]
    #[should_panic(expected = "nothing shows that ext-red can send at all")]
    fn a_source_that_reaches_nobody_proves_nothing() {
        let external = place("ext-red", Kind::External { tenant: "red".into() });
        cells(&[external, place("n1", Kind::Node), place("n2", Kind::Node)], &Way::ICMP);
    }

    #[test]
    fn the_table_shows_what_is_wrong() {
        let places = places();
        let cells = cells(&places, &Way::ICMP);
        // Of two ways the worse one counts.
        let text = table(
            &places,
            &cells,
            &results(&cells, |c| if c.way == Way::ICMP[0] { c.reach } else { c.from != 0 }),
        );
        let row = text.lines().find(|l| l.starts_with("red-1")).unwrap();
        assert!(row.contains("LOST") && !row.contains("LEAK"), "{text}");
        let row = text.lines().find(|l| l.starts_with("blue-1")).unwrap();
        assert!(row.contains("LEAK"), "{text}");
    }
}
