//! What a plan costs when one tenant of a large cluster changes: `make bench-plan`, or with other sizes
//! `cargo bench -p calico-vni-planner --bench plan -- 1000 5000 20` (tenants, nodes, tenants on each node).
//!
//! Besides the plan, two yardsticks of the same run: the copy of the snapshot that a plan spares whoever keeps its objects
//! elsewhere, and the comparison of two plans.

use std::{fs, hint::black_box, sync::Arc, time::Duration};

use calico_vni_planner::{Snapshot, plan, simulate, snapshot::Agent};
use serde_json::{Value, json};

/// Rounds whose median is printed.
const ROUNDS: usize = 29;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [tenants, nodes, each] = sizes[..] else { return bench(1000, 5000, 20) };
    bench(tenants, nodes, each);
}

fn bench(tenants: usize, nodes: usize, each: usize) {
    let mut snapshot = settled(tenants, nodes, each);
    let before = plan(&snapshot);
    let carried: usize = before.nodes.values().map(|config| config.tenants.len()).sum();
    assert_eq!(carried, nodes * each, "every node carries its tenants");

    let (mut planning, mut comparing, mut copying) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        snapshot.tenants[round * 37 % tenants].spec.max_prefixes += 1;
        let started = cpu_time();
        let after = black_box(plan(black_box(&snapshot)));
        planning.push(cpu_time().saturating_sub(started));
        let started = cpu_time();
        assert_ne!(black_box(&before), black_box(&after), "one tenant changed");
        let differ = before.nodes.iter().filter(|(name, config)| after.nodes[*name] != **config).count();
        comparing.push(cpu_time().saturating_sub(started));
        assert!(differ >= each.min(nodes / tenants), "its nodes get another configuration");
        let started = cpu_time();
        let copy = black_box(snapshot.clone());
        copying.push(cpu_time().saturating_sub(started));
        drop(copy);
    }
    let [planning, comparing, copying] = [planning, comparing, copying].map(median);
    println!(
        "{tenants} tenants, {nodes} nodes, {each} tenants on each; medians of {ROUNDS}, time of one core"
    );
    println!("re-plan             {planning:8.1} ms");
    println!("compare all nodes   {comparing:8.1} ms   {:.2} of a re-plan", comparing / planning);
    println!("copy the snapshot   {copying:8.1} ms   {:.2} of a re-plan", copying / planning);
}

/// Time that this thread has had a core: what else runs on the machine does not count.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("proc(5)");
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("the first number is the time on a core"))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// A cluster at rest in which every router has said that it carries what it should.
fn settled(tenants: usize, nodes: usize, each: usize) -> Snapshot {
    let mut snapshot = Snapshot::from_objects(objects(tenants, nodes, each)).expect("well-formed objects");
    let agent = Arc::new(Agent { frr_running: true, ..Agent::default() });
    snapshot.agents = (0..nodes).map(|n| (node_name(n), Arc::clone(&agent))).collect();
    let (rest, _) = simulate::settle(&snapshot).expect("it comes to rest");
    rest
}

fn node_name(n: usize) -> String {
    format!("node-{n:05}")
}

/// Node `n` holds a block of each of `each` tenants that follow one another from tenant `n * each` on.
fn objects(tenants: usize, nodes: usize, each: usize) -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": "fabric", "uid": "u" },
        "spec": {
            "asn": 65000, "vtepCIDR": "172.16.0.0/16", "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }],
            "interfaces": [{ "name": "eth1" }],
        },
    })];
    for t in 0..tenants {
        objects.push(json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
            "metadata": { "name": format!("t{t:04}"), "uid": format!("t-{t}") }, "spec": { "vni": 10_000 + t },
        }));
        objects.push(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": { "name": format!("p{t:04}"), "annotations": { "calico-vni.io/tenant": format!("t{t:04}") } },
            "spec": { "cidr": format!("10.{}.{}.0/22", t / 64, t % 64 * 4), "blockSize": 30, "natOutgoing": false },
        }));
    }
    let mut blocks = vec![0; tenants];
    for n in 0..nodes {
        let labels: serde_json::Map<_, _> =
            (0..8).map(|i| (format!("example.org/label-{i}"), json!(format!("{}", n % (i + 2))))).collect();
        objects.push(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node_name(n), "labels": labels } }));
        for t in (0..each).map(|k| (n * each + k) % tenants) {
            let (third, fourth) = (t % 64 * 4 + blocks[t] / 64, blocks[t] % 64 * 4);
            blocks[t] += 1;
            objects.push(json!({
                "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity", "metadata": { "name": format!("{n}-{t}") },
                "spec": { "node": node_name(n), "cidr": format!("10.{}.{third}.{fourth}/30", t / 64), "state": "confirmed" },
            }));
        }
    }
    objects
}
