//! Services in front of a tenant's pods, with Kubernetes' own kube-proxy in each of its modes: by a Service's address pods of
//! the tenant reach each other, on the node and across, and a node its own pods; by a node's port or a load balancer's
//! address nobody outside of the VRF reaches them.
//!
//! What must not arrive is counted in the pod's namespace whatever its source has become: kube-proxy rewrites it. Each way is
//! also tried with a pod of the default pool behind the same Service, who does answer.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{spoofing::lab_counters, transitions};
use crate::{
    calico::Family,
    matrix::Place,
    nodes::{
        RUN_DIR,
        protocol::{Command, Probe},
    },
    step,
    topology::{Node, OUTSIDE, PORT},
    wait,
    world::{PATIENCE, World},
};

/// Port on a node's own loopback by which its kube-proxy reaches the API server; confd may have 6443.
const API_SERVER: u16 = 6444;

/// The Service in namespace `default`, its own port, and its port on nodes.
const SERVICE: &str = "web";
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// What a load balancer would lead to the nodes; `outside` routes it to n1.
const BALANCED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

/// Plays it in each of kube-proxy's modes that are not refused.
pub async fn play(world: &mut World) -> Result<()> {
    let played = async {
        for mode in ["nftables", "iptables"] {
            in_mode(world, mode).await.with_context(|| format!("kube-proxy in mode {mode}"))?;
        }
        Ok(())
    }
    .await;
    world
        .kubectl(&["delete", "service,endpointslices", "-l", "lab=node-services", "--ignore-not-found"])
        .await?;
    played
}

async fn in_mode(world: &World, mode: &str) -> Result<()> {
    let front = service(world).await?;
    for node in &world.lab.members {
        start_proxy(world, node, mode).await?;
    }
    let route =
        |verb: &str| vec![format!("route {verb} {BALANCED} via {}", world.lab.members[0].addresses().v4)];
    world.lab.nodes().ip(Some(OUTSIDE), route("replace")).await?;
    let played = ways(world, mode, front).await;
    world.lab.nodes().ip(Some(OUTSIDE), route("del")).await?;
    for node in &world.lab.members {
        stop_proxy(world, node, mode).await?;
    }
    played
}

/// How long a kube-proxy may take to its first rules: it starts some dozens of programs, each of them dear under emulation.
const FIRST_RULES: Duration = Duration::from_mins(4);

/// Where a Service is reached.
#[derive(Clone, Copy)]
enum Front {
    Cluster(IpAddr),
    NodePort(IpAddr),
    Balanced,
}

impl Front {
    fn target(self) -> (IpAddr, u16) {
        match self {
            Self::Cluster(address) => (address, SERVICE_PORT),
            Self::NodePort(address) => (address, NODE_PORT),
            Self::Balanced => (BALANCED.into(), SERVICE_PORT),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cluster(_) => "the Service's address",
            Self::NodePort(_) => "a node's port",
            Self::Balanced => "the load balancer's address",
        }
    }
}

async fn ways(world: &World, mode: &str, cluster: IpAddr) -> Result<()> {
    let places = transitions::places(world, &["red", "blue"]);
    let [n1, n2] = [0, 1].map(|number| Front::NodePort(world.lab.members[number].addresses().v4.into()));
    let cluster = Front::Cluster(cluster);
    // Who asks, by which address, who is behind it, and whether it answers.
    let mut tried = [0, 0];
    for (behind, asked) in [
        // The twins: every way leads somewhere.
        (
            "dflt-n1-a",
            &[
                (OUTSIDE, n1, true),
                (OUTSIDE, n2, true),
                (OUTSIDE, Front::Balanced, true),
                ("n1", cluster, true),
                ("n2", cluster, true),
                ("dflt-n2-a", cluster, true),
                ("red-n1-a", cluster, false),
                ("red-n2-a", cluster, false),
            ][..],
        ),
        (
            "red-n1-a",
            &[
                ("red-n2-a", cluster, true),
                ("n1", cluster, true),
                ("n2", cluster, false),
                ("blue-n1-a", cluster, false),
                ("blue-n2-a", cluster, false),
                ("dflt-n1-a", cluster, false),
                ("dflt-n2-a", cluster, false),
                (OUTSIDE, n1, false),
                (OUTSIDE, n2, false),
                (OUTSIDE, Front::Balanced, false),
                ("blue-n1-a", n1, false),
            ],
        ),
        ("blue-n2-a", &[("blue-n1-a", cluster, true), ("red-n2-a", cluster, false), (OUTSIDE, n2, false)]),
    ] {
        let find = |name: &str| places.iter().find(|p| p.name == name).with_context(|| name.to_owned());
        put_behind(world, mode, find(behind)?).await?;
        for &(from, front, answers) in asked {
            one(world, find(from)?, front, find(behind)?, answers).await?;
            tried[usize::from(answers)] += 1;
        }
    }
    step!(
        "kube-proxy in mode {mode}: {} ways to a Service answer, by {} nothing arrives",
        tried[1],
        tried[0]
    );
    Ok(())
}

async fn one(world: &World, from: &Place, front: Front, behind: &Place, answers: bool) -> Result<()> {
    let what = format!("{} by {} to {}", from.name, front.name(), behind.name);
    let (target, port) = front.target();
    let probe = Probe {
        netns: from.netns.clone(),
        source: None,
        target,
        port: Some(port),
        count: 1,
        timeout_ms: if answers { 5_000 } else { 2_500 },
        count_in: None,
    };
    let before = arrived(world, behind).await?;
    if answers {
        return wait::until(&what, PATIENCE, async || {
            let result = world.lab.nodes().probe(vec![probe.clone()]).await?;
            ensure!(result[0].answered(), "{}", result[0].error);
            ensure!(arrived(world, behind).await? > before, "it was not counted where it arrived");
            Ok(())
        })
        .await;
    }
    let result = world.lab.nodes().probe(vec![probe]).await?;
    let came = arrived(world, behind).await? - before;
    ensure!(!result[0].answered() && came == 0, "{what}: {came} packets arrived, {:?}", result[0]);
    Ok(())
}

/// SYNs that have come to a pod's port, counted from the first call on.
async fn arrived(world: &World, place: &Place) -> Result<u64> {
    let counters = if let Ok(counters) = lab_counters(world, &place.netns).await {
        counters
    } else {
        let rules = format!(
            "add table inet lab; add chain inet lab input {{ type filter hook input priority 0; }}; \
             add counter inet lab syns; \
             add rule inet lab input tcp dport {PORT} tcp flags & (syn|ack) == syn counter name syns"
        );
        world.lab.nodes().run(&place.netns, &["nft", &rules]).await?;
        lab_counters(world, &place.netns).await?
    };
    counters.get("syns").copied().context("no counter of SYNs")
}

/// Makes the Service, and returns its own address.
async fn service(world: &World) -> Result<IpAddr> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": SERVICE, "namespace": "default", "labels": { "lab": "node-services" } },
        "spec": {
            "type": "LoadBalancer",
            "ports": [{ "name": "web", "port": SERVICE_PORT, "targetPort": PORT, "nodePort": NODE_PORT }],
        },
    });
    world.apply(&service).await?;
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": BALANCED }] } } }).to_string();
    world
        .kubectl(&["patch", "service", SERVICE, "--subresource=status", "--type=merge", "-p", &status])
        .await?;
    // kube-proxy waits for the addresses of its node.
    for node in &world.lab.members {
        let address = json!({ "type": "InternalIP", "address": node.addresses().v4 });
        let status = json!({ "status": { "addresses": [address] } }).to_string();
        world
            .kubectl(&["patch", "node", &node.name, "--subresource=status", "--type=merge", "-p", &status])
            .await?;
    }
    let address = world.kubectl(&["get", "service", SERVICE, "-o", "jsonpath={.spec.clusterIP}"]).await?;
    address.parse().with_context(|| format!("address `{address}` of the Service"))
}

/// Has this pod alone behind the Service, and waits until every kube-proxy knows it.
async fn put_behind(world: &World, mode: &str, place: &Place) -> Result<()> {
    let address = place.addresses.of(Family::V4);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": SERVICE, "lab": "node-services" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "web", "protocol": "TCP", "port": PORT }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
    });
    world.apply(&slice).await?;
    for node in &world.lab.members {
        wait::until(
            &format!("kube-proxy of {} to lead to {}", node.name, place.name),
            FIRST_RULES,
            async || {
                let rules = rules(world, node, mode).await?;
                ensure!(rules.contains(&endpoint(mode, address)), "its rules do not name {address}");
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

/// What a mode writes, as text.
async fn rules(world: &World, node: &Node, mode: &str) -> Result<String> {
    let argv: &[&str] =
        if mode == "iptables" { &["iptables-save", "-t", "nat"] } else { &["nft", "list", "ruleset"] };
    world.lab.nodes().run(&node.name, argv).await
}

/// How a mode's rules name an endpoint.
fn endpoint(mode: &str, address: impl Display) -> String {
    if mode == "iptables" { format!("{address}:{PORT}") } else { format!("{address} . {PORT}") }
}

fn proxy_dir(node: &Node) -> String {
    format!("{RUN_DIR}/{}-kube-proxy", node.name)
}

fn proxy_name(node: &Node) -> String {
    format!("{}-kube-proxy", node.name)
}

fn configuration(node: &Node, mode: &str, kubeconfig: &str) -> Result<String> {
    let (v4, _) = node.networks();
    // Limits of connections are the machine's and not a namespace's; the lab leaves them alone.
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": node.name,
        "bindAddress": node.addresses().v4,
        "clientConnection": { "kubeconfig": kubeconfig },
        // What comes from a pod keeps its source, whichever pool it is of. By `clusterCIDR` it would be rewritten where that
        // does not hold the tenants' pools, and no answer would find its way through the VRF.
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": { "interfaceNamePrefix": "cali" },
        "nodePortAddresses": [v4.trunc()],
        "healthzBindAddress": "",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    });
    serde_yaml::to_string(&configuration).context("a configuration")
}

async fn start_proxy(world: &World, node: &Node, mode: &str) -> Result<()> {
    let (nodes, name) = (world.lab.nodes(), node.name.as_str());
    let dir = proxy_dir(node);
    let kubeconfig = world.reach_api_server(node, "kube-proxy", API_SERVER, &dir).await?;
    let file = format!("{dir}/config.yaml");
    nodes.write(&file, &configuration(node, mode, &kubeconfig)?, 0o644, None).await?;
    let command = Command {
        netns: Some(name.to_owned()),
        argv: vec![world.lab.site.kube_proxy.clone(), "--config".into(), file],
        ..Command::default()
    };
    nodes.spawn(&proxy_name(node), command).await.map(drop)
}

/// Ends it and takes its rules away, as its own `--cleanup` does.
async fn stop_proxy(world: &World, node: &Node, mode: &str) -> Result<()> {
    let nodes = world.lab.nodes();
    nodes.kill(&proxy_name(node)).await?;
    let file = format!("{}/config.yaml", proxy_dir(node));
    let argv = [&world.lab.site.kube_proxy, "--cleanup", "--config", &file];
    let command = Command {
        netns: Some(node.name.clone()),
        argv: argv.map(str::to_owned).into(),
        timeout_ms: 60_000,
        ..Command::default()
    };
    let output = nodes.exec(command).await?;
    ensure!(output.code == 0, "kube-proxy --cleanup in mode {mode}: {}", output.stderr);
    let rules = rules(world, node, mode).await?;
    ensure!(!rules.contains(&endpoint(mode, "")), "rules of kube-proxy are left on {}: {rules}", node.name);
    Ok(())
}
