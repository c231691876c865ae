//! Real BIRD daemons in network namespaces: two nodes in a mesh, and a fabric that is the peer of one of them.
//!
//! Every link to the fabric is one peer with filters of its own, and a table of its own in the fabric's BIRD: what is
//! in that table is what Calico would tell such a peer.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{self, Child, Command},
    time::Duration,
};

use anyhow::{Result, ensure};
use calico_vni_e2e::{calico::Family, wait};

use crate::support::{cluster, config};

/// Time for the sessions: Calico's connect delay, its retry, and a machine that has other things to do.
const LIMIT: Duration = Duration::from_mins(1);

const OBJECTS: &str = "
kind: Node
metadata:
  name: n1
  annotations: { projectcalico.org/IPv4Address: 172.18.0.11/24, projectcalico.org/IPv6Address: 'fd18::11/64' }
---
kind: Node
metadata: { name: n2, annotations: { projectcalico.org/IPv4Address: 172.18.0.12/24 } }
---
kind: IPPool
metadata: { name: red }
spec: { cidr: 10.200.0.0/16 }
---
kind: IPPool
metadata: { name: blue }
spec: { cidr: 10.201.0.0/16 }
---
kind: IPPool
metadata: { name: quiet }
spec: { cidr: 10.202.0.0/16, disableBGPExport: true }
---
kind: IPPool
metadata: { name: blue-v6 }
spec: { cidr: 'fd00:201::/48' }
---
kind: BlockAffinity
metadata: { name: a }
spec: { node: n1, cidr: 10.200.0.0/26, state: confirmed }
---
kind: BlockAffinity
metadata: { name: b }
spec: { node: n1, cidr: 10.202.0.0/26, state: confirmed }
---
kind: BlockAffinity
metadata: { name: c }
spec: { node: n1, cidr: 'fd00:201::/122', state: confirmed }
---
kind: BlockAffinity
metadata: { name: d }
spec: { node: n2, cidr: 10.200.128.0/26, state: confirmed }
---
kind: BlockAffinity
metadata: { name: e }
spec: { node: n2, cidr: 10.201.0.0/26, state: confirmed }
---
kind: BGPFilter
metadata: { name: one-pool }
spec:
  exportV4:
  - { source: RemotePeers, action: Reject }
  - { cidr: 10.200.0.0/16, matchOperator: NotIn, action: Reject }
  importV4:
  - { action: Reject }
---
kind: BGPFilter
metadata: { name: lengths }
spec:
  exportV4:
  - { source: RemotePeers, action: Reject }
  - { cidr: 10.200.0.0/16, matchOperator: In, prefixLength: { min: 16, max: 26 }, action: Accept }
  - { action: Reject }
---
kind: BGPFilter
metadata: { name: pods }
spec:
  exportV4:
  - { source: RemotePeers, action: Reject }
  - { cidr: 10.200.0.0/16, matchOperator: In, prefixLength: { min: 16, max: 26 }, action: Accept }
  - { cidr: 10.200.0.0/16, matchOperator: In, prefixLength: { min: 32, max: 32 }, interface: 'cali*', action: Accept }
  - { action: Reject }
---
kind: BGPFilter
metadata: { name: no-length }
spec:
  exportV4:
  - { cidr: 10.200.0.0/16, matchOperator: In, action: Accept }
  - { action: Reject }
---
kind: BGPFilter
metadata: { name: quiet }
spec:
  exportV4:
  - { cidr: 10.202.0.0/16, matchOperator: In, prefixLength: { max: 26 }, action: Accept }
  - { action: Reject }
";

/// The peers: name (of peer, table and link), its BGPFilter, what it gets, and what it announces to the node.
const PEERS: [(&str, Option<&str>, &[&str], &str); 7] = [
    ("open", None, &["10.200.0.0/26", "10.200.128.0/26", "10.200.128.9/32", "10.201.0.0/26"], "0.0.0.0/0"),
    (
        "gone",
        Some("not-there"),
        &["10.200.0.0/26", "10.200.128.0/26", "10.200.128.9/32", "10.201.0.0/26"],
        "10.91.0.0/16",
    ),
    ("onepool", Some("one-pool"), &["10.200.0.0/26", "10.200.128.9/32"], "10.92.0.0/16"),
    ("lengths", Some("lengths"), &["10.200.0.0/26"], "10.93.0.0/16"),
    ("pods", Some("pods"), &["10.200.0.0/26", "10.200.0.5/32", "10.200.128.9/32"], "10.94.0.0/16"),
    (
        "nolength",
        Some("no-length"),
        &["10.200.0.0/26", "10.200.0.5/32", "10.200.128.0/26", "10.200.128.9/32"],
        "10.95.0.0/16",
    ),
    ("quiet", Some("quiet"), &["10.202.0.0/26"], "10.96.0.0/16"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_calico_tells_its_peers_and_takes_from_them() -> Result<()> {
    let mut net = Net::new();
    for ns in ["n1", "n2", "fabric"] {
        net.namespace(ns);
    }
    net.link("mesh", "n1", "172.18.0.11/24", "n2", "172.18.0.12/24");
    let (mut objects, mut fabric, mut fabric6) = (OBJECTS.to_owned(), FABRIC.to_owned(), FABRIC.to_owned());
    for (i, (name, filter, _, announces)) in PEERS.iter().enumerate() {
        let (host, router) = (format!("169.254.192.{}", 2 * i), format!("169.254.192.{}", 2 * i + 1));
        net.link(name, "n1", &format!("{host}/31"), "fabric", &format!("{router}/31"));
        objects += &peer(name, &router, *filter);
        fabric += &fabric_peer(name, &host, announces);
    }
    // The filter of this peer has IPv4 rules alone.
    for (ns, address) in [("n1", "fd42::/127"), ("fabric", "fd42::1/127")] {
        net.ip(ns, &format!("address add {address} dev onepool nodad"));
    }
    objects += &peer("onepool-v6", "fd42::1", Some("one-pool"));
    fabric6 += &fabric_peer("onepool", "fd42::", "fd99::/48");
    // Pods: one in the node's own block, one with an address borrowed from the other node's, one of the quiet pool.
    net.ip("n1", "link add cali0 type veth peer name pod0");
    net.ip("n1", "link set cali0 up");
    net.ip("n1", "link set pod0 up");
    for pod in ["10.200.0.5/32", "10.200.128.9/32", "10.202.0.6/32"] {
        net.ip("n1", &format!("route add {pod} dev cali0 scope link metric 1024"));
    }

    let cluster = cluster(&objects);
    net.bird("n1", Family::V4, &config(&cluster, "n1", Family::V4).text());
    net.bird("n1", Family::V6, &config(&cluster, "n1", Family::V6).text());
    net.bird("n2", Family::V4, &config(&cluster, "n2", Family::V4).text());
    net.bird("fabric", Family::V4, &fabric);
    net.bird("fabric", Family::V6, &fabric6);

    for (name, _, expected, _) in PEERS {
        let expected: BTreeSet<_> = expected.iter().map(|&net| net.to_owned()).collect();
        wait::until(&format!("what {name} gets"), LIMIT, async || {
            let got = net.table("fabric", Family::V4, name);
            ensure!(got == expected, "{got:?} instead of {expected:?}");
            Ok(())
        })
        .await?;
    }
    wait::until("what IPv6 gets past a filter for IPv4", LIMIT, async || {
        let got = net.table("fabric", Family::V6, "onepool");
        ensure!(got == ["fd00:201::/122".to_owned()].into(), "{got:?}");
        Ok(())
    })
    .await?;

    // Without rules for import, whatever the peer announces ends up in the main table; with them, nothing does. The
    // metric of what comes by eBGP is 2147483647 less BIRD's default for the local preference, which is 100.
    wait::until("the routes of all peers without import rules in the main table", LIMIT, async || {
        let main = net.ip("n1", "route show table main");
        ensure!(main.contains("default via 169.254.192.1 dev open proto bird metric 2147483547"), "{main}");
        for learned in ["10.91.0.0/16", "10.93.0.0/16", "10.94.0.0/16", "10.95.0.0/16", "10.96.0.0/16"] {
            ensure!(main.contains(learned), "{learned} is missing in {main}");
        }
        ensure!(!main.contains("10.92.0.0/16"), "{main}");
        ensure!(main.contains("10.201.0.0/26 via 172.18.0.12 dev mesh proto bird metric 1024"), "{main}");
        ensure!(main.contains("blackhole 10.200.0.0/26 proto bird"), "{main}");
        Ok(())
    })
    .await?;
    wait::until("what IPv6 takes past a filter for IPv4", LIMIT, async || {
        let main = net.ip("n1", "-6 route show table main");
        // By the peer's global address, or by its link-local one where that was ready when the session began.
        let learned = main.lines().find(|route| route.starts_with("fd99::/48 via "));
        ensure!(learned.is_some_and(|route| route.contains("dev onepool proto bird")), "{main}");
        Ok(())
    })
    .await?;

    // The mesh: own blocks and the borrowed address, without any filter; the quiet pool and foreign routes not.
    let own = ["10.200.0.0/26", "10.200.128.9/32"].map(str::to_owned).into();
    wait::until("n1's routes in n2", LIMIT, async || {
        let got = net.routes("n2", Family::V4, "show route protocol Mesh_172_18_0_11");
        ensure!(got == own, "{got:?}");
        Ok(())
    })
    .await
}

/// The fabric's BIRD, before its peers.
const FABRIC: &str =
    "router id 169.254.255.1;\nprotocol device { scan time 2; }\nprotocol direct { interface \"*\"; }\n";

/// A peer of the fabric's BIRD that keeps what it gets in a table, and announces one prefix.
fn fabric_peer(name: &str, host: &str, announces: &str) -> String {
    format!(
        "table {name};
protocol static {{ table {name}; route {announces} blackhole; }}
protocol bgp {{
  table {name};
  local as 65001;
  neighbor {host} as 64512;
  direct;
  connect delay time 1;
  import all;
  export where source = RTS_STATIC;
}}
"
    )
}

fn peer(name: &str, address: &str, filter: Option<&str>) -> String {
    let filters = filter.into_iter().collect::<Vec<_>>().join(", ");
    format!(
        "---\nkind: BGPPeer\nmetadata: {{ name: {name} }}\nspec: {{ node: n1, peerIP: '{address}', asNumber: 65001, \
         sourceAddress: None, filters: [{filters}] }}\n"
    )
}

/// Namespaces and daemons that end with the test.
struct Net {
    prefix: String,
    dir: tempfile::TempDir,
    namespaces: Vec<String>,
    daemons: Vec<Child>,
}

impl Net {
    fn new() -> Self {
        let prefix = format!("cvconfd{}", process::id());
        Self { prefix, dir: tempfile::tempdir().unwrap(), namespaces: Vec::new(), daemons: Vec::new() }
    }

    fn name(&self, ns: &str) -> String {
        format!("{}-{ns}", self.prefix)
    }

    fn namespace(&mut self, ns: &str) {
        let name = self.name(ns);
        run("ip", &["netns", "add", &name]);
        self.namespaces.push(name);
        self.ip(ns, "link set lo up");
    }

    /// A veth of one name at both ends.
    fn link(&self, name: &str, a: &str, a_address: &str, b: &str, b_address: &str) {
        let (a_ns, b_ns) = (self.name(a), self.name(b));
        run(
            "ip",
            &["link", "add", name, "netns", &a_ns, "type", "veth", "peer", "name", name, "netns", &b_ns],
        );
        for (ns, address) in [(a, a_address), (b, b_address)] {
            self.ip(ns, &format!("address add {address} dev {name}"));
            self.ip(ns, &format!("link set {name} up"));
        }
    }

    fn ip(&self, ns: &str, args: &str) -> String {
        let ns = self.name(ns);
        let mut all = vec!["-n", &ns];
        all.extend(args.split(' '));
        run("ip", &all)
    }

    fn file(&self, ns: &str, family: Family, end: &str) -> PathBuf {
        self.dir.path().join(format!("{ns}.{}.{end}", family.daemon()))
    }

    fn bird(&mut self, ns: &str, family: Family, text: &str) {
        let [config, socket, pid] = ["cfg", "ctl", "pid"].map(|end| self.file(ns, family, end));
        fs::write(&config, text).unwrap();
        let daemon = Command::new("ip")
            .args(["netns", "exec", &self.name(ns), family.daemon(), "-f", "-c"])
            .args([&config, Path::new("-s"), &socket, Path::new("-P"), &pid])
            .spawn();
        self.daemons.push(daemon.unwrap());
    }

    fn table(&self, ns: &str, family: Family, table: &str) -> BTreeSet<String> {
        self.routes(ns, family, &format!("show route table {table} where source = RTS_BGP"))
    }

    /// The prefixes that a command of BIRD shows; none while the daemon does not answer.
    fn routes(&self, ns: &str, family: Family, command: &str) -> BTreeSet<String> {
        let client = if family == Family::V4 { "birdc" } else { "birdc6" };
        let socket = self.file(ns, family, "ctl");
        let shown =
            Command::new(client).arg("-r").arg("-s").arg(socket).args(command.split(' ')).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let prefixes = shown.lines().filter_map(|line| line.split(' ').next());
        prefixes.filter(|word| word.contains('/')).map(str::to_owned).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for ns in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
