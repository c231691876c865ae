//! The gRPC service that agents dial: one bidirectional stream each. What is said goes to the agents' table, what is
//! offered comes from it; nothing is decided here.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use calico_vni_proto::{
    codec::Digest,
    wire::{
        self, FromAgent, FromController, from_agent, from_controller,
        router_server::{Router, RouterServer},
    },
};
use futures::{Stream, stream};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use tracing::{debug, info};

use crate::agents::{Agents, Offer, Offered, Session};

/// Time for a new stream to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// An idle connection is asked for life this often, and given [`KEEPALIVE_TIMEOUT`] to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message from an agent, in octets: the results of some ten thousand tenants.
const FROM_AGENT_MAX: usize = 4 << 20;
/// Largest message to an agent, in octets: the guard of some hundred thousand pools.
const TO_AGENT_MAX: usize = 32 << 20;

/// Serves agents on that socket until told to stop; then ends their streams.
pub async fn serve(
    listener: TcpListener,
    agents: Arc<Agents>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = RouterServer::new(Service { agents })
        .max_decoding_message_size(FROM_AGENT_MAX)
        .max_encoding_message_size(TO_AGENT_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned())
        .await
}

struct Service {
    agents: Arc<Agents>,
}

#[tonic::async_trait]
impl Router for Service {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<FromController, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let remote = request.remote_addr();
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??;
        let Some(FromAgent { message: Some(from_agent::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a stream has to be Hello"));
        };
        if hello.node.is_empty() {
            return Err(Status::invalid_argument("Hello.node is empty: say the Kubernetes node's name"));
        }
        debug!(node = hello.node, ?remote, "hello");
        let session = self.agents.join(&hello.node, &hello.version);
        let outbound = Outbound {
            offers: session.offers.clone(),
            ended: session.ended.clone(),
            guard: Digest::from_wire(&hello.guard_digest),
            config: Digest::from_wire(&hello.config_digest),
            queue: VecDeque::new(),
            // A value that was put up before the stream began has to be looked at too.
            fresh: true,
        };
        tokio::spawn(listen(session, inbound));
        Ok(Response::new(Box::pin(stream::unfold(outbound, |mut outbound| async {
            outbound.next().await.map(|message| (Ok(message), outbound))
        }))))
    }
}

/// Takes what the agent says until its stream ends or another takes its place.
async fn listen(session: Session, mut inbound: Streaming<FromAgent>) {
    loop {
        let message = tokio::select! {
            () = session.ended.cancelled() => return,
            message = inbound.message() => message,
        };
        match message {
            Ok(Some(FromAgent { message: Some(message) })) => match message {
                from_agent::Message::Applied(applied) => session.applied(applied),
                from_agent::Message::Rejected(rejected) => session.rejected(rejected),
                from_agent::Message::Health(health) => session.health(health),
                from_agent::Message::Hello(_) => {
                    info!(node = session.node, "a second Hello on one stream is ignored");
                }
            },
            // A message of a later version of the contract.
            Ok(Some(FromAgent { message: None })) => {}
            Ok(None) => break,
            Err(status) => {
                info!(node = session.node, %status, "the agent's stream broke");
                break;
            }
        }
    }
    // The way out ends with the way in: an agent never holds half a stream.
    session.ended.cancel();
}

/// What goes to one agent: pulled as fast as the agent takes it, always the newest.
struct Outbound {
    offers: watch::Receiver<Option<Offer>>,
    ended: CancellationToken,
    guard: Option<Digest>,
    config: Option<Digest>,
    queue: VecDeque<FromController>,
    fresh: bool,
}

impl Outbound {
    async fn next(&mut self) -> Option<FromController> {
        loop {
            if let Some(message) = self.queue.pop_front() {
                return Some(message);
            }
            if !std::mem::take(&mut self.fresh) {
                tokio::select! {
                    () = self.ended.cancelled() => return None,
                    changed = self.offers.changed() => changed.ok()?,
                }
            }
            let offer = self.offers.borrow_and_update().clone();
            if let Some(offer) = offer {
                self.enqueue(&offer);
            }
        }
    }

    /// The guard goes first: a node never carries a tenant that its guard does not know.
    fn enqueue(&mut self, offer: &Offer) {
        fn take(held: &mut Option<Digest>, offered: &Offered) -> Option<wire::Payload> {
            let new = held.replace(offered.digest) != Some(offered.digest);
            new.then(|| wire::Payload::clone(&offered.payload))
        }
        let guard = take(&mut self.guard, &offer.guard).map(from_controller::Message::Guard);
        let config = take(&mut self.config, &offer.config).map(from_controller::Message::Config);
        self.queue.extend([guard, config].into_iter().flatten().map(|m| FromController { message: Some(m) }));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use calico_vni_proto::wire::router_client::RouterClient;
    use tokio::sync::{Notify, mpsc};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::{Code, transport::Endpoint};

    use super::*;
    use crate::agents::tests::offer;

    struct Served {
        agents: Arc<Agents>,
        address: String,
        shutdown: CancellationToken,
        server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    }

    async fn served() -> Served {
        let shutdown = CancellationToken::new();
        let agents = Agents::new(Arc::new(Notify::new()), shutdown.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(serve(listener, agents.clone(), shutdown.clone()));
        Served { agents, address, shutdown, server }
    }

    fn hello(node: &str, held: Option<&[u8]>) -> FromAgent {
        let digest = held.map(|body| Digest::of(body).to_wire()).unwrap_or_default();
        let hello = wire::Hello {
            node: node.into(),
            version: "1".into(),
            config_digest: digest,
            ..Default::default()
        };
        FromAgent { message: Some(from_agent::Message::Hello(hello)) }
    }

    async fn dial(
        stage: &Served,
        first: FromAgent,
    ) -> Result<(mpsc::Sender<FromAgent>, Streaming<FromController>), Status> {
        let (say, said) = mpsc::channel(4);
        say.send(first).await.unwrap();
        // A connection of its own, as agents have.
        let channel = Endpoint::try_from(stage.address.clone()).unwrap().connect().await.unwrap();
        let stream = RouterClient::new(channel).sync(ReceiverStream::new(said)).await?.into_inner();
        Ok((say, stream))
    }

    async fn body(stream: &mut Streaming<FromController>) -> (&'static str, Vec<u8>) {
        let message =
            tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("a message in time");
        match message.unwrap().expect("the stream is open").message.unwrap() {
            from_controller::Message::Guard(payload) => ("guard", payload.body),
            from_controller::Message::Config(payload) => ("config", payload.body),
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
        let ended =
            tokio::time::timeout(Duration::from_secs(10), first.message()).await.expect("ends in time");
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
        let server =
            tokio::time::timeout(Duration::from_secs(10), stage.server).await.expect("stops in time");
        server.unwrap().unwrap();
        assert!(matches!(stream.message().await, Ok(None) | Err(_)));
    }

    async fn wait_until(seen: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !seen() {
            assert!(tokio::time::Instant::now() < deadline, "did not come to pass within 10 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
