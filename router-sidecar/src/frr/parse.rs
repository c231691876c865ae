//! Reads `show running-config` into what of it is ours. Pure.

use std::collections::BTreeMap;

use calico_vni_proto::names;

use super::config::{Block, Config, Family, Instance, PREFIX, Section};

/// Everything of ours in the running configurations of one or more daemons, one after the other.
///
/// Ours are: the default BGP instance, VRFs and instances named after a VNI, and lists and route maps whose names
/// begin with [`PREFIX`]. The rest is not looked at.
pub fn parse(running: &str) -> Config {
    let mut reader = Reader::default();
    running
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('!'))
        .for_each(|l| reader.line(l));
    reader.finish()
}

#[derive(Default)]
struct Reader {
    config: Config,
    tenants: BTreeMap<u32, Section>,
    open: Open,
}

/// The context that the next line is in.
#[derive(Default)]
enum Open {
    #[default]
    Top,
    Vrf(Option<u32>),
    Bgp {
        /// The VRF's VNI; none in the default instance.
        vni: Option<u32>,
        instance: Instance,
        in_family: bool,
    },
    RouteMap(Block),
    /// A context of somebody else's.
    Foreign,
}

impl Reader {
    fn line(&mut self, line: &str) {
        match (&mut self.open, line) {
            (Open::Bgp { in_family, .. }, "exit-address-family") => *in_family = false,
            (_, "exit" | "exit-vrf") => self.close(),
            (Open::Bgp { instance, in_family, .. }, _) if !line.starts_with("router ") => {
                if let Some(name) = line.strip_prefix("address-family ") {
                    instance.families.push(Family { name: name.to_owned(), lines: Vec::new() });
                    *in_family = true;
                } else if let (true, Some(family)) = (*in_family, instance.families.last_mut()) {
                    family.lines.push(line.to_owned());
                } else {
                    instance.lines.push(line.to_owned());
                }
            }
            (Open::Vrf(Some(vni)), _) => {
                if let Some(l3vni) = line.strip_prefix("vni ").and_then(l3vni) {
                    let vni = *vni;
                    self.section(vni).l3vni = Some(l3vni);
                }
            }
            (Open::RouteMap(block), _) => block.lines.push(line.to_owned()),
            (Open::Vrf(None) | Open::Foreign, _) => {}
            (Open::Top | Open::Bgp { .. }, _) => self.top(line),
        }
    }

    fn top(&mut self, line: &str) {
        self.close();
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["vrf", name] => {
                let vni = names::vni_of(name, "vrf");
                if let Some(vni) = vni {
                    self.section(vni).vrf = true;
                }
                self.open = Open::Vrf(vni);
            }
            ["router", "bgp", _] => self.open_bgp(line, None),
            ["router", "bgp", _, "vrf", name] if names::vni_of(name, "vrf").is_some() => {
                self.open_bgp(line, names::vni_of(name, "vrf"));
            }
            ["route-map", name, ..] if name.starts_with(PREFIX) => {
                self.open = Open::RouteMap(Block { header: line.to_owned(), lines: Vec::new() });
            }
            ["ip" | "ipv6", "prefix-list", name, ..] => {
                if let Some(vni) = list_owner(name) {
                    self.section(vni).lists.push(line.to_owned());
                }
            }
            ["bgp", "as-path", "access-list", name, ..] if name.starts_with(PREFIX) => {
                self.config.global.lists.push(line.to_owned());
            }
            ["router" | "route-map" | "interface" | "line" | "segment-routing" | "key" | "rpki", ..] => {
                self.open = Open::Foreign;
            }
            _ => {}
        }
    }

    fn open_bgp(&mut self, header: &str, vni: Option<u32>) {
        let instance = Instance { header: header.to_owned(), ..Instance::default() };
        self.open = Open::Bgp { vni, instance, in_family: false };
    }

    fn close(&mut self) {
        match std::mem::take(&mut self.open) {
            Open::Bgp { vni: None, instance, .. } => self.config.global.bgp = Some(instance),
            Open::Bgp { vni: Some(vni), instance, .. } => self.section(vni).bgp = Some(instance),
            Open::RouteMap(block) => self.config.global.route_maps.push(block),
            Open::Top | Open::Vrf(_) | Open::Foreign => {}
        }
    }

    fn section(&mut self, vni: u32) -> &mut Section {
        self.tenants.entry(vni).or_insert_with(|| Section { vni, ..Section::default() })
    }

    fn finish(mut self) -> Config {
        self.close();
        self.config.tenants = self.tenants.into_values().collect();
        self.config
    }
}

fn l3vni(text: &str) -> Option<u32> {
    // Behind the number there may be `prefix-routes-only`.
    text.split(' ').next()?.parse().ok()
}

/// The VNI in the name of one of our prefix lists.
fn list_owner(name: &str) -> Option<u32> {
    let (vni, _direction) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    names::vni_of(vni, "")
}
