//! The policy rules in the real kernel: it decides as a plain list of rules would, also while they are replaced, lets in
//! to a pool whom it should, and whatever somebody did to the rules by hand comes back.
//!
//! Needs root.

mod support;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use calico_vni_proto::names;
use calico_vni_router::{
    netlink::{Client, observe, write},
    rules::{
        Steering,
        change::{Step, changes},
    },
    state::{Action, MAIN, Rule, Space},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use support::Namespace;

/// Name of the interface that a tenant's table `BASE + n` leads to is `d<n % DEVICES>`.
const DEVICES: u32 = 8;
const BASE: u32 = 1_000_001_000;
/// As many of the tenants have doors; those of more would not fit.
const DOORS: u32 = 800;
/// What all of them reach by main, and who is nobody's.
const REACHED: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const STRANGERS: [&str; 2] = ["203.0.113.66", "2001:db8:9::66"];

/// The link of the first of these tenants.
const LINK: &str = "cv1000";

/// A namespace with a device for every few tables.
struct Host {
    space: Namespace,
    client: Client,
}

impl Host {
    fn new() -> Self {
        let space = Namespace::new("cvrules");
        let client = Client::connect(space.netns.clone()).unwrap();
        space.run("sysctl", "-qw net.ipv4.ip_forward=1");
        space.run("sysctl", "-qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
        let host = Self { space, client };
        let mut lines = String::from("link add in0 type bridge\nlink set in0 up\n");
        writeln!(lines, "link add {LINK} type bridge\nlink set {LINK} up").unwrap();
        for device in 0..DEVICES {
            writeln!(lines, "link add d{device} type bridge\nlink set d{device} up").unwrap();
        }
        host.batch(&[], &lines);
        host
    }

    fn name(&self) -> &str {
        &self.space.name
    }

    /// What `ip` says to these lines, those that begin with `-6` last.
    fn batch(&self, flags: &[&str], lines: &str) -> String {
        let (v6, others): (Vec<_>, Vec<_>) = lines.lines().partition(|line| line.starts_with("-6 "));
        let v6: Vec<_> = v6.into_iter().map(|line| line.trim_start_matches("-6 ")).collect();
        let all = |lines: Vec<&str>| lines.join("\n") + "\n";
        batch(self.name(), flags, &all(others)) + &batch(self.name(), &[flags, &["-6"]].concat(), &all(v6))
    }

    async fn rules(&self) -> Vec<Rule> {
        observe::dump(&self.client, Space::Host).await.unwrap().state.rules
    }

    /// Makes the changes; how many.
    async fn bring_about(&self, wanted: &Steering) -> usize {
        let steps: Vec<Step> =
            changes(wanted, &self.rules().await).into_iter().flat_map(|change| change.steps).collect();
        for step in &steps {
            let made = match step {
                Step::Add(rule) => write::rule_add(&self.client, rule).await,
                Step::Delete(rule) => write::rule_delete(&self.client, rule).await,
            };
            made.unwrap_or_else(|error| panic!("{step}: {error}"));
        }
        assert_eq!(changes(wanted, &self.rules().await), [], "not as wanted after one change");
        steps.len()
    }
}

fn batch(netns: &str, flags: &[&str], lines: &str) -> String {
    let (answers, errors) = ask(netns, flags, lines);
    assert!(errors.is_empty(), "{errors}");
    answers
}

/// The answers to those lines that have one.
fn forced(netns: &str, lines: &str) -> String {
    ask(netns, &["-o", "-force"], lines).0
}

/// What `ip` says, and what it complains of.
fn ask(netns: &str, flags: &[&str], lines: &str) -> (String, String) {
    let mut child = Command::new("ip")
        .args(["-n", netns])
        .args(flags)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = lines.to_owned();
    // Written beside the reading: either pipe may be full.
    // Without `-force` it ends at the first complaint, which its caller tells of.
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// `count` pools of each family, every fourth of them in the table of the one before it and the others in tables of their
/// own; those from `apart` on lie far from the others.
fn pools(count: u32, apart: u32) -> Steering {
    let pool = |n: u32| -> [IpNet; 2] {
        let (far, short) = (u32::from(n >= apart), n % 3);
        let v4 = (if far == 1 { 172 << 24 } else { 10 << 24 }) | n << 12;
        let v6 = (0xfd00_u128 + u128::from(far)) << 112 | u128::from(n) << 72;
        [
            Ipv4Net::new_assert(Ipv4Addr::from_bits(v4), u8::try_from(22 - short).unwrap()).into(),
            Ipv6Net::new_assert(Ipv6Addr::from_bits(v6), u8::try_from(60 - short).unwrap()).into(),
        ]
    };
    let table = |n: u32| BASE + n - u32::from(n % 4 == 3);
    let pools = (0..count).flat_map(|n| pool(n).map(|pool| (pool, table(n)))).collect();
    let reached: BTreeSet<IpNet> =
        REACHED.map(|address| IpNet::from(address.parse::<std::net::IpAddr>().unwrap())).into();
    let doors = (0..count.min(DOORS)).map(|n| (table(n), reached.clone())).collect();
    Steering { pools, doors, ..Steering::default() }
}

/// Some addresses of a pool, or of nobody.
fn addresses(pool: IpNet) -> [String; 2] {
    match pool {
        IpNet::V4(net) => {
            [Ipv4Addr::from_bits(net.network().to_bits() | 1), net.broadcast()].map(|ip| ip.to_string())
        }
        IpNet::V6(net) => {
            [Ipv6Addr::from_bits(net.network().to_bits() | 1), net.broadcast()].map(|ip| ip.to_string())
        }
    }
}

/// Routes of the tables, and of main: for each pool a host route to its first address by `in0`, and the default.
fn routes(steering: &Steering) -> String {
    let mut lines = String::from(
        "route add default dev in0\n-6 route add default dev in0\naddr add 198.51.100.1/32 dev in0\naddr add 2001:db8::1/128 dev in0 nodad\n",
    );
    for (pool, table) in &steering.pools {
        let [first, _] = addresses(*pool);
        let dev = table % DEVICES;
        let default = if first.contains(':') { "::/0" } else { "0.0.0.0/0" };
        // Pools of one tenant share its table.
        writeln!(lines, "route replace {default} dev d{dev} table {table}\nroute add {first} dev in0")
            .unwrap();
    }
    lines
}

/// What is asked of the kernel, and the device it has to name.
fn questions(steering: &Steering, every: usize) -> Vec<(String, String)> {
    let mut asked = Vec::new();
    let ask = |from: &str, to: &str| format!("route get {to} from {from} iif in0");
    for (pool, table) in steering.pools.iter().step_by(every) {
        let [first, last] = addresses(*pool);
        let tenants = format!("dev d{}", table % DEVICES);
        let outside = REACHED[usize::from(first.contains(':'))];
        asked.push((ask(&last, outside), tenants.clone()));
        asked.push((ask(&first, &last), tenants));
        asked.push((ask(&last, &first), "dev in0".into()));
        asked.push((ask(outside, &first), "dev in0".into()));
    }
    asked
}

/// Of another pool of one's tenant, pods on this node are found by main, and by nothing wider than a host route.
fn across(steering: &Steering) -> Vec<(String, String)> {
    let mut asked = Vec::new();
    for (pool, table) in &steering.pools {
        let v6 = |pool: &IpNet| matches!(pool, IpNet::V6(_));
        let shares = |(other, of): &(&IpNet, &u32)| *of == table && *other != pool && v6(other) == v6(pool);
        for (other, _) in steering.pools.iter().filter(shares) {
            let ([_, from], [there, elsewhere]) = (addresses(*pool), addresses(*other));
            let ask = |to: &str| format!("route get {to} from {from} iif in0");
            asked.push((ask(&there), "dev in0".to_owned()));
            asked.push((ask(&elsewhere), format!("dev d{}", table % DEVICES)));
        }
    }
    asked
}

/// What asks for a pod's address without a right to it, and the rest of a question that has one.
fn at_the_doors(steering: &Steering, every: usize) -> Vec<(String, Vec<String>)> {
    let mut asked = Vec::new();
    for (pool, table) in
        steering.pools.iter().filter(|(_, table)| steering.doors.contains_key(table)).step_by(every)
    {
        let [first, _] = addresses(*pool);
        let stranger = STRANGERS[usize::from(first.contains(':'))];
        let ask = |rest: &str| format!("route get {first} from {stranger} {rest}");
        let own = names::host_link(table - names::TABLE_BASE);
        // Only one of the links is there.
        let by_link = (own == LINK).then(|| ask(&format!("iif {LINK}")));
        let mark = ask(&format!("iif in0 mark {:#x}", names::GUARD_MARK | 0x0001_0000));
        asked.push((ask("iif in0"), [mark].into_iter().chain(by_link).collect()));
    }
    asked
}

/// Who is let in that should not be, and who is not that should be.
fn wrong_at_the_doors(netns: &str, asked: &[(String, Vec<String>)]) -> Vec<String> {
    let lines = |lines: Vec<&str>| lines.join("\n") + "\n";
    let forbidden = lines(asked.iter().map(|(forbidden, _)| forbidden.as_str()).collect());
    let let_in = forced(netns, &forbidden);
    let permitted: Vec<&str> =
        asked.iter().flat_map(|(_, permitted)| permitted).map(String::as_str).collect();
    let answers = forced(netns, &lines(permitted.clone()));
    let kept_out = permitted.len() - answers.lines().count();
    let mut wrong: Vec<String> = let_in.lines().map(str::to_owned).collect();
    wrong.extend((kept_out > 0).then(|| format!("{kept_out} of {} have no way: {answers}", permitted.len())));
    wrong
}

/// Those that the kernel answers otherwise.
fn wrong(netns: &str, asked: &[(String, String)]) -> Vec<String> {
    let lines = asked.iter().map(|(question, _)| question.as_str()).collect::<Vec<_>>().join("\n") + "\n";
    let answers = batch(netns, &["-o"], &lines);
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), asked.len(), "{answers:#?}");
    let differs = |((question, device), answer): (&(String, String), &str)| {
        (!answer.contains(&format!("{device} "))).then(|| format!("{question}: {answer}, not {device}"))
    };
    asked.iter().zip(answers).filter_map(differs).collect()
}

#[tokio::test]
async fn the_kernel_decides_as_by_a_plain_list() {
    let space = Host::new();
    for (count, apart) in [(3, 2), (5, 5), (300, 200)] {
        let steering = pools(count, apart);
        space.batch(&[], &routes(&steering).replace("add ", "replace ").replace("addr add", "addr replace"));
        assert!(space.bring_about(&steering).await > 0);
        let asked = [questions(&steering, 1), across(&steering)].concat();
        assert!(count < 4 || asked.len() > questions(&steering, 1).len(), "no tenant has two pools");
        assert_eq!(wrong(space.name(), &asked), Vec::<String>::new(), "{count} pools");
        let doors = at_the_doors(&steering, 1);
        assert_eq!(
            doors.iter().flat_map(|(_, permitted)| permitted).count(),
            doors.len() + 2,
            "a link is missing"
        );
        assert_eq!(wrong_at_the_doors(space.name(), &doors), Vec::<String>::new(), "{count} pools");
        assert_eq!(space.bring_about(&steering).await, 0, "what stands is written again");
    }
    // The probe sees a rule that is missing.
    let (pool, _) = pools(300, 200).pools.into_iter().next().unwrap();
    let rules = space.rules().await;
    let leads = |rule: &&Rule| {
        rule.from == Some(pool) && matches!(rule.action, Action::Lookup { table, .. } if table != MAIN)
    };
    let rule = rules.iter().find(leads).unwrap();
    space.batch(&[], &format!("rule del pref {}\n", rule.pref));
    assert_ne!(wrong(space.name(), &questions(&pools(300, 200), 1)), Vec::<String>::new());
    let doors = at_the_doors(&pools(300, 200), 1);
    let blackhole = rules.iter().find(|rule| rule.action == Action::Blackhole).unwrap();
    space.batch(&[], &format!("rule del pref {}\n", blackhole.pref));
    assert!(wrong_at_the_doors(space.name(), &doors).len() >= 300, "nobody was kept out");
}

#[tokio::test]
async fn no_packet_is_led_wrong_while_rules_are_replaced() {
    let space = Host::new();
    let (few, many) = (pools(60, 200), pools(300, 200));
    space.batch(&[], &routes(&many));
    // The layout of an older release, of the pools that stay all the time.
    let mut older = String::new();
    for (pool, table) in &few.pools {
        let family = if matches!(pool, IpNet::V6(_)) { "-6 " } else { "" };
        let suppress = pool.max_prefix_len() - 1;
        writeln!(
            older,
            "{family}rule add pref 20000 from {pool} to {pool} lookup main suppress_prefixlength {suppress} proto 118\n\
             {family}rule add pref 20001 from {pool} lookup {table} proto 118"
        )
        .unwrap();
    }
    space.batch(&[], &older);

    let (over, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let asked = questions(&few, 3);
    // The older release has none: the first change brings them.
    space.bring_about(&few).await;
    let doors = at_the_doors(&few, 3);
    let sampler = {
        let (over, rounds, netns, asked) =
            (over.clone(), rounds.clone(), space.name().to_owned(), asked.clone());
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                seen.extend(wrong(&netns, &asked));
                seen.extend(wrong_at_the_doors(&netns, &doors));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            seen
        })
    };
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut replaced = 0;
    while replaced < 8 || rounds.load(Ordering::Relaxed) < 8 {
        assert!(Instant::now() < deadline, "{replaced} changes, {rounds:?} rounds of questions");
        space.bring_about(if replaced % 2 == 0 { &few } else { &many }).await;
        replaced += 1;
    }
    over.store(true, Ordering::Relaxed);
    assert_eq!(sampler.join().unwrap(), Vec::<String>::new());
    let samples = rounds.load(Ordering::Relaxed) as usize * asked.len();
    println!("{samples} decisions asked for during {replaced} changes");
    assert!(samples > 0);
}

#[tokio::test]
async fn what_is_done_by_hand_is_put_right_and_foreign_rules_stay() {
    let space = Host::new();
    let steering = pools(12, 8);
    space.batch(&[], &routes(&steering));
    space.batch(&[], "rule add pref 12345 from 192.0.2.0/24 lookup 777\n-6 rule add pref 12345 from 2001:db8:2::/64 lookup 777\n");
    space.bring_about(&steering).await;
    let asked = [questions(&steering, 1), across(&steering)].concat();
    let doors = at_the_doors(&steering, 1);
    for deed in [
        "rule flush proto 118",
        "-6 rule flush proto 118",
        "rule del pref 32000",
        "rule del pref 19999",
        "rule del pref 9999",
        "rule del pref 19998",
        "rule add pref 9999 goto 15003 from 10.0.0.0/8 proto 118",
        "rule add pref 10001 blackhole proto 118",
        "rule add pref 15001 iif in0 goto 19998 proto 118",
        "rule add pref 15001 fwmark 0x800/0x801 blackhole proto 118",
        "rule add pref 15001 oif in0 goto 19998 proto 118",
        "rule add pref 32000 from 10.0.0.0/8 nop proto 118",
        "rule add pref 19999 goto 26003 from 10.0.0.0/8 proto 118",
        "rule add pref 20001 from 10.0.0.0/8 lookup 7 proto 118",
        "rule add pref 26001 from 10.0.0.0/8 lookup 7 proto 118",
        "rule add pref 26001 not from 10.0.0.0/8 iif lo lookup 7 proto 118",
        "-6 rule add pref 100 from fd00::/16 lookup main proto 118",
    ] {
        // Not every rule stands in every bank that counts: a deletion may find nothing.
        let flags: &[&str] = if deed.contains("del") { &["-force"] } else { &[] };
        if flags.is_empty() {
            space.batch(flags, &format!("{deed}\n"));
        } else {
            Command::new("ip").args(["-n", space.name()]).args(deed.split(' ')).output().unwrap();
        }
        space.bring_about(&steering).await;
        assert_eq!(wrong(space.name(), &asked), Vec::<String>::new(), "after `{deed}`");
        assert_eq!(wrong_at_the_doors(space.name(), &doors), Vec::<String>::new(), "after `{deed}`");
    }
    for family in ["-4", "-6"] {
        assert!(space.batch(&[family], "rule show\n").contains("lookup 777"), "{family}");
    }
    space.bring_about(&Steering::default()).await;
    let left = space.batch(&[], "rule show\n-6 rule show\n");
    assert!(!left.contains("118") && left.contains("lookup 777"), "{left}");
}

#[tokio::test]
async fn a_thousand_pools_cost_little_more_than_one() {
    const POOLS: u32 = 1000;
    let (plain, trie) = (Host::new(), Host::new());
    let steering = pools(POOLS, POOLS);
    let v4 = |steering: &Steering| Steering {
        pools: steering
            .pools
            .iter()
            .filter(|(pool, _)| matches!(pool, IpNet::V4(_)))
            .map(|(p, t)| (*p, *t))
            .collect(),
        ..steering.clone()
    };
    let steering = v4(&steering);
    let mut list = String::new();
    for (pool, table) in &steering.pools {
        writeln!(
            list,
            "rule add pref 20000 from {pool} to {pool} lookup main suppress_prefixlength 31 proto 118"
        )
        .unwrap();
        writeln!(list, "rule add pref 20001 from {pool} lookup {table} proto 118").unwrap();
    }
    plain.batch(&[], &(routes(&steering) + &list));
    trie.batch(&[], &routes(&steering));
    let began = Instant::now();
    let steps = trie.bring_about(&steering).await;
    println!("{steps} rules for {POOLS} pools written and read back in {:?}", began.elapsed());
    let (pool, table) = steering.pools.iter().next_back().unwrap();
    let [first, _] = addresses(*pool);
    let asked =
        vec![
            (format!("route get 203.0.113.9 from {first} iif in0"), format!("dev d{}", table % DEVICES));
            3000
        ];
    // In turn, so that a busy machine slows both; the best of each counts.
    let mut best = [Duration::MAX; 2];
    for _ in 0..5 {
        for (space, best) in [&plain, &trie].into_iter().zip(&mut best) {
            let began = Instant::now();
            assert_eq!(wrong(space.name(), &asked), Vec::<String>::new());
            *best = began.elapsed().min(*best);
        }
    }
    println!("{} decisions for the last pool: plain list {:?}, trie {:?}", asked.len(), best[0], best[1]);
    assert!(best[1] < best[0], "the trie is slower than the plain list: {best:?}");
}
