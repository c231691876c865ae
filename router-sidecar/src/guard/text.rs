//! The text of a table for `nft`. Pure.

use std::{
    collections::BTreeMap,
    fmt::{Arguments, Write as _},
};

/// Family and name of our table, as `nft` writes them. Each namespace has one.
pub const TABLE: &str = "inet calico-vni";

/// Packets and bytes that a counter holds.
pub type Counts = (u64, u64);

/// A table that is being written.
pub(super) struct Text(String);

impl Text {
    /// One that takes the place of what stands, in one transaction.
    pub(super) fn replacing_table() -> Self {
        let mut text = Self(String::new());
        // Adding a table that is there changes nothing, and makes it certain that there is one to delete.
        text.line(format_args!("table {TABLE}"));
        text.line(format_args!("delete table {TABLE}"));
        text.line(format_args!("table {TABLE} {{"));
        text
    }

    pub(super) fn finish(mut self) -> String {
        self.line(format_args!("}}"));
        self.0
    }

    fn line(&mut self, line: Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a String cannot fail");
    }

    pub(super) fn counters(
        &mut self,
        names: impl Iterator<Item = String>,
        counts: &BTreeMap<String, Counts>,
    ) {
        for name in names {
            let (packets, bytes) = counts.get(&name).copied().unwrap_or_default();
            self.line(format_args!("  counter {name} {{ packets {packets} bytes {bytes}; }}"));
        }
    }

    pub(super) fn chain(&mut self, name: &str, lines: &[impl AsRef<str>]) {
        self.line(format_args!("  chain {name} {{"));
        for line in lines {
            self.line(format_args!("    {}", line.as_ref()));
        }
        self.line(format_args!("  }}"));
    }

    /// A set or a map; `head` says which, and its name.
    pub(super) fn elements(&mut self, head: &str, of_type: &str, flags: &str, elements: &[String]) {
        self.line(format_args!("  {head} {{"));
        self.line(format_args!("    type {of_type}"));
        if !flags.is_empty() {
            self.line(format_args!("    flags {flags}"));
        }
        if !elements.is_empty() {
            self.line(format_args!("    elements = {{ {} }}", elements.join(", ")));
        }
        self.line(format_args!("  }}"));
    }
}
