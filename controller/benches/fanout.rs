//! How the controller's cost grows with the cluster: `make bench-fanout`, or with other sizes
//! `cargo bench -p calico-vni-controller --bench fanout -- --sizes 500,1000`.
//!
//! The controller's own planner, publisher and gRPC server run in this process, without an API server; the agents run in
//! another one, each with a connection of its own over loopback and TLS, check whom they talk to, decode what they get, and
//! answer as real ones do. Their tokens are looked at here, where the real controller asks the API server. What is printed is
//! measured here: from a Tenant's change (what a reflector would tell) to the last affected agent's word.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use calico_vni_controller::{
    agents::Agents,
    grpc::{self, AGE, Access, Gate, door::Door},
    publish::Publisher,
    rollout::{Input, Rollouts},
    runtime::GATHER,
};
use calico_vni_identity::{
    SERVER_NAME,
    authority::Authority,
    serving::Certificate,
    token::{Denied, Proof},
};
use calico_vni_planner::{Plan, Snapshot, plan, simulate};
use calico_vni_proto::{
    codec::{Codec as _, Digest},
    model::{NodeConfig, Tenant},
    wire::{self, from_agent, from_controller, router_client::RouterClient},
};
use clap::Parser;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    transport::{self, ClientTlsConfig, Endpoint},
};

/// Changes of one tenant that are measured, one after the other.
const CHANGES: usize = 40;
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
    println!(
        "{:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}",
        "agents", "storm", "re-plan", "publish", "p50", "p99", "bytes sent", "affected", "RSS MB"
    );
    for &size in &args.sizes {
        runtime.block_on(measure(&args, size));
    }
}

fn name(node: usize) -> String {
    format!("node-{node:05}")
}

fn tenant_name(tenant: usize) -> String {
    format!("t{tenant:04}")
}

fn tenant(number: usize, max_prefixes: u32) -> Value {
    json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
        "metadata": { "name": tenant_name(number), "uid": format!("t-{number}") },
        "spec": { "vni": 10_000 + number, "maxPrefixes": max_prefixes },
    })
}

/// Tenant `t` lives on the nodes where `(node + t) % (tenants / each)` is zero, so every node has `each` of them.
fn cluster(tenants: usize, each: usize, nodes: usize) -> Snapshot {
    let stride = tenants / each;
    let mut objects = vec![json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": "fabric", "uid": "u" },
        "spec": {
            "asn": 65001, "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }], "interfaces": [{ "name": "eth1" }],
            "vtepCIDR": "10.128.0.0/16", "hostLinkCIDR": "169.254.192.0/18",
        },
    })];
    for t in 0..tenants {
        objects.push(tenant(t, 1000));
        objects.push(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {
                "name": format!("pool-{t}"), "uid": format!("p-{t}"),
                "annotations": { "calico-vni.io/tenant": tenant_name(t) },
            },
            "spec": { "cidr": format!("10.{}.{}.0/21", t / 32, (t % 32) * 8), "blockSize": 31 },
        }));
    }
    for n in 0..nodes {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {
                "name": name(n), "uid": format!("n-{n}"), "labels": { "kubernetes.io/hostname": name(n) },
            },
        }));
        for k in 0..each {
            let t = (stride - n % stride) % stride + k * stride;
            // Addresses of a pool are given to its nodes in turn; which one is which does not matter here.
            let host = 2 * (n / stride % 1024);
            let (c, d) = ((t % 32) * 8 + host / 256, host % 256);
            objects.push(json!({
                "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
                "metadata": { "name": format!("{}-{t}", name(n)) },
                "spec": { "node": name(n), "cidr": format!("10.{}.{c}.{d}/31", t / 32), "state": "confirmed" },
            }));
        }
    }
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

async fn measure(args: &Args, size: usize) {
    let mut snapshot = cluster(args.tenants, args.each, size);
    // What the agents of a settled cluster have said: every node carries what it should.
    for n in 0..size {
        let agent = calico_vni_planner::snapshot::Agent { frr_running: true, ..Default::default() };
        snapshot.agents.insert(name(n), agent.into());
    }
    let (mut snapshot, settled) = simulate::settle(&snapshot).expect("the plan comes to rest");
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
    let mut offering = Offering::default();
    offering.offer(&settled, &agents);
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
    let storm = in_step(&agents, &changed, size, started).await;
    let before = children.bytes();

    let (mut planning, mut publishing, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let t = (change * 37) % args.tenants;
        let mut one = Snapshot::from_objects([tenant(t, 2000 + u32::try_from(change).expect("few"))])
            .expect("a tenant");
        let position = snapshot.tenants.iter().position(|held| held.metadata.name == Some(tenant_name(t)));
        let position = position.expect("it is there");
        let mut new = one.tenants.remove(0);
        new.status.clone_from(&snapshot.tenants[position].status);
        new.metadata.clone_from(&snapshot.tenants[position].metadata);
        snapshot.tenants[position] = new;

        let started = Instant::now();
        tokio::time::sleep(GATHER).await;
        let planned = Instant::now();
        snapshot.agents = agents.said();
        let plan = plan(&snapshot);
        planning.push(planned.elapsed());
        let published = Instant::now();
        offering.offer(&plan, &agents);
        publishing.push(published.elapsed());
        whole.push(in_step(&agents, &changed, size, started).await);
    }
    let sent = (children.bytes() - before) / CHANGES as u64;
    let affected = size * args.each / args.tenants;
    println!(
        "{size:>7} {:>9.0} {:>9.1} {:>9.1} {:>9.0} {:>9.0} {sent:>11} {affected:>9} {:>9}",
        ms(storm),
        ms(quantile(&mut planning, 0.5)),
        ms(quantile(&mut publishing, 0.5)),
        ms(quantile(&mut whole, 0.5)),
        ms(quantile(&mut whole, 0.99)),
        resident_mb(),
    );
    shutdown.cancel();
    children.end();
    server.await.expect("the server does not panic").expect("the server ends well");
}

/// What a plan becomes before agents are offered it.
#[derive(Default)]
struct Offering {
    rollouts: Rollouts,
    publisher: Publisher,
}

impl Offering {
    fn offer(&mut self, plan: &Plan, agents: &Agents) {
        // With stages it would be measured how long agents take.
        let shares = BTreeMap::from([("fabric".to_owned(), 100)]);
        let input = Input { wanted: &plan.nodes, heard: &agents.heard(), shares: &shares };
        let configs = self.rollouts.advance(&input, tokio::time::Instant::now());
        self.publisher.publish(plan, &configs, agents);
    }
}

/// Waits until all agents hold and have acknowledged what they are offered, and returns the time since `started`.
async fn in_step(agents: &Agents, changed: &Notify, size: usize, started: Instant) -> Duration {
    loop {
        let told = changed.notified();
        let standing = agents.standing();
        if standing.in_step == size {
            return started.elapsed();
        }
        assert!(started.elapsed() < PATIENCE, "{standing:?} of {size} after {PATIENCE:?}");
        // A result that says the same as the last one calls for no plan, so a look now and then is needed too.
        tokio::time::timeout(Duration::from_millis(5), told).await.ok();
    }
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
    let hello = wire::Hello { node: node.to_owned(), version: "bench".into(), ..Default::default() };
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
