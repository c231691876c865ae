//! Over real connections on loopback.

use std::collections::BTreeMap;

use calico_vni_identity::{SERVER_NAME, authority::Authority};
use calico_vni_proto::wire::{
    self, AboutSessions, Answer, FromController, NodeAnswer, RoutesRequest, SessionsRequest, answer,
    from_controller, node_answer, operator_client::OperatorClient, question, router_client::RouterClient,
};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    transport::{ClientTlsConfig, Endpoint},
};

use super::{
    door::tests::{Known, VIEWERS},
    *,
};
use crate::agents::tests::offer;

struct Served {
    agents: Arc<Agents>,
    gate: watch::Sender<Gate>,
    address: String,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

async fn served() -> Served {
    served_with(Access::plain()).await
}

async fn served_with(access: Access) -> Served {
    let shutdown = CancellationToken::new();
    let agents = Agents::new(Arc::new(Notify::new()), shutdown.clone(), Arc::default());
    let gate = watch::Sender::new(Gate::Open(Arc::clone(&agents)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if access.certificate.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(listener, gate.subscribe(), access, shutdown.clone()));
    Served { agents, gate, address, shutdown, server }
}

fn hello(node: &str, held: Option<&[u8]>) -> FromAgent {
    let digest = held.map(|body| Digest::of(body).to_wire()).unwrap_or_default();
    let hello =
        wire::Hello { node: node.into(), version: "1".into(), config_digest: digest, ..Default::default() };
    FromAgent { message: Some(from_agent::Message::Hello(hello)) }
}

type Stream = (mpsc::Sender<FromAgent>, Streaming<FromController>);

async fn dial(stage: &Served, first: FromAgent) -> Result<Stream, Status> {
    // A connection of its own, as agents have.
    let endpoint = Endpoint::try_from(stage.address.clone()).unwrap();
    dial_by(endpoint, first, None).await
}

async fn dial_by(endpoint: Endpoint, first: FromAgent, token: Option<&str>) -> Result<Stream, Status> {
    let (say, said) = mpsc::channel(4);
    say.send(first).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(said));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let channel = endpoint.connect().await.unwrap();
    let stream = RouterClient::new(channel).sync(request).await?.into_inner();
    Ok((say, stream))
}

async fn body(stream: &mut Streaming<FromController>) -> (&'static str, Vec<u8>) {
    let message =
        tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("a message in time");
    match message.unwrap().expect("the stream is open").message.unwrap() {
        from_controller::Message::Guard(payload) => ("guard", payload.body),
        from_controller::Message::Config(payload) => ("config", payload.body),
        from_controller::Message::Question(question) => panic!("{question:?}"),
    }
}

fn offers(guard: &[u8], configs: &[(&str, &[u8])]) -> BTreeMap<String, Offer> {
    configs.iter().map(|(node, config)| ((*node).to_owned(), offer(guard, config))).collect()
}

#[tokio::test]
async fn who_does_not_say_hello_is_sent_away() {
    let stage = served().await;
    let health = FromAgent { message: Some(from_agent::Message::Health(wire::Health::default())) };
    for first in [health, hello("", None)] {
        let refused = dial(&stage, first).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn guard_then_config_and_only_what_is_new() {
    let stage = served().await;
    // Not known yet: the stream stays open.
    let (_say, mut stream) = dial(&stage, hello("n1", Some(b"c1"))).await.unwrap();
    stage.agents.offer(offers(b"g1", &[("n1", b"c1"), ("n2", b"x")]));
    assert_eq!(body(&mut stream).await, ("guard", b"g1".to_vec()));
    // c1 is held already.
    stage.agents.offer(offers(b"g2", &[("n1", b"c2")]));
    assert_eq!(body(&mut stream).await, ("guard", b"g2".to_vec()));
    assert_eq!(body(&mut stream).await, ("config", b"c2".to_vec()));
    stage.agents.offer(offers(b"g2", &[("n1", b"c1")]));
    assert_eq!(body(&mut stream).await, ("config", b"c1".to_vec()));
}

#[tokio::test]
async fn an_agent_that_does_not_listen_holds_up_nobody() {
    let stage = served().await;
    // More than all windows and buffers between the two hold.
    let large = vec![7; 1 << 20];
    let (_slow_say, _slow) = dial(&stage, hello("slow", None)).await.unwrap();
    let (_say, mut stream) = dial(&stage, hello("n1", None)).await.unwrap();
    for round in 0..5u8 {
        let mut config = large.clone();
        config.push(round);
        stage.agents.offer(offers(b"g", &[("slow", &config), ("n1", &[round])]));
        if round == 0 {
            assert_eq!(body(&mut stream).await.0, "guard");
        }
        assert_eq!(body(&mut stream).await, ("config", vec![round]));
    }
}

#[tokio::test]
async fn a_second_stream_ends_the_first() {
    let stage = served().await;
    let (_first_say, mut first) = dial(&stage, hello("n1", None)).await.unwrap();
    let (_second_say, mut second) = dial(&stage, hello("n1", None)).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), first.message()).await.expect("ends in time");
    assert!(matches!(ended, Ok(None) | Err(_)));
    stage.agents.offer(offers(b"g", &[("n1", b"c")]));
    assert_eq!(body(&mut second).await.0, "guard");
}

#[tokio::test]
async fn what_an_agent_says_is_noted_until_it_goes() {
    let stage = served().await;
    let (say, stream) = dial(&stage, hello("n1", None)).await.unwrap();
    let applied = wire::Applied {
        tenants: vec![wire::TenantResult { name: "red".into(), vni: 1001, error: String::new() }],
        ..Default::default()
    };
    say.send(FromAgent { message: Some(from_agent::Message::Applied(applied)) }).await.unwrap();
    let health = from_agent::Message::Health(wire::Health::default());
    say.send(FromAgent { message: Some(health) }).await.unwrap();
    wait_until(|| stage.agents.said().contains_key("n1")).await;
    drop((say, stream));
    wait_until(|| stage.agents.said().is_empty()).await;
}

#[tokio::test]
async fn it_stops_with_streams_open() {
    let stage = served().await;
    let (_say, mut stream) = dial(&stage, hello("n1", None)).await.unwrap();
    stage.shutdown.cancel();
    let server = tokio::time::timeout(Duration::from_secs(10), stage.server).await.expect("stops in time");
    server.unwrap().unwrap();
    assert!(matches!(stream.message().await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn agents_wait_while_it_prepares_and_are_sent_away_from_a_standby() {
    let stage = served().await;
    stage.gate.send_replace(Gate::Preparing { missing: String::new() });
    let mut waiting = Box::pin(dial(&stage, hello("n1", None)));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "it has no answer for as long as there is none");
    stage.gate.send_replace(Gate::Open(Arc::clone(&stage.agents)));
    let (_say, mut stream) = waiting.await.unwrap();
    stage.gate.send_replace(Gate::Standby { reason: "standby; other-1 leads".to_owned() });
    let refused = dial(&stage, hello("n2", None)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "standby; other-1 leads"));
    stage.agents.offer(offers(b"g", &[("n1", b"c")]));
    assert_eq!(body(&mut stream).await.0, "guard", "who was let in stays until the table ends");
}

/// A controller that wants proof, and how it is reached.
async fn guarded() -> (Served, Arc<Door>, Endpoint) {
    let authority = Authority::new(Timestamp::now()).unwrap();
    let certificate = Certificate::none();
    certificate.set(authority.issue(&[SERVER_NAME.to_owned()], Timestamp::now()).unwrap()).unwrap();
    let tokens = [("of-n1", Ok("n1".to_owned())), ("of-n2", Ok("n2".to_owned()))];
    let door = Door::guarded(Arc::new(Known(tokens.into())));
    let access = Access { certificate: Some(certificate), door: Arc::clone(&door), age: AGE };
    let stage = served_with(access).await;
    let root = tonic::transport::Certificate::from_pem(authority.bundle());
    let tls = ClientTlsConfig::new().ca_certificate(root).domain_name(SERVER_NAME);
    let endpoint = Endpoint::try_from(stage.address.clone()).unwrap().tls_config(tls).unwrap();
    (stage, door, endpoint)
}

#[tokio::test]
async fn with_tls_a_node_is_proven_for_each_stream() {
    let (stage, door, endpoint) = guarded().await;
    let (_say, mut stream) = dial_by(endpoint.clone(), hello("n1", None), Some("of-n1")).await.unwrap();
    stage.agents.offer(offers(b"g", &[("n1", b"c"), ("n2", b"d")]));
    assert_eq!(body(&mut stream).await.0, "guard");
    let refused = dial_by(endpoint.clone(), hello("n2", None), Some("of-n1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("`n1`") && refused.message().contains("`n2`"), "{refused}");
    let refused = dial_by(endpoint.clone(), hello("n2", None), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(
        (door.refused(), stage.agents.standing().connected),
        (2, 1),
        "and no stranger is on the table"
    );
    dial_by(endpoint, hello("n2", None), Some("of-n2")).await.unwrap();
}

#[tokio::test]
async fn an_old_stream_ends_in_good_order_and_the_agent_is_not_missed_meanwhile() {
    let stage = served_with(Access { age: Duration::from_millis(200), ..Access::plain() }).await;
    stage.agents.offer(offers(b"g", &[("n1", b"c")]));
    let (say, mut stream) = dial(&stage, hello("n1", None)).await.unwrap();
    let applied = from_agent::Message::Applied(wire::Applied::default());
    let health = from_agent::Message::Health(wire::Health::default());
    for message in [applied, health] {
        say.send(FromAgent { message: Some(message) }).await.unwrap();
    }
    wait_until(|| stage.agents.said().contains_key("n1")).await;
    while tokio::time::timeout(Duration::from_secs(10), stream.message())
        .await
        .expect("ends in time")
        .expect("without an error")
        .is_some()
    {}
    assert!(stage.agents.said().contains_key("n1"), "what it said holds");
    let (_say, mut stream) = dial(&stage, hello("n1", None)).await.unwrap();
    assert!(stage.agents.said().contains_key("n1"), "and goes on to hold");
    assert_eq!(body(&mut stream).await.0, "guard");
}

#[test]
fn ages_differ_by_a_tenth_to_either_side() {
    let ages: Vec<f64> = (0..1000).map(|_| spread(AGE).as_secs_f64() / AGE.as_secs_f64()).collect();
    assert!(ages.iter().all(|age| (0.9..=1.1).contains(age)));
    assert!(ages.iter().any(|age| *age < 0.95) && ages.iter().any(|age| *age > 1.05));
}

#[tokio::test]
async fn an_agent_that_says_too_much_is_read_no_faster() {
    let stage = served().await;
    let (say, _stream) = dial(&stage, hello("n1", None)).await.unwrap();
    let began = Instant::now();
    for round in 0..MESSAGES.burst + 10 {
        let applied = wire::Applied {
            tenants: vec![wire::TenantResult { name: "red".into(), vni: round, error: String::new() }],
            ..Default::default()
        };
        say.send(FromAgent { message: Some(from_agent::Message::Applied(applied)) }).await.unwrap();
    }
    say.send(FromAgent { message: Some(from_agent::Message::Health(wire::Health::default())) })
        .await
        .unwrap();
    wait_until(|| stage.agents.said().contains_key("n1")).await;
    assert!(began.elapsed() >= MESSAGES.every * 9, "{:?}", began.elapsed());
    assert_eq!(
        stage.agents.said()["n1"].programmed,
        [("red".to_owned(), MESSAGES.burst + 9)].into(),
        "and nothing is lost"
    );
}

/// All that is told of the sessions of these nodes.
async fn sessions_of(
    endpoint: Endpoint,
    token: Option<&str>,
    nodes: &[&str],
) -> Result<Vec<NodeAnswer>, Status> {
    let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
    let mut request = Request::new(SessionsRequest { nodes });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let channel = endpoint.connect().await.unwrap();
    let mut answers = OperatorClient::new(channel).list_sessions(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

fn plain(stage: &Served) -> Endpoint {
    Endpoint::try_from(stage.address.clone()).unwrap()
}

/// Of an agent that takes questions.
fn asked(node: &str) -> FromAgent {
    let hello = wire::Hello { node: node.into(), version: "1".into(), answers: true, ..Default::default() };
    FromAgent { message: Some(from_agent::Message::Hello(hello)) }
}

/// Answers questions for as long as the stream stands; `more` tells the answers of one agent from those of others.
async fn answering(stage: &Served, node: &str, more: u64) -> tokio::task::JoinHandle<()> {
    let (say, mut stream) = dial(stage, asked(node)).await.unwrap();
    tokio::spawn(async move {
        while let Ok(Some(FromController { message: Some(message) })) = stream.message().await {
            let from_controller::Message::Question(question) = message else { continue };
            let about = match question.about.unwrap() {
                question::About::Sessions(AboutSessions {}) => {
                    answer::About::Sessions(wire::Sessions { sessions: vec![], more })
                }
                question::About::Routes(routes) => answer::About::Refused(routes.tenant),
            };
            let answer = from_agent::Message::Answer(Answer { id: question.id, about: Some(about) });
            say.send(FromAgent { message: Some(answer) }).await.unwrap();
        }
    })
}

fn told(node: &str, version: &str, about: node_answer::About) -> NodeAnswer {
    NodeAnswer { node: node.into(), version: version.into(), about: Some(about) }
}

#[tokio::test]
async fn people_get_the_answers_of_all_agents_in_the_order_of_nodes() {
    let stage = served().await;
    stage.agents.offer(offers(b"g", &[("n0", b"c"), ("n1", b"c"), ("n2", b"c")]));
    let _two = answering(&stage, "n2", 2).await;
    let _one = answering(&stage, "n1", 1).await;
    let (_say, _old) = dial(&stage, hello("old", None)).await.unwrap();
    let sessions = |more| node_answer::About::Sessions(wire::Sessions { sessions: vec![], more });
    let refused = |why: &str| node_answer::About::Refused(why.to_owned());
    let away = refused("its agent is not connected");
    let old = refused("an agent of version 1 cannot be asked: update it");
    let all = [
        told("n0", "", away.clone()),
        told("n1", "1", sessions(1)),
        told("n2", "1", sessions(2)),
        told("old", "1", old),
    ];
    assert_eq!(sessions_of(plain(&stage), None, &[]).await.unwrap(), all);
    let some = sessions_of(plain(&stage), None, &["n2", "nobody", "n2"]).await.unwrap();
    assert_eq!(some, [told("n2", "1", sessions(2)), told("nobody", "", away)]);

    let channel = plain(&stage).connect().await.unwrap();
    let request = RoutesRequest { tenant: "red".into(), nodes: vec!["n1".into()] };
    let mut routes = OperatorClient::new(channel).list_routes(request).await.unwrap().into_inner();
    assert_eq!(
        routes.message().await.unwrap(),
        Some(told("n1", "1", refused("red"))),
        "it was asked about that one"
    );
}

#[tokio::test]
async fn a_viewers_token_opens_no_agents_stream_and_an_agents_none_of_the_viewers() {
    let (stage, door, endpoint) = guarded().await;
    let seen = sessions_of(endpoint.clone(), Some(VIEWERS), &[]).await.unwrap();
    assert!(seen.is_empty(), "nobody is there to be asked, and it is no refusal: {seen:?}");
    for token in [Some("of-n1"), Some("expired"), None] {
        let refused = sessions_of(endpoint.clone(), token, &[]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}: {refused}");
    }
    assert_eq!((door.viewers_refused(), door.refused()), (3, 0));
    let refused = dial_by(endpoint.clone(), hello("n1", None), Some(VIEWERS)).await.unwrap_err();
    assert_eq!((refused.code(), door.refused()), (Code::Unauthenticated, 1));
    let (_say, _stream) = dial_by(endpoint.clone(), hello("n1", None), Some("of-n1")).await.unwrap();
    assert_eq!(sessions_of(endpoint, Some(VIEWERS), &[]).await.unwrap().len(), 1);
    drop(stage);
}

#[tokio::test]
async fn people_are_told_where_the_leader_is() {
    let stage = served().await;
    for (gate, said) in [
        (Gate::Standby { reason: "standby; other-1 leads".to_owned() }, "standby; other-1 leads"),
        (
            Gate::Preparing { missing: "the first list of Nodes".to_owned() },
            "it waits for the first list of Nodes",
        ),
    ] {
        stage.gate.send_replace(gate);
        let refused = sessions_of(plain(&stage), None, &[]).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, said));
    }
}

#[tokio::test]
async fn only_so_many_are_answered_at_one_time_and_who_goes_makes_room() {
    let stage = served().await;
    // It takes questions, and never answers.
    let (_say, _mute) = dial(&stage, asked("mute")).await.unwrap();
    let ask = || async {
        let channel = plain(&stage).connect().await.unwrap();
        OperatorClient::new(channel).list_sessions(SessionsRequest { nodes: vec!["mute".into()] }).await
    };
    let mut calls = Vec::new();
    for _ in 0..operator::CALLS {
        calls.push(ask().await.unwrap());
    }
    assert_eq!(ask().await.unwrap_err().code(), Code::ResourceExhausted);
    calls.pop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(refused) = ask().await {
        assert!(Instant::now() < deadline, "{refused}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_until(seen: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !seen() {
        assert!(Instant::now() < deadline, "did not come to pass within 10 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
