//! Whatever a controller sends: it is refused, or what comes of it is ours: our names, tables and rules, lines of one command.
//! `make fuzz` draws a million cases of each.

use std::collections::BTreeMap;

use calico_vni_proto::{
    codec::Codec as _,
    model::{Guard, NodeConfig},
    names, wire,
};
use proptest::{
    collection::vec, option, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner,
};
use prost::Message as _;

use crate::{
    desired::{GuardWanted, desired, nothing},
    diff::diff,
    frr::{self, Version},
    guard::Standing,
    observe::Observed,
    op::Op,
    rules::change::Step,
    state::{Action, LOOPBACK, MAIN, Space, vni_of_link, vni_of_table},
};

/// Rules of ours have these preferences.
const PREFERENCES: std::ops::RangeInclusive<u32> = 9_999..=32_000;

/// What is right in some place, what is nearly so, and what is wrong everywhere.
fn text(right: &'static [&'static str]) -> BoxedStrategy<String> {
    const WRONG: [&str; 14] = [
        "",
        "..",
        "../../x",
        "a/b",
        "a b",
        "red\nno router bgp",
        "x\" drop; flush ruleset; #",
        "\0",
        "all",
        "lo",
        "255.255.255.255",
        "10.0.0.1/33",
        "ffff::ffff",
        "::/0",
    ];
    prop_oneof![
        90 => select(right).prop_map(str::to_owned),
        2 => select(&WRONG[..]).prop_map(str::to_owned),
        1 => "\\PC{0,20}",
    ]
    .boxed()
}

const ADDRESSES: &[&str] = &["10.255.0.7", "192.0.2.1", "2001:db8::1", "169.254.192.2", "0.0.0.0"];
const NETS: &[&str] = &["10.200.0.0/16", "10.201.0.0/24", "fd00:200::/64", "0.0.0.0/0", "192.0.2.1/32"];
const NAMES: &[&str] = &["red", "blue", "a-b.c"];
const TARGETS: &[&str] = &["65000:1001", "*:1001", "192.0.2.1:5"];

fn number() -> BoxedStrategy<u32> {
    prop_oneof![60 => 0u32..200, 30 => 1000u32..1010, 1 => any::<u32>(), 1 => select(&[u32::MAX, 16_777_215][..])].boxed()
}

/// A pool that a tenant can have, or not.
fn pool() -> BoxedStrategy<(String, u32)> {
    const RIGHT: [(&str, u32); 4] =
        [("10.200.0.0/16", 26), ("10.201.0.0/24", 28), ("fd00:200::/64", 122), ("192.0.2.1/32", 32)];
    prop_oneof![
        30 => select(&RIGHT[..]).prop_map(|(cidr, block_size)| (cidr.to_owned(), block_size)),
        1 => (text(NETS), number()),
    ]
    .boxed()
}

prop_compose! {
    fn any_tenant()(
        name in text(NAMES),
        vni in prop_oneof![40 => 1001u32..1005, 1 => number()],
        link_index in number(),
        host_v4 in text(&["169.254.192.2", "169.254.192.4"]),
        host_v6 in text(&["fd00:ffff::2", "fd00:ffff::4"]),
        pools in vec(pool(), 0..3),
        import_rts in vec(text(TARGETS), 0..2),
        export_rts in vec(text(TARGETS), 0..2),
        shared in vec(text(NETS), 0..2),
        max_prefixes in number(),
        advertise_pods: bool,
        services in vec(text(&["kube-system/kube-dns", "a/b"]), 0..2),
    ) -> wire::Tenant {
        let pools = pools.into_iter().map(|(cidr, block_size)| wire::Pool { cidr, block_size }).collect();
        wire::Tenant {
            name, vni, link_index, host_v4, host_v6, pools, import_rts, export_rts, shared, max_prefixes, advertise_pods,
            services,
        }
    }
}

prop_compose! {
    fn any_underlay()(
        name in text(NAMES),
        asn in number(),
        vtep in text(ADDRESSES),
        router_id in text(&["10.255.0.7"]),
        neighbors in vec((text(ADDRESSES), number(), number(), option::of(text(&["word", "w0rd!"]))), 0..3),
        interfaces in vec(text(&["eth1", "bond0.100"]), 0..3),
        mtu in number(),
        shared in vec(text(NETS), 0..2),
        graceful_restart: bool,
        calico_asn in number(),
    ) -> wire::Underlay {
        let neighbor = |(address, asn, hold_time, word): (String, u32, u32, Option<String>)| wire::Neighbor {
            address, asn, hold_time, password: word.map(|text| wire::Password { text, salt: String::new() }),
        };
        let neighbors = neighbors.into_iter().map(neighbor).collect();
        wire::Underlay {
            name, asn, vtep, router_id, neighbors, interfaces, mtu, shared, graceful_restart, calico_asn,
        }
    }
}

prop_compose! {
    fn any_config()(
        node in text(&["n1"]),
        underlay in option::weighted(0.9, any_underlay()),
        tenants in vec(any_tenant(), 0..3),
        flips in option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>())),
    ) -> Vec<u8> {
        let tenants = if underlay.is_some() { tenants } else { vec![] };
        let explicit_empty = underlay.is_none();
        let mut body = wire::NodeConfig { node, underlay, tenants, explicit_empty }.encode_to_vec();
        spoil(&mut body, flips);
        body
    }
}

prop_compose! {
    fn any_guard()(
        tenants in vec((text(NAMES), prop_oneof![40 => 1001u32..1005, 1 => number()], vec(text(NETS), 0..3)), 0..3),
        quarantined in vec(text(NETS), 0..2),
        services in vec((text(&["kube-system/kube-dns", "a/b"]), vec((text(ADDRESSES), -1i32..5, number()), 0..3)), 0..2),
        flips in option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>())),
    ) -> Vec<u8> {
        let tenant = |(name, vni, pools)| wire::GuardTenant { name, vni, pools };
        let endpoint = |(address, protocol, port)| wire::Endpoint { address, protocol, port };
        let service = |(name, endpoints): (String, Vec<_>)| wire::SharedService {
            name, endpoints: endpoints.into_iter().map(endpoint).collect(),
        };
        let tenants = tenants.into_iter().map(tenant).collect();
        let services = services.into_iter().map(service).collect();
        let mut body = wire::Guard { tenants, quarantined, services }.encode_to_vec();
        spoil(&mut body, flips);
        body
    }
}

/// An octet that a disk or a stranger has changed.
fn spoil(body: &mut [u8], flip: Option<(prop::sample::Index, u8)>) {
    if let Some((at, octet)) = flip.filter(|_| !body.is_empty()) {
        body[at.index(body.len())] ^= octet;
    }
}

/// Whether the change touches what is ours, or an interface that was named.
fn is_ours(op: &Op, interfaces: &[String]) -> bool {
    let named = |space: Space, name: &str| {
        let given = space == Space::Router && (name == LOOPBACK || interfaces.iter().any(|i| i == name));
        given || vni_of_link(space, name).is_some()
    };
    match op {
        Op::GuardLoad(_) | Op::GuardDelete | Op::Frr(_) => true,
        Op::Rules(change) => change.steps.iter().all(|step| {
            let (Step::Add(rule) | Step::Delete(rule)) = step;
            let leads = match rule.action {
                Action::Lookup { table, .. } => table == MAIN || vni_of_table(table).is_some(),
                Action::Goto(pref) => PREFERENCES.contains(&pref),
                Action::Nop | Action::Blackhole => true,
                Action::Other(_) => false,
            };
            let by = rule.iif.as_ref().is_none_or(|iif| named(Space::Host, iif) || iif == LOOPBACK);
            leads && by && PREFERENCES.contains(&rule.pref)
        }),
        Op::RouteAdd(_, route) | Op::RouteDelete(_, route) => vni_of_table(route.table).is_some(),
        Op::AddressAdd(space, address) | Op::AddressDelete(space, address) => named(*space, &address.dev),
        Op::LinkAdd(name, _) => vni_of_link(Space::Router, name).is_some(),
        Op::VethAdd { vni, .. } => (1..=names::VNI_MAX).contains(vni),
        Op::LinkSet(space, name, _) => named(*space, name),
        Op::LinkDelete(space, name) => vni_of_link(*space, name).is_some(),
        Op::Sysctl(_, path, _) => {
            path.starts_with("net/ipv")
                && path.split('/').count() <= 5
                && !path.split('/').any(|part| part == "..")
        }
        Op::UplinkTake(name) | Op::UplinkReturn(name) => interfaces.contains(name),
    }
}

/// Every line of a ruleset that begins something at the top is about our table, and no name ends before its end.
fn is_our_table(text: &str) -> bool {
    text.lines().all(|line| {
        let top = ["table", "add", "create", "delete", "flush", "destroy", "include", "define"];
        let begins = top.iter().any(|word| line.split(' ').next() == Some(word));
        (!begins || line.contains("calico-vni")) && line.matches('"').count() % 2 == 0
    })
}

/// What never gets past the first door shows nothing about the rooms behind.
#[test]
fn enough_is_taken_and_enough_is_refused() {
    let mut runner = TestRunner::deterministic();
    let mut taken = |decodes: &dyn Fn(&[u8]) -> bool, bodies: BoxedStrategy<Vec<u8>>| {
        (0..400).filter(|_| decodes(&bodies.new_tree(&mut runner).unwrap().current())).count()
    };
    let configs = taken(&|body| NodeConfig::decode(body).is_ok(), any_config().boxed());
    let guards = taken(&|body| Guard::decode(body).is_ok(), any_guard().boxed());
    for count in [configs, guards] {
        assert!((100..380).contains(&count), "of 400: {configs} configurations, {guards} guards");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_is_refused_or_becomes_ours(
        body in any_config(),
        before in any_config(),
        guard in option::of(any_guard()),
        junk in vec(any::<u8>(), 0..64),
        new: bool,
    ) {
        let _ = (NodeConfig::decode(&junk), Guard::decode(&junk));
        let guard = guard.and_then(|body| Guard::decode(&body).ok());
        let Ok(config) = NodeConfig::decode(&body) else { return Ok(()) };
        let again = NodeConfig::decode(&config.encode()).ok();
        prop_assert_eq!(again.as_ref(), Some(&config));
        let none = BTreeMap::new();
        let wanted = desired(&config, guard.as_ref(), &none);
        let mut interfaces = wanted.uplinks.clone();
        // From a node with nothing, from one with another configuration, and back to nothing.
        let stands = NodeConfig::decode(&before).map_or_else(|_| nothing("n1"), |config| desired(&config, None, &none));
        interfaces.extend(stands.uplinks.clone());
        let of = |state: &crate::desired::Desired| Observed {
            host: state.host.clone(),
            router: state.router.clone(),
            ..Observed::default()
        };
        let mut ops = diff(&wanted, &Observed::default());
        ops.extend(diff(&wanted, &of(&stands)));
        ops.extend(diff(&nothing("n1"), &of(&wanted)));
        for op in &ops {
            prop_assert!(is_ours(op, &interfaces), "{}", op);
            prop_assert!(!op.headline().is_empty());
        }
        if let GuardWanted::Is(ruleset) = &wanted.guard {
            for table in ruleset.tables(&ruleset.digest()) {
                for text in [table.replacing(&BTreeMap::new()), table.updating(&Standing::default())] {
                    prop_assert!(is_our_table(&text), "{}", text);
                }
            }
        }

        let version = if new { Version { major: 10, minor: 6 } } else { Version { major: 8, minor: 4 } };
        let rendered = frr::render(&config, version);
        for op in frr::diff(&rendered, &frr::Observed::nothing(version)) {
            for (_, line) in op.delta().lines() {
                prop_assert!(!line.contains(['\n', '\r', '\0', '|']), "{}", line);
            }
        }
    }
}
