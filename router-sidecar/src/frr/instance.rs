//! The difference between two BGP instances, line by line. Pure.

use super::config::{Instance, other_distinguisher};

/// Whose the lines of an instance are that are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// All ours: the instance of a VRF that we named.
    Us,
    /// Ours are only lines of the shapes that we write; the others stay.
    Shared,
}

/// Lines that make `have` into `want`, with their contexts; none when nothing differs. Both have one header.
pub fn delta(want: &Instance, have: Option<&Instance>, owner: Owner) -> Vec<String> {
    let nothing = Instance::default();
    let there = have.unwrap_or(&nothing);
    let gone: Vec<&str> = peers(there).filter(|peer| !peers(want).any(|p| p == *peer)).collect();
    let changes = |want: &[String], have: &[String]| {
        let first_rd = !have.iter().any(|line| line.starts_with("rd "));
        let new = want.iter().filter(|line| !have.contains(line)).flat_map(|line| {
            let other = other_distinguisher(line).filter(|_| first_rd);
            other.into_iter().chain([line.clone()])
        });
        let old = have.iter().filter(|line| {
            let replaced = want.iter().any(|w| slot(w) == slot(line));
            // What belongs to a neighbour that goes is gone with it.
            let moot = peer(line).is_some_and(|p| gone.contains(&p));
            !replaced && !moot && (owner == Owner::Us || is_shape_of_ours(line))
        });
        new.chain(old.map(|line| undo(line))).collect::<Vec<_>>()
    };
    let mut lines: Vec<String> = gone.iter().map(|peer| format!("no neighbor {peer}")).collect();
    lines.extend(changes(&want.lines, &there.lines));
    let gone_families = there.families.iter().filter(|f| !want.families.iter().any(|w| w.name == f.name));
    for name in want.families.iter().chain(gone_families).map(|f| f.name.as_str()) {
        let changes = changes(want.family(name), there.family(name));
        if !changes.is_empty() {
            lines.push(format!("address-family {name}"));
            lines.extend(changes);
            lines.push("exit-address-family".to_owned());
        }
    }
    if !lines.is_empty() || have.is_none() {
        lines.insert(0, want.header.clone());
        lines.push("exit".to_owned());
    }
    lines
}

/// Neighbours that take part in a family.
pub fn active_peers<'a>(instance: &'a Instance, family: &str) -> impl Iterator<Item = &'a str> {
    instance.family(family).iter().filter(|l| l.ends_with(" activate")).filter_map(|l| peer(l))
}

fn peers(instance: &Instance) -> impl Iterator<Item = &str> {
    instance.lines.iter().filter(|l| l.contains(" remote-as ")).filter_map(|l| peer(l))
}

fn peer(line: &str) -> Option<&str> {
    let line = line.strip_prefix("no ").unwrap_or(line);
    line.strip_prefix("neighbor ")?.split(' ').next()
}

fn undo(line: &str) -> String {
    line.strip_prefix("no ").map_or_else(|| format!("no {line}"), str::to_owned)
}

/// What of a line says which setting it is, its value left out: a new value replaces the old one, and taking the old
/// one away first could reset a session.
fn slot(line: &str) -> Vec<&str> {
    let words: Vec<&str> = line.split(' ').collect();
    let named = match words.as_slice() {
        ["bgp", "router-id", ..] | ["neighbor", _, "timers", "connect", ..] => words.len() - 1,
        ["bgp", "graceful-restart", "select-defer-time", _]
        | ["neighbor", _, "remote-as" | "timers" | "password" | "maximum-prefix" | "allowas-in", ..] => 3,
        ["neighbor", _, kind @ ("prefix-list" | "route-map" | "filter-list"), _, direction] => {
            return vec!["neighbor", words[1], kind, direction];
        }
        ["rd", ..] => 1,
        _ => words.len(),
    };
    words[..named].to_vec()
}

/// Whether rendering could have written the line, for some node.
fn is_shape_of_ours(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["bgp", "router-id" | "graceful-restart", ..]
        | ["no", "bgp", "default", "ipv4-unicast"]
        | ["bgp", "bestpath", "as-path", "multipath-relax"]
        | ["network", _]
        | ["advertise-all-vni"] => true,
        ["neighbor", _, setting, ..] => {
            ["remote-as", "password", "timers", "capability", "activate", "allowas-in", "route-map"]
                .contains(setting)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_value_replaces_the_old_one() {
        for (a, b) in [
            ("neighbor 192.0.2.1 timers 3 9", "neighbor 192.0.2.1 timers 30 90"),
            ("neighbor 192.0.2.1 maximum-prefix 5 restart 1", "neighbor 192.0.2.1 maximum-prefix 9"),
            ("neighbor fd00::1 prefix-list a in", "neighbor fd00::1 prefix-list b in"),
            ("neighbor 192.0.2.1 password one", "neighbor 192.0.2.1 password two"),
            ("rd 1:1", "rd 1:2"),
            ("bgp router-id 192.0.2.1", "bgp router-id 192.0.2.2"),
        ] {
            assert_eq!(slot(a), slot(b));
        }
        for (a, b) in [
            ("neighbor 192.0.2.1 timers 3 9", "neighbor 192.0.2.1 timers connect 1"),
            ("neighbor 192.0.2.1 timers 3 9", "neighbor 192.0.2.2 timers 3 9"),
            ("neighbor fd00::1 prefix-list a in", "neighbor fd00::1 prefix-list a out"),
            ("bgp graceful-restart", "bgp graceful-restart preserve-fw-state"),
            ("route-target import 1:1", "route-target import 1:2"),
            ("network 192.0.2.1/32", "network 192.0.2.2/32"),
        ] {
            assert_ne!(slot(a), slot(b));
        }
    }
}
