//! Who reaches whom: the cells that have to be right, and the table that shows them. Pure; the probes are sent by others.
//!
//! Every cell that must not answer has a twin that must: each target is also probed by somebody who may reach it, and
//! each source also probes something that it may reach. A matrix without such twins is refused.

use std::{fmt::Write as _, net::IpAddr};

use crate::nodes::protocol::{Probe, Probed};

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
    /// A host of a tenant outside of the cluster.
    External {
        /// Tenant.
        tenant: String,
    },
    /// A node itself, as its kubelet speaks.
    Node,
}

/// Somewhere to probe from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Short name for the table.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// Its address.
    pub address: IpAddr,
    /// What it is.
    pub kind: Kind,
}

/// One probe with what has to come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Index of the source.
    pub from: usize,
    /// Index of the target.
    pub to: usize,
    /// Whether it has to answer.
    pub reach: bool,
}

/// Whether `from` has to reach `to`; `None` where this matrix says nothing.
pub fn expected(from: &Place, to: &Place) -> Option<bool> {
    use Kind::{External, Node, Pod};
    match (&from.kind, &to.kind) {
        (Pod { tenant: Some(a), .. }, Pod { tenant: Some(b), .. } | External { tenant: b })
        | (External { tenant: a }, Pod { tenant: Some(b), .. } | External { tenant: b }) => Some(a == b),
        (Pod { tenant: None, .. }, Pod { tenant: None, .. }) => Some(true),
        (Node, Pod { node, .. }) => (from.name == *node).then_some(true),
        (_, Pod { .. } | External { .. }) => Some(false),
        (_, Node) => None,
    }
}

/// All cells of these places.
///
/// # Panics
///
/// When a target that somebody must not reach is reached by nobody: such a matrix would be right without a network.
pub fn cells(places: &[Place]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (i, from) in places.iter().enumerate() {
        for (j, to) in places.iter().enumerate() {
            if let (true, Some(reach)) = (i != j, expected(from, to)) {
                cells.push(Cell { from: i, to: j, reach });
            }
        }
    }
    for cell in cells.iter().filter(|c| !c.reach) {
        let twin = cells.iter().any(|c| c.reach && c.to == cell.to);
        assert!(twin, "nothing shows that {} can be reached at all", places[cell.to].name);
    }
    cells
}

/// The probe of a cell. Those that must answer get more time, since a busy machine may be slow.
pub fn probe(cell: &Cell, places: &[Place]) -> Probe {
    Probe {
        netns: places[cell.from].netns.clone(),
        source: None,
        target: places[cell.to].address,
        port: None,
        count: if cell.reach { 5 } else { 3 },
        timeout_ms: if cell.reach { 10_000 } else { 4_000 },
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
        if cell.reach == result.answered() {
            verdict.right += 1;
            continue;
        }
        let (from, to) = (&places[cell.from].name, &places[cell.to].name);
        let error = if result.error.is_empty() { "silence" } else { &result.error };
        verdict.wrong.push(if cell.reach {
            format!("{from} does not reach {to}: {error}")
        } else {
            format!("{from} reaches {to}, which it must not")
        });
    }
    verdict
}

/// The table: `ok` an answer that has to come, `.` none where none may come, `LEAK` and `LOST` where it is wrong.
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
            let found = cells.iter().zip(results).find(|(c, _)| c.from == i && c.to == j);
            let mark = match found.map(|(c, r)| (c.reach, r.answered())) {
                None => " ",
                Some((true, true)) => "ok",
                Some((false, false)) => ".",
                Some((false, true)) => "LEAK",
                Some((true, false)) => "LOST",
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
    use super::*;

    fn pod(name: &str, tenant: Option<&str>, node: &str) -> Place {
        Place {
            name: name.into(),
            netns: name.into(),
            address: "192.0.2.1".parse().unwrap(),
            kind: Kind::Pod { tenant: tenant.map(Into::into), node: node.into() },
        }
    }

    fn places() -> Vec<Place> {
        vec![
            pod("red-1", Some("red"), "n1"),
            pod("red-2", Some("red"), "n2"),
            pod("blue-1", Some("blue"), "n1"),
            pod("blue-2", Some("blue"), "n2"),
            pod("default-1", None, "n1"),
            Place { kind: Kind::External { tenant: "red".into() }, ..pod("ext-red", None, "") },
            Place { kind: Kind::Node, ..pod("n1", None, "") },
        ]
    }

    fn results(cells: &[Cell], answer: impl Fn(&Cell) -> bool) -> Vec<Probed> {
        let probed = |c| Probed { answered_us: answer(c).then_some(1), error: String::new() };
        cells.iter().map(probed).collect()
    }

    #[test]
    fn tenants_reach_their_own_and_nobody_else() {
        let places = places();
        let place = |name: &str| places.iter().find(|p| p.name == name).unwrap();
        for (from, to, reach) in [
            ("red-1", "red-2", Some(true)),
            ("red-1", "blue-1", Some(false)),
            ("red-1", "default-1", Some(false)),
            ("default-1", "red-1", Some(false)),
            ("red-1", "ext-red", Some(true)),
            ("ext-red", "red-2", Some(true)),
            ("ext-red", "blue-1", Some(false)),
            ("blue-1", "ext-red", Some(false)),
            ("n1", "red-1", Some(true)),
            ("n1", "red-2", None),
            ("red-1", "n1", None),
        ] {
            assert_eq!(expected(place(from), place(to)), reach, "{from} to {to}");
        }
    }

    #[test]
    fn a_dead_network_and_an_open_one_are_both_wrong() {
        let places = places();
        let cells = cells(&places);
        let right = judge(&places, &cells, &results(&cells, |c| c.reach));
        assert_eq!((right.right, right.wrong.len()), (cells.len(), 0));
        let dead = judge(&places, &cells, &results(&cells, |_| false));
        assert_eq!(dead.wrong.len(), cells.iter().filter(|c| c.reach).count());
        let open = judge(&places, &cells, &results(&cells, |_| true));
        assert_eq!(open.wrong.len(), cells.iter().filter(|c| !c.reach).count());
        assert!(open.wrong.contains(&"red-1 reaches blue-1, which it must not".to_owned()));
    }

    #[test]
    #[should_panic(expected = "nothing shows that blue-1 can be reached at all")]
    fn a_target_that_nobody_reaches_proves_nothing() {
        cells(&[pod("red-1", Some("red"), "n1"), pod("blue-1", Some("blue"), "n1")]);
    }

    #[test]
    fn the_table_shows_what_is_wrong() {
        let places = places();
        let cells = cells(&places);
        let text = table(&places, &cells, &results(&cells, |c| c.from != 0));
        let row = text.lines().find(|l| l.starts_with("red-1")).unwrap();
        assert!(row.contains("LOST") && !row.contains("LEAK"), "{text}");
        let row = text.lines().find(|l| l.starts_with("blue-1")).unwrap();
        assert!(row.contains("LEAK"), "{text}");
    }
}
