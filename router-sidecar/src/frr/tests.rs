//! Rendering and difference against golden files, and against a small model of how FRR takes lines.

use std::{env, fs, path::Path};

use calico_vni_proto::model::{Neighbor, NodeConfig, Password, Pool, Tenant, Underlay};
use proptest::{collection::vec, option, prelude::*, sample::subsequence};
use similar_asserts::assert_eq;

use super::{
    Config, Daemon, Delta, Observed, Op, Version, diff,
    model::{Model, normal},
    parse, render,
};

const OLD: Version = Version { major: 8, minor: 4 };
const NEW: Version = Version { major: 10, minor: 6 };

fn node(tenants: Vec<Tenant>) -> NodeConfig {
    let neighbor = |address: &str, asn, hold_time| Neighbor {
        address: address.parse().unwrap(),
        asn,
        hold_time,
        password: None,
    };
    let underlay = Underlay {
        name: "fabric".into(),
        asn: 65000,
        vtep: "10.255.0.7".parse().unwrap(),
        router_id: "10.255.0.7".parse().unwrap(),
        neighbors: vec![neighbor("192.0.2.1", 65101, 9), neighbor("2001:db8::1", 65102, 90)],
        interfaces: vec!["eth1".into()],
        mtu: None,
        shared: vec![],
        graceful_restart: true,
        calico_asn: 64512,
    };
    NodeConfig { node: "n7".into(), underlay: Some(underlay), tenants }
}

fn tenant(name: &str, vni: u32, link_index: u32, pools: &[(&str, u8)]) -> Tenant {
    let pool =
        |(cidr, block_size): &(&str, u8)| Pool { cidr: cidr.parse().unwrap(), block_size: *block_size };
    Tenant {
        name: name.into(),
        vni,
        link_index,
        host_v4: std::net::Ipv4Addr::from(0xa9fe_c000 + 2 * link_index),
        host_v6: std::net::Ipv6Addr::from((0xfd00 << 112) + 2 * u128::from(link_index)),
        pools: pools.iter().map(pool).collect(),
        import_rts: vec![],
        export_rts: vec![],
        shared: vec![],
        max_prefixes: 250,
        advertise_pods: false,
        services: vec![],
    }
}

fn two_tenants() -> NodeConfig {
    let red = tenant("red", 1001, 42, &[("10.200.0.0/16", 26)]);
    let mut blue =
        tenant("blue", 1002, 43, &[("10.203.0.0/16", 26), ("10.202.4.0/26", 26), ("fd00:2::/48", 122)]);
    blue.advertise_pods = true;
    blue.import_rts = vec!["*:1002".parse().unwrap(), "65200:7".parse().unwrap()];
    blue.export_rts = vec!["65000:1002".parse().unwrap()];
    node(vec![red, blue])
}

/// Compares with a file of `tests/golden/frr`; `UPDATE_GOLDEN=1` writes it anew.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/frr").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "{}", path.display());
}

fn plan(desired: &Config, observed: &Config) -> Vec<Op> {
    diff(desired, &Observed { config: observed.clone(), ..Observed::nothing(OLD) })
}

fn print(ops: &[Op]) -> String {
    ops.iter().flat_map(|op| [op.to_string(), "\n".to_owned()]).collect()
}

#[test]
fn files_for_a_cold_start() {
    let node = two_tenants();
    for (version, name) in [(OLD, "bgpd-8.4.conf"), (NEW, "bgpd-10.6.conf")] {
        golden(name, &render(&node, version).to_file(Daemon::Bgpd, version));
    }
    golden("zebra.conf", &render(&node, OLD).to_file(Daemon::Zebra, OLD));
}

#[test]
fn an_end_point_of_ipv6() {
    let mut node = two_tenants();
    node.underlay.as_mut().unwrap().vtep = "2001:db8:ffff::7".parse().unwrap();
    node.tenants.clear();
    golden("bgpd-ipv6.conf", &render(&node, NEW).to_file(Daemon::Bgpd, NEW));
}

#[test]
fn a_tenant_that_comes_changes_and_goes() {
    let all = two_tenants();
    let one = render(&node(vec![all.tenants[0].clone()]), OLD);
    let two = render(&all, OLD);
    let mut changed = all.clone();
    changed.tenants[1] = Tenant {
        link_index: 44,
        advertise_pods: false,
        services: vec![],
        max_prefixes: 9,
        import_rts: vec!["65200:8".parse().unwrap()],
        ..all.tenants[1].clone()
    };
    changed.tenants[1].pools.pop();
    let changed = render(&changed, OLD);
    golden("diff-add.txt", &print(&plan(&two, &one)));
    golden("diff-change.txt", &print(&plan(&changed, &two)));
    golden("diff-remove.txt", &print(&plan(&one, &two)));
    golden("diff-from-nothing.txt", &print(&plan(&one, &Config::default())));
    golden("diff-to-nothing.txt", &print(&plan(&Config::default(), &one)));
}

#[test]
fn a_password_comes_changes_and_goes_and_is_shown_to_nobody() {
    const SECRETS: [&str; 2] = ["s3cr3t-Word", "an0ther,Word"];
    let with = |secret: Option<&str>| {
        let mut node = node(vec![]);
        let neighbors = &mut node.underlay.as_mut().unwrap().neighbors;
        neighbors[0].password = secret.map(|word| Password::new(word, "").unwrap());
        neighbors[1].password = Some(Password::new("stays", "").unwrap());
        render(&node, OLD)
    };
    let (none, first, second) = (with(None), with(Some(SECRETS[0])), with(Some(SECRETS[1])));
    let mut printed = Vec::new();
    for (want, have, line) in [
        (&first, &none, Some(format!("neighbor 192.0.2.1 password {}", SECRETS[0]))),
        (&second, &first, Some(format!("neighbor 192.0.2.1 password {}", SECRETS[1]))),
        (&none, &second, Some(format!("no neighbor 192.0.2.1 password {}", SECRETS[1]))),
        (&second, &second, None),
    ] {
        let ops = plan(want, have);
        let lines: Vec<&str> = ops.iter().flat_map(|op| op.delta().lines()).map(|(_, line)| line).collect();
        let wanted = line.iter().flat_map(|line| ["router bgp 65000", line, "exit"]);
        assert_eq!(lines, wanted.collect::<Vec<_>>(), "the other neighbour is not touched");
        printed.extend([print(&ops), format!("{ops:?} {want:?}")]);
    }
    golden("diff-password.txt", &print(&plan(&first, &none)));
    for secret in SECRETS.iter().chain(&["stays"]) {
        assert!(!printed.iter().any(|text| text.contains(secret)), "{printed:?}");
    }
    // In the file with which bgpd starts it has to be.
    assert!(first.to_file(Daemon::Bgpd, OLD).contains(SECRETS[0]));
}

#[test]
fn routes_of_a_changed_list_are_asked_for_though_the_agent_dies_before_it_asks() {
    let before = render(&two_tenants(), OLD);
    let mut fewer = two_tenants();
    fewer.tenants[1].pools.remove(0);
    let desired = render(&fewer, OLD);
    let refreshes =
        |ops: &[Op]| -> Vec<String> { ops.iter().flat_map(|op| op.delta().refresh.clone()).collect() };
    let ops = plan(&desired, &before);
    let asked = refreshes(&ops);
    assert!(!asked.is_empty(), "{}", print(&ops));

    let dies = |op: &Op| match op {
        Op::ChangeTenant(tenant, delta) => {
            Op::ChangeTenant(tenant.clone(), Delta { refresh: vec![], refreshed: vec![], ..delta.clone() })
        }
        other => panic!("{other}"),
    };
    let mut frr = Model::holding(before);
    frr.apply(&ops.iter().map(dies).collect::<Vec<_>>());
    let again = plan(&desired, &frr.config);
    assert_eq!(refreshes(&again), asked, "{}", print(&again));
    frr.apply(&again);
    assert_eq!(normal(&frr.config), normal(&desired));
    assert_eq!(plan(&desired, &frr.config), vec![]);
}

#[test]
fn foreign_lines_of_the_default_instance_stay() {
    let want = render(&two_tenants(), OLD);
    let mut have = want.clone();
    let bgp = have.global.bgp.as_mut().unwrap();
    bgp.lines.push("bgp log-neighbor-changes".into());
    bgp.lines.push("neighbor 192.0.2.1 description leaf".into());
    bgp.families[0].lines.push("redistribute connected".into());
    assert_eq!(plan(&want, &have), []);

    // In an instance that we named nothing is foreign.
    let bgp = have.tenants[0].bgp.as_mut().unwrap();
    bgp.families[0].lines.push("redistribute connected".into());
    let ops = print(&plan(&want, &have));
    assert!(ops.contains("no redistribute connected") && ops.lines().count() == 6, "{ops}");
}

#[test]
fn a_default_instance_without_our_marks_is_left_alone() {
    let have = parse("router bgp 65000\n neighbor 192.0.2.9 remote-as 65001\nexit\n");
    assert_eq!(plan(&Config::default(), &have), []);
}

#[test]
fn a_vrf_with_a_device_keeps_its_name_until_the_device_goes() {
    let config = parse("vrf vrf1001\n vni 1001\nexit-vrf\n");
    let mut observed = Observed { config, ..Observed::nothing(OLD) };
    observed.active.insert(1001);
    let lines = print(&diff(&Config::default(), &observed));
    assert!(lines.contains("no vni 1001") && !lines.contains("no vrf"), "{lines}");

    observed.active.clear();
    let lines = print(&diff(&Config::default(), &observed));
    assert!(lines.ends_with("no vrf vrf1001\n"), "{lines}");
}

#[test]
fn a_management_daemon_that_forgot_is_told_before_it_is_asked_to_remove() {
    let config = parse("vrf vrf1001\n vni 1001\nexit-vrf\n");
    let observed = Observed { config, forgotten: [1001].into(), ..Observed::nothing(NEW) };
    let ops = diff(&Config::default(), &observed);
    assert_eq!(ops[0].delta().recall, ["vrf vrf1001", "vni 1001", "exit-vrf"]);
}

#[test]
fn what_is_foreign_is_not_read() {
    let text = "
frr version 8.4.4
!
vrf red
 vni 7
exit-vrf
!
vrf vrf1001
 ip route 192.0.2.0/24 blackhole
 vni 1001
exit-vrf
!
router bgp 65000 vrf red
 bgp router-id 192.0.2.1
 !
 address-family ipv4 unicast
  network 192.0.2.0/24
 exit-address-family
exit
!
route-map other permit 10
 match as-path calico-vni-node
exit
!
ip prefix-list other seq 5 permit any
ip prefix-list calico-vni-1001-in seq 5 permit 10.0.0.0/8 le 26
bgp as-path access-list other seq 5 permit .*
";
    let config = parse(text);
    assert_eq!(config.global, super::Global::default());
    assert_eq!(config.tenants.len(), 1);
    assert_eq!((config.tenants[0].vni, config.tenants[0].l3vni), (1001, Some(1001)));
    assert_eq!(config.tenants[0].lists, ["ip prefix-list calico-vni-1001-in seq 5 permit 10.0.0.0/8 le 26"]);
}

prop_compose! {
    fn any_tenant(index: u32)(
        link_index in prop_oneof![3 => Just(index), 1 => 100..200u32],
        pools in subsequence(vec![0, 1, 2], 0..=3),
        first_size in prop_oneof![Just(26u8), Just(32)],
        pools_v6 in subsequence(vec![(0, 122), (1, 120)], 0..=2),
        rts in subsequence(vec!["65001:1", "65001:2", "65001:3"], 0..=3),
        export_rts in subsequence(vec!["65001:1", "65001:2"], 0..=2),
        max_prefixes in 1..3u32,
        advertise_pods: bool,
    ) -> Tenant {
        let v4 = pools.iter().map(|i| (format!("10.{index}.{}.0/24", i * 16), [first_size, 28, 24][*i]));
        let v6 = pools_v6.iter().map(|(i, size)| (format!("fd00:{index}:{i}::/48"), *size));
        let pools: Vec<(String, u8)> = v4.chain(v6).collect();
        let pools: Vec<(&str, u8)> = pools.iter().map(|(cidr, size)| (cidr.as_str(), *size)).collect();
        Tenant {
            import_rts: rts.iter().map(|rt| rt.parse().unwrap()).collect(),
            export_rts: export_rts.iter().map(|rt| rt.parse().unwrap()).collect(),
            max_prefixes,
            advertise_pods,
            ..tenant(&format!("t{index}"), 1000 + index, link_index, &pools)
        }
    }
}

prop_compose! {
    fn any_node()(
        asn in prop_oneof![4 => Just(65000u32), 1 => Just(65009)],
        calico_asn in 64512..64514u32,
        neighbors in subsequence(vec!["192.0.2.1", "192.0.2.3", "2001:db8::1"], 0..=3),
        hold_time in prop_oneof![Just(9u16), Just(90)],
        passwords in vec(option::of(prop_oneof![Just("one"), Just("no")]), 3),
        vtep in prop_oneof![3 => Just("10.255.0.7"), 1 => Just("2001:db8:ffff::7")],
        graceful_restart in prop::bool::weighted(0.8),
        there in prop::bool::weighted(0.9),
        tenants in vec(any::<bool>(), 4),
        details in (any_tenant(1), any_tenant(2), any_tenant(3), any_tenant(4)),
        shuffled in option::of(Just(())),
    ) -> NodeConfig {
        let (a, b, c, d) = details;
        let mut tenants: Vec<Tenant> =
            [a, b, c, d].into_iter().zip(tenants).filter_map(|(t, there)| there.then_some(t)).collect();
        if shuffled.is_some() {
            tenants.reverse();
        }
        let mut node = node(tenants);
        let underlay = node.underlay.as_mut().unwrap();
        underlay.asn = asn;
        underlay.calico_asn = calico_asn;
        underlay.vtep = vtep.parse().unwrap();
        underlay.graceful_restart = graceful_restart;
        underlay.neighbors =
            neighbors.iter().zip(passwords).map(|(a, password)| Neighbor {
                address: a.parse().unwrap(),
                asn: 65100,
                hold_time,
                password: password.map(|word| Password::new(word, "").unwrap()),
            }).collect();
        if there { node } else { NodeConfig { underlay: None, tenants: vec![], ..node } }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_way_from_one_node_to_another_ends_there(nodes in vec(any_node(), 1..4), new: bool) {
        let version = if new { NEW } else { OLD };
        let mut frr = Model::default();
        let mut before: Option<&NodeConfig> = None;
        for node in &nodes {
            let desired = render(node, version);
            let ops = plan(&desired, &frr.config);
            for op in &ops {
                // A tenant that stays as it is, on a fabric that does, is in no operation.
                if let (Some(before), Some(tenant)) = (before, op.tenant()) {
                    let of = |node: &NodeConfig| node.tenants.iter().find(|t| t.vni == tenant.vni).cloned();
                    prop_assert!(before.underlay != node.underlay || of(before) != of(node), "{}", op);
                }
            }
            frr.apply(&ops);
            prop_assert_eq!(normal(&frr.config), normal(&desired), "{}", print(&ops));
            prop_assert_eq!(plan(&desired, &frr.config), vec![]);
            before = Some(node);
        }
    }

    #[test]
    fn files_say_what_was_rendered(node in any_node(), new: bool) {
        let version = if new { NEW } else { OLD };
        let desired = render(&node, version);
        let files = [Daemon::Zebra, Daemon::Bgpd].map(|daemon| desired.to_file(daemon, version)).concat();
        let mut frr = Model::default();
        files.lines().for_each(|line| frr.line(line.trim()));
        prop_assert_eq!(normal(&frr.config), normal(&desired));
        prop_assert_eq!(plan(&desired, &frr.config), vec![]);
    }
}
