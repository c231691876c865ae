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
                    info!(node = session.node, "a second Hello on one stream is ignored")
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
