//! The stream against a real server on the loopback.

use std::{net::SocketAddr, time::Duration};

use calico_vni_proto::{
    codec::{Codec, Digest},
    model::{Guard, NodeConfig, Tenant, Underlay},
    wire::{
        self, FromAgent, FromController, answer, from_agent, from_controller, question,
        router_server::{Router, RouterServer},
    },
};
use calico_vni_router::{
    dial::Dial,
    frr::Driver,
    last_good::{LastGood, Told},
    report::{Health, Report, TenantReport},
    session::Session,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// A controller that hands every stream to the test.
struct Controller {
    streams: mpsc::Sender<Stream>,
}

/// One stream: what comes, and what goes.
struct Stream {
    from_agent: Streaming<FromAgent>,
    to_agent: mpsc::Sender<Result<FromController, Status>>,
}

impl Stream {
    async fn next(&mut self) -> from_agent::Message {
        let message = timeout(Duration::from_secs(20), self.from_agent.message()).await;
        message.expect("nothing came in 20 s").unwrap().expect("the agent closed the stream").message.unwrap()
    }

    /// The next message that is no health.
    async fn next_word(&mut self) -> from_agent::Message {
        loop {
            match self.next().await {
                from_agent::Message::Health(_) => {}
                other => return other,
            }
        }
    }

    /// The next answer: what is said of FRR, and to which question.
    async fn next_answer(&mut self) -> (u64, answer::About) {
        let from_agent::Message::Answer(answer) = self.next_word().await else { panic!("no answer") };
        (answer.id, answer.about.expect("an answer is about something"))
    }

    async fn ask(&self, id: u64, about: Option<question::About>) {
        self.say(from_controller::Message::Question(wire::Question { id, about })).await;
    }

    async fn say(&self, message: from_controller::Message) {
        self.to_agent.send(Ok(FromController { message: Some(message) })).await.unwrap();
    }
}

#[tonic::async_trait]
impl Router for Controller {
    type SyncStream = ReceiverStream<Result<FromController, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (to_agent, queue) = mpsc::channel(8);
        let stream = Stream { from_agent: request.into_inner(), to_agent };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

async fn serve(address: &str) -> (SocketAddr, mpsc::Receiver<Stream>, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, streams) = mpsc::channel(8);
    let server = Server::builder().add_service(RouterServer::new(Controller { streams: sender }));
    let task = tokio::spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, streams, task)
}

struct Agent {
    told: watch::Receiver<Told>,
    report: watch::Sender<Report>,
    health: watch::Sender<Option<Health>>,
    connected: watch::Receiver<bool>,
    state: tempfile::TempDir,
}

fn agent(controller: SocketAddr) -> Agent {
    let state = tempfile::tempdir().unwrap();
    let last_good = LastGood::new(state.path());
    let (told_sender, told) = watch::channel(Told::default());
    let (report, report_receiver) = watch::channel(Report::default());
    let (health, health_receiver) = watch::channel(None);
    let (connected, stands) = watch::channel(false);
    let session = Session {
        node: "n1".into(),
        dial: Dial {
            controller: format!("http://{controller}"),
            ca_file: None,
            token_file: None,
            controller_name: String::new(),
        },
        patience: Duration::from_secs(3),
        last_good,
        told: told_sender,
        report: report_receiver,
        health: health_receiver,
        frr: Driver::new(state.path().join("frr")),
        connected,
    };
    tokio::spawn(session.run());
    Agent { told, report, health, connected: stands, state }
}

fn empty(node: &str) -> NodeConfig {
    NodeConfig { node: node.into(), underlay: None, tenants: vec![] }
}

async fn stream(streams: &mut mpsc::Receiver<Stream>) -> Stream {
    timeout(Duration::from_secs(30), streams.recv()).await.expect("the agent did not dial in 30 s").unwrap()
}

#[tokio::test]
async fn what_is_sent_is_taken_kept_and_answered() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let mut agent = agent(address);
    let mut stream = stream(&mut streams).await;
    let from_agent::Message::Hello(hello) = stream.next().await else { panic!("no hello") };
    assert_eq!((hello.node.as_str(), hello.guard_digest.len(), hello.config_digest.len()), ("n1", 0, 0));
    timeout(Duration::from_secs(5), agent.connected.wait_for(|connected| *connected)).await.unwrap().unwrap();
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));

    let config = empty("n1");
    let digest = Digest::of(&config.encode());
    stream.say(from_controller::Message::Guard(Guard::default().to_payload())).await;
    stream.say(from_controller::Message::Config(config.to_payload())).await;
    let told = timeout(Duration::from_secs(5), agent.told.wait_for(|told| told.config.is_some())).await;
    assert_eq!(told.unwrap().unwrap().config.as_ref().unwrap().digest, digest);
    assert_eq!(LastGood::new(agent.state.path()).load("n1"), *agent.told.borrow());

    let tenant = TenantReport { name: "red".into(), vni: 1001, error: Some("no".into()) };
    let report = Report { guard: None, config: Some(digest), tenants: vec![tenant] };
    agent.report.send_replace(report.clone());
    let from_agent::Message::Applied(applied) = stream.next_word().await else { panic!("no applied") };
    assert_eq!(Some(applied), report.to_wire());
}

#[tokio::test]
async fn what_is_bad_is_rejected_and_changes_nothing() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let agent = agent(address);
    let mut stream = stream(&mut streams).await;
    stream.next().await;
    let mut damaged = empty("n1").to_payload();
    damaged.body.push(0);
    let silent = wire::Payload { digest: Digest::of(&[]).to_wire(), body: vec![] };
    for (payload, reason) in [
        (damaged, "does not match its digest"),
        (empty("n2").to_payload(), "`n2`"),
        (silent, "explicit_empty"),
    ] {
        let digest = payload.digest.clone();
        stream.say(from_controller::Message::Config(payload)).await;
        let from_agent::Message::Rejected(rejected) = stream.next_word().await else { panic!("no rejected") };
        assert!(rejected.reason.contains(reason), "{}", rejected.reason);
        assert_eq!(rejected.digest, digest);
    }
    assert_eq!(*agent.told.borrow(), Told::default());
}

#[tokio::test]
async fn a_lost_controller_is_dialled_again_and_told_what_is_held() {
    let (address, mut streams, server) = serve("127.0.0.1:0").await;
    let mut agent = agent(address);
    let mut first = stream(&mut streams).await;
    first.next().await;
    first.say(from_controller::Message::Config(empty("n1").to_payload())).await;
    timeout(Duration::from_secs(5), agent.told.wait_for(|told| told.config.is_some()))
        .await
        .unwrap()
        .unwrap();
    agent
        .report
        .send_modify(|report| report.config = agent.told.borrow().config.as_ref().map(|held| held.digest));
    drop(first);
    server.abort();
    let _ = server.await;
    timeout(Duration::from_secs(20), agent.connected.wait_for(|connected| !connected))
        .await
        .unwrap()
        .unwrap();

    let (_, mut streams, _server) = serve(&address.to_string()).await;
    let mut second = stream(&mut streams).await;
    let from_agent::Message::Hello(hello) = second.next().await else { panic!("no hello") };
    assert_eq!(hello.config_digest, empty("n1").to_payload().digest);
    // A new controller hears at once how it stands.
    let from_agent::Message::Applied(applied) = second.next_word().await else { panic!("no applied") };
    assert_eq!(applied.config_digest, hello.config_digest);
}

#[tokio::test]
async fn health_is_sent_when_it_changes() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let agent = agent(address);
    let mut stream = stream(&mut streams).await;
    stream.next().await;
    // Nothing is said of FRR before it was asked: the controller would take "not running" for the truth.
    agent.health.send_replace(Some(Health { frr_running: false, ..Health::default() }));
    let from_agent::Message::Health(first) = stream.next().await else { panic!("no health") };
    assert!(!first.frr_running);
    agent.health.send_replace(Some(Health { frr_running: true, ..Health::default() }));
    let from_agent::Message::Health(second) = stream.next().await else { panic!("no health") };
    assert!(second.frr_running);
}

/// The connection lives, pings and all, and no stream comes of it.
#[tokio::test]
async fn a_controller_that_opens_no_stream_is_given_up() {
    struct Mute(mpsc::Sender<()>);
    #[tonic::async_trait]
    impl Router for Mute {
        type SyncStream = ReceiverStream<Result<FromController, Status>>;
        async fn sync(&self, _: Request<Streaming<FromAgent>>) -> Result<Response<Self::SyncStream>, Status> {
            self.0.send(()).await.map_err(|_| Status::unavailable("the test is over"))?;
            std::future::pending().await
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _agent = agent(listener.local_addr().unwrap());
    let (sender, mut asked) = mpsc::channel(8);
    let server = Server::builder().add_service(RouterServer::new(Mute(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    for time in ["first", "second"] {
        let dialled = timeout(Duration::from_secs(30), asked.recv()).await;
        dialled.unwrap_or_else(|_| panic!("the agent did not dial a {time} time")).unwrap();
    }
}

#[tokio::test]
async fn how_the_node_does_with_a_result_is_sent_after_it_though_it_does_as_before() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let agent = agent(address);
    let mut stream = stream(&mut streams).await;
    stream.next().await;
    let well = Health { frr_running: true, ..Health::default() };
    agent.health.send_replace(Some(well.clone()));
    let from_agent::Message::Health(_) = stream.next().await else { panic!("no health") };
    for body in [b"one", b"two"] {
        let digest = Some(Digest::of(body));
        // Both at once: what was looked at later goes later.
        agent.health.send_replace(Some(Health { since: digest, ..well.clone() }));
        agent.report.send_replace(Report { config: digest, ..Report::default() });
        let from_agent::Message::Applied(applied) = stream.next().await else { panic!("no applied") };
        assert_eq!(Digest::from_wire(&applied.config_digest), digest);
        let from_agent::Message::Health(health) = stream.next().await else { panic!("no health") };
        assert!(health.frr_running);
    }
}

/// A bgpd that knows one session and, in vrf1001 alone, two routes; and nothing else.
async fn bgpd(listener: UnixListener) {
    const SUMMARY: &str = r#"{"vrf1001": {"ipv4Unicast": {"peers": {"169.254.192.2": {"remoteAs": 64512,
        "state": "Established", "peerUptimeMsec": 61000, "pfxRcd": 1, "pfxSnt": 2}}}}}"#;
    const ROUTES: &str = r#"{"routes": {
        "10.200.0.0/26": [{"bestpath": true, "peerId": "169.254.192.2", "path": "64512",
            "nexthops": [{"ip": "169.254.192.2", "used": true}]}],
        "10.200.0.64/26": [{"bestpath": true, "peerId": "192.0.2.1", "path": "65100 65001 64512",
            "nexthops": [{"ip": "10.255.0.2", "used": true}]}]}}"#;
    while let Ok((stream, _)) = listener.accept().await {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).split(0);
        while let Ok(Some(line)) = lines.next_segment().await {
            let answer = match std::str::from_utf8(&line).unwrap() {
                "enable" => "",
                "show bgp vrf all summary json" => SUMMARY,
                "show bgp vrf vrf1001 ipv4 unicast json" => ROUTES,
                "show bgp vrf vrf1001 ipv6 unicast json" => r#"{"routes": {}}"#,
                other => panic!("nobody asks `{other}`"),
            };
            let framed = [answer.as_bytes(), &[0; 4]].concat();
            write.write_all(&framed).await.unwrap();
        }
    }
}

/// Of a node with tenant red.
fn with_red() -> NodeConfig {
    let underlay = Underlay {
        name: "fabric".into(),
        asn: 65001,
        vtep: "10.255.0.1".parse().unwrap(),
        router_id: "10.255.0.1".parse().unwrap(),
        neighbors: vec![],
        interfaces: vec![],
        mtu: None,
        shared: vec![],
        graceful_restart: true,
        calico_asn: 64512,
    };
    let red = Tenant {
        name: "red".into(),
        vni: 1001,
        link_index: 1,
        host_v4: "169.254.192.2".parse().unwrap(),
        host_v6: "fd00::2".parse().unwrap(),
        pools: vec![],
        import_rts: vec![],
        export_rts: vec![],
        shared: vec![],
        max_prefixes: 1000,
        advertise_pods: false,
        services: vec![],
    };
    NodeConfig { underlay: Some(underlay), tenants: vec![red], ..empty("n1") }
}

#[tokio::test]
async fn questions_are_answered_from_what_frr_says() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let agent = agent(address);
    let frr = agent.state.path().join("frr");
    std::fs::create_dir(&frr).unwrap();
    tokio::spawn(bgpd(UnixListener::bind(frr.join("bgpd.vty")).unwrap()));
    let mut stream = stream(&mut streams).await;
    let from_agent::Message::Hello(hello) = stream.next().await else { panic!("no hello") };
    assert!(hello.answers);
    stream.say(from_controller::Message::Config(with_red().to_payload())).await;

    stream.ask(1, Some(question::About::Sessions(wire::AboutSessions {}))).await;
    let (id, answer::About::Sessions(told)) = stream.next_answer().await else { panic!("no sessions") };
    let session = wire::BgpSession {
        vrf: "vrf1001".into(),
        tenant: "red".into(),
        peer: "169.254.192.2".into(),
        asn: 64512,
        state: "Established".into(),
        uptime_seconds: 61,
        prefixes_received: 1,
        prefixes_sent: 2,
    };
    assert_eq!((id, told), (1, wire::Sessions { sessions: vec![session], more: 0 }));

    let about = |tenant: &str| Some(question::About::Routes(wire::AboutRoutes { tenant: tenant.into() }));
    stream.ask(2, about("red")).await;
    let (id, answer::About::Routes(told)) = stream.next_answer().await else { panic!("no routes") };
    let route = |prefix: &str, next_hop: &str, from_fabric, path: &str| wire::BgpRoute {
        prefix: prefix.into(),
        next_hop: next_hop.into(),
        from_fabric,
        best: true,
        path: path.into(),
    };
    let routes = vec![
        route("10.200.0.0/26", "169.254.192.2", false, "64512"),
        route("10.200.0.64/26", "10.255.0.2", true, "65100 65001 64512"),
    ];
    assert_eq!((id, told), (2, wire::Routes { routes, more: 0 }));

    for (id, about, said) in
        [(3, about("blue"), "no Tenant `blue`"), (4, None, "does not know this question")]
    {
        stream.ask(id, about).await;
        let (answered, answer::About::Refused(why)) = stream.next_answer().await else { panic!("an answer") };
        assert!(answered == id && why.contains(said), "{why}");
    }
}

#[tokio::test]
async fn a_question_that_hangs_holds_up_nothing_else() {
    let (address, mut streams, _server) = serve("127.0.0.1:0").await;
    let mut agent = agent(address);
    let frr = agent.state.path().join("frr");
    std::fs::create_dir(&frr).unwrap();
    let _silent = UnixListener::bind(frr.join("bgpd.vty")).unwrap();
    let mut stream = stream(&mut streams).await;
    stream.next().await;
    let about = || Some(question::About::Sessions(wire::AboutSessions {}));
    stream.ask(1, about()).await;
    stream.ask(2, about()).await;
    let (id, answer::About::Refused(why)) = stream.next_answer().await else { panic!("an answer") };
    assert!(id == 2 && why.contains("another question"), "{id}: {why}");
    stream.say(from_controller::Message::Config(empty("n1").to_payload())).await;
    timeout(Duration::from_secs(5), agent.told.wait_for(|told| told.config.is_some()))
        .await
        .expect("it listens meanwhile")
        .unwrap();
    let (id, answer::About::Refused(why)) = stream.next_answer().await else { panic!("an answer") };
    assert!(id == 1 && why.contains("within 10 s"), "{id}: {why}");
}
