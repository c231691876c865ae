//! Wanted against observed, as an ordered list of changes. Pure.
//!
//! The order is that of a new tenant: the guard before everything, FRR's configuration before the kernel's devices,
//! the host's rules last of all. What goes, goes the other way round and first; but the rules change once, from the old
//! to the new, and the last resorts of a table outlive them. Only what carries our mark is ever
//! deleted: our names with our kinds of device, our routing protocol, our table of the guard.

use std::collections::BTreeSet;

use calico_vni_proto::names;

use crate::{
    desired::{Desired, GuardWanted},
    observe::Observed,
    op::Op,
    rules::change::changes,
    state::{Address, Kind, LOOPBACK, Link, LinkChange, NetState, Route, Space, Target, vni_of_link},
};

/// The changes that make `observed` as `desired`, in the order in which they have to be made.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    guard(&mut ops, desired, observed);
    // Before all that can fail: without its last resort a table passes on what it does not know, in the host's namespace
    // to main.
    ops.extend(last_resorts_missing(Space::Host, &desired.host, &observed.host));

    let gone = Gone::new(desired, observed);
    let (last_resorts, routes): (Vec<_>, Vec<_>) =
        routes_away(Space::Host, &desired.host, &observed.host, &gone)
            .into_iter()
            .partition(|op| matches!(op, Op::RouteDelete(_, route) if is_last_resort(route)));
    ops.extend(routes);
    addresses_away(&mut ops, Space::Host, &desired.host, &observed.host, &gone);
    ops.extend(gone.host.iter().map(|name| Op::LinkDelete(Space::Host, name.clone())));

    ops.extend(observed.frr.iter().cloned().map(Op::Frr));

    addresses_away(&mut ops, Space::Router, &desired.router, &observed.router, &gone);
    for name in in_order_of_removal(&gone.router) {
        // Of a pair, the router's end goes with the host's.
        let paired = observed.router.links[name].kind == Kind::Veth { paired: true };
        let peer = vni_of_link(Space::Router, name).map(names::host_link);
        let by_its_peer = paired && peer.is_some_and(|peer| gone.host.contains(&peer));
        if !by_its_peer {
            ops.push(Op::LinkDelete(Space::Router, name.clone()));
        }
    }
    // The last resorts outlive the devices: a VRF without one passes what it does not know on to the underlay.
    ops.extend(routes_away(Space::Router, &desired.router, &observed.router, &gone));
    uplinks(&mut ops, desired, observed);

    let common = |name: &str| vni_of_link(Space::Router, name).is_none();
    sysctls(&mut ops, Space::Router, &desired.router, &observed.router, |op| op.vni().is_none());
    links(&mut ops, Space::Router, desired, observed, &gone, &common);
    links(&mut ops, Space::Router, desired, observed, &gone, &|name| !common(name));
    arrive(&mut ops, Space::Router, desired, observed, &gone);
    links(&mut ops, Space::Host, desired, observed, &gone, &|_| true);
    arrive(&mut ops, Space::Host, desired, observed, &gone);
    ops.extend(changes(&desired.steering, &observed.host.rules).into_iter().map(Box::new).map(Op::Rules));
    // Only now does no rule lead into these tables any more.
    ops.extend(last_resorts);
    if desired.guard == GuardWanted::Absent && observed.guard.present {
        ops.push(Op::GuardDelete);
    }
    ops
}

fn guard(ops: &mut Vec<Op>, desired: &Desired, observed: &Observed) {
    if let GuardWanted::Is(ruleset) = &desired.guard
        && observed.guard.digest.as_deref() != Some(&ruleset.digest())
    {
        ops.push(Op::GuardLoad(ruleset.clone()));
    }
}

/// Devices of ours that are deleted: nobody wants them, or they cannot become what is wanted.
struct Gone {
    host: BTreeSet<String>,
    router: BTreeSet<String>,
}

impl Gone {
    fn new(desired: &Desired, observed: &Observed) -> Self {
        // An uplink may have any name.
        let (uplinks, recorded) = (&desired.uplinks, &observed.recorded);
        let is_uplink = |name: &String| uplinks.contains(name) || recorded.contains(name);
        let stale = |space, desired: &NetState, observed: &NetState| {
            observed
                .links
                .iter()
                .filter(|(name, link)| vni_of_link(space, name).is_some() && is_ours(space, &link.kind))
                .filter(|(name, _)| !is_uplink(name))
                .filter(|(name, link)| desired.links.get(*name).is_none_or(|wanted| wanted.kind != link.kind))
                .map(|(name, _)| name.clone())
                .collect::<BTreeSet<_>>()
        };
        Self {
            host: stale(Space::Host, &desired.host, &observed.host),
            router: stale(Space::Router, &desired.router, &observed.router),
        }
    }

    fn of(&self, space: Space) -> &BTreeSet<String> {
        match space {
            Space::Host => &self.host,
            Space::Router => &self.router,
        }
    }
}

/// Whether a device with one of our names is of a kind that we make there.
fn is_ours(space: Space, kind: &Kind) -> bool {
    match kind {
        Kind::Veth { .. } => true,
        Kind::Vrf { .. } | Kind::Bridge | Kind::Vxlan { .. } => space == Space::Router,
        Kind::Given | Kind::Foreign(_) => false,
    }
}

/// Members before what they are a member of.
fn in_order_of_removal(names: &BTreeSet<String>) -> Vec<&String> {
    let rank = |name: &str| ["h", "vx", "br", "vrf"].iter().position(|p| names::vni_of(name, p).is_some());
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by_key(|name| rank(name));
    names
}

/// The device that a route needs.
fn device_of(target: &Target) -> Option<&String> {
    match target {
        Target::Via { dev, .. } => Some(dev),
        _ => None,
    }
}

fn is_last_resort(route: &Route) -> bool {
    route.target == Target::Unreachable
}

fn last_resorts_missing(space: Space, desired: &NetState, observed: &NetState) -> Vec<Op> {
    let missing = desired.routes.difference(&observed.routes).filter(|route| is_last_resort(route));
    missing.cloned().map(|route| Op::RouteAdd(space, route)).collect()
}

fn routes_away(space: Space, desired: &NetState, observed: &NetState, gone: &Gone) -> Vec<Op> {
    let stale = observed.routes.difference(&desired.routes).cloned();
    // Those by a device that goes are gone with it; deleted before it all the same, while they can be named.
    let lost = |target: &Target| device_of(target).is_some_and(|dev| gone.of(space).contains(dev));
    let with_device = observed.routes.intersection(&desired.routes).filter(|r| lost(&r.target)).cloned();
    stale.chain(with_device).map(|route| Op::RouteDelete(space, route)).collect()
}

fn addresses_away(ops: &mut Vec<Op>, space: Space, desired: &NetState, observed: &NetState, gone: &Gone) {
    let stale = observed.addresses.difference(&desired.addresses).filter(|address| {
        let ours = vni_of_link(space, &address.dev).is_some()
            && observed.links.get(&address.dev).is_some_and(|link| is_ours(space, &link.kind));
        let marked_in_router = space == Space::Router && observed.marked.contains(*address);
        !gone.of(space).contains(&address.dev) && (ours || marked_in_router)
    });
    ops.extend(stale.cloned().map(|address| Op::AddressDelete(space, address)));
}

fn uplinks(ops: &mut Vec<Op>, desired: &Desired, observed: &Observed) {
    let wanted: BTreeSet<&String> = desired.uplinks.iter().collect();
    ops.extend(observed.recorded.iter().filter(|name| !wanted.contains(name)).cloned().map(Op::UplinkReturn));
    ops.extend(
        wanted
            .into_iter()
            .filter(|name| !observed.router.links.contains_key(*name))
            .cloned()
            .map(Op::UplinkTake),
    );
}

fn sysctls(
    ops: &mut Vec<Op>,
    space: Space,
    desired: &NetState,
    observed: &NetState,
    selected: impl Fn(&Op) -> bool,
) {
    let differing =
        desired.sysctls.iter().filter(|(path, value)| observed.sysctls.get(*path) != Some(*value));
    let ops_of = differing.map(|(path, value)| Op::Sysctl(space, path.clone(), value.clone()));
    ops.extend(ops_of.filter(selected));
}

/// A VRF before its bridge, a bridge before its VXLAN device; the loopback and uplinks in between.
fn in_order_of_making(links: &std::collections::BTreeMap<String, Link>) -> Vec<(&String, &Link)> {
    let rank = |link: &Link| match link.kind {
        Kind::Vrf { .. } => 0,
        Kind::Bridge => 1,
        _ => 2,
    };
    let mut links: Vec<_> = links.iter().collect();
    links.sort_by_key(|(_, link)| rank(link));
    links
}

fn links(
    ops: &mut Vec<Op>,
    space: Space,
    desired: &Desired,
    observed: &Observed,
    gone: &Gone,
    selected: &dyn Fn(&str) -> bool,
) {
    let (wanted, seen) = match space {
        Space::Host => (&desired.host, &observed.host),
        Space::Router => (&desired.router, &observed.router),
    };
    for (name, link) in in_order_of_making(&wanted.links).into_iter().filter(|(name, _)| selected(name)) {
        let there = (seen.links.get(name))
            .filter(|there| link.kind == Kind::Given || there.kind == link.kind)
            .filter(|_| !gone.of(space).contains(name));
        let there = match (there, &link.kind) {
            (Some(there), _) => without_gone_master(there, gone.of(space)),
            (None, Kind::Veth { .. }) => {
                if space == Space::Router
                    && let Some(vni) = vni_of_link(space, name)
                {
                    ops.push(Op::VethAdd { vni, mtu: link.mtu.unwrap_or_default() });
                }
                Link { up: false, mtu: link.mtu, ..Link::up(link.kind.clone()) }
            }
            // An uplink that is still to be moved arrives down, with the MTU it had.
            (None, Kind::Given) => Link { up: false, ..Link::up(Kind::Given) },
            (None, _) => {
                ops.push(Op::LinkAdd(name.clone(), Box::new(link.clone())));
                continue;
            }
        };
        let change = LinkChange::between(link, &there);
        if !change.is_empty() {
            ops.push(Op::LinkSet(space, name.clone(), Box::new(change)));
        }
    }
}

fn without_gone_master(link: &Link, gone: &BTreeSet<String>) -> Link {
    let mut link = link.clone();
    if link.master.as_ref().is_some_and(|master| gone.contains(master)) {
        link.master = None;
    }
    link
}

/// Switches of devices, addresses and routes that are missing.
fn arrive(ops: &mut Vec<Op>, space: Space, desired: &Desired, observed: &Observed, gone: &Gone) {
    let (wanted, seen) = match space {
        Space::Host => (&desired.host, &observed.host),
        Space::Router => (&desired.router, &observed.router),
    };
    let gone = gone.of(space);
    let mut seen = seen.clone();
    // What is deleted and made again comes without all that it had.
    seen.sysctls.retain(|path, _| !path.split('/').any(|component| gone.contains(component)));
    seen.addresses.retain(|address: &Address| !gone.contains(&address.dev));
    seen.routes.retain(|route| !device_of(&route.target).is_some_and(|dev| gone.contains(dev)));

    let already = |op: &Op| space == Space::Router && op.vni().is_none();
    sysctls(ops, space, wanted, &seen, |op| !already(op));
    if space == Space::Router {
        ops.extend(last_resorts_missing(space, wanted, &seen));
    }
    let (first, later): (Vec<_>, Vec<_>) =
        wanted.addresses.difference(&seen.addresses).cloned().partition(|address| address.dev == LOOPBACK);
    ops.extend(first.into_iter().chain(later).map(|address| Op::AddressAdd(space, address)));
    // Throws before the way out: no packet leaves by a table that is not complete.
    let routes = wanted.routes.difference(&seen.routes).filter(|route| !is_last_resort(route)).cloned();
    let (ways_out, others): (Vec<_>, Vec<_>) = routes.partition(|route| device_of(&route.target).is_some());
    ops.extend(others.into_iter().chain(ways_out).map(|route| Op::RouteAdd(space, route)));
}
