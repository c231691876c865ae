//! FRR's configuration as ordered sections: one for the fabric, one for each tenant. Plain data, no I/O.
//!
//! Lines are kept as `show running-config` prints them, without indentation, so that what is desired and what is
//! observed compare as text.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use calico_vni_proto::model::REDACTED;

use super::version::{Daemon, Version};

/// How the names of our lists and route maps begin. What begins otherwise is somebody else's.
pub const PREFIX: &str = "calico-vni-";

/// A line as it may be shown to people: without a password.
pub fn shown(line: &str) -> Cow<'_, str> {
    match line.split_once(" password ") {
        // `neighbor PEER password WORD`, after `no`, after spaces, or in a complaint about it.
        Some((head, _)) if head.rsplit(' ').nth(1) == Some("neighbor") => {
            format!("{head} password {REDACTED}").into()
        }
        _ => line.into(),
    }
}

/// The same of each line of a text.
pub fn shown_text(text: &str) -> String {
    text.lines().map(shown).collect::<Vec<_>>().join("\n")
}

/// Lines for a `Debug`.
pub(super) struct Shown<'a>(pub &'a [String]);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|line| shown(line))).finish()
    }
}

/// An address family of a BGP instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// As in `address-family ipv4 unicast`, without the first word.
    pub name: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// A BGP instance. Its `Display` is for a daemon's file, with passwords; its `Debug` is without.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// `router bgp ASN` or `router bgp ASN vrf NAME`.
    pub header: String,
    /// Lines of the instance itself.
    pub lines: Vec<String>,
    /// Its address families, none of them empty.
    pub families: Vec<Family>,
}

impl Instance {
    /// The lines of a family, none when it is absent.
    pub fn family(&self, name: &str) -> &[String] {
        self.families.iter().find(|f| f.name == name).map_or(&[], |f| f.lines.as_slice())
    }
}

/// A route-map entry: a header and what it matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// `route-map NAME permit SEQ`.
    pub header: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// The router's side of the fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Global {
    /// AS-path lists.
    pub lists: Vec<String>,
    /// Route maps.
    pub route_maps: Vec<Block>,
    /// The default instance.
    pub bgp: Option<Instance>,
}

/// One tenant. In what was observed each part may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// The VNI that its VRF is named after.
    pub vni: u32,
    /// Tenant's name; FRR does not keep it, so it is empty in what was observed.
    pub tenant: String,
    /// Whether FRR knows the VRF by configuration.
    pub vrf: bool,
    /// The VNI that the VRF carries.
    pub l3vni: Option<u32>,
    /// Prefix lists.
    pub lists: Vec<String>,
    /// The VRF's instance.
    pub bgp: Option<Instance>,
}

/// What of FRR's configuration is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The fabric.
    pub global: Global,
    /// Tenants, ordered by VNI.
    pub tenants: Vec<Section>,
}

impl Config {
    /// The section of a VNI.
    pub fn tenant(&self, vni: u32) -> Option<&Section> {
        self.tenants.iter().find(|t| t.vni == vni)
    }

    /// The whole file with which a daemon starts cold.
    ///
    /// VRFs stand in zebra's file in every version. mgmtd has none of its own: it is told them when it has started.
    pub fn to_file(&self, daemon: Daemon, version: Version) -> String {
        let mut out = format!("frr version {version}\nfrr defaults traditional\n!\n");
        match daemon {
            Daemon::Zebra => self.zebra(&mut out),
            Daemon::Bgpd => self.bgpd(&mut out),
            Daemon::Mgmtd => {}
        }
        out
    }

    fn zebra(&self, out: &mut String) {
        for tenant in &self.tenants {
            if let Some(l3vni) = tenant.l3vni {
                put(out, &format!("vrf {}", calico_vni_proto::names::vrf(tenant.vni)), 0);
                put(out, &format!("vni {l3vni}"), 1);
                put(out, "exit-vrf\n!", 0);
            }
        }
    }

    fn bgpd(&self, out: &mut String) {
        // Lists and route maps stand before the instances that name them: an instance never runs without its filters.
        for line in self.global.lists.iter().chain(self.tenants.iter().flat_map(|t| &t.lists)) {
            put(out, line, 0);
        }
        for map in &self.global.route_maps {
            put(out, &map.header, 0);
            map.lines.iter().for_each(|line| put(out, line, 1));
            put(out, "exit\n!", 0);
        }
        for bgp in self.global.bgp.iter().chain(self.tenants.iter().filter_map(|t| t.bgp.as_ref())) {
            put(out, &bgp.to_string(), 0);
        }
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, lines, families } = self;
        let mut out = f.debug_struct("Instance");
        out.field("header", header).field("lines", &Shown(lines)).field("families", families).finish()
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        put(&mut out, &self.header, 0);
        self.lines.iter().for_each(|line| put(&mut out, line, 1));
        for family in &self.families {
            put(&mut out, &format!("address-family {}", family.name), 1);
            for line in &family.lines {
                if let Some(other) = other_distinguisher(line) {
                    put(&mut out, &other, 2);
                }
                put(&mut out, line, 2);
            }
            put(&mut out, "exit-address-family", 1);
        }
        write!(f, "{out}exit\n!")
    }
}

/// What has to be said before an instance's first `rd` line.
///
/// bgpd numbers its instances and makes each a distinguisher of that number. Told the very one that it has made, it
/// takes that for no change, and does not keep it as configured. Numbers begin at 1, so 0 is always another one.
pub fn other_distinguisher(line: &str) -> Option<String> {
    let (router_id, _number) = line.strip_prefix("rd ")?.rsplit_once(':')?;
    Some(format!("rd {router_id}:0"))
}

/// Parts a whole configuration, as vtysh prints it, into zebra's file and bgpd's.
pub fn split(text: &str) -> BTreeMap<Daemon, String> {
    let mut files: BTreeMap<Daemon, String> = BTreeMap::new();
    let mut owner = Daemon::Bgpd;
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('!')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let belongs_above = line.starts_with(' ') || words[0].starts_with("exit");
        match words.as_slice() {
            _ if belongs_above => {}
            ["frr" | "hostname" | "end", ..] => continue,
            ["ip" | "ipv6", "prefix-list" | "access-list", ..] => owner = Daemon::Bgpd,
            ["vrf" | "interface" | "ip" | "ipv6" | "no" | "zebra", ..] => owner = Daemon::Zebra,
            _ => owner = Daemon::Bgpd,
        }
        put(files.entry(owner).or_default(), line, 0);
    }
    files
}

fn put(out: &mut String, line: &str, indent: usize) {
    writeln!(out, "{:indent$}{line}", "").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_configuration_is_parted_by_owner() {
        let text = "frr version 8.4\n!\nvrf red\n vni 5\nexit-vrf\n!\nip prefix-list a seq 5 permit any\nrouter bgp 1\n neighbor 192.0.2.1 remote-as 2\nexit\nip forwarding\nend\n";
        let files = split(text);
        assert_eq!(files[&Daemon::Zebra], "vrf red\n vni 5\nexit-vrf\nip forwarding\n");
        assert_eq!(
            files[&Daemon::Bgpd],
            "ip prefix-list a seq 5 permit any\nrouter bgp 1\n neighbor 192.0.2.1 remote-as 2\nexit\n"
        );
    }
}
