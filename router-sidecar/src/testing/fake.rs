//! A node and an FRR in memory, that behave as the kernel does where it matters here, and fail where they are told to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use calico_vni_proto::{model::NodeConfig, names, wire};

use crate::{
    desired::{Desired, GuardWanted},
    frr_port::{Change, Frr, Silent},
    node::{NodeError, Platform},
    observe::{GuardSeen, Observed, Uplinks},
    op::Op,
    rules::kernel::Kernel,
    state::{Kind, Link, NetState, Space, Target, Uplink},
};

/// A node in memory.
#[derive(Debug, Default)]
pub struct FakeNode {
    inner: Mutex<Inner>,
}

/// What is in it.
#[derive(Debug, Default)]
pub struct Inner {
    /// What stands.
    pub observed: Observed,
    /// Uplinks as they are in the host's namespace, or were.
    pub uplinks: BTreeMap<String, Uplink>,
    /// Changes that contain one of these words fail.
    pub failing: Vec<String>,
    /// All changes that were asked for, those that failed too.
    pub asked: Vec<String>,
    /// How often all of it was read.
    pub looks: usize,
    /// Whether it cannot be read.
    pub unreadable: bool,
}

impl FakeNode {
    /// A node with these uplinks in the host's namespace.
    pub fn with_uplinks(uplinks: impl IntoIterator<Item = Uplink>) -> Self {
        let node = Self::default();
        {
            let mut inner = node.lock();
            for space in [Space::Host, Space::Router] {
                net(&mut inner.observed, space).links.insert("lo".into(), Link::up(Kind::Given));
            }
            for uplink in uplinks {
                let link = Link { mtu: Some(uplink.mtu), ..Link::up(Kind::Given) };
                inner.observed.host.links.insert(uplink.name.clone(), link);
                inner.observed.host.addresses.extend(uplink.addresses.iter().cloned());
                inner.uplinks.insert(uplink.name.clone(), uplink);
            }
        }
        node
    }

    /// What is in it.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

/// One of its namespaces.
pub fn net(observed: &mut Observed, space: Space) -> &mut NetState {
    match space {
        Space::Host => &mut observed.host,
        Space::Router => &mut observed.router,
    }
}

/// What the kernel takes with a device.
fn lose(state: &mut NetState, name: &str) {
    state.links.remove(name);
    state.addresses.retain(|address| address.dev != name);
    state.marked.retain(|address| address.dev != name);
    state.routes.retain(|route| !matches!(&route.target, Target::Via { dev, .. } if dev == name));
    state.sysctls.retain(|path, _| !path.split('/').any(|component| component == name));
    for link in state.links.values_mut() {
        if link.master.as_deref() == Some(name) {
            link.master = None;
            link.port = None;
        }
    }
}

fn must(good: bool, what: &str) -> Result<(), NodeError> {
    if good { Ok(()) } else { Err(NodeError::Made(what.to_owned())) }
}

impl Inner {
    fn change(&mut self, op: &Op) -> Result<(), NodeError> {
        let text = op.to_string();
        self.asked.push(text.clone());
        must(!self.failing.iter().any(|word| text.contains(word)), "made to fail")?;
        let observed = &mut self.observed;
        match op {
            Op::GuardLoad(ruleset) => {
                observed.guard = GuardSeen { present: true, digest: Some(ruleset.digest()) };
            }
            Op::GuardDelete => observed.guard = GuardSeen::default(),
            Op::Rules(change) => {
                let all = std::mem::take(&mut observed.host.rules);
                let (mut rest, family) = all.into_iter().partition::<Vec<_>, _>(|rule| rule.v6 != change.v6);
                let mut kernel = Kernel::with(family);
                let made = change.steps.iter().all(|step| kernel.make(step));
                rest.extend(kernel.rules());
                observed.host.rules = rest;
                must(made, "No such rule")?;
            }
            Op::RouteAdd(space, route) => {
                let state = net(observed, *space);
                if let Target::Via { dev, .. } = &route.target {
                    must(state.links.get(dev).is_some_and(|link| link.up), "Network is down")?;
                    must(
                        state.addresses.iter().any(|address| address.dev == *dev),
                        "Nexthop has invalid gateway",
                    )?;
                }
                must(state.routes.insert(route.clone()), "File exists")?;
            }
            Op::RouteDelete(space, route) => {
                must(net(observed, *space).routes.remove(route), "No such process")?;
            }
            Op::AddressAdd(space, address) => {
                let state = net(observed, *space);
                must(state.links.contains_key(&address.dev), "No such device")?;
                must(state.addresses.insert(address.clone()), "File exists")?;
                state.marked.insert(address.clone());
            }
            Op::AddressDelete(space, address) => {
                let state = net(observed, *space);
                must(state.addresses.remove(address), "Cannot assign requested address")?;
                state.marked.remove(address);
            }
            Op::LinkAdd(name, link) => {
                must(!observed.router.links.contains_key(name), "File exists")?;
                if let Some(master) = &link.master {
                    must(observed.router.links.contains_key(master), "no such master")?;
                }
                observed.router.links.insert(name.clone(), (**link).clone());
            }
            Op::VethAdd { vni, mtu } => {
                for (space, name) in
                    [(Space::Router, names::router_link(*vni)), (Space::Host, names::host_link(*vni))]
                {
                    let links = &mut net(observed, space).links;
                    must(!links.contains_key(&name), "File exists")?;
                    let end = Link { up: false, mtu: Some(*mtu), ..Link::up(Kind::Veth { paired: true }) };
                    links.insert(name, end);
                }
            }
            Op::LinkSet(space, name, change) => {
                let state = net(observed, *space);
                if let Some(master) = &change.master {
                    must(state.links.contains_key(master), "no such master")?;
                }
                let link =
                    state.links.get_mut(name).ok_or_else(|| NodeError::Made("No such device".into()))?;
                link.up = change.up.unwrap_or(link.up);
                link.mtu = change.mtu.or(link.mtu);
                link.mac = change.mac.or(link.mac);
                link.link_local = change.link_local.or(link.link_local);
                link.port = change.port.or(link.port);
                link.master = change.master.clone().or_else(|| link.master.clone());
            }
            Op::LinkDelete(space, name) => {
                let state = net(observed, *space);
                must(state.links.contains_key(name), "No such device")?;
                let paired = state.links[name].kind == Kind::Veth { paired: true };
                lose(state, name);
                if let Some(vni) = crate::state::vni_of_link(*space, name).filter(|_| paired) {
                    match space {
                        Space::Host => lose(&mut observed.router, &names::router_link(vni)),
                        Space::Router => lose(&mut observed.host, &names::host_link(vni)),
                    }
                }
            }
            Op::Sysctl(space, path, value) => {
                net(observed, *space).sysctls.insert(path.clone(), value.clone());
            }
            Op::UplinkTake(name) => {
                let link = observed.host.links.get(name).cloned();
                let mut link = link.ok_or_else(|| NodeError::NoUplink(name.clone()))?;
                lose(&mut observed.host, name);
                link.up = false;
                observed.router.links.insert(name.clone(), link);
                observed.recorded.insert(name.clone());
            }
            Op::UplinkReturn(name) => {
                let link = observed.router.links.get(name).cloned();
                let link = link.ok_or_else(|| NodeError::NoUplink(name.clone()))?;
                lose(&mut observed.router, name);
                observed.host.links.insert(name.clone(), Link { up: true, ..link });
                observed.host.addresses.extend(self.uplinks[name].addresses.iter().cloned());
                observed.recorded.remove(name);
            }
            Op::Frr(_) => return Err(NodeError::NotForNode(text)),
        }
        Ok(())
    }
}

impl Platform for FakeNode {
    async fn uplinks(&self, names: &[String]) -> Result<Uplinks, NodeError> {
        let inner = self.lock();
        Ok(inner
            .uplinks
            .iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(n, u)| (n.clone(), u.clone()))
            .collect())
    }

    async fn observe(&self, _: &Desired) -> Result<Observed, NodeError> {
        let mut inner = self.lock();
        inner.looks += 1;
        must(!inner.unreadable, "made to be unreadable")?;
        Ok(inner.observed.clone())
    }

    async fn filters_changed(&self) -> bool {
        // Looked at each time: in memory that costs nothing.
        true
    }

    async fn guard_stands(&self, desired: &Desired) -> Result<bool, NodeError> {
        let seen = self.lock().observed.guard.clone();
        Ok(match &desired.guard {
            GuardWanted::Is(ruleset) => seen.digest == Some(ruleset.digest()),
            GuardWanted::Absent => !seen.present,
            GuardWanted::AsItIs => true,
        })
    }

    async fn apply(&self, op: &Op) -> Result<(), NodeError> {
        self.lock().change(op)
    }
}

/// An FRR in memory.
#[derive(Debug, Default)]
pub struct FakeFrr {
    inner: Mutex<FrrInner>,
}

/// What is in it.
#[derive(Debug, Default)]
pub struct FrrInner {
    /// VNIs of the tenants that it carries.
    pub tenants: BTreeSet<u32>,
    /// Whether it answers.
    pub silent: bool,
    /// VNIs that it refuses.
    pub refused: Vec<u32>,
    /// VNIs whose devices it was told to look for again.
    pub rejoined: Vec<u32>,
}

impl FakeFrr {
    /// What is in it.
    pub fn lock(&self) -> MutexGuard<'_, FrrInner> {
        self.inner.lock().unwrap()
    }
}

impl Frr for FakeFrr {
    async fn plan(&self, config: &NodeConfig) -> Result<Vec<Change>, Silent> {
        let inner = self.lock();
        if inner.silent {
            return Err(Silent("made to be silent".into()));
        }
        let wanted: BTreeSet<u32> = config.tenants.iter().map(|tenant| tenant.vni).collect();
        let change = |vni: &u32, what: &str| Change { vni: Some(*vni), what: format!("frr: {what} {vni}") };
        let removed = inner.tenants.difference(&wanted).map(|vni| change(vni, "remove"));
        let set = wanted.difference(&inner.tenants).map(|vni| change(vni, "set"));
        Ok(removed.chain(set).collect())
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), String>> {
        let mut inner = self.lock();
        let mut apply = |change: &Change| {
            let vni = change.vni.unwrap();
            if inner.refused.contains(&vni) {
                return Err("refused".to_owned());
            }
            if change.what.contains("remove") {
                inner.tenants.remove(&vni);
            } else {
                inner.tenants.insert(vni);
            }
            Ok(())
        };
        changes.iter().map(&mut apply).collect()
    }

    async fn rejoin(&self, vnis: &[u32]) -> Result<(), Silent> {
        self.lock().rejoined.extend(vnis);
        Ok(())
    }

    async fn sessions(&self, _: &NodeConfig) -> Result<Vec<wire::Session>, Silent> {
        Ok(vec![])
    }
}
