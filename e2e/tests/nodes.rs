//! The node side on this machine's kernel: its namespaces, processes, probes and forwarders. Needs root, and no VRF.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use calico_vni_e2e::{
    nodes::protocol::{Command, Flow, Health, Probe, Probed},
    release::Release,
    site::{Mode, Site},
    steady::Steady,
    wait,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// What a loaded machine may take for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two namespaces, a and b, on one link: 192.0.2.1 and .2, 2001:db8::1 and ::2. Nobody has .3 and ::3.
async fn site() -> (Site, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start(Mode::Native, directory.path(), Release::This).await.unwrap();
    let own = ["netns add a", "netns add b", "link add ve0 netns a type veth peer name ve0 netns b"];
    site.nodes.ip(None, own.map(str::to_owned).into()).await.unwrap();
    for (netns, number) in [("a", 1), ("b", 2)] {
        let lines = [
            format!("addr add 192.0.2.{number}/24 dev ve0"),
            format!("addr add 2001:db8::{number}/64 dev ve0 nodad"),
            "link set ve0 up".into(),
            "link set lo up".into(),
        ];
        site.nodes.ip(Some(netns), lines.into()).await.unwrap();
    }
    (site, directory)
}

fn command(netns: &str, argv: &[&str]) -> Command {
    let argv = argv.iter().map(|&a| a.to_owned()).collect();
    Command { netns: Some(netns.into()), argv, timeout_ms: 5_000, ..Command::default() }
}

fn probe(from: &str, target: &str, port: Option<u16>) -> Probe {
    Probe {
        netns: from.into(),
        source: None,
        target: target.parse().unwrap(),
        port,
        count: 3,
        timeout_ms: 3_000,
        count_in: None,
    }
}

async fn one(site: &Site, probe: Probe) -> Probed {
    site.nodes.probe(vec![probe]).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_tell_answers_from_silence_and_refusal() {
    let (site, _directory) = site().await;
    let nodes = &site.nodes;
    let listen: SocketAddr = "192.0.2.2:80".parse().unwrap();
    nodes.serve("b", listen, "hello").await.unwrap();
    let results = nodes
        .probe(vec![
            probe("a", "192.0.2.2", None),
            probe("a", "192.0.2.3", None),
            probe("b", "192.0.2.1", None),
            probe("a", "192.0.2.2", Some(80)),
            probe("a", "192.0.2.2", Some(81)),
            probe("a", "198.51.100.1", None),
            Probe { source: Some("192.0.2.1".parse().unwrap()), ..probe("a", "192.0.2.2", None) },
            Probe { source: Some("192.0.2.9".parse().unwrap()), ..probe("a", "192.0.2.2", None) },
        ])
        .await
        .unwrap();
    let answered: Vec<bool> = results.iter().map(Probed::answered).collect();
    assert_eq!(answered, [true, false, true, true, false, false, true, false], "{results:?}");
    assert!(results[4].error.contains("refused"), "{:?}", results[4]);
    assert!(results[5].error.contains("unreachable"), "{:?}", results[5]);
    assert!(results[7].error.contains("bind"), "{:?}", results[7]);

    // Silence is no answer either when somebody drops the requests.
    let rule = "table ip t { chain c { type filter hook input priority 0; icmp type echo-request drop; }; }";
    let nft = Command { stdin: rule.into(), ..command("b", &["nft", "-f", "-"]) };
    assert_eq!(nodes.exec(nft).await.unwrap().code, 0);
    assert_eq!(one(&site, probe("a", "192.0.2.2", None)).await, Probed::default());
    assert!(one(&site, probe("b", "192.0.2.1", None)).await.answered());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_is_counted_where_it_arrives() {
    let (site, _directory) = site().await;
    let nodes = &site.nodes;
    nodes.serve("b", "[::]:80".parse().unwrap(), "hello").await.unwrap();
    let counted = |target: &str, port| Probe { count_in: Some("b".into()), ..probe("a", target, port) };
    let probes = || {
        vec![
            counted("192.0.2.2", None),
            counted("2001:db8::2", None),
            counted("192.0.2.2", Some(80)),
            counted("2001:db8::2", Some(80)),
        ]
    };
    let results = nodes.probe(probes()).await.unwrap();
    assert!(results.iter().all(|r| r.answered() && r.arrived >= Some(1)), "{results:?}");
    let uncounted = one(&site, probe("a", "192.0.2.2", None)).await;
    assert!(uncounted.answered() && uncounted.arrived.is_none(), "{uncounted:?}");
    for nobody in ["192.0.2.3", "2001:db8::3"] {
        assert_eq!(one(&site, counted(nobody, None)).await.arrived, Some(0));
    }

    // What arrives counts also where a rule then drops it: a missing answer alone would look like silence.
    let rule = "table inet t { chain c { type filter hook prerouting priority raw; \
                icmp type echo-request drop; icmpv6 type echo-request drop; tcp flags syn drop; }; }";
    let nft = Command { stdin: rule.into(), ..command("b", &["nft", "-f", "-"]) };
    assert_eq!(nodes.exec(nft).await.unwrap().code, 0);
    let results = nodes.probe(probes()).await.unwrap();
    assert!(results.iter().all(|r| !r.answered() && r.arrived >= Some(1)), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_flows_are_counted_at_both_ends() {
    let (site, _directory) = site().await;
    let nodes = &site.nodes;
    nodes.serve("b", "[::]:80".parse().unwrap(), "hello").await.unwrap();
    let flow = |source: &str, target: &str, port| Flow {
        netns: "a".into(),
        source: source.parse().unwrap(),
        target: target.parse().unwrap(),
        port,
        count_in: "b".into(),
    };
    let open = [
        flow("192.0.2.1", "192.0.2.2", None),
        flow("192.0.2.1", "192.0.2.2", Some(80)),
        flow("2001:db8::1", "2001:db8::2", None),
        flow("2001:db8::1", "2001:db8::2", Some(80)),
    ];
    let others = [
        // Its answers have nowhere to go.
        flow("198.51.100.1", "192.0.2.2", None),
        flow("192.0.2.1", "192.0.2.3", None),
        flow("192.0.2.1", "203.0.113.1", Some(80)),
    ];
    let steady =
        Steady::start(nodes, Duration::from_millis(50), [&open[..], &others[..]].concat()).await.unwrap();
    wait::until("every open flow to be answered often", PATIENCE, async || {
        let seen = steady.so_far().await?;
        ensure!(seen[..4].iter().all(|f| f.answered >= 5) && seen[4].arrived >= 5, "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();

    // The link goes down: nothing is answered for as long, and the gap is told.
    let before = steady.so_far().await.unwrap();
    nodes.ip(Some("b"), vec!["link set ve0 down".into()]).await.unwrap();
    let down = std::time::Instant::now();
    wait::always("the silence", Duration::from_millis(700), async || Ok(())).await.unwrap();
    let silence = down.elapsed();
    let up = ["link set ve0 up", "addr replace 2001:db8::2/64 dev ve0 nodad"].map(str::to_owned);
    nodes.ip(Some("b"), up.into()).await.unwrap();
    wait::until("every open flow to be answered again", PATIENCE, async || {
        let seen = steady.so_far().await?;
        ensure!(seen[..4].iter().zip(&before).all(|(f, b)| f.answered >= b.answered + 5), "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();
    let results = steady.stop().await.unwrap();
    for result in &results[..4] {
        assert!(u128::from(result.longest_gap_ms) >= silence.as_millis(), "{result:?} after {silence:?}");
        assert!(result.answered <= result.arrived && result.arrived <= result.sent, "{result:?}");
    }
    assert!(results[4].arrived > 0 && results[4].answered == 0, "{:?}", results[4]);
    assert!(results[5].sent > 0 && results[5].arrived == 0, "{:?}", results[5]);
    assert!(results[6].refused > 0 && results[6].sent == 0, "{:?}", results[6]);
    assert!(results[6].error.contains("unreachable"), "{:?}", results[6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarders_carry_break_and_heal() {
    let (site, _directory) = site().await;
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = outside.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = outside.accept().await {
            stream.write_all(b"hello").await.ok();
        }
    });
    let inside: SocketAddr = "127.0.0.1:9443".parse().unwrap();
    site.nodes.forward("f", "a", inside, to).await.unwrap();
    let dial = || probe("a", "127.0.0.1", Some(9443));
    assert!(one(&site, dial()).await.answered());
    assert!(
        !one(&site, probe("b", "127.0.0.1", Some(9443))).await.answered(),
        "it is in the other namespace too"
    );

    site.nodes.link("f", Health::Cut).await.unwrap();
    let cut = one(&site, dial()).await;
    assert!(!cut.answered() && !cut.error.is_empty(), "a cut is told at once: {cut:?}");
    site.nodes.link("f", Health::Blackhole).await.unwrap();
    assert_eq!(one(&site, dial()).await, Probed::default());

    // A connection that hangs in the blackhole goes on when that ends.
    let patient = Probe { timeout_ms: 20_000, ..dial() };
    let (hanging, healed) = tokio::join!(one(&site, patient), async {
        let seen = wait::until("the connection to hang in the blackhole", PATIENCE, async || {
            let sockets =
                site.nodes.run("a", &["ss", "-Htn", "state", "established", "dport", "=", ":9443"]).await?;
            ensure!(!sockets.trim().is_empty(), "nobody is connected");
            Ok(())
        })
        .await;
        site.nodes.link("f", Health::Healthy).await.unwrap();
        seen
    });
    healed.unwrap();
    assert!(hanging.answered(), "{hanging:?}");
    assert!(
        site.nodes.link("g", Health::Cut).await.unwrap_err().to_string().contains("no forwarder is named g")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_run_in_their_namespace_and_end_when_told() {
    let (site, _directory) = site().await;
    let nodes = &site.nodes;
    assert!(nodes.run("b", &["ip", "-o", "addr"]).await.unwrap().contains("192.0.2.2/24"));
    let failed = nodes.run("b", &["ip", "route", "get", "198.51.100.1"]).await.unwrap_err().to_string();
    assert!(failed.contains("in b ended with 2") && failed.contains("unreachable"), "{failed}");
    let slow = nodes.exec(Command { timeout_ms: 200, ..command("a", &["sleep", "60"]) }).await;
    assert!(slow.unwrap_err().to_string().contains("did not end within 200 ms"));

    let script = "echo begun; trap 'echo told; exit 7' TERM; while :; do sleep 0.05; done";
    nodes.spawn("p", command("a", &["sh", "-c", script])).await.unwrap();
    assert!(nodes.spawn("p", command("a", &["true"])).await.is_err(), "two processes of one name");
    wait::until("the process to have begun", PATIENCE, async || {
        ensure!(nodes.read("/run/lab/log/p.log").await?.contains("begun"), "its log is empty");
        Ok(())
    })
    .await
    .unwrap();
    nodes.signal("p", 15).await.unwrap();
    assert_eq!(nodes.wait("p").await.unwrap(), 7);
    assert!(nodes.read("/run/lab/log/p.log").await.unwrap().contains("told"));
    assert!(nodes.signal("p", 15).await.unwrap_err().to_string().contains("has ended with 7"));
    nodes.kill("p").await.unwrap();
    assert!(nodes.processes().await.unwrap().is_empty());

    nodes.write("/run/lab/x/file", "whole\n", 0o600, None).await.unwrap();
    assert_eq!(nodes.read("/run/lab/x/file").await.unwrap(), "whole\n");
    nodes.remove("/run/lab/x").await.unwrap();
    assert!(nodes.read("/run/lab/x/file").await.is_err());
    assert!(!fs::exists("/run/lab/log/p.log").unwrap(), "the node side shows its files to this machine");

    let line = nodes.ip(Some("a"), vec!["link set lo up".into(), "link set nobody up".into()]).await;
    let line = line.unwrap_err().to_string();
    assert!(line.contains("`ip link set nobody up` in a"), "{line}");
    let dump = nodes.dump().await.unwrap();
    assert!(dump["a/ip.txt"].contains("192.0.2.1"), "{:?}", dump.keys());
    assert!(dump["a/fdb.txt"].contains("dev ve0"), "{}", dump["a/fdb.txt"]);
    assert!(dump["log/p.log"].contains("told"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_the_lab() -> Result<()> {
    let (site, _directory) = site().await;
    // No other process of the machine sleeps for exactly so long.
    let seconds = format!("{}.4217", 100_000 + std::process::id());
    site.nodes
        .spawn("orphan", command("a", &["sh", "-c", &format!("setsid sleep {seconds} & wait")]))
        .await?;
    wait::until("the sleeper to sleep", PATIENCE, async || {
        ensure!(runs(&seconds), "it does not yet");
        Ok(())
    })
    .await?;
    drop(site);
    wait::until("the sleeper to be gone", PATIENCE, async || {
        ensure!(!runs(&seconds), "it sleeps on");
        Ok(())
    })
    .await
}

fn runs(argument: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .any(|line| line.starts_with("sleep\0") && line.contains(argument))
}
