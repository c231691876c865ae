//! The real kernel: devices, addresses, routes, rules, switches, guard and uplinks in two namespaces of the test's own.
//!
//! Needs root. VRF devices are left out, so that any kernel will do.

mod support;

use std::{collections::BTreeMap, process::Command, time::Duration};

use calico_vni_proto::model::{Guard, GuardTenant, NodeConfig, Pool, Tenant, Underlay};
use calico_vni_router::{
    desired::{Desired, desired, nothing},
    diff::diff,
    netlink::{events, generation::Generation},
    node::{Node, Platform as _},
    op::Op,
    state::Kind,
};
use tokio::{sync::mpsc, time::timeout};

use support::Namespace;

/// The host's namespace and the router's, gone with the test.
struct Spaces {
    both: [Namespace; 2],
    state: tempfile::TempDir,
}

impl Spaces {
    fn new() -> Self {
        let both = ["cvtest-h", "cvtest-r"].map(Namespace::new);
        Self { both, state: tempfile::tempdir().unwrap() }
    }

    fn node(&self) -> Node {
        let [host, router] = &self.both;
        Node::open(host.netns.clone(), router.netns.clone(), self.state.path()).unwrap()
    }

    fn run(&self, space: usize, program: &str, args: &str) -> String {
        self.both[space].run(program, args)
    }

    /// 0 is the host's namespace, 1 the router's.
    fn ip(&self, space: usize, args: &str) -> String {
        self.run(space, "ip", args)
    }
}

fn config() -> NodeConfig {
    NodeConfig {
        node: "n1".into(),
        underlay: Some(Underlay {
            name: "fabric".into(),
            asn: 65001,
            vtep: "10.255.0.7".parse().unwrap(),
            router_id: "10.255.0.7".parse().unwrap(),
            neighbors: vec![],
            interfaces: vec!["up0".into()],
            mtu: None,
            shared: vec!["10.96.0.1/32".parse().unwrap(), "fd00:96::1/128".parse().unwrap()],
            graceful_restart: true,
            calico_asn: 64512,
        }),
        tenants: vec![tenant("red", 1001, 2), tenant("blue", 1002, 4)],
    }
}

fn tenant(name: &str, vni: u32, host: u8) -> Tenant {
    let pool = |cidr: String, block_size| Pool { cidr: cidr.parse().unwrap(), block_size };
    Tenant {
        name: name.into(),
        vni,
        link_index: vni - 1000,
        host_v4: [169, 254, 192, host].into(),
        host_v6: format!("fd00:ffff::{host}").parse().unwrap(),
        pools: vec![pool(format!("10.{}.0.0/16", vni - 801), 26), pool(format!("fd00:{vni}::/64"), 122)],
        import_rts: vec![],
        export_rts: vec![],
        shared: vec!["10.96.0.10/32".parse().unwrap()],
        max_prefixes: 1000,
        advertise_pods: false,
        services: vec![],
    }
}

fn guard() -> Guard {
    let tenant = |name: &str, vni, pool: &str| GuardTenant {
        name: name.into(),
        vni,
        pools: vec![pool.parse().unwrap()],
    };
    Guard {
        tenants: vec![tenant("red", 1001, "10.200.0.0/16"), tenant("green", 1003, "10.203.0.0/16")],
        quarantined: vec!["10.9.0.0/16".parse().unwrap()],
        services: vec![],
    }
}

/// What is wanted, less what a kernel without VRF cannot make.
async fn wanted(node: &Node, config: &NodeConfig) -> Desired {
    let uplinks = node.uplinks(&["up0".to_owned()]).await.unwrap();
    let mut desired = desired(config, Some(&guard()), &uplinks);
    let router = &mut desired.router;
    router.links.retain(|_, link| !matches!(link.kind, Kind::Vrf { .. }));
    for link in router.links.values_mut().filter(|l| l.master.as_ref().is_some_and(|m| m.starts_with("vrf")))
    {
        link.master = None;
    }
    router.sysctls.retain(|path, _| !path.contains("/vrf1"));
    desired
}

async fn missing(node: &Node, desired: &Desired) -> Vec<String> {
    diff(desired, &node.observe(desired).await.unwrap()).iter().map(ToString::to_string).collect()
}

async fn bring_about(node: &Node, desired: &Desired) {
    for op in diff(desired, &node.observe(desired).await.unwrap()) {
        node.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
    }
    assert_eq!(missing(node, desired).await, Vec::<String>::new(), "left after one round");
}

fn with_uplink(spaces: &Spaces) {
    spaces.ip(0, "link add up0 mtu 2000 type veth peer name tor0");
    spaces.ip(0, "link set up0 up");
    spaces.ip(0, "addr add 192.0.2.3/31 dev up0");
    spaces.ip(0, "addr add 2001:db8::3/64 dev up0 nodad");
    spaces.ip(0, "route add default via 192.0.2.2 dev up0 proto static metric 100");
    spaces.ip(0, "route add 198.51.100.0/24 dev up0 proto dhcp");
    spaces.ip(0, "route add 203.0.113.0/24 via 198.51.100.9 dev up0 proto boot");
    spaces.ip(0, "-6 route add 2001:db8:1::/48 via 2001:db8::1 dev up0 proto static");
}

#[tokio::test]
async fn tenants_come_drift_and_go_and_the_uplink_is_given_back() {
    let spaces = Spaces::new();
    with_uplink(&spaces);
    spaces.ip(0, "rule add pref 20000 from 10.1.0.0/16 lookup 7");
    spaces.ip(0, "route add unreachable 10.1.0.0/16 table 1000001001 proto 77");
    spaces.run(0, "nft", "add table inet foreign");
    let before = [spaces.ip(0, "-4 route show table main"), spaces.ip(0, "-br addr show up0")];
    let node = spaces.node();
    let config = config();

    let desired = wanted(&node, &config).await;
    bring_about(&node, &desired).await;
    let rules = spaces.ip(0, "rule show");
    assert!(
        rules.contains(
            "26000:\tfrom 10.200.0.0/16 to 10.200.0.0/16 lookup main suppress_prefixlength 31 proto 118"
        ),
        "{rules}"
    );
    assert!(spaces.ip(0, "-6 rule show").contains("from fd00:1002::/64 lookup 1000001002"));
    let table = spaces.ip(0, "route show table 1000001001");
    assert!(table.contains("default via 169.254.192.3 dev cv1001 proto 118"), "{table}");
    assert!(table.contains("unreachable default proto 118 metric 4278198272"), "{table}");
    assert!(
        table.contains("throw 169.254.1.1 proto 118") && table.contains("throw 10.96.0.10 proto 118"),
        "{table}"
    );
    let link = spaces.ip(0, "addr show cv1001");
    assert!(link.contains("169.254.192.2/31 scope link") && link.contains("mtu 1950"), "{link}");
    assert!(spaces.ip(1, "addr show up0").contains("192.0.2.3/31"));
    assert!(spaces.ip(1, "addr show lo").contains("10.255.0.7/32"));
    assert_eq!(spaces.run(0, "cat", "/proc/sys/net/ipv4/conf/cv1001/rp_filter").trim(), "2");
    assert_eq!(spaces.run(1, "cat", "/proc/sys/net/ipv4/ip_forward").trim(), "1");

    let vxlan = spaces.ip(1, "-d link show vx1001");
    for word in [
        "id 1001",
        "local 10.255.0.7",
        "dstport 4789",
        "nolearning",
        "master br1001",
        "neigh_suppress on",
        "mtu 1950",
    ] {
        assert!(vxlan.contains(word), "{word}: {vxlan}");
    }

    // A new agent finds everything in step, without the memory of the old one.
    assert_eq!(missing(&spaces.node(), &desired).await, Vec::<String>::new());

    for (space, drift) in [
        (0, "rule del from 10.200.0.0/16 lookup 1000001001"),
        (0, "rule del goto 26000"),
        (0, "-6 rule flush proto 118"),
        (0, "route del default table 1000001001 via 169.254.192.3 dev cv1001"),
        (0, "link del cv1002"),
        (1, "addr del 10.255.0.7/32 dev lo"),
        (1, "link set h1001 mtu 1400"),
        (1, "link set br1001 address 02:00:00:00:00:01"),
        (1, "link set br1001 addrgenmode eui64"),
        (1, "link set vx1001 type bridge_slave learning on"),
        (1, "link set vx1001 type bridge_slave neigh_suppress off"),
        (1, "link set vx1002 nomaster"),
        (1, "link set vx1002 down"),
        (1, "link del br1001"),
        (0, "route add throw 10.77.0.0/16 table 1000001002 proto 118"),
        (0, "link set cv1001 down"),
    ] {
        spaces.ip(space, drift);
        assert_ne!(missing(&node, &desired).await, Vec::<String>::new(), "`{drift}` was not seen");
        bring_about(&node, &desired).await;
    }

    // A device that cannot be changed into what is wanted is made anew.
    spaces.ip(1, "link del vx1001");
    spaces.ip(1, "link add vx1001 type vxlan id 77 dstport 4789 local 10.255.0.7 nolearning");
    bring_about(&node, &desired).await;

    // One tenant leaves, the other stays untouched.
    let index = spaces.ip(0, "-o link show cv1002").split(':').next().unwrap().to_owned();
    let mut fewer = config.clone();
    fewer.tenants.remove(0);
    let ops = diff(&wanted(&node, &fewer).await, &node.observe(&desired).await.unwrap());
    assert!(
        ops.iter().all(|op| matches!(op.vni(), Some(1001)) || matches!(op, Op::GuardLoad(_) | Op::Rules(_))),
        "{ops:?}"
    );
    bring_about(&node, &wanted(&node, &fewer).await).await;
    assert_eq!(spaces.ip(0, "-o link show cv1002").split(':').next().unwrap(), index);
    assert!(!spaces.ip(0, "rule show").contains("10.200.0.0/16"));

    bring_about(&node, &nothing("n1")).await;
    assert_eq!([spaces.ip(0, "-4 route show table main"), spaces.ip(0, "-br addr show up0")], before);
    assert!(spaces.ip(0, "-6 route show").contains("2001:db8:1::/48 via 2001:db8::1 dev up0 proto static"));
    assert!(spaces.ip(0, "rule show").contains("from 10.1.0.0/16 lookup 7"));
    assert!(spaces.ip(0, "route show table 1000001001").contains("unreachable 10.1.0.0/16 proto 77"));
    assert_eq!(spaces.run(0, "nft", "list tables").trim(), "table inet foreign");
}

#[tokio::test]
async fn a_move_that_was_cut_short_is_finished_from_its_record() {
    let spaces = Spaces::new();
    with_uplink(&spaces);
    let node = spaces.node();
    let desired = wanted(&node, &config()).await;
    node.apply(&Op::UplinkTake("up0".into())).await.unwrap();
    // Here the agent died: the interface has moved and has no addresses yet.
    assert!(!spaces.ip(1, "addr show up0").contains("192.0.2.3"));
    let node = spaces.node();
    assert_eq!(wanted(&node, &config()).await, desired);
    bring_about(&node, &desired).await;
    assert!(spaces.ip(1, "addr show up0").contains("192.0.2.3/31"));
}

#[tokio::test]
async fn a_return_that_was_cut_short_is_finished_from_its_record() {
    let spaces = Spaces::new();
    with_uplink(&spaces);
    let node = spaces.node();
    bring_about(&node, &wanted(&node, &config()).await).await;
    // Back in the host's namespace, bare, and the record still there: cleanup died half way.
    spaces.ip(1, &format!("link set up0 netns {}", spaces.both[0].name));
    bring_about(&node, &nothing("n1")).await;
    assert!(spaces.ip(0, "addr show up0").contains("192.0.2.3/31"));
    assert!(spaces.ip(0, "route show").contains("default via 192.0.2.2 dev up0 proto static metric 100"));
}

#[tokio::test]
async fn an_edited_guard_is_noticed_and_its_counters_survive() {
    let spaces = Spaces::new();
    with_uplink(&spaces);
    let node = spaces.node();
    let desired = wanted(&node, &config()).await;
    bring_about(&node, &desired).await;
    for edit in [
        "delete element inet calico-vni to4 { 10.203.0.0/16 }",
        "flush chain inet calico-vni forward",
        "flush table inet calico-vni",
        "delete table inet calico-vni",
        "insert rule inet calico-vni to accept",
    ] {
        assert!(node.guard_stands(&desired).await.unwrap(), "before {edit}");
        spaces.run(0, "nft", edit);
        assert!(!node.guard_stands(&desired).await.unwrap(), "`{edit}` was not noticed");
        bring_about(&node, &desired).await;
    }
    // A packet from a VRF to a tenant that is not here is dropped and counted for the VRF's tenant; counting is no edit.
    spaces.run(0, "sysctl", "-qw net.ipv4.ip_forward=1");
    spaces.ip(0, "link add d0 up type bridge");
    spaces.ip(0, "route add 10.203.0.0/16 dev d0");
    spaces.ip(1, "route add 10.203.0.0/16 via 169.254.192.2");
    let ping = ["netns", "exec", &spaces.both[1].name, "ping", "-c1", "-W1", "10.203.0.5"];
    assert!(!Command::new("ip").args(ping).output().unwrap().status.success());
    let counted =
        || spaces.run(0, "nft", "list counter inet calico-vni tenant-red-1001").contains("packets 1 ");
    assert!(counted(), "{}", spaces.run(0, "nft", "list counters"));
    assert!(node.guard_stands(&desired).await.unwrap());
    // A reload goes on from there.
    spaces.run(0, "nft", "flush chain inet calico-vni forward");
    bring_about(&node, &desired).await;
    assert!(counted());
}

#[tokio::test]
async fn the_kernel_tells_of_changes_that_concern_us() {
    let spaces = Spaces::new();
    let (sender, mut changed) = mpsc::channel(1);
    events::follow(&spaces.both[0].netns, sender).unwrap();
    spaces.ip(0, "link add d0 type bridge");
    timeout(Duration::from_secs(5), changed.recv()).await.expect("no word of a new device");
    let mut told = BTreeMap::new();
    for (what, command) in [
        ("rule", "rule add pref 20000 from 10.1.0.0/16 lookup 7 proto 118"),
        ("IPv6 rule", "-6 rule add pref 20000 from fd00:1::/64 lookup 7 proto 118"),
        ("address", "addr add 10.1.1.1/32 dev lo"),
        ("route", "route add throw 10.1.0.0/16 table 7 proto 118"),
    ] {
        while timeout(Duration::from_millis(300), changed.recv()).await.is_ok() {}
        spaces.ip(0, command);
        told.insert(what, timeout(Duration::from_secs(5), changed.recv()).await.is_ok());
    }
    assert_eq!(
        told,
        BTreeMap::from([("IPv6 rule", true), ("address", true), ("route", true), ("rule", true)])
    );
}

#[tokio::test]
async fn the_generation_changes_with_the_rules_and_only_then() {
    let spaces = Spaces::new();
    let generation = Generation::open(&spaces.both[0].netns).unwrap().unwrap();
    let first = generation.now().unwrap();
    assert_eq!(generation.now().unwrap(), first);
    spaces.run(1, "nft", "add table inet elsewhere");
    assert_eq!(generation.now().unwrap(), first);
    spaces.run(0, "nft", "add table inet here");
    assert_ne!(generation.now().unwrap(), first);
}
