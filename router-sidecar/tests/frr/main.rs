//! FRR itself: real daemons in network namespaces of the test's own, run by the supervisor as it is shipped.
//!
//! Needs root, FRR and `ip`. VRFs are configured without their devices, so that any kernel does; the tenants' sessions
//! are tried in the lab, where the kernel has VRF.
//!
//! `CALICO_VNI_FRR_ROOT` may name a root directory with another release of FRR, made by
//! `mmdebstrap --include=frr trixie DIR`; the daemons then run in it.

mod daemons;

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use calico_vni_proto::model::{Neighbor, NodeConfig, PASSWORD_MAX, Password, Pool, Tenant, Underlay};
use calico_vni_router::{
    frr::{Config, Daemon, Driver, OpError, OpResult, TenantRef, Vty},
    frr_link::FrrLink,
    frr_port::Frr as _,
    netlink::Client,
    netns::Netns,
    supervisor::RUN_DIR,
};
use similar_asserts::assert_eq;

use daemons::{Router, is_alive, netns, supervise, until};

/// Longest wait for a state. On an idle machine most come within a second, and routes within six: bgpd leaves new
/// neighbours alone for some seconds while it is being configured.
const PATIENCE: Duration = Duration::from_mins(2);

/// Seconds. Long, so that no session ends because a machine stands still for some seconds.
const HOLD_TIME: u16 = 90;

const NODE_ASN: u32 = 65000;
const LEAF_ASN: u32 = 65100;
const NODE_VTEP: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

fn node(neighbors: &[&str], tenants: Vec<Tenant>) -> NodeConfig {
    let neighbor = |a: &&str| Neighbor {
        address: a.parse().unwrap(),
        asn: LEAF_ASN,
        hold_time: HOLD_TIME,
        password: None,
    };
    let underlay = Underlay {
        name: "fabric".into(),
        asn: NODE_ASN,
        vtep: NODE_VTEP.into(),
        router_id: NODE_VTEP,
        neighbors: neighbors.iter().map(neighbor).collect(),
        interfaces: vec![],
        mtu: None,
        shared: vec![],
        graceful_restart: true,
        calico_asn: 64512,
    };
    NodeConfig { node: "n1".into(), underlay: Some(underlay), tenants }
}

fn tenant(index: u8) -> Tenant {
    let number = u32::from(index);
    Tenant {
        name: format!("t{index}"),
        vni: 1000 + number,
        link_index: number,
        host_v4: Ipv4Addr::new(169, 254, 192, 2 * index),
        host_v6: format!("fd00::{:x}", 2 * index).parse().unwrap(),
        pools: vec![
            Pool { cidr: format!("10.{index}.0.0/16").parse().unwrap(), block_size: 26 },
            Pool { cidr: format!("fd00:{index}::/48").parse().unwrap(), block_size: 122 },
        ],
        import_rts: vec![],
        export_rts: vec![],
        shared: vec![],
        max_prefixes: 100,
        advertise_pods: false,
        services: vec![],
    }
}

/// A leaf that takes everything and sends its own loopback, with the timers that a switch has by default.
fn leaf(address: Ipv4Addr, node: &str) -> String {
    format!(
        "router bgp {LEAF_ASN}
 bgp router-id {address}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor {node} remote-as {NODE_ASN}
 address-family ipv4 unicast
  network {address}/32
  neighbor {node} activate
 exit-address-family
 address-family l2vpn evpn
  neighbor {node} activate
 exit-address-family
exit
"
    )
}

/// Without what FRR does not keep, and in one order.
fn normal(mut config: Config) -> Config {
    config.global.lists.sort();
    config.global.route_maps.sort_by(|a, b| a.header.cmp(&b.header));
    for tenant in &mut config.tenants {
        tenant.tenant.clear();
        tenant.lists.sort();
    }
    for bgp in config.global.bgp.iter_mut().chain(config.tenants.iter_mut().filter_map(|t| t.bgp.as_mut())) {
        bgp.lines.sort();
        bgp.families.iter_mut().for_each(|f| f.lines.sort());
    }
    config
}

fn refused(results: &[OpResult]) -> Vec<(&TenantRef, &OpError)> {
    let failed = results.iter().filter_map(|r| Some((r.tenant.as_ref()?, r.outcome.as_ref().err()?)));
    failed.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_and_go_and_the_others_do_not_notice() {
    let router = Router::new("a", NODE_VTEP);
    let leaves = [Ipv4Addr::new(10, 255, 0, 100), Ipv4Addr::new(10, 255, 0, 101)];
    let (first, second) = (Router::new("b", leaves[0]), Router::new("c", leaves[1]));
    router.link(&first, 0);
    router.link(&second, 1);
    let router = router.start(None);
    let _first = first.start(Some(&leaf(leaves[0], "192.0.2.0")));
    let _second = second.start(Some(&leaf(leaves[1], "192.0.2.2")));
    let neighbors = ["192.0.2.1", "192.0.2.3"];

    let mut wanted = node(&neighbors, (1..=3).map(tenant).collect());
    let results = router.converge(&wanted).await;
    assert_eq!(results.len(), 4, "the fabric and three tenants");
    assert_eq!(refused(&results), []);
    assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));
    assert_eq!(router.plan(&wanted).await, []);

    // The node's own address goes out and nothing that came in does, though both leaves would take it.
    until("both leaves' routes", async || {
        let kernel = router.kernel_routes();
        if leaves.iter().all(|leaf| kernel.contains(&leaf.to_string())) { Ok(()) } else { Err(kernel) }
    })
    .await;
    for peer in neighbors {
        let command = format!("show bgp ipv4 unicast neighbors {peer} advertised-routes json");
        let advertised: serde_json::Value =
            serde_json::from_str(&router.ask(Daemon::Bgpd, &command).await).unwrap();
        let prefixes: Vec<&String> = advertised["advertisedRoutes"].as_object().unwrap().keys().collect();
        assert_eq!(prefixes, ["10.255.0.1/32"]);
    }

    let before = router.established(neighbors[0]).await;
    wanted.tenants.push(tenant(4));
    let plan = router.plan(&wanted).await;
    assert_eq!(plan.len(), 1, "{plan:?}");
    assert!(!plan[0].to_string().contains("1003"), "nobody else is touched: {}", plan[0]);
    assert_eq!(refused(&router.converge(&wanted).await), []);

    // Another route distinguisher, limit, pool and targets, all in place.
    wanted.tenants[0].link_index = 77;
    wanted.tenants[0].max_prefixes = 5;
    wanted.tenants[0].pools[0] = Pool { cidr: "10.0.0.0/16".parse().unwrap(), block_size: 28 };
    wanted.tenants[0].pools.push(Pool { cidr: "10.1.0.0/16".parse().unwrap(), block_size: 26 });
    wanted.tenants[0].import_rts = vec!["65001:7".parse().unwrap(), "65002:7".parse().unwrap()];
    wanted.tenants[0].export_rts = vec!["65001:7".parse().unwrap()];
    wanted.tenants[1].pools.pop();
    assert_eq!(refused(&router.converge(&wanted).await), []);
    assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));
    // And back again.
    wanted.tenants[0] = tenant(1);
    wanted.tenants[1] = tenant(2);
    assert_eq!(refused(&router.converge(&wanted).await), []);
    assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));

    wanted.tenants.remove(1);
    assert_eq!(refused(&router.converge(&wanted).await), []);
    assert_eq!(router.plan(&wanted).await, []);
    for daemon in [router.observed().await.version.vrf_owner(), Daemon::Bgpd] {
        let running = router.ask(daemon, "show running-config").await;
        assert!(running.contains("1001") && !running.contains("1002"), "{running}");
    }
    let after = router.established(neighbors[0]).await;
    assert_eq!(after.established_count, before.established_count);
    assert!(after.uptime >= before.uptime, "{:?} after {:?}", after.uptime, before.uptime);

    // An ASN cannot be changed in place: all goes and comes.
    wanted.underlay.as_mut().unwrap().asn = 65009;
    assert_eq!(refused(&router.converge(&wanted).await), []);
    assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));

    let nothing = NodeConfig { underlay: None, tenants: vec![], ..wanted };
    assert_eq!(refused(&router.converge(&nothing).await), []);
    assert_eq!(router.observed().await.config, Config::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_frr_refuses_fails_alone_and_what_is_foreign_stays() {
    let router = Router::new("d", NODE_VTEP).start(None);
    let version = router.observed().await.version;
    let foreign: [(Daemon, &[&str]); 2] = [
        (version.vrf_owner(), &["vrf red", "vni 1002"]),
        (Daemon::Bgpd, &["ip prefix-list other seq 5 permit any", "router bgp 65000 vrf red"]),
    ];
    for (daemon, lines) in foreign {
        let mut vty = Vty::connect(&router.driver().socket(daemon)).await.unwrap();
        vty.ask(version.enter(daemon)).await.unwrap();
        // As one transaction: the management daemon takes nothing otherwise.
        for line in [&["XFRR_start_configuration"], lines, &["XFRR_end_configuration"]].concat() {
            vty.ask(line).await.unwrap();
        }
    }
    until("the VNI of the foreign VRF", async || {
        let l3vnis = router.driver().l3vnis().await.map_err(|e| e.to_string())?;
        if l3vnis.iter().any(|l| l.vrf == "red") { Ok(()) } else { Err(format!("{l3vnis:?}")) }
    })
    .await;
    let mut wanted = node(&["192.0.2.1"], (1..=4).map(tenant).collect());
    // A target that matches everything cannot be exported.
    wanted.tenants[2].export_rts = vec!["*:7".parse().unwrap()];
    let results = router.converge(&wanted).await;
    let refusals = refused(&results);
    let brief: Vec<u32> = refusals.iter().map(|(tenant, _)| tenant.vni).collect();
    assert_eq!(brief, [1002, 1003], "{refusals:?}");
    assert_eq!(*refusals[0].1, OpError::VniTaken { vni: 1002, vrf: "red".into() });
    let message = refusals[1].1.to_string();
    assert!(message.starts_with("bgpd refused `route-target export *:7`"), "{message}");

    let observed = router.observed().await.config;
    let desired = router.desired(&wanted).await;
    for vni in [1001, 1004] {
        assert_eq!(
            observed.tenant(vni).unwrap().bgp.as_ref().unwrap().header,
            desired.tenant(vni).unwrap().bgp.as_ref().unwrap().header
        );
    }
    let left: Vec<u32> = router.plan(&wanted).await.iter().map(|op| op.tenant().unwrap().vni).collect();
    assert_eq!(left, [1002, 1003], "only these are still to be done");

    wanted.tenants.clear();
    assert_eq!(refused(&router.converge(&wanted).await), []);
    for (daemon, lines) in foreign {
        let running = router.ask(daemon, "show running-config").await;
        assert!(lines.iter().all(|line| running.contains(line)), "{running}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_are_kept_running_and_stopped_without_losing_a_route() {
    let router = Router::new("e", NODE_VTEP);
    let address = Ipv4Addr::new(10, 255, 0, 100);
    let other = Router::new("f", address);
    router.link(&other, 0);
    let mut router = router.start(None);
    let _other = other.start(Some(&leaf(address, "192.0.2.0")));
    // The first VRF is the second instance: its distinguisher is the one that bgpd would make itself.
    let mut wanted = node(&["192.0.2.1"], vec![tenant(2)]);
    // Without it, the routes go at once when a zebra that lives sees bgpd's end.
    wanted.underlay.as_mut().unwrap().graceful_restart = false;
    assert_eq!(refused(&router.converge(&wanted).await), []);
    learned(&router).await;

    let desired = normal(router.desired(&wanted).await);
    let version = router.observed().await.version;
    for daemon in version.daemons().iter().copied() {
        let old = router.pid(daemon);
        Command::new("kill").args(["-9", &old.to_string()]).status().unwrap();
        until("another process", async || {
            let new = router.pid(daemon);
            if new == old { Err(format!("still {old}")) } else { Ok(()) }
        })
        .await;
        until("the configuration of before", async || {
            let observed = normal(router.observed().await.config);
            if observed == desired { Ok(()) } else { Err(format!("{observed:#?}")) }
        })
        .await;
        learned(&router).await;
    }

    // Another one waits, and may be asked to end before it was its turn.
    let mut second = waiting(&router, 1).await;
    end(&second);
    assert!(second.wait().unwrap().success());
    assert!(is_alive(&router.name, &router.pid(Daemon::Bgpd).to_string()));

    // A supervisor that was killed leaves its daemons; the next one clears them away.
    let orphan = router.pid(Daemon::Bgpd);
    router.supervisor().kill().unwrap();
    router.supervisor().wait().unwrap();
    assert!(is_alive(&router.name, &orphan.to_string()));
    let mut router = router.start(None);
    until("the orphan's end", async || {
        if is_alive(&router.name, &orphan.to_string()) { Err("alive".into()) } else { Ok(()) }
    })
    .await;
    router.established("192.0.2.1").await;
    learned(&router).await;

    let next = waiting(&router, 2).await;
    for next in [Some(next), None] {
        let pids = [Daemon::Zebra, Daemon::Bgpd].map(|daemon| router.pid(daemon).to_string());
        end(router.supervisor());
        assert!(router.supervisor().wait().unwrap().success());
        assert!(!pids.iter().any(|pid| is_alive(&router.name, pid)));
        let kernel = router.kernel_routes();
        assert!(kernel.contains("10.255.0.100"), "nothing was asked to end, so the routes stay: {kernel}");
        let Some(next) = next else { break };
        router.supervisor = Some(next);
        router.established("192.0.2.1").await;
        learned(&router).await;
    }
    let text = router.log();
    let killed: Vec<&str> = text.lines().filter(|line| line.contains("killed")).collect();
    assert!(killed.len() > 1 && killed[0].contains("zebra"), "zebra is the first: {killed:?}");
}

/// Waits for the leaf's route.
async fn learned(router: &Router) {
    until("the leaf's route in the kernel", async || match router.kernel_routes() {
        kernel if kernel.contains("10.255.0.100") => Ok(()),
        kernel => Err(kernel),
    })
    .await;
}

/// One more supervisor of that router, which has said that it waits; `times` have said so by then.
async fn waiting(router: &Router, times: usize) -> Child {
    let child = supervise(&router.name, None).spawn().unwrap();
    until("another supervisor to wait", async || {
        let log = router.log();
        if log.matches("waiting until it has ended").count() == times { Ok(()) } else { Err(log) }
    })
    .await;
    child
}

fn end(child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_that_is_taken_away_comes_back() {
    let router = Router::new("j", NODE_VTEP).start(None);
    let wanted = node(&["192.0.2.1"], vec![tenant(1)]);
    assert_eq!(refused(&router.converge(&wanted).await), []);
    let desired = router.desired(&wanted).await;
    let version = router.observed().await.version;

    // Each line with the contexts that it stands in.
    let mut lines: Vec<Vec<String>> = Vec::new();
    let tenants = || desired.tenants.iter();
    lines
        .extend(desired.global.lists.iter().chain(tenants().flat_map(|t| &t.lists)).map(|l| vec![l.clone()]));
    for map in &desired.global.route_maps {
        lines.push(vec![map.header.clone()]);
        lines.extend(map.lines.iter().map(|line| vec![map.header.clone(), line.clone()]));
    }
    for bgp in desired.global.bgp.iter().chain(tenants().filter_map(|t| t.bgp.as_ref())) {
        lines.extend(bgp.lines.iter().map(|line| vec![bgp.header.clone(), line.clone()]));
        for family in &bgp.families {
            let head = [bgp.header.clone(), format!("address-family {}", family.name)];
            lines.extend(
                family.lines.iter().map(|line| [head.as_slice(), std::slice::from_ref(line)].concat()),
            );
        }
    }
    for mut line in lines {
        let last = line.pop().unwrap();
        let undo = last.strip_prefix("no ").map_or_else(|| format!("no {last}"), str::to_owned);
        let mut vty = Vty::connect(&router.driver().socket(Daemon::Bgpd)).await.unwrap();
        vty.ask(version.enter(Daemon::Bgpd)).await.unwrap();
        for context in &line {
            vty.ask(context).await.unwrap();
        }
        vty.ask(&undo).await.unwrap();
        let plan = router.plan(&wanted).await;
        assert!(!plan.is_empty(), "`{undo}` is not seen");
        // As many rounds as the agent goes: what FRR makes of a line can be more than that line.
        for _ in 0..3 {
            assert_eq!(refused(&router.converge(&wanted).await), [], "{undo}: {plan:?}");
        }
        assert_eq!(normal(router.observed().await.config), normal(desired.clone()), "{undo}: {plan:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zebra_is_told_of_the_addresses_that_it_has_missed() {
    const LINKS: usize = 40;
    let router = Router::new("h", NODE_VTEP).start(None);
    let wanted = node(&[], vec![]);
    assert_eq!(refused(&router.converge(&wanted).await), []);
    let kernel = Client::connect(Arc::new(Netns::open(&netns(&router.name)).unwrap())).unwrap();
    let frr = FrrLink::new(router.state_dir()).routing_in(kernel);

    // A zebra that is busy: of what it finds afterwards 8.4 loses a good part.
    let zebra = router.pid(Daemon::Zebra).to_string();
    let signal =
        |signal: &str| assert!(Command::new("kill").args([signal, &zebra]).status().unwrap().success());
    signal("-STOP");
    let mut batch =
        Command::new("ip").args(["-n", &router.name, "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = batch.stdin.take().unwrap();
    for i in 0..LINKS {
        writeln!(lines, "link add d{i} type veth peer name e{i}").unwrap();
        writeln!(lines, "addr add 10.9.{i}.1/31 dev d{i}").unwrap();
        writeln!(lines, "addr add fd00:9:{i}::1/127 dev d{i} nodad").unwrap();
        writeln!(lines, "link set d{i} up").unwrap();
    }
    drop(lines);
    assert!(batch.wait().unwrap().success());
    signal("-CONT");

    until("zebra knows all addresses", async || {
        let missing = frr.plan(&wanted).await.map_err(|e| e.to_string())?;
        let outcomes = frr.apply(&missing).await;
        let known = router.driver().addresses().await.map_err(|e| e.to_string())?;
        let known = known.iter().filter(|net| net.prefix_len() == 31 || net.prefix_len() == 127).count();
        if known == 2 * LINKS { Ok(()) } else { Err(format!("{known} of {}: {outcomes:?}", 2 * LINKS)) }
    })
    .await;
    assert_eq!(frr.plan(&wanted).await.unwrap(), []);
    let output = Command::new("ip").args(["-n", &router.name, "-o", "addr", "show"]).output().unwrap();
    let kernel = String::from_utf8(output.stdout).unwrap();
    let there = |start: &str| kernel.lines().filter(|line| line.contains(start)).count();
    assert_eq!((there("10.9."), there("fd00:9:")), (LINKS, LINKS), "the kernel's are as they were: {kernel}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_not_saved_are_saved_later() {
    let router = Router::new("i", NODE_VTEP).start(None);
    let wanted = node(&["192.0.2.1"], vec![tenant(1)]);
    router.observed().await;
    let frr = FrrLink::new(router.state_dir());
    // Nothing can be written in the place of a file that is a directory.
    let file = Driver::file(&router.state_dir(), Daemon::Bgpd);
    let blocked = file.with_extension("conf.new");
    fs::create_dir(&blocked).unwrap();
    let changes = frr.plan(&wanted).await.unwrap();
    assert_eq!(frr.apply(&changes).await, [Ok(()), Ok(())], "what FRR took stands all the same");
    let left = frr.plan(&wanted).await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    let refusal = frr.apply(&left).await.remove(0).unwrap_err();
    assert!(refusal.contains("bgpd.conf"), "{refusal}");

    fs::remove_dir(&blocked).unwrap();
    let left = frr.plan(&wanted).await.unwrap();
    assert_eq!(frr.apply(&left).await, [Ok(())]);
    assert!(fs::read_to_string(&file).unwrap().contains("vrf1001"));
    assert_eq!(frr.plan(&wanted).await.unwrap(), []);
}

/// A counter of the namespace's TCP (`/proc/net/netstat`: a line of names, and one of values).
fn tcp_counter(netns: &str, name: &str) -> u64 {
    let output =
        Command::new("ip").args(["netns", "exec", netns, "cat", "/proc/net/netstat"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|l| l.starts_with("TcpExt:")).map(|l| l.split(' ').collect()).collect();
    let at = lines[0].iter().position(|word| *word == name).expect("the kernel counts it");
    lines[1][at].parse().unwrap()
}

/// The kernel signs each segment (`TCP_MD5SIG`), so nothing but a session that comes up proves that both have one word.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_comes_up_with_the_password_and_not_with_another() {
    // Every character that is let through, in two words that the kernel can take.
    let all: String = ('!'..='~').filter(|c| *c != '|').collect();
    let (right, other) = all.split_at(PASSWORD_MAX);
    let other = format!("{other}-wrong");
    let router = Router::new("m", NODE_VTEP);
    let vtep = Ipv4Addr::new(10, 255, 0, 100);
    let demanding = Router::new("n", vtep);
    router.link(&demanding, 0);
    let router = router.start(None);
    let of_leaf = leaf(vtep, "192.0.2.0");
    let remote_as = format!(" neighbor 192.0.2.0 remote-as {NODE_ASN}\n");
    let demand = format!("{remote_as} neighbor 192.0.2.0 password {right}\n");
    let demanding = demanding.start(Some(&of_leaf.replace(&remote_as, &demand)));
    let node_with = |word: Option<&str>| {
        let mut wanted = node(&["192.0.2.1"], vec![]);
        let neighbor = &mut wanted.underlay.as_mut().unwrap().neighbors[0];
        neighbor.password = word.map(|word| Password::new(word, "").unwrap());
        wanted
    };

    // What the leaf's kernel throws away, unsigned or signed with another word, is counted: they did try.
    for (wrong, counter) in [(None, "TCPMD5NotFound"), (Some(other.as_str()), "TCPMD5Failure")] {
        let wanted = node_with(wrong);
        assert_eq!(refused(&router.converge(&wanted).await), [], "{wrong:?}");
        assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));
        let before = tcp_counter(&demanding.name, counter);
        until(&format!("{counter} to grow"), async || match tcp_counter(&demanding.name, counter) {
            now if now >= before + 3 => Ok(()),
            now => Err(format!("{now} after {before}")),
        })
        .await;
        let sessions = router.driver().sessions().await.unwrap();
        assert!(sessions.iter().all(|s| !s.established && s.established_count == 0), "{sessions:?}");
    }
    let wanted = node_with(Some(right));
    assert_eq!(refused(&router.converge(&wanted).await), []);
    router.established("192.0.2.1").await;
    assert_eq!(normal(router.observed().await.config), normal(router.desired(&wanted).await));
    assert_eq!(router.plan(&wanted).await, [], "what FRR shows of it is what was written");

    // It starts again with it, and nobody but the daemons reads it.
    let file = Driver::file(&router.state_dir(), Daemon::Bgpd);
    assert!(fs::read_to_string(&file).unwrap().contains(right));
    let (file, folder) = (fs::metadata(&file).unwrap(), fs::metadata(router.state_dir()).unwrap());
    assert_eq!((file.mode() & 0o777, file.uid()), (0o600, folder.uid()));
    let before = router.pid(Daemon::Bgpd);
    assert!(Command::new("kill").args(["-9", &before.to_string()]).status().unwrap().success());
    until("bgpd to be started again", async || {
        let pid = fs::read_to_string(router.state_dir().join("bgpd.pid")).unwrap_or_default();
        if pid.trim().parse::<i32>().is_ok_and(|pid| pid != before) { Ok(()) } else { Err(pid) }
    })
    .await;
    router.observed().await;
    router.established("192.0.2.1").await;
    assert_eq!(router.plan(&wanted).await, []);
    assert!(!router.log().contains(right), "no word of it in a log");

    // A word that is taken away on one side ends the session; on both it is one without.
    let results = router.converge(&node_with(Some(other.as_str()))).await;
    assert_eq!(refused(&results), []);
    until("the session to end", async || {
        let sessions = router.driver().sessions().await.map_err(|e| e.to_string())?;
        if sessions.iter().all(|session| !session.established) {
            Ok(())
        } else {
            Err(format!("{sessions:?}"))
        }
    })
    .await;
}

#[test]
fn a_daemon_that_cannot_start_is_said_so() {
    let name = format!("cvt{}g", std::process::id());
    let mut command = Command::new(env!("CARGO_BIN_EXE_calico-vni-router"));
    let missing = command.args(["frr", "--pathspace", &name, "--daemons", "/nonexistent"]).output().unwrap();
    let complaint = String::from_utf8_lossy(&missing.stderr).into_owned();
    fs::remove_dir_all(Path::new(RUN_DIR).join(&name)).ok();
    assert!(!missing.status.success(), "{complaint}");
    assert!(complaint.contains("/nonexistent/zebra"), "{complaint}");
}
