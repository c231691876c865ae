//! From what FRR has to what it shall have, as typed operations. Pure.
//!
//! An operation touches one tenant, or the fabric; its lines are the difference and no more, so the session of
//! nobody else is ever reset.

use std::fmt;

use calico_vni_proto::names;

use super::{
    config::{Config, Global, PREFIX, Section, shown},
    instance::{self, Owner},
    observed::Observed,
};

/// What one operation writes, each part to the daemon that owns it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Told to a management daemon that was restarted and has forgotten what zebra still holds: it ignores the
    /// removal of what it does not know.
    pub recall: Vec<String>,
    /// `vrf` and `vni`.
    pub vrf: Vec<String>,
    /// Prefix lists, AS-path lists and route maps.
    pub policy: Vec<String>,
    /// The BGP instance.
    pub bgp: Vec<String>,
    /// Commands outside of configuration, after all else: routes are asked for again where a list has changed, since
    /// FRR filters only what it receives.
    pub refresh: Vec<String>,
    /// Takes back the marks of lists whose routes were asked for again.
    pub refreshed: Vec<String>,
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lines().map(|(part, line)| (part, shown(line)))).finish()
    }
}

impl Delta {
    fn is_empty(&self) -> bool {
        self.lines().next().is_none()
    }

    /// All lines with the part they belong to.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let parts = [
            ("vrf", &self.recall),
            ("vrf", &self.vrf),
            ("policy", &self.policy),
            ("bgp", &self.bgp),
            ("refresh", &self.refresh),
            ("policy", &self.refreshed),
        ];
        parts.into_iter().flat_map(|(part, lines)| lines.iter().map(move |line| (part, line.as_str())))
    }
}

/// Whom an operation is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantRef {
    /// The VNI that the VRF is named after.
    pub vni: u32,
    /// Tenant's name; empty for a tenant that is no longer wanted, since FRR does not keep it.
    pub name: String,
}

/// One step from observed to desired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Takes a tenant away.
    RemoveTenant(TenantRef, Delta),
    /// Takes the default instance away.
    RemoveGlobal(Delta),
    /// Makes or changes the default instance.
    SetGlobal(Delta),
    /// Brings a tenant.
    AddTenant(TenantRef, Delta),
    /// Changes some lines of a tenant.
    ChangeTenant(TenantRef, Delta),
}

impl Op {
    /// Its lines.
    pub fn delta(&self) -> &Delta {
        match self {
            Self::RemoveTenant(_, delta)
            | Self::RemoveGlobal(delta)
            | Self::SetGlobal(delta)
            | Self::AddTenant(_, delta)
            | Self::ChangeTenant(_, delta) => delta,
        }
    }

    /// Whom it is for; none is the fabric.
    pub fn tenant(&self) -> Option<&TenantRef> {
        match self {
            Self::RemoveTenant(tenant, _) | Self::AddTenant(tenant, _) | Self::ChangeTenant(tenant, _) => {
                Some(tenant)
            }
            Self::RemoveGlobal(_) | Self::SetGlobal(_) => None,
        }
    }

    /// Whether it belongs to the first half, which only takes away.
    pub fn removes(&self) -> bool {
        matches!(self, Self::RemoveTenant(..) | Self::RemoveGlobal(_))
    }

    /// The verb and its object.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RemoveTenant(..) => "remove tenant",
            Self::RemoveGlobal(_) => "remove fabric",
            Self::SetGlobal(_) => "set fabric",
            Self::AddTenant(..) => "add tenant",
            Self::ChangeTenant(..) => "change tenant",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frr: {}", self.name())?;
        if let Some(TenantRef { vni, name }) = self.tenant() {
            let space = if name.is_empty() { "" } else { " " };
            write!(f, "{space}{name} (vni {vni})")?;
        }
        self.delta().lines().try_for_each(|(part, line)| write!(f, "\n  {part:<8}{}", shown(line)))
    }
}

/// What has to be done. Empty when FRR is as it shall be. Removals come first.
pub fn diff(desired: &Config, observed: &Observed) -> Vec<Op> {
    let header = |global: &Global| global.bgp.as_ref().map(|b| b.header.clone());
    let (want, have) = (header(&desired.global), header(&observed.config.global));
    // The ASN of an instance cannot be changed, and the default instance leaves last and comes first.
    let restart = want.is_some() && have.is_some() && want != have;

    let mut removals = Vec::new();
    let mut sets = Vec::new();
    for section in &observed.config.tenants {
        if restart || desired.tenant(section.vni).is_none_or(|want| other_header(want, section)) {
            removals.extend(remove_tenant(section, observed));
        }
    }
    let empty_global = Global::default();
    let global = if restart || (want.is_none() && observed.config.global != empty_global) {
        removals.extend(remove_global(&observed.config.global));
        &empty_global
    } else {
        &observed.config.global
    };
    sets.extend(set_global(&desired.global, global));
    for want in &desired.tenants {
        let have = observed.config.tenant(want.vni).filter(|have| !restart && !other_header(want, have));
        let delta = tenant_delta(want, have);
        if delta.is_empty() {
            continue;
        }
        let tenant = TenantRef { vni: want.vni, name: want.tenant.clone() };
        sets.push(match have.and_then(|h| h.bgp.as_ref()) {
            Some(_) => Op::ChangeTenant(tenant, delta),
            None => Op::AddTenant(tenant, delta),
        });
    }
    removals.append(&mut sets);
    removals
}

fn other_header(want: &Section, have: &Section) -> bool {
    matches!((&want.bgp, &have.bgp), (Some(want), Some(have)) if want.header != have.header)
}

fn remove_tenant(section: &Section, observed: &Observed) -> Option<Op> {
    let name = names::vrf(section.vni);
    let mut delta = Delta::default();
    if let Some(l3vni) = section.l3vni {
        if observed.forgotten.contains(&section.vni) {
            delta.recall.extend(vrf_lines(section));
        }
        delta.vrf.extend([format!("vrf {name}"), format!("no vni {l3vni}"), "exit-vrf".to_owned()]);
    }
    // FRR refuses to forget a VRF whose device exists. The name goes in the round after the device's end.
    if section.vrf && !observed.active.contains(&section.vni) {
        delta.vrf.push(format!("no vrf {name}"));
    }
    delta.bgp.extend(section.bgp.as_ref().map(|b| format!("no {}", b.header)));
    delta.policy.extend(section.lists.iter().map(|line| format!("no {line}")));
    (!delta.is_empty()).then(|| Op::RemoveTenant(TenantRef { vni: section.vni, name: String::new() }, delta))
}

/// What makes a VRF and its VNI.
pub fn vrf_lines(section: &Section) -> Vec<String> {
    let vni = section.l3vni.iter().map(|vni| format!("vni {vni}"));
    let head = [format!("vrf {}", names::vrf(section.vni))];
    head.into_iter().chain(vni).chain(["exit-vrf".to_owned()]).collect()
}

fn remove_global(have: &Global) -> Option<Op> {
    // Our marks are the lists and route maps; a default instance without them is not known to be ours.
    let ours = !have.lists.is_empty() || !have.route_maps.is_empty();
    let delta = Delta {
        bgp: have.bgp.iter().map(|b| format!("no {}", b.header)).collect(),
        policy: policy_delta(&Global::default(), have),
        ..Delta::default()
    };
    ours.then_some(Op::RemoveGlobal(delta))
}

fn set_global(want: &Global, have: &Global) -> Option<Op> {
    let mut delta = Delta { policy: policy_delta(want, have), ..Delta::default() };
    if let Some(bgp) = &want.bgp {
        delta.bgp = instance::delta(bgp, have.bgp.as_ref(), Owner::Shared);
    }
    (want.bgp.is_some() && !delta.is_empty()).then_some(Op::SetGlobal(delta))
}

fn policy_delta(want: &Global, have: &Global) -> Vec<String> {
    let mut lines = list_delta(&want.lists, &have.lists);
    for map in &want.route_maps {
        let there = have.route_maps.iter().find(|m| m.header == map.header);
        let lines_there: &[String] = there.map_or(&[], |m| &m.lines);
        let changes = list_delta(&map.lines, lines_there);
        if there.is_none() || !changes.is_empty() {
            lines.push(map.header.clone());
            lines.extend(changes);
            lines.push("exit".to_owned());
        }
    }
    let gone = have.route_maps.iter().filter(|m| !want.route_maps.iter().any(|w| w.header == m.header));
    lines.extend(gone.map(|m| format!("no {}", m.header)));
    lines
}

/// Removals come first: FRR drops, without a word, a rule whose prefix the list holds already under another number.
/// Both are one transaction, so no route ever meets the list half done.
fn list_delta(want: &[String], have: &[String]) -> Vec<String> {
    let gone = have.iter().filter(|line| !want.contains(line)).map(|line| format!("no {line}"));
    let new = want.iter().filter(|line| !have.contains(line)).cloned();
    gone.chain(new).collect()
}

/// The last rule of a list says what FRR does anyway where no rule fits. It marks a list that was changed and whose
/// routes were not asked for again so far: were we to die in between, the next look finds it.
fn mark(keyword: &str, vni: u32) -> String {
    format!("{keyword} prefix-list {PREFIX}{vni}-in seq {} deny any", u32::MAX)
}

fn tenant_delta(want: &Section, have: Option<&Section>) -> Delta {
    let nothing = Section::default();
    let have = have.unwrap_or(&nothing);
    let name = names::vrf(want.vni);
    let mut delta = Delta::default();
    if want.l3vni != have.l3vni {
        delta.vrf.push(format!("vrf {name}"));
        delta.vrf.extend(have.l3vni.map(|vni| format!("no vni {vni}")));
        delta.vrf.extend(want.l3vni.map(|vni| format!("vni {vni}")));
        delta.vrf.push("exit-vrf".to_owned());
    }
    for (keyword, family) in [("ip", "ipv4 unicast"), ("ipv6", "ipv6 unicast")] {
        let mark = mark(keyword, want.vni);
        let marked = have.lists.contains(&mark);
        let of = |lines: &[String]| -> Vec<String> {
            let of_family = |line: &&String| line.split(' ').next() == Some(keyword) && **line != mark;
            lines.iter().filter(of_family).cloned().collect()
        };
        let changes = list_delta(&of(&want.lists), &of(&have.lists));
        let active = |section: &Section| -> Vec<String> {
            let instance = section.bgp.iter();
            instance.flat_map(|b| instance::active_peers(b, family)).map(str::to_owned).collect()
        };
        let (stay, there) = (active(want), active(have));
        let kept: Vec<&String> = there.iter().filter(|peer| stay.contains(peer)).collect();
        let stale = !kept.is_empty() && (marked || !changes.is_empty());
        let (new_mark, no_mark) = (mark.clone(), format!("no {mark}"));
        delta.policy.extend((stale && !marked).then_some(new_mark));
        delta.policy.extend(changes);
        delta.policy.extend((marked && !stale).then(|| no_mark.clone()));
        delta.refresh.extend(
            kept.iter().filter(|_| stale).map(|peer| format!("clear bgp vrf {name} {family} {peer} soft in")),
        );
        delta.refreshed.extend(stale.then_some(no_mark));
    }
    if let Some(bgp) = &want.bgp {
        delta.bgp = instance::delta(bgp, have.bgp.as_ref(), Owner::Us);
    }
    delta
}
