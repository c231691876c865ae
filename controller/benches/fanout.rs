//! How the controller's cost grows with the cluster: `make bench-fanout`, or with other sizes
//! `cargo bench -p calico-vni-controller --bench fanout -- --sizes 500,1000`.
//!
//! The controller's own loop runs in this process up to where nodes are told, and its gRPC server, without an API server; the
//! agents run in another one, each with a connection of its own over loopback and TLS, check whom they talk to, decode what they
//! get, and answer as real ones do. Their tokens are looked at here, where the real controller asks the API server. What is
//! printed is measured here: from a Tenant's change (what a reflector would tell) to the last affected agent's word. `re-plan`
//! is all from observing to what the API server would have to be written, and `publish` what follows for nodes.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    iter,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use calico_vni_controller::{
    agents::{Agents, VERSION},
    apply::{
        Applier, Pass,
        write::{Cluster, Stored, Write, WriteError},
    },
    grpc::{self, AGE, Access, Gate, door::Door},
    metrics::Metrics,
    observe::{Observed, parsed},
    planning::Planning,
    publish::Publisher,
    runtime::GATHER,
};
use calico_vni_identity::{
    SERVER_NAME,
    authority::Authority,
    serving::Certificate,
    token::{Denied, Proof},
};
use calico_vni_planner::{Snapshot, simulate};
use calico_vni_proto::{
    codec::{Codec as _, Digest},
    model::{NodeConfig, Tenant},
    wire::{self, from_agent, from_controller, router_client::RouterClient},
};
use clap::Parser;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{Resource, ResourceExt as _, core::DynamicObject};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    transport::{self, ClientTlsConfig, Endpoint},
};

/// Changes of one tenant that are measured, one after the other.
const CHANGES: usize = 40;
/// How often it is looked whether all agents are in step.
const LOOK: Duration = Duration::from_millis(5);
/// Nobody waits longer than this for agents.
const PATIENCE: Duration = Duration::from_mins(3);

#[derive(Parser)]
struct Args {
    /// Numbers of agents.
    #[arg(long, value_delimiter = ',', default_value = "500,1000,2500,5000")]
    sizes: Vec<usize>,
    /// Tenants in the cluster.
    #[arg(long, default_value_t = 1000)]
    tenants: usize,
    /// Tenants on each node.
    #[arg(long, default_value_t = 20)]
    each: usize,
    /// Play the agents: that many, against the controller at this address, which this authority speaks for.
    #[arg(long, num_args = 3, allow_hyphen_values = true, hide = true)]
    agents: Option<Vec<String>>,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Some([address, number, authority]) = args.agents.as_deref() {
        let number = number.parse().expect("a number of agents");
        return runtime.block_on(play_agents(&endpoint(address, authority), number));
    }
    println!("{} tenants, {} on each node; times in ms", args.tenants, args.each);
    println!("{:>12} {}", "agents", COLUMNS.map(|(name, _)| format!("{name:>11}")).concat());
    let rows: Vec<Row> = args.sizes.iter().map(|&size| runtime.block_on(measure(&args, size))).collect();
    let goals = COLUMNS.map(|(_, goal)| goal.map_or_else(String::new, |goal| format!("<= {goal:.0}")));
    println!("{:>12} {}", "goal", goals.map(|goal| format!("{goal:>11}")).concat());
    if let (Some(first), Some(last)) = (rows.first(), rows.last().filter(|_| rows.len() > 1)) {
        let grown: Vec<String> =
            first.iter().zip(last).map(|(a, b)| format!("{:>11}", format!("x{:.1}", b / a))).collect();
        let agents = format!("{} to {}", args.sizes[0], args.sizes[rows.len() - 1]);
        println!("{agents:>12} {}", grown.concat());
    }
}

/// What is measured beside the number of agents, and on two cores the goals for 5,000 of them.
const COLUMNS: [(&str, Option<f64>); 8] = [
    ("storm", Some(60_000.0)),
    ("re-plan", Some(100.0)),
    ("publish", None),
    ("change p50", None),
    ("change p99", Some(300.0)),
    ("bytes sent", None),
    ("affected", None),
    ("RSS MB", Some(500.0)),
];

type Row = [f64; COLUMNS.len()];

fn name(node: usize) -> String {
    format!("node-{node:05}")
}

fn tenant_name(tenant: usize) -> String {
    format!("t{tenant:04}")
}

fn tenant(number: usize) -> Value {
    json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
        "metadata": { "name": tenant_name(number), "uid": format!("t-{number}") },
        "spec": { "vni": 10_000 + number, "maxPrefixes": 1000 },
    })
}

/// Tenant `t` lives on the nodes where `(node + t) % (tenants / each)` is zero, so every node has `each` of them.
fn cluster(tenants: usize, each: usize, nodes: usize) -> Snapshot {
    let stride = tenants / each;
    let underlay = json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": "fabric", "uid": "u" },
        "spec": {
            "asn": 65001, "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }], "interfaces": [{ "name": "eth1" }],
            "vtepCIDR": "10.128.0.0/16", "hostLinkCIDR": "169.254.192.0/18",
        },
    });
    let pool = |t| {
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {
                "name": format!("pool-{t}"), "uid": format!("p-{t}"),
                "annotations": { "calico-vni.io/tenant": tenant_name(t) },
            },
            "spec": { "cidr": format!("10.{}.{}.0/21", t / 32, (t % 32) * 8), "blockSize": 31 },
        })
    };
    let node = |n| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {
                "name": name(n), "uid": format!("n-{n}"), "labels": { "kubernetes.io/hostname": name(n) },
            },
        })
    };
    let block = |n, k| {
        let t = (stride - n % stride) % stride + k * stride;
        // Addresses of a pool are given to its nodes in turn; which one is which does not matter here.
        let host = 2 * (n / stride % 1024);
        let (c, d) = ((t % 32) * 8 + host / 256, host % 256);
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": { "name": format!("{}-{t}", name(n)) },
            "spec": { "node": name(n), "cidr": format!("10.{}.{c}.{d}/31", t / 32), "state": "confirmed" },
        })
    };
    // One by one, as a reflector gets them: what they are made of should not count as the controller's memory.
    let objects = iter::once(underlay)
        .chain((0..tenants).flat_map(|t| [tenant(t), pool(t)]))
        .chain((0..nodes).flat_map(|n| iter::once(node(n)).chain((0..each).map(move |k| block(n, k)))));
    Snapshot::from_objects(objects).expect("well-formed objects")
}

/// Whoever has a token of this kind has it from nobody but the node itself.
struct Simulated;

impl Proof for Simulated {
    fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>> {
        let node = token.strip_prefix(TOKEN).map(str::to_owned);
        Box::pin(std::future::ready(node.ok_or(Denied::NotBound)))
    }

    fn viewer<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(std::future::ready(Err(Denied::NotBound)))
    }
}

/// Begins a simulated token; the node's name follows.
const TOKEN: &str = "token-of-";

async fn measure(args: &Args, size: usize) -> Row {
    let mut snapshot = cluster(args.tenants, args.each, size);
    // What the agents of a settled cluster have said: every node carries what it should.
    for n in 0..size {
        let agent = calico_vni_planner::snapshot::Agent { frr_running: true, ..Default::default() };
        snapshot.agents.insert(name(n), agent.into());
    }
    let (snapshot, settled) = simulate::settle(&snapshot).expect("the plan comes to rest");
    let carried: usize = settled.nodes.values().map(|config| config.tenants.len()).sum();
    let why = || settled.tenant_status.values().next().cloned();
    assert_eq!(
        carried,
        size * args.each,
        "every node carries its tenants: {:?} {:?}",
        why(),
        settled.underlay_status
    );

    let changed = Arc::new(Notify::new());
    let shutdown = CancellationToken::new();
    let agents = Agents::new(Arc::clone(&changed), shutdown.clone(), Arc::default());
    let mut controller = Controller::new(snapshot, Arc::clone(&agents), changed, size);
    controller.work().await;
    let gate = watch::Sender::new(Gate::Open(Arc::clone(&agents)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let authority = Authority::new(Timestamp::now()).expect("an authority");
    let certificate = Certificate::none();
    let leaf = authority.issue(&[SERVER_NAME.to_owned()], Timestamp::now()).expect("a certificate");
    certificate.set(leaf).expect("it can be used");
    let access =
        Access { certificate: Some(certificate), door: Door::guarded(Arc::new(Simulated)), age: AGE };
    let server = tokio::spawn(grpc::serve(listener, gate.subscribe(), access, shutdown.clone()));

    let started = Instant::now();
    let mut children = Played::start(&address, size, &authority.bundle());
    let storm = controller.run(started).await;
    controller.rest().await;
    controller.replans.clear();
    controller.publishes.clear();
    let before = children.bytes();

    let mut whole = Vec::new();
    for change in 0..CHANGES {
        controller.change((change * 37) % args.tenants, 2000 + u32::try_from(change).expect("few"));
        whole.push(controller.run(Instant::now()).await);
        controller.rest().await;
    }
    let row = [
        ms(storm),
        ms(quantile(&mut controller.replans, 0.5)),
        ms(quantile(&mut controller.publishes, 0.5)),
        ms(quantile(&mut whole, 0.5)),
        ms(quantile(&mut whole, 0.99)),
        number(children.bytes() - before) / number(CHANGES as u64),
        number((size * args.each / args.tenants) as u64),
        number(resident_mb()),
    ];
    println!("{size:>12} {}", row.map(|value| format!("{value:>11.0}")).concat());
    shutdown.cancel();
    children.end();
    server.await.expect("the server does not panic").expect("the server ends well");
    row
}

/// A cluster that is right is written nothing: no write comes before nodes are told of a tenant's change.
struct Right;

impl Cluster for Right {
    async fn write(&self, write: &Write) -> Result<Stored, WriteError> {
        panic!("{write:?} though all is as it should be")
    }
}

/// The controller's one loop up to where nodes are told, without an API server.
struct Controller {
    /// What reflectors hold.
    snapshot: Snapshot,
    peers: BTreeMap<String, Arc<DynamicObject>>,
    filters: BTreeMap<String, Arc<DynamicObject>>,
    agents: Arc<Agents>,
    changed: Arc<Notify>,
    applier: Applier<Right>,
    planning: Planning,
    publisher: Publisher,
    size: usize,
    replans: Vec<Duration>,
    publishes: Vec<Duration>,
}

impl Controller {
    fn new(mut snapshot: Snapshot, agents: Arc<Agents>, changed: Arc<Notify>, size: usize) -> Self {
        let peers = dynamic(&std::mem::take(&mut snapshot.peers));
        let filters = dynamic(&std::mem::take(&mut snapshot.filters));
        // With stages it would be measured how long agents take.
        for underlay in &mut snapshot.underlays {
            underlay.spec.rollout.max_unavailable_percent = 100;
        }
        let metrics = Arc::new(Metrics::default());
        let applier = Applier::new(Right, Arc::clone(&metrics));
        let planning = Planning::new(Duration::from_mins(10), metrics);
        let (publisher, replans, publishes) = Default::default();
        Self {
            snapshot,
            peers,
            filters,
            agents,
            changed,
            applier,
            planning,
            publisher,
            size,
            replans,
            publishes,
        }
    }

    /// What a reflector would tell.
    fn change(&mut self, tenant: usize, max_prefixes: u32) {
        let name = tenant_name(tenant);
        let held = self.snapshot.tenants.iter_mut().find(|held| held.metadata.name.as_ref() == Some(&name));
        held.expect("it is there").spec.max_prefixes = max_prefixes;
        self.changed.notify_one();
    }

    /// Plans and offers once.
    async fn work(&mut self) {
        let started = tokio::time::Instant::now();
        let heard = self.agents.heard();
        let snapshot = Snapshot {
            peers: parsed(&self.peers),
            filters: parsed(&self.filters),
            agents: self.agents.said(),
            ..self.snapshot.clone()
        };
        let (peers, filters) = (self.peers.clone(), self.filters.clone());
        let mut observed = Observed { snapshot, peers, filters };
        self.applier.complete(&mut observed);
        let planned = self.planning.plan(&mut observed.snapshot, &heard, &self.agents.others(), started);
        let mut pass = Pass::new(&planned.plan, &observed);
        self.applier.prepare(&mut pass).await;
        self.applier.withdraw(&mut pass).await;
        self.replans.push(started.elapsed());
        let started = Instant::now();
        self.publisher.publish(&planned.plan, &planned.configs, &self.agents);
        self.publishes.push(started.elapsed());
    }

    /// Works as changes come, and returns the time from `started` until all agents hold and have acknowledged what is
    /// offered since.
    async fn run(&mut self, started: Instant) -> Duration {
        let before = self.replans.len();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = None;
        loop {
            let gathered = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = gathered => {
                    self.work().await;
                    due = None;
                }
                () = self.changed.notified(), if due.is_none() => {
                    due = Some(tokio::time::Instant::now() + GATHER);
                }
                _ = look.tick() => {
                    let standing = self.agents.standing();
                    if standing.in_step == self.size && self.replans.len() > before {
                        return started.elapsed();
                    }
                    assert!(started.elapsed() < PATIENCE, "{standing:?} of {} after {PATIENCE:?}", self.size);
                }
            }
        }
    }

    /// Works until nothing is told any more, so that the next change is measured alone.
    async fn rest(&mut self) {
        while tokio::time::timeout(2 * GATHER, self.changed.notified()).await.is_ok() {
            tokio::time::sleep(GATHER).await;
            self.work().await;
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

/// These, as a reflector holds them.
fn dynamic<K: Serialize + Resource>(objects: &[K]) -> BTreeMap<String, Arc<DynamicObject>> {
    let whole = objects.iter().map(|object| {
        let value = serde_json::to_value(object).expect("plain data");
        let object: DynamicObject = serde_json::from_value(value).expect("an object");
        (object.name_any(), Arc::new(object))
    });
    whole.collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

/// Memory of this process, the controller's part, in use now.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line about memory");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
}

/// The process that plays the agents. It prints how many octets it was sent whenever a line is written to it.
struct Played(Child);

impl Played {
    fn start(address: &str, size: usize, authority: &str) -> Self {
        let program = std::env::current_exe().expect("this program's path");
        let child = Command::new(program)
            .args(["--agents", address, &size.to_string(), authority])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agents' process");
        Self(child)
    }

    fn bytes(&mut self) -> u64 {
        let stdin = self.0.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"\n").expect("the agents listen");
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("it is piped")).read_line(&mut line).expect("an answer");
        line.trim().parse().expect("a number of octets")
    }

    fn end(mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn endpoint(address: &str, authority: &str) -> Endpoint {
    let authority = transport::Certificate::from_pem(authority);
    let tls = ClientTlsConfig::new().ca_certificate(authority).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    endpoint.tls_config(tls).expect("an authority")
}

async fn play_agents(endpoint: &Endpoint, number: usize) {
    let bytes = Arc::new(AtomicU64::new(0));
    for n in 0..number {
        tokio::spawn(play_agent(endpoint.clone(), name(n), Arc::clone(&bytes)));
    }
    let answer = tokio::task::spawn_blocking(move || {
        for _ in std::io::stdin().lock().lines() {
            println!("{}", bytes.load(Ordering::Relaxed));
        }
    });
    answer.await.expect("reading does not panic");
}

async fn play_agent(endpoint: Endpoint, node: String, bytes: Arc<AtomicU64>) {
    loop {
        if let Err(error) = stream(&endpoint, &node, &bytes).await {
            eprintln!("{node}: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn stream(
    endpoint: &Endpoint,
    node: &str,
    bytes: &AtomicU64,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = RouterClient::new(endpoint.connect().await?).max_decoding_message_size(32 << 20);
    let (say, said) = mpsc::channel(4);
    let message = |message| wire::FromAgent { message: Some(message) };
    let hello = wire::Hello { node: node.to_owned(), version: VERSION.into(), ..Default::default() };
    say.send(message(from_agent::Message::Hello(hello))).await?;
    let mut request = Request::new(ReceiverStream::new(said));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}{node}").parse()?);
    let mut stream = client.sync(request).await?.into_inner();
    let (mut guard, mut config) = (None, None);
    while let Some(wire::FromController { message: Some(told) }) = stream.message().await? {
        match told {
            from_controller::Message::Guard(payload) => {
                bytes.fetch_add(payload.body.len() as u64, Ordering::Relaxed);
                guard = Some(Digest::of(&payload.body));
            }
            from_controller::Message::Config(payload) => {
                bytes.fetch_add(payload.body.len() as u64, Ordering::Relaxed);
                config = Some(NodeConfig::from_payload(&payload)?);
            }
            from_controller::Message::Question(_) => {}
        }
        if let (Some(guard), Some((digest, config))) = (guard, &config) {
            let result =
                |t: &Tenant| wire::TenantResult { name: t.name.clone(), vni: t.vni, ..Default::default() };
            let applied = wire::Applied {
                guard_digest: guard.to_wire(),
                config_digest: digest.to_wire(),
                tenants: config.tenants.iter().map(result).collect(),
            };
            say.send(message(from_agent::Message::Applied(applied))).await?;
            let up = |tenant: &str, peer: String| wire::Session {
                tenant: tenant.to_owned(),
                peer,
                established: true,
                prefixes_received: 1,
                ..Default::default()
            };
            let fabric = config.underlay.iter().flat_map(|underlay| &underlay.neighbors);
            let fabric = fabric.map(|neighbor| up("", neighbor.address.to_string()));
            let tenants = config.tenants.iter().map(|tenant| up(&tenant.name, tenant.host_v4.to_string()));
            let sessions = fabric.chain(tenants).collect();
            let health = wire::Health { frr_running: true, sessions, ..Default::default() };
            say.send(message(from_agent::Message::Health(health))).await?;
        }
    }
    Ok(())
}
