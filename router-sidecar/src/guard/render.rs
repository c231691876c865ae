//! The guard as `nft` text. Pure.
//!
//! A look-up by source, one by destination and one by each interface decide for traffic that is no tenant's. What a
//! chain of a tenant does not `return` is counted for that tenant and dropped.

use std::{collections::BTreeMap, fmt::Write as _};

use calico_vni_proto::names;
use ipnet::IpNet;

use super::{Guarded, Ruleset};

/// Family and name of the table, as `nft` writes them.
pub const TABLE: &str = "inet calico-vni";

/// Counter of what is dropped from and to quarantined prefixes.
pub const COUNTER_QUARANTINED: &str = "quarantined";

/// Packets and bytes that a counter holds.
pub type Counts = (u64, u64);

/// Letters of a tenant's name in the name of its counter: with what stands around it, it has to fit into the 255
/// octets that an object's name may have (`NFT_OBJ_MAXNAMELEN`).
const NAME_LETTERS: usize = 230;

/// What `ct` says of packets that answer a connection which the other side was allowed to open.
const REPLIES: &str = "ct direction reply ct state established,related return";

/// Name of the counter of what is dropped for a tenant.
pub fn counter_of(name: &str, vni: u32) -> String {
    let name: String = name.chars().take(NAME_LETTERS).collect();
    format!("tenant-{name}-{vni}")
}

/// The text that replaces the whole table in one transaction. `digest` is kept inside the table; `counts` are what
/// the counters start with, so that a reload does not set them back to zero.
pub fn render(ruleset: &Ruleset, digest: &str, counts: &BTreeMap<String, Counts>) -> String {
    let mut text = Text(String::new());
    // Adding a table that is there changes nothing, and makes it certain that there is one to delete.
    text.line(format_args!("table {TABLE}"));
    text.line(format_args!("delete table {TABLE}"));
    text.line(format_args!("table {TABLE} {{"));
    counters(&mut text, ruleset, counts);
    for v6 in [false, true] {
        maps(&mut text, ruleset, v6);
    }
    links(&mut text, ruleset);
    for (vni, tenant) in &ruleset.tenants {
        if let Some(shared) = &tenant.local {
            sets(&mut text, *vni, tenant, shared);
            chains(&mut text, *vni, tenant);
        }
    }
    for (chain, field) in [("absent-to", "daddr"), ("absent-from", "saddr")] {
        text.chain(
            chain,
            &[
                REPLIES,
                &format!("counter name ip {field} map @count4"),
                &format!("counter name ip6 {field} map @count6"),
                "drop",
            ],
        );
    }
    text.chain("quarantined", &[&format!("counter name \"{COUNTER_QUARANTINED}\" drop")]);
    text.chain(
        "forward",
        &[
            "type filter hook forward priority filter - 10; policy accept;",
            "ip saddr vmap @from4",
            "ip6 saddr vmap @from6",
            "ip daddr vmap @to4",
            "ip6 daddr vmap @to6",
            "iifname vmap @in-links",
            "oifname vmap @out-links",
        ],
    );
    // No packet comes here: the chain only holds the name of what was loaded.
    text.chain("digest", &[&format!("return comment \"{digest}\"")]);
    text.line(format_args!("}}"));
    text.0
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a String cannot fail");
    }

    fn chain(&mut self, name: &str, lines: &[&str]) {
        self.line(format_args!("  chain {name} {{"));
        for line in lines {
            self.line(format_args!("    {line}"));
        }
        self.line(format_args!("  }}"));
    }

    fn elements(&mut self, head: &str, of_type: &str, flags: &str, elements: &[String]) {
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

fn counters(text: &mut Text, ruleset: &Ruleset, counts: &BTreeMap<String, Counts>) {
    let of_tenants = ruleset.tenants.iter().map(|(vni, tenant)| counter_of(&tenant.name, *vni));
    for name in of_tenants.chain([COUNTER_QUARANTINED.to_owned()]) {
        let (packets, bytes) = counts.get(&name).copied().unwrap_or_default();
        text.line(format_args!("  counter {name} {{ packets {packets} bytes {bytes}; }}"));
    }
}

fn of_family(nets: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(move |net| matches!(net, IpNet::V6(_)) == v6)
}

const fn digit(v6: bool) -> char {
    if v6 { '6' } else { '4' }
}

const fn address_type(v6: bool) -> &'static str {
    if v6 { "ipv6_addr" } else { "ipv4_addr" }
}

fn maps(text: &mut Text, ruleset: &Ruleset, v6: bool) {
    let (digit, address) = (digit(v6), address_type(v6));
    for direction in ["to", "from"] {
        let mut elements = Vec::new();
        for (vni, tenant) in &ruleset.tenants {
            let verdict = if tenant.local.is_some() {
                format!("{direction}-{vni}")
            } else {
                format!("absent-{direction}")
            };
            elements.extend(of_family(&tenant.pools, v6).map(|net| format!("{net} : jump {verdict}")));
        }
        elements.extend(of_family(&ruleset.quarantined, v6).map(|net| format!("{net} : jump quarantined")));
        let head = format!("map {direction}{digit}");
        text.elements(&head, &format!("{address} : verdict"), "interval", &elements);
    }
    let mut elements = Vec::new();
    for (vni, tenant) in ruleset.tenants.iter().filter(|(_, tenant)| tenant.local.is_none()) {
        let counter = counter_of(&tenant.name, *vni);
        elements.extend(of_family(&tenant.pools, v6).map(|net| format!("{net} : \"{counter}\"")));
    }
    text.elements(&format!("map count{digit}"), &format!("{address} : counter"), "interval", &elements);
}

fn links(text: &mut Text, ruleset: &Ruleset) {
    let local = ruleset.tenants.iter().filter(|(_, tenant)| tenant.local.is_some());
    let local: Vec<u32> = local.map(|(vni, _)| *vni).collect();
    for way in ["in", "out"] {
        let element = |vni: &u32| format!("\"{}\" : jump {way}-link-{vni}", names::host_link(*vni));
        let elements: Vec<String> = local.iter().map(element).collect();
        text.elements(&format!("map {way}-links"), "ifname : verdict", "", &elements);
    }
}

fn sets(text: &mut Text, vni: u32, tenant: &Guarded, shared: &[IpNet]) {
    for v6 in [false, true] {
        for (name, nets) in [("pools", tenant.pools.as_slice()), ("shared", shared)] {
            let elements: Vec<String> = of_family(nets, v6).map(ToString::to_string).collect();
            text.elements(&format!("set {name}{}-{vni}", digit(v6)), address_type(v6), "interval", &elements);
        }
    }
}

fn chains(text: &mut Text, vni: u32, tenant: &Guarded) {
    let link = names::host_link(vni);
    let drop = format!("counter name \"{}\" drop", counter_of(&tenant.name, vni));
    text.chain(
        &format!("to-{vni}"),
        &[
            &format!("iifname \"{link}\" return"),
            &format!("iifname \"cali*\" ip saddr @pools4-{vni} return"),
            &format!("iifname \"cali*\" ip6 saddr @pools6-{vni} return"),
            REPLIES,
            &drop,
        ],
    );
    text.chain(
        &format!("from-{vni}"),
        &[
            &format!("oifname \"{link}\" return"),
            &format!("oifname \"cali*\" ip daddr @pools4-{vni} return"),
            &format!("oifname \"cali*\" ip6 daddr @pools6-{vni} return"),
            &format!("ip daddr @shared4-{vni} return"),
            &format!("ip6 daddr @shared6-{vni} return"),
            REPLIES,
            &drop,
        ],
    );
    // What comes out of the VRF is for the tenant's pods or for nobody: the node is no way into the flat network.
    text.chain(
        &format!("in-link-{vni}"),
        &[&format!("ip daddr @pools4-{vni} return"), &format!("ip6 daddr @pools6-{vni} return"), &drop],
    );
    // What goes into the VRF comes from the tenant's pods: nobody else speaks to the router's end of the link.
    text.chain(
        &format!("out-link-{vni}"),
        &[&format!("ip saddr @pools4-{vni} return"), &format!("ip6 saddr @pools6-{vni} return"), &drop],
    );
}

#[cfg(test)]
mod tests {
    use calico_vni_proto::model::{Guard, GuardTenant};

    use super::*;
    use crate::testing::{config, tenant};

    fn ruleset() -> Ruleset {
        let guard = Guard {
            tenants: vec![
                GuardTenant {
                    name: "red".into(),
                    vni: 1001,
                    pools: vec!["10.200.0.0/16".parse().unwrap(), "fd00:200::/64".parse().unwrap()],
                },
                GuardTenant { name: "blue".into(), vni: 1002, pools: vec!["10.201.0.0/16".parse().unwrap()] },
            ],
            quarantined: vec!["10.9.0.0/16".parse().unwrap()],
            services: vec![],
        };
        Ruleset::new(&guard, &config(vec![tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"])]))
    }

    /// Written anew with `UPDATE_GOLDEN=1 cargo test`.
    #[test]
    fn golden() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/guard.nft");
        let counts = BTreeMap::from([("tenant-red-1001".to_owned(), (5, 420))]);
        let text = render(&ruleset(), "0123abcd", &counts);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        similar_asserts::assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn names_of_counters_fit() {
        let name = counter_of(&"x".repeat(253), names::VNI_MAX);
        assert!(name.len() <= 255 && name.ends_with("-16777215"), "{name}");
    }
}
