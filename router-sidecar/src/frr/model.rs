//! A model of how FRR takes lines, for tests: what replaces what, what goes with what, and what is refused.

use calico_vni_proto::names;

use super::{Block, Config, Family, Instance, Op, Section};

/// FRR with one daemon. It panics at a line that FRR would refuse.
#[derive(Debug, Default)]
pub struct Model {
    pub config: Config,
    context: Context,
}

#[derive(Debug, Default, Clone, PartialEq)]
enum Context {
    #[default]
    Top,
    Vrf(u32),
    RouteMap(String),
    Bgp(Option<u32>),
    Family(Option<u32>, String),
}

/// In one order, and without what FRR does not keep.
pub fn normal(config: &Config) -> Config {
    let mut config = config.clone();
    config.global.lists.sort();
    config.global.route_maps.sort_by(|a, b| a.header.cmp(&b.header));
    config.tenants.sort_by_key(|t| t.vni);
    for tenant in &mut config.tenants {
        tenant.tenant.clear();
        tenant.lists.sort();
    }
    for bgp in config.global.bgp.iter_mut().chain(config.tenants.iter_mut().filter_map(|t| t.bgp.as_mut())) {
        bgp.lines.sort();
        bgp.families.sort_by(|a, b| a.name.cmp(&b.name));
        bgp.families.iter_mut().for_each(|family| family.lines.sort());
    }
    config
}

impl Model {
    /// One that has this already.
    pub fn holding(config: Config) -> Self {
        Self { config, context: Context::Top }
    }

    /// Everything that the operations write, in the order in which the driver writes it.
    pub fn apply(&mut self, ops: &[Op]) {
        type Part = fn(&super::Delta) -> &Vec<String>;
        let removal: [Part; 4] = [|d| &d.recall, |d| &d.vrf, |d| &d.bgp, |d| &d.policy];
        let setting: [Part; 4] = [|d| &d.vrf, |d| &d.policy, |d| &d.bgp, |d| &d.refreshed];
        for (removes, parts) in [(true, removal.as_slice()), (false, &setting)] {
            for part in parts {
                for op in ops.iter().filter(|op| op.removes() == removes) {
                    self.context = Context::Top;
                    for line in part(op.delta()) {
                        self.line(line);
                    }
                }
            }
        }
        self.context = Context::Top;
        // FRR shows no trace of a family or of a tenant that has nothing.
        let instances = self.config.tenants.iter_mut().filter_map(|t| t.bgp.as_mut());
        for bgp in self.config.global.bgp.iter_mut().chain(instances) {
            bgp.families.retain(|family| !family.lines.is_empty());
        }
        self.config.tenants.retain(|t| t.vrf || t.bgp.is_some() || !t.lists.is_empty());
    }

    pub fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match (self.context.clone(), words.as_slice()) {
            (_, ["!"] | ["frr", ..]) => {}
            (Context::Family(vni, _), ["exit-address-family"]) => self.context = Context::Bgp(vni),
            (_, ["exit" | "exit-vrf"]) => self.context = Context::Top,
            (Context::Vrf(vni), ["vni", l3vni]) => {
                let l3vni = l3vni.parse().unwrap();
                assert!(
                    !self.config.tenants.iter().any(|t| t.vni != vni && t.l3vni == Some(l3vni)),
                    "{line}"
                );
                self.section(vni).l3vni = Some(l3vni);
            }
            (Context::Vrf(vni), ["no", "vni", l3vni]) => {
                assert_eq!(self.section(vni).l3vni.take().map(|v| v.to_string()).as_deref(), Some(*l3vni));
            }
            (Context::RouteMap(header), _) => {
                let map = self.config.global.route_maps.iter_mut().find(|m| m.header == header).unwrap();
                set(&mut map.lines, line);
            }
            (Context::Bgp(vni), ["address-family", ..]) => {
                let name = words[1..].join(" ");
                let bgp = self.bgp(vni);
                if !bgp.families.iter().any(|f| f.name == name) {
                    bgp.families.push(Family { name: name.clone(), lines: vec![] });
                }
                self.context = Context::Family(vni, name);
            }
            (Context::Bgp(vni), ["no", "neighbor", peer]) => {
                let bgp = self.bgp(vni);
                let of_peer = |line: &String| line.split(' ').nth(1) == Some(*peer);
                assert!(bgp.lines.iter().any(of_peer), "{line}");
                bgp.lines.retain(|line| !of_peer(line));
                bgp.families.iter_mut().for_each(|f| f.lines.retain(|line| !of_peer(line)));
            }
            (Context::Bgp(vni), _) => {
                let bgp = self.bgp(vni);
                let restart = line.starts_with("bgp graceful-restart") && bgp.lines.is_empty();
                assert!(!restart, "the router's id comes first, or sessions begin with another: {line}");
                set(&mut bgp.lines, line);
            }
            (Context::Family(vni, name), _) => {
                let bgp = self.bgp(vni);
                if let ["neighbor", peer, ..] = words.as_slice() {
                    let known =
                        bgp.lines.iter().any(|l| l.starts_with(&format!("neighbor {peer} remote-as ")));
                    assert!(known, "no such neighbour: {line}");
                }
                let lines = &mut bgp.families.iter_mut().find(|f| f.name == name).unwrap().lines;
                set(lines, line);
            }
            (Context::Top, _) => self.top(line, &words),
            (context, _) => panic!("unknown in {context:?}: {line}"),
        }
    }

    fn top(&mut self, line: &str, words: &[&str]) {
        match words {
            ["vrf", name] => {
                let vni = names::vni_of(name, "vrf").unwrap();
                self.section(vni).vrf = true;
                self.context = Context::Vrf(vni);
            }
            ["no", "vrf", name] => {
                let section = self.section(names::vni_of(name, "vrf").unwrap());
                assert_eq!(section.l3vni, None, "{line}");
                section.vrf = false;
            }
            ["router", "bgp", _, rest @ ..] => {
                let vni = rest.get(1).map(|name| names::vni_of(name, "vrf").unwrap());
                let there = self
                    .slot(vni)
                    .get_or_insert_with(|| Instance { header: line.into(), ..Instance::default() });
                assert_eq!(there.header, line, "the ASN of an instance cannot be changed");
                self.context = Context::Bgp(vni);
            }
            ["no", "router", "bgp", _, "vrf", name] => {
                let section = self.section(names::vni_of(name, "vrf").unwrap());
                assert_eq!(section.l3vni, None, "Please unconfigure l3vni");
                assert_eq!(section.bgp.take().unwrap().header, line.trim_start_matches("no "));
            }
            ["no", "router", "bgp", _] => {
                assert!(self.config.tenants.iter().all(|t| t.bgp.is_none()), "Dependent VRF instances exist");
                assert_eq!(self.config.global.bgp.take().unwrap().header, line.trim_start_matches("no "));
            }
            ["no", "route-map", ..] => {
                self.config.global.route_maps.retain(|m| Some(m.header.as_str()) != line.strip_prefix("no "));
            }
            ["route-map", ..] => {
                let maps = &mut self.config.global.route_maps;
                if !maps.iter().any(|m| m.header == line) {
                    maps.push(Block { header: line.into(), lines: vec![] });
                }
                self.context = Context::RouteMap(line.into());
            }
            ["bgp", "as-path", ..] | ["no", "bgp", "as-path", ..] => set(&mut self.config.global.lists, line),
            ["ip" | "ipv6", "prefix-list", name, ..] | ["no", "ip" | "ipv6", "prefix-list", name, ..] => {
                let vni = name.split('-').nth(2).unwrap().parse().unwrap();
                list(&mut self.section(vni).lists, line);
            }
            _ => panic!("unknown at the top: {line}"),
        }
    }

    fn section(&mut self, vni: u32) -> &mut Section {
        let tenants = &mut self.config.tenants;
        let index = tenants.iter().position(|t| t.vni == vni).unwrap_or_else(|| {
            tenants.push(Section { vni, ..Section::default() });
            tenants.len() - 1
        });
        &mut tenants[index]
    }

    fn slot(&mut self, vni: Option<u32>) -> &mut Option<Instance> {
        match vni {
            None => &mut self.config.global.bgp,
            Some(vni) => &mut self.section(vni).bgp,
        }
    }

    fn bgp(&mut self, vni: Option<u32>) -> &mut Instance {
        self.slot(vni).as_mut().unwrap()
    }
}

/// FRR takes a rule in silence, and drops it, when the list has the same one under another number.
fn list(lines: &mut Vec<String>, line: &str) {
    let rule = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        ([words[..3].to_vec(), words[5..].to_vec()].concat(), words[4].clone())
    };
    if line.starts_with("no ") {
        return set(lines, line);
    }
    if lines.iter().any(|there| rule(there).0 == rule(line).0 && there != line) {
        return;
    }
    let number = |there: &String| rule(there).0[..3] == rule(line).0[..3] && rule(there).1 == rule(line).1;
    lines.retain(|there| !number(there));
    lines.push(line.to_owned());
}

/// Takes a line or its `no` form; a value takes the place of the one before.
fn set(lines: &mut Vec<String>, line: &str) {
    let gone = line.strip_prefix("no ").filter(|rest| *rest != "bgp default ipv4-unicast");
    if let Some(gone) = gone {
        let before = lines.len();
        lines.retain(|there| there != gone);
        assert!(lines.len() < before, "nothing to take away: {line}");
        return;
    }
    let setting = |line: &str| -> String {
        let values =
            ["remote-as", "password", "timers", "maximum-prefix", "router-id", "rd", "select-defer-time"];
        let words: Vec<&str> = line.split(' ').collect();
        if let ["neighbor", peer, "timers", "connect", _] = words.as_slice() {
            return format!("{peer} connect");
        }
        if let ["neighbor", peer, kind @ ("prefix-list" | "route-map"), _, direction] = words.as_slice() {
            return format!("{peer} {kind} {direction}");
        }
        match words.iter().position(|word| values.contains(word)) {
            Some(at) => words[..=at].join(" "),
            None => line.to_owned(),
        }
    };
    lines.retain(|there| setting(there) != setting(line));
    lines.push(line.to_owned());
}
