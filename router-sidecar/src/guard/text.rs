//! The text of a table for `nft`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Arguments, Write as _},
};

/// Family and name of our table, as `nft` writes them. Each namespace has one.
pub const TABLE: &str = "inet calico-vni";

/// Packets and bytes that a counter holds.
pub type Counts = (u64, u64);

/// What a table that stands is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Names by what it is: `chain`, `set`, `map`, `counter`.
    pub names: BTreeMap<String, BTreeSet<String>>,
    /// By its name, what is in a set or a map, as [`plain`] writes it; absent where that was not understood.
    pub elements: BTreeMap<String, BTreeSet<String>>,
}

/// An element without what `nft` leaves out when it lists one: quotes, and the length of a whole address.
pub fn plain(element: &str) -> String {
    let word = |word: &str| {
        let word = word.trim_matches('"');
        let whole = if word.contains(':') { "/128" } else { "/32" };
        word.strip_suffix(whole).unwrap_or(word).to_owned()
    };
    element.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A table that is to stand.
#[derive(Debug, Default)]
pub struct Table {
    counters: Vec<String>,
    sets: Vec<Set>,
    chains: Vec<(String, Vec<String>)>,
}

/// A set or a map.
#[derive(Debug)]
struct Set {
    kind: &'static str,
    name: String,
    of_type: String,
    flags: &'static str,
    elements: Vec<String>,
}

impl Table {
    /// Counters by these names.
    pub(super) fn counters(&mut self, names: impl IntoIterator<Item = String>) {
        self.counters.extend(names);
    }

    /// Comes after all chains that it leads to.
    pub(super) fn chain(&mut self, name: &str, lines: &[impl AsRef<str>]) {
        self.chains.push((name.to_owned(), lines.iter().map(|line| line.as_ref().to_owned()).collect()));
    }

    /// A set.
    pub(super) fn set(&mut self, name: String, of_type: &str, flags: &'static str, elements: Vec<String>) {
        self.sets.push(Set { kind: "set", name, of_type: of_type.to_owned(), flags, elements });
    }

    /// A map.
    pub(super) fn map(&mut self, name: String, of_type: &str, flags: &'static str, elements: Vec<String>) {
        self.sets.push(Set { kind: "map", name, of_type: of_type.to_owned(), flags, elements });
    }

    /// What puts it in the place of whatever stands, in one transaction. Counters begin with these counts.
    ///
    /// While that comes into force older kernels may find nothing in a set that is new: its elements are there a moment after
    /// the rules that ask for them (`nft_set_commit_update` in nf_tables_api.c), and what was permitted is dropped meanwhile.
    pub fn replacing(&self, counts: &BTreeMap<String, Counts>) -> String {
        let mut text = Text(String::new());
        // Adding a table that is there changes nothing, and makes it certain that there is one to delete.
        text.line(format_args!("table {TABLE}"));
        text.line(format_args!("delete table {TABLE}"));
        text.line(format_args!("table {TABLE} {{"));
        for name in &self.counters {
            let (packets, bytes) = counts.get(name).copied().unwrap_or_default();
            text.line(format_args!("  counter {name} {{ packets {packets} bytes {bytes}; }}"));
        }
        for set in &self.sets {
            text.set(set, true);
        }
        for (name, lines) in &self.chains {
            text.chain(name, lines);
        }
        text.line(format_args!("}}"));
        text.0
    }

    /// What makes it of the one that stands, in one transaction. What stays in a set is not touched, so that no packet misses
    /// it, and counters go on. It is refused where a set or a base chain of that name is another one.
    pub fn updating(&self, standing: &Standing) -> String {
        let stands =
            |kind: &str, name: &str| standing.names.get(kind).is_some_and(|names| names.contains(name));
        let mut text = Text(String::new());
        text.line(format_args!("table {TABLE} {{"));
        for name in self.counters.iter().filter(|name| !stands("counter", name)) {
            text.line(format_args!("  counter {name} {{ }}"));
        }
        for set in &self.sets {
            text.set(set, false);
        }
        text.line(format_args!("}}"));
        // All rules; the chains stay.
        text.line(format_args!("flush table {TABLE}"));
        text.line(format_args!("table {TABLE} {{"));
        for (name, lines) in &self.chains {
            text.chain(name, lines);
        }
        text.line(format_args!("}}"));
        let nothing = BTreeSet::new();
        for Set { kind, name, elements, .. } in &self.sets {
            let known = standing.elements.get(name);
            if known.is_none() && stands(kind, name) {
                text.line(format_args!("flush {kind} {TABLE} {name}"));
            }
            let there = known.unwrap_or(&nothing);
            let wanted: BTreeMap<String, &String> =
                elements.iter().map(|element| (plain(element), element)).collect();
            let goes = there.iter().filter(|element| !wanted.contains_key(*element)).map(String::as_str);
            text.change("delete", name, &goes.collect::<Vec<_>>());
            let comes = wanted.iter().filter(|(plain, _)| !there.contains(*plain));
            text.change("add", name, &comes.map(|(_, element)| element.as_str()).collect::<Vec<_>>());
        }
        let wanted = self.names();
        for kind in ["chain", "set", "map", "counter"] {
            let stays = |name: &&String| wanted.get(kind).is_some_and(|names| names.contains(*name));
            for name in standing.names.get(kind).into_iter().flatten().filter(|name| !stays(name)) {
                text.line(format_args!("delete {kind} {TABLE} {name}"));
            }
        }
        text.0
    }

    fn names(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let counters = self.counters.iter().map(|name| ("counter", name));
        let chains = self.chains.iter().map(|(name, _)| ("chain", name));
        for (kind, name) in counters.chain(chains).chain(self.sets.iter().map(|set| (set.kind, &set.name))) {
            names.entry(kind.to_owned()).or_default().insert(name.clone());
        }
        names
    }
}

struct Text(String);

impl Text {
    fn line(&mut self, line: Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a String cannot fail");
    }

    fn change(&mut self, verb: &str, set: &str, elements: &[&str]) {
        if !elements.is_empty() {
            self.line(format_args!("{verb} element {TABLE} {set} {{ {} }}", elements.join(", ")));
        }
    }

    fn chain(&mut self, name: &str, lines: &[String]) {
        self.line(format_args!("  chain {name} {{"));
        for line in lines {
            self.line(format_args!("    {line}"));
        }
        self.line(format_args!("  }}"));
    }

    fn set(&mut self, Set { kind, name, of_type, flags, elements }: &Set, with_elements: bool) {
        self.line(format_args!("  {kind} {name} {{"));
        self.line(format_args!("    type {of_type}"));
        if !flags.is_empty() {
            self.line(format_args!("    flags {flags}"));
        }
        if with_elements && !elements.is_empty() {
            self.line(format_args!("    elements = {{ {} }}", elements.join(", ")));
        }
        self.line(format_args!("  }}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sets: &[&str]) -> Table {
        let mut table = Table::default();
        table.counters(["old", "new"].map(str::to_owned));
        for set in sets {
            table.set((*set).to_owned(), "ipv4_addr", "interval", vec!["10.0.0.0/8".into()]);
        }
        table.map("to".into(), "ipv4_addr : verdict", "interval", vec![]);
        table.chain("forward", &["type filter hook forward priority 0; policy accept;"]);
        table
    }

    #[test]
    fn an_update_touches_what_differs() {
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let standing = Standing {
            names: BTreeMap::from([
                ("counter".to_owned(), named(&["gone", "old"])),
                ("set".to_owned(), named(&["a", "c", "d", "z"])),
                ("chain".to_owned(), named(&["forward", "stale"])),
            ]),
            elements: BTreeMap::from([
                ("a".to_owned(), named(&["10.0.0.0/8"])),
                ("c".to_owned(), named(&["11.0.0.0/8", "12.0.0.1"])),
            ]),
        };
        let text = table(&["a", "b", "c", "d"]).updating(&standing);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("  ")).collect();
        assert_eq!(
            lines,
            [
                "table inet calico-vni {",
                "}",
                "flush table inet calico-vni",
                "table inet calico-vni {",
                "}",
                "add element inet calico-vni b { 10.0.0.0/8 }",
                "delete element inet calico-vni c { 11.0.0.0/8, 12.0.0.1 }",
                "add element inet calico-vni c { 10.0.0.0/8 }",
                "flush set inet calico-vni d",
                "add element inet calico-vni d { 10.0.0.0/8 }",
                "delete chain inet calico-vni stale",
                "delete set inet calico-vni z",
                "delete counter inet calico-vni gone",
            ]
        );
        assert_eq!(
            text.lines().filter(|line| line.starts_with("  counter")).collect::<Vec<_>>(),
            ["  counter new { }"]
        );
    }

    #[test]
    fn elements_compare_as_nft_lists_them() {
        for (written, listed) in [
            ("10.0.0.0/8 : jump to", "10.0.0.0/8 : jump to"),
            ("10.0.0.1/32 . 10.0.0.32/30", "10.0.0.1 . 10.0.0.32/30"),
            ("\"cv1001\" . fd00::1/128", "cv1001 . fd00::1"),
            ("\"cv1001\" : \"tenant-red-1001\"", "cv1001 : tenant-red-1001"),
            ("10.0.0.1 . udp . 53", "10.0.0.1 . udp . 53"),
        ] {
            assert_eq!(plain(written), listed);
        }
    }
}
