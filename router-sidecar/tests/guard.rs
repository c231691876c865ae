//! The guard in a real kernel: pods of two tenants, a shared service, a tenant's link and a neighbour on the node's
//! network, each in a network namespace of the test's own. What must not pass is counted by the guard and not seen by
//! its target; the same probe passes where it may.
//!
//! Needs root.

mod support;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use calico_vni_proto::model::{
    Endpoint, Guard, GuardTenant, NodeConfig, Pool, Protocol, SharedService, Tenant, Underlay,
};
use calico_vni_router::guard::{
    Ruleset,
    nft::{self, Listing},
};

use support::Namespace;

const RED: [&str; 2] = ["10.200.0.0/16", "fd00:200::/64"];
const BLUE: [&str; 2] = ["10.201.0.0/16", "fd00:201::/64"];
const ABSENT: [&str; 2] = ["10.203.0.0/16", "fd00:203::/64"];
const QUARANTINED: &str = "10.9.0.0/16";

/// A node with its pods and neighbours.
struct Node {
    host: Namespace,
    red: Namespace,
    red2: Namespace,
    blue: Namespace,
    dns: Namespace,
    /// The router's end of red's link, and everything behind it.
    vrf: Namespace,
    /// A machine on the node's network.
    lan: Namespace,
}

/// Joins `other` to the host by a pair of veths, and gives both their addresses.
fn join(host: &Namespace, dev: &str, other: &Namespace, at_host: &[&str], at_other: &[&str]) {
    host.run("ip", &format!("link add {dev} type veth peer name eth0 netns {}", other.name));
    host.run("ip", &format!("link set {dev} up"));
    other.run("ip", "link set eth0 up");
    for (space, dev, addresses) in [(host, dev, at_host), (other, "eth0", at_other)] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            space.run("ip", &format!("addr add {address} dev {dev}{nodad}"));
        }
    }
}

/// A pod as Calico makes it.
fn pod(host: &Namespace, dev: &str, v4: &str, v6: &str) -> Namespace {
    let pod = Namespace::new("cvguard");
    join(host, dev, &pod, &["169.254.1.1/32", "fe80::1/64"], &[v4, v6]);
    pod.run("ip", "route add 169.254.1.1 dev eth0 scope link");
    pod.run("ip", "route add default via 169.254.1.1");
    pod.run("ip", "-6 route add default via fe80::1 dev eth0");
    host.run("ip", &format!("route add {v4} dev {dev}"));
    host.run("ip", &format!("-6 route add {v6} dev {dev}"));
    pod
}

impl Node {
    fn new() -> Self {
        let host = Namespace::new("cvguard");
        host.run("sysctl", "-qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        host.run("sysctl", "-qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
        let red = pod(&host, "cali1", "10.200.0.5", "fd00:200::5");
        let red2 = pod(&host, "cali2", "10.200.0.6", "fd00:200::6");
        let blue = pod(&host, "cali3", "10.201.0.5", "fd00:201::5");
        let dns = pod(&host, "cali4", "10.244.0.5", "fd00:244::5");
        let (vrf, lan) = (Namespace::new("cvguard"), Namespace::new("cvguard"));
        join(
            &host,
            "cv1001",
            &vrf,
            &["169.254.192.2/31", "fd00:ffff::2/127"],
            &["169.254.192.3/31", "fd00:ffff::3/127"],
        );
        join(&host, "eth0", &lan, &["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.50/24", "2001:db8::50/64"]);
        for space in [&vrf, &lan] {
            space.run("sysctl", "-qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
        }
        for (ip, vrf_host, router, lan_router, length, shared, gateway) in [
            ("-4", "169.254.192.2", "169.254.192.3", "192.0.2.1", 31, "10.244.0.5", "169.254.1.1"),
            ("-6", "fd00:ffff::2", "fd00:ffff::3", "2001:db8::1", 127, "fd00:244::5", "fe80::/10"),
        ] {
            vrf.run("ip", &format!("{ip} route add default via {vrf_host}"));
            lan.run("ip", &format!("{ip} route add default via {lan_router}"));
            let pool = RED[usize::from(ip == "-6")];
            host.run("ip", &format!(
                "{ip} rule add pref 20000 from {pool} to {pool} lookup main suppress_prefixlength {length}"
            ));
            host.run("ip", &format!("{ip} rule add pref 20001 from {pool} lookup 1000001001"));
            host.run("ip", &format!("{ip} route add default via {router} table 1000001001"));
            host.run("ip", &format!("{ip} route add throw {shared} table 1000001001"));
            host.run("ip", &format!("{ip} route add throw {gateway} table 1000001001"));
        }
        vrf.run("ip", "addr add 203.0.113.7/32 dev lo");
        vrf.run("ip", "addr add 2001:db8:7::7/128 dev lo nodad");
        Self { host, red, red2, blue, dns, vrf, lan }
    }

    async fn guard(&self, services: &[&str]) {
        nft::load(&self.host.netns, &self.vrf.netns, &ruleset(services)).await.unwrap();
    }

    async fn dropped(&self, counter: &str) -> u64 {
        nft::list(&self.host.netns).await.unwrap().unwrap().counters[counter].0
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Red is on the node, and reaches these services; blue is on it too; green is not.
fn ruleset(services: &[&str]) -> Ruleset {
    let tenant = |name: &str, vni, host: u8, pools: &[&str]| Tenant {
        name: name.into(),
        vni,
        link_index: 1,
        host_v4: [169, 254, 192, host].into(),
        host_v6: format!("fd00:ffff::{host}").parse().unwrap(),
        pools: parse(pools).into_iter().map(|cidr| Pool { cidr, block_size: 26 }).collect(),
        import_rts: vec![],
        export_rts: vec![],
        shared: vec![],
        max_prefixes: 1000,
        advertise_pods: false,
        services: services.iter().filter(|_| name == "red").map(|name| (*name).to_owned()).collect(),
    };
    let config = NodeConfig {
        node: "n1".into(),
        underlay: Some(Underlay {
            name: "fabric".into(),
            asn: 65001,
            vtep: "10.255.0.7".parse().unwrap(),
            router_id: "10.255.0.7".parse().unwrap(),
            neighbors: vec![],
            interfaces: vec![],
            mtu: None,
            shared: vec![],
            graceful_restart: true,
            calico_asn: 64512,
        }),
        tenants: vec![tenant("red", 1001, 2, &RED), tenant("blue", 1002, 4, &BLUE)],
    };
    let guarded = |name: &str, vni, pools| GuardTenant { name: name.into(), vni, pools: parse(pools) };
    let endpoint =
        |address: &str| Endpoint { address: address.parse().unwrap(), protocol: Protocol::Udp, port: 53 };
    let guard = Guard {
        tenants: vec![
            guarded("red", 1001, &RED),
            guarded("blue", 1002, &BLUE),
            guarded("green", 1003, &ABSENT),
        ],
        quarantined: parse(&[QUARANTINED]),
        services: vec![SharedService {
            name: "kube-system/dns".into(),
            endpoints: vec![endpoint("10.244.0.5"), endpoint("fd00:244::5")],
        }],
    };
    Ruleset::new(&guard, &config)
}

/// A socket on that address in a namespace.
fn socket(space: &Namespace, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match space.netns.run(|| UdpSocket::bind(address)).unwrap() {
            Ok(socket) => return socket,
            // A program that another test starts holds copies of all sockets until it runs.
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{address}: {error}"),
        }
    }
}

/// Whether something sent with that source arrives. What passes is given time; what does not is not waited for long.
fn arrives(from: (&Namespace, &str), to: (&Namespace, &str, u16), passes: bool) -> bool {
    let target = socket(to.0, to.1, to.2);
    let source = socket(from.0, from.1, 0);
    send(&source, &target, passes)
}

fn send(source: &UdpSocket, target: &UdpSocket, passes: bool) -> bool {
    let (tries, patience) = if passes { (20, 500) } else { (2, 200) };
    // What came late, after another try of an earlier call, is not of this one.
    target.set_nonblocking(true).unwrap();
    while target.recv_from(&mut [0; 16]).is_ok() {}
    target.set_nonblocking(false).unwrap();
    target.set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
    let address = target.local_addr().unwrap();
    (0..tries).any(|_| {
        // An answer by ICMP to what was sent before is an error of the next call.
        let _ = source.send_to(b"probe", address);
        target.recv_from(&mut [0; 16]).is_ok()
    })
}

const DNS: &[&str] = &["kube-system/dns"];

#[tokio::test]
async fn a_tenants_pods_reach_each_other_and_their_vrf_and_nobody_else() {
    let node = Node::new();
    node.guard(&[]).await;
    let Node { host, red, red2, blue, dns, vrf, lan } = &node;
    for (from, to, target, port, passes) in [
        ((red, "10.200.0.5"), red2, "10.200.0.6", 7, true),
        ((red, "10.200.0.5"), vrf, "203.0.113.7", 7, true),
        ((red, "10.200.0.5"), host, "192.0.2.1", 7, true),
        ((vrf, "203.0.113.7"), red, "10.200.0.5", 7, true),
        ((red, "10.200.0.5"), dns, "10.244.0.5", 53, false),
        ((red, "10.200.0.5"), blue, "10.201.0.5", 7, false),
        ((blue, "10.201.0.5"), red, "10.200.0.5", 7, false),
        ((dns, "10.244.0.5"), red, "10.200.0.5", 7, false),
        ((lan, "192.0.2.50"), red, "10.200.0.5", 7, false),
        ((vrf, "203.0.113.7"), blue, "10.201.0.5", 7, false),
        ((vrf, "203.0.113.7"), dns, "10.244.0.5", 53, false),
        ((vrf, "203.0.113.7"), lan, "192.0.2.50", 7, false),
        ((vrf, "203.0.113.7"), host, "169.254.192.2", 7, false),
        ((vrf, "169.254.192.3"), host, "192.0.2.1", 7, false),
        ((vrf, "169.254.192.3"), host, "169.254.192.2", 7, false),
        ((dns, "10.244.0.5"), lan, "192.0.2.50", 7, true),
        ((lan, "192.0.2.50"), host, "192.0.2.1", 7, true),
        ((red, "fd00:200::5"), red2, "fd00:200::6", 7, true),
        ((red, "fd00:200::5"), vrf, "2001:db8:7::7", 7, true),
        ((vrf, "2001:db8:7::7"), red, "fd00:200::5", 7, true),
        ((red, "fd00:200::5"), dns, "fd00:244::5", 53, false),
        ((blue, "fd00:201::5"), red, "fd00:200::5", 7, false),
        ((lan, "2001:db8::50"), red, "fd00:200::5", 7, false),
        ((vrf, "2001:db8:7::7"), lan, "2001:db8::50", 7, false),
        ((vrf, "fd00:ffff::3"), host, "fd00:ffff::2", 7, false),
    ] {
        assert_eq!(arrives(from, (to, target, port), passes), passes, "{} to {target}", from.1);
    }
}

#[tokio::test]
async fn a_shared_service_answers_on_its_port_alone_and_opens_nothing() {
    let node = Node::new();
    let Node { red, blue, dns, lan, .. } = &node;
    for (red_address, blue_address, address) in
        [("10.200.0.5", "10.201.0.5", "10.244.0.5"), ("fd00:200::5", "fd00:201::5", "fd00:244::5")]
    {
        node.guard(DNS).await;
        let server = socket(dns, address, 53);
        let client = socket(red, red_address, 0);
        assert!(send(&client, &server, true), "the service is open");
        assert!(send(&server, &client, true), "it answers");
        assert!(!arrives((red, red_address), (dns, address, 54), false), "another port");
        assert!(!arrives((blue, blue_address), (dns, address, 54), false), "another tenant, another port");
        let other = socket(red, red_address, 0);
        assert!(!send(&server, &other, false), "it opens nothing");
        assert!(
            !send(&socket(blue, blue_address, 0), &server, false),
            "another tenant, who does not name it"
        );
        node.guard(&[]).await;
        assert!(!send(&client, &server, false), "it closes for connections that stand, too");
        assert!(!send(&server, &client, false), "and for their answers");
    }
    // A pod of a tenant on another node asks what is shared here; one that is not here at all may too.
    node.guard(DNS).await;
    for (source, port, passes) in [
        ("10.200.7.7", 53, true),
        ("10.203.7.7", 53, true),
        ("10.200.7.7", 54, false),
        ("10.9.0.7", 53, false),
    ] {
        lan.run("ip", &format!("addr add {source}/32 dev lo"));
        assert_eq!(
            arrives((lan, source), (dns, "10.244.0.5", port), passes),
            passes,
            "{source} to port {port}"
        );
        lan.run("ip", &format!("addr del {source}/32 dev lo"));
    }
}

#[tokio::test]
async fn a_source_that_is_not_its_own_is_dropped_and_counted() {
    let node = Node::new();
    node.guard(DNS).await;
    let Node { host, red, red2, blue, dns, vrf, lan } = &node;
    // Who sends, with which source, to whom; whose counter counts it.
    for (from, source, to, target, counter) in [
        (blue, "10.200.0.6", red, "10.200.0.5", "tenant-red-1001"),
        (blue, "10.200.0.99", red, "10.200.0.5", "tenant-red-1001"),
        (blue, "10.200.0.6", vrf, "203.0.113.7", "tenant-red-1001"),
        (blue, "10.200.0.6", dns, "10.244.0.5", "tenant-red-1001"),
        (blue, "10.200.0.6", host, "192.0.2.1", "tenant-red-1001"),
        (red2, "10.200.0.5", vrf, "203.0.113.7", "tenant-red-1001"),
        (dns, "10.200.0.6", vrf, "203.0.113.7", "tenant-red-1001"),
        (dns, "10.203.0.6", lan, "192.0.2.50", "tenant-green-1003"),
        (dns, "10.9.0.6", lan, "192.0.2.50", "quarantined"),
        (lan, "10.200.0.6", red, "10.200.0.5", "tenant-red-1001"),
        (lan, "10.200.0.6", vrf, "203.0.113.7", "tenant-red-1001"),
        (lan, "10.200.0.6", host, "192.0.2.1", "tenant-red-1001"),
        (vrf, "10.201.0.9", red, "10.200.0.5", "tenant-blue-1002"),
        (blue, "fd00:200::6", red, "fd00:200::5", "tenant-red-1001"),
        (blue, "fd00:200::6", vrf, "2001:db8:7::7", "tenant-red-1001"),
        (blue, "fd00:200::6", host, "2001:db8::1", "tenant-red-1001"),
        (lan, "fd00:200::6", red, "fd00:200::5", "tenant-red-1001"),
    ] {
        let length = if source.contains(':') { "128 nodad" } else { "32" };
        let (address, length) = (format!("{source}/{}", length.split(' ').next().unwrap()), length);
        from.run("ip", &format!("addr add {source}/{length} dev lo"));
        let before = node.dropped(counter).await;
        assert!(!arrives((from, source), (to, target, 53), false), "{source} reached {target}");
        assert!(node.dropped(counter).await > before, "{source} to {target} was not counted");
        from.run("ip", &format!("addr del {address} dev lo"));
    }
    // The same ways are open to those who own their source.
    assert!(arrives((red, "10.200.0.5"), (vrf, "203.0.113.7", 53), true));
    assert!(arrives((red, "10.200.0.5"), (host, "192.0.2.1", 53), true));
    assert!(arrives((red2, "10.200.0.6"), (red, "10.200.0.5", 53), true));
    assert!(arrives((blue, "10.201.0.5"), (host, "192.0.2.1", 53), true));
    assert!(arrives((red2, "fd00:200::6"), (vrf, "2001:db8:7::7", 53), true));
}

/// The kernel's number of the table, which another one of the same name does not have.
fn table_number(host: &Namespace) -> u64 {
    let listed: serde_json::Value = serde_json::from_str(&host.run("nft", "-j list tables")).unwrap();
    let tables = listed["nftables"].as_array().unwrap();
    tables.iter().find_map(|object| object["table"]["handle"].as_u64()).unwrap()
}

#[tokio::test]
async fn what_stands_is_updated_and_what_somebody_did_to_it_is_gone() {
    let node = Node::new();
    let Node { host, red, vrf, blue, dns, .. } = &node;
    node.guard(&[]).await;
    let number = table_number(host);
    assert!(!arrives((blue, "10.201.0.5"), (red, "10.200.0.5", 7), false));
    let dropped = node.dropped("tenant-red-1001").await;
    assert!(dropped > 0);
    for deed in [
        "add element inet calico-vni own4 { 10.201.0.0/16 . 10.200.0.0/16 }",
        "insert rule inet calico-vni forward accept",
        "flush chain inet calico-vni to",
        "flush map inet calico-vni to4",
        "add chain inet calico-vni stray { type filter hook forward priority 0; policy drop; }",
        "add set inet calico-vni stray { type ipv4_addr; }",
        "add counter inet calico-vni stray",
    ] {
        host.run("nft", deed);
        node.guard(&[]).await;
        assert!(!arrives((blue, "10.201.0.5"), (red, "10.200.0.5", 7), false), "after `{deed}`");
        assert!(arrives((vrf, "203.0.113.7"), (red, "10.200.0.5", 7), true), "after `{deed}`");
        let listing = nft::list(&host.netns).await.unwrap().unwrap();
        assert!(listing.standing.names.values().all(|names| !names.contains("stray")), "after `{deed}`");
    }
    node.guard(DNS).await;
    assert!(arrives((red, "10.200.0.5"), (dns, "10.244.0.5", 53), true));
    // All of it was understood: what stays is not touched.
    let Listing { standing, .. } = nft::list(&host.netns).await.unwrap().unwrap();
    let again = ruleset(DNS).tables("")[0].updating(&standing);
    assert!(
        !again.contains(" element ") && !again.contains("flush set") && !again.contains("flush map"),
        "{again}"
    );
    assert!(node.dropped("tenant-red-1001").await > dropped);
    assert_eq!(table_number(host), number, "it was replaced");
    // What cannot be updated is replaced.
    host.run("nft", "delete table inet calico-vni");
    host.run("nft", "add table inet calico-vni");
    host.run("nft", "add set inet calico-vni own4 { type ipv4_addr; }");
    let number = table_number(host);
    node.guard(&[]).await;
    assert!(!arrives((blue, "10.201.0.5"), (red, "10.200.0.5", 7), false));
    assert!(arrives((vrf, "203.0.113.7"), (red, "10.200.0.5", 7), true));
    assert_ne!(table_number(host), number);
}

#[tokio::test]
async fn a_link_that_is_no_tenants_any_more_carries_nothing() {
    let node = Node::new();
    node.host.run("ip", "link set cv1001 down");
    node.host.run("ip", "link set cv1001 name cv77");
    node.host.run("ip", "link set cv77 up");
    node.guard(&[]).await;
    assert!(!arrives((&node.vrf, "203.0.113.7"), (&node.lan, "192.0.2.50", 7), false));
    assert!(!arrives((&node.vrf, "203.0.113.7"), (&node.host, "192.0.2.1", 7), false));
    assert!(node.dropped("no-tenant").await >= 4);
    // Somebody else's device may begin with the same letters.
    node.host.run("ip", "link set cv77 down");
    node.host.run("ip", "link set cv77 name cvlan");
    node.host.run("ip", "link set cvlan up");
    node.host.run("ip", "route replace 203.0.113.0/24 via 169.254.192.3");
    assert!(arrives((&node.vrf, "203.0.113.7"), (&node.lan, "192.0.2.50", 7), true));
}

#[tokio::test]
async fn a_connection_that_stood_before_the_pool_was_a_tenants_is_cut_both_ways() {
    let node = Node::new();
    let Node { host, red, dns, lan, vrf, .. } = &node;
    nft::load(&host.netns, &vrf.netns, &Ruleset::default()).await.unwrap();
    host.run("ip", "rule del pref 20000");
    host.run("ip", "rule del pref 20001");
    let at_red = socket(red, "10.200.0.5", 7);
    let [opened_by_red, opened_by_lan] = [socket(dns, "10.244.0.5", 7), socket(lan, "192.0.2.50", 7)];
    for (first, second) in [(&at_red, &opened_by_red), (&opened_by_lan, &at_red)] {
        assert!(send(first, second, true) && send(second, first, true));
    }
    // The guard comes first; the rules that lead into the VRF are not there yet.
    node.guard(&[]).await;
    for other in [&opened_by_red, &opened_by_lan] {
        assert!(!send(other, &at_red, false), "from {:?}", other.local_addr());
        assert!(!send(&at_red, other, false), "to {:?}", other.local_addr());
    }
}
