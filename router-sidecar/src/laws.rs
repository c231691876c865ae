//! Laws of [`crate::diff`], held against a node in memory: what it plans leads to what is wanted from any state, a
//! second look finds nothing to do, and nothing foreign is ever touched.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_proto::{
    model::{Guard, NodeConfig},
    names,
};
use proptest::prelude::*;

use crate::{
    desired::{Desired, desired, nothing},
    diff::diff,
    executor::execute,
    frr_port::Frr as _,
    node::Platform as _,
    observe::Observed,
    op::Op,
    reconcile::compare,
    rules::change::changes,
    state::{Action, Address, Kind, Link, MAIN, NetState, Route, Rule, Space, Target},
    testing::{
        config,
        fake::{FakeFrr, FakeNode, net},
        tenant, uplink,
    },
};

/// Pools of a tenant: IPv4, IPv6, or both.
fn pools(vni: u32, which: usize) -> Vec<String> {
    let all = [format!("10.{}.0.0/16", vni - 801), format!("fd00:{vni}::/64")];
    [&all[..1], &all[1..], &all[..]][which].to_vec()
}

/// A configuration of up to four tenants.
fn configs() -> impl Strategy<Value = NodeConfig> {
    let tenants = prop::collection::btree_map(1001u32..1005, 0usize..3, 0..4);
    (tenants, any::<bool>(), any::<bool>()).prop_map(|(tenants, empty, other_vtep)| {
        let tenants = tenants
            .into_iter()
            .map(|(vni, which)| {
                let pools = pools(vni, which);
                tenant(&format!("t{vni}"), vni, &pools.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let mut config = config(tenants);
        if other_vtep && let Some(underlay) = &mut config.underlay {
            underlay.vtep = "10.255.0.99".parse().unwrap();
        }
        if empty {
            config.underlay = None;
            config.tenants.clear();
        }
        config
    })
}

/// Things that somebody did to the node.
#[derive(Clone, Debug)]
enum Mischief {
    LoseLink(Space, prop::sample::Index),
    LoseRoute(Space, prop::sample::Index),
    LoseRule(prop::sample::Index),
    LoseAddress(Space, prop::sample::Index),
    PutDown(Space, prop::sample::Index),
    Unpair(u32),
    OtherKind(u32),
    OldRule,
    OldRoute,
    LoseGuard,
}

fn mischief() -> impl Strategy<Value = Mischief> {
    let space = || prop_oneof![Just(Space::Host), Just(Space::Router)];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (space(), index()).prop_map(|(s, i)| Mischief::LoseLink(s, i)),
        (space(), index()).prop_map(|(s, i)| Mischief::LoseRoute(s, i)),
        index().prop_map(Mischief::LoseRule),
        (space(), index()).prop_map(|(s, i)| Mischief::LoseAddress(s, i)),
        (space(), index()).prop_map(|(s, i)| Mischief::PutDown(s, i)),
        (1001u32..1005).prop_map(Mischief::Unpair),
        (1001u32..1005).prop_map(Mischief::OtherKind),
        Just(Mischief::OldRule),
        Just(Mischief::OldRoute),
        Just(Mischief::LoseGuard),
    ]
}

fn pick<T: Clone>(from: impl IntoIterator<Item = T>, index: prop::sample::Index) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| all[index.index(all.len())].clone())
}

/// Names of ours that are no strangers' (those of the strangers are of VNIs 7 and 77).
fn ours(space: Space, name: &str) -> bool {
    crate::state::vni_of_link(space, name).is_some_and(|vni| vni > 1000)
}

fn commit(observed: &mut Observed, mischief: &Mischief) {
    match mischief {
        Mischief::LoseLink(space, index) => {
            let state = net(observed, *space);
            let names: Vec<String> = state.links.keys().filter(|name| ours(*space, name)).cloned().collect();
            if let Some(name) = pick(names, *index) {
                state.links.remove(&name);
                state.addresses.retain(|address| address.dev != name);
                state
                    .routes
                    .retain(|route| !matches!(&route.target, Target::Via { dev, .. } if *dev == name));
                // The other end of a pair is no pair any more.
                for space in [Space::Host, Space::Router] {
                    let links = &mut net(observed, space).links;
                    let lone = |link: &&mut Link| link.kind == Kind::Veth { paired: true };
                    if name.starts_with('h') || name.starts_with("cv") {
                        let digits = name.trim_start_matches(char::is_alphabetic);
                        links
                            .iter_mut()
                            .filter(|(other, _)| other.ends_with(digits))
                            .map(|(_, link)| link)
                            .filter(lone)
                            .for_each(|link| link.kind = Kind::Veth { paired: false });
                    }
                }
            }
        }
        Mischief::LoseRoute(space, index) => {
            let routes = &mut net(observed, *space).routes;
            pick(routes.clone(), *index).map(|route| routes.remove(&route));
        }
        Mischief::LoseRule(index) => {
            let rules = &mut observed.host.rules;
            pick(0..rules.len(), *index).map(|at| rules.remove(at));
        }
        Mischief::LoseAddress(space, index) => {
            let addresses = &mut net(observed, *space).addresses;
            let named: BTreeSet<Address> =
                addresses.iter().filter(|a| ours(*space, &a.dev)).cloned().collect();
            pick(named, *index).map(|address| addresses.remove(&address));
        }
        Mischief::PutDown(space, index) => {
            let state = net(observed, *space);
            let names: Vec<String> = state.links.keys().filter(|name| ours(*space, name)).cloned().collect();
            if let Some(name) = pick(names, *index) {
                state.links.get_mut(&name).unwrap().up = false;
                state
                    .routes
                    .retain(|route| !matches!(&route.target, Target::Via { dev, .. } if *dev == name));
            }
        }
        Mischief::Unpair(vni) => {
            for (space, name) in
                [(Space::Host, names::host_link(*vni)), (Space::Router, names::router_link(*vni))]
            {
                if let Some(link) = net(observed, space).links.get_mut(&name) {
                    link.kind = Kind::Veth { paired: false };
                }
            }
        }
        Mischief::OtherKind(vni) => {
            if let Some(link) = observed.router.links.get_mut(&names::vxlan(*vni)) {
                link.kind = Kind::Vxlan { vni: 7, local: None, port: 8472, learning: true };
            }
        }
        Mischief::OldRule => {
            let from = Some("10.77.0.0/16".parse().unwrap());
            let action = Action::Lookup { table: MAIN, suppress_prefixlength: None };
            observed.host.rules.insert(0, Rule { from, ..Rule::all(20_500, false, action) });
        }
        Mischief::OldRoute => {
            let to = "10.77.0.0/16".parse().unwrap();
            let route = Route { table: names::table(1009), to, metric: 0, target: Target::Throw };
            observed.host.routes.insert(route);
        }
        Mischief::LoseGuard => observed.guard.digest = None,
    }
}

/// What nobody of ours made.
fn plant_foreign(node: &FakeNode) -> (NetState, NetState) {
    let mut inner = node.lock();
    let mut foreign = (NetState::default(), NetState::default());
    let plant = |into: &mut NetState, copy: &mut NetState, names: &[(&str, Kind)], net: &str| {
        for (name, kind) in names {
            let link = Link::up(kind.clone());
            into.links.insert((*name).into(), link.clone());
            copy.links.insert((*name).into(), link);
            let address = Address { dev: (*name).into(), net: net.parse().unwrap(), link_scope: false };
            into.addresses.insert(address.clone());
            copy.addresses.insert(address);
        }
    };
    // Names like ours on what is none of ours, too.
    let foreign_kind = || Kind::Foreign("Dummy".into());
    let host =
        [("cali1", Kind::Given), ("eth0", Kind::Given), ("cv7", foreign_kind()), ("br1001", Kind::Given)];
    plant(&mut inner.observed.host, &mut foreign.0, &host, "192.0.2.77/24");
    let router = [("eth9", Kind::Given), ("h77", foreign_kind()), ("cv1001", Kind::Given)];
    plant(&mut inner.observed.router, &mut foreign.1, &router, "198.51.100.77/24");
    foreign
}

fn holds(state: &NetState, foreign: &NetState) -> bool {
    foreign.links.iter().all(|(name, link)| state.links.get(name) == Some(link))
        && foreign.addresses.is_subset(&state.addresses)
}

/// Applies what is planned, up to three rounds.
async fn bring_about(desired: &Desired, node: &FakeNode, frr: &FakeFrr) -> Vec<Op> {
    let mut ops = vec![];
    for _ in 0..3 {
        (_, ops) = compare(desired, node, frr).await.unwrap();
        if ops.is_empty() {
            break;
        }
        let outcome = execute(&ops, &desired.config, node, frr, |_| false).await;
        assert_eq!((outcome.node, outcome.tenants), (vec![], BTreeMap::new()));
        (_, ops) = compare(desired, node, frr).await.unwrap();
    }
    ops
}

fn plan(config: &NodeConfig, node: &FakeNode) -> Desired {
    let uplinks = node.lock().uplinks.clone();
    desired(config, Some(&Guard::default()), &uplinks)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_state_leads_to_what_is_wanted_and_stays(
        first in configs(),
        second in configs(),
        mischief in prop::collection::vec(mischief(), 0..6),
    ) {
        block_on(async {
            let (node, frr) = (FakeNode::with_uplinks([uplink("eth1", 1500, &["192.0.2.3/31"])]), FakeFrr::default());
            let (host, router) = plant_foreign(&node);
            assert_eq!(bring_about(&plan(&first, &node), &node, &frr).await, vec![]);
            for mischief in &mischief {
                commit(&mut node.lock().observed, mischief);
            }
            let desired = plan(&second, &node);
            assert_eq!(bring_about(&desired, &node, &frr).await, vec![]);
            assert!(second.tenants.iter().map(|t| t.vni).eq(frr.lock().tenants.iter().copied()));

            let observed = node.observe(&desired).await.unwrap();
            assert!(holds(&observed.host, &host) && holds(&observed.router, &router), "something foreign is gone");
            assert_eq!(changes(&desired.steering, &observed.host.rules), []);
            assert_eq!(observed.host.rules.is_empty(), desired.steering.pools.is_empty());
            assert_eq!(observed.host.routes, desired.host.routes);
            assert_eq!(observed.router.routes, desired.router.routes);

            bring_about(&nothing("n1"), &node, &frr).await;
            let observed = node.observe(&desired).await.unwrap();
            assert!(holds(&observed.host, &host) && holds(&observed.router, &router), "something foreign is gone");
            assert!(observed.host.links.contains_key("eth1") && !observed.guard.present);
            assert!(!observed.host.links.iter().any(|(name, _)| ours(Space::Host, name)));
            assert!(observed.host.rules.is_empty() && observed.host.routes.is_empty() && observed.router.routes.is_empty());
        });
    }
}

#[test]
fn a_new_tenant_comes_in_order() {
    let node = FakeNode::with_uplinks([uplink("eth1", 1500, &["192.0.2.3/31"])]);
    let desired = plan(&config(vec![tenant("red", 1001, &["10.200.0.0/16"])]), &node);
    let frr = FakeFrr::default();
    let ops = block_on(async {
        let mut observed = node.observe(&desired).await.unwrap();
        observed.frr = frr.plan(&desired.config).await.unwrap();
        diff(&desired, &observed)
    });
    let at = |word: &str| {
        let found = ops.iter().position(|op| op.to_string().contains(word));
        found.unwrap_or_else(|| panic!("no `{word}` in {ops:#?}"))
    };
    let order = [
        "guard load",
        "host: route add unreachable 0.0.0.0/0",
        "frr: set 1001",
        "uplink eth1",
        "link add vrf1001",
        "link add br1001",
        "link add h1001",
        "link add vx1001",
        "router: route add unreachable 0.0.0.0/0",
        "router: address add 169.254.192.3/31 dev h1001",
        "host: link set cv1001",
        "host: route add 0.0.0.0/0 via",
        "host: rules of IPv4 for 1 pools",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{ops:#?}");

    let away = block_on(async {
        assert_eq!(bring_about(&desired, &node, &frr).await, vec![]);
        let desired = plan(&config(vec![]), &node);
        compare(&desired, &node, &frr).await.unwrap().1
    });
    let at = |word: &str| away.iter().position(|op| op.to_string().contains(word)).unwrap();
    let order = [
        "host: route del 0.0.0.0/0 via",
        "host: link del cv1001",
        "frr: remove",
        "link del vx1001",
        "link del br1001",
        "link del vrf1001",
        "router: route del unreachable 0.0.0.0/0",
        "host: rules of IPv4 for 0 pools",
        "host: route del unreachable 0.0.0.0/0",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{away:#?}");
}

#[test]
fn an_uplink_with_a_name_like_ours_stays() {
    let node = FakeNode::with_uplinks([uplink("br1009", 1500, &["192.0.2.3/31"])]);
    node.lock().observed.host.links.get_mut("br1009").unwrap().kind = Kind::Bridge;
    let mut config = config(vec![]);
    config.underlay.as_mut().unwrap().interfaces = vec!["br1009".into()];
    let frr = FakeFrr::default();
    block_on(async {
        assert_eq!(bring_about(&plan(&config, &node), &node, &frr).await, vec![]);
        assert!(node.lock().observed.router.links["br1009"].up);
        assert!(!node.lock().asked.iter().any(|op| op.contains("link del")));
    });
}
