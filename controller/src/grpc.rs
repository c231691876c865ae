//! The gRPC service that agents dial: one bidirectional stream each. What is said goes to the agents' table, what is
//! offered and asked comes from it; nothing is decided here. Beside it, on the same socket, the service for people.

pub mod door;
mod frames;
mod operator;
mod pace;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use calico_vni_identity::serving::{self, Certificate};
use calico_vni_proto::{
    codec::{Digest, framed},
    wire::{self, FromAgent, from_agent, from_controller, operator_server::OperatorServer},
};
use futures::{Stream, stream};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming, transport::Server};
use tracing::{debug, info};

use self::{door::Door, frames::Served, operator::Desk, pace::Pace};
use crate::agents::{Agents, Offer, Offered, Session};

/// Time for a new stream to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// An idle connection is asked for life this often, and given [`KEEPALIVE_TIMEOUT`] to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message from an agent, in octets: the results of some ten thousand tenants.
const FROM_AGENT_MAX: usize = 4 << 20;
/// Streams of one connection. An agent has one, and for a moment another.
const STREAMS_MAX: u32 = 4;
/// Messages of one agent. One that says more is read no faster, so that it waits and nobody else does.
const MESSAGES: Pace = Pace { every: Duration::from_millis(50), burst: 100 };
/// How long a stream lives at most, so that its token is looked at again.
pub const AGE: Duration = Duration::from_mins(30);
/// Streams that began together end apart, by this share of their age to either side.
const SPREAD: f64 = 0.1;
/// An agent whose stream has ended by its age is not missed before this: it dials again at once.
const REJOIN: Duration = Duration::from_secs(40);

/// Whether agents are let in.
#[derive(Clone)]
pub enum Gate {
    /// Not yet: they wait.
    Preparing {
        /// For what, in words.
        missing: String,
    },
    /// Not here: another controller serves them.
    Standby {
        /// Which one, in words.
        reason: String,
    },
    /// To this table.
    Open(Arc<Agents>),
}

/// How agents reach the controller, and what they have to prove.
#[derive(Clone)]
pub struct Access {
    /// With TLS by this certificate; without TLS where there is none.
    pub certificate: Option<Arc<Certificate>>,
    /// Who is let in.
    pub door: Arc<Door>,
    /// How long a stream lives at most, give or take a tenth.
    pub age: Duration,
}

impl Access {
    /// Without TLS, and everybody is believed: only where nobody else can reach the socket.
    pub fn plain() -> Self {
        Self { certificate: None, door: Door::open(), age: AGE }
    }
}

/// Serves agents and people on that socket until told to stop; then ends their streams.
pub async fn serve(
    listener: TcpListener,
    gate: watch::Receiver<Gate>,
    access: Access,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let Access { certificate, door, age } = access;
    let desk = OperatorServer::new(Desk::new(gate.clone(), Arc::clone(&door), shutdown.clone()));
    let service = Served(Arc::new(Service { gate, door, age, shutdown: shutdown.clone() }));
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .tcp_nodelay(true)
        .add_service(service)
        .add_service(desk);
    let shutdown = shutdown.cancelled_owned();
    match certificate {
        None => router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown).await,
        Some(certificate) => {
            let connections = serving::incoming(listener, certificate);
            router.serve_with_incoming_shutdown(connections, shutdown).await
        }
    }
}

struct Service {
    gate: watch::Receiver<Gate>,
    door: Arc<Door>,
    age: Duration,
    shutdown: CancellationToken,
}

impl Service {
    /// The table of agents, once there is one.
    async fn agents(&self) -> Result<Arc<Agents>, Status> {
        let mut gate = self.gate.clone();
        let decided = gate.wait_for(|gate| !matches!(gate, Gate::Preparing { .. }));
        match self.shutdown.run_until_cancelled(decided).await {
            Some(Ok(gate)) => match &*gate {
                Gate::Open(agents) => Ok(Arc::clone(agents)),
                Gate::Standby { reason } => Err(Status::unavailable(reason.clone())),
                Gate::Preparing { .. } => Err(Status::unavailable("not ready")),
            },
            Some(Err(_)) | None => Err(Status::unavailable("the controller stops")),
        }
    }

    /// A new stream: what is sent on it, message by message as it goes over the wire.
    async fn sync(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<impl Stream<Item = Bytes> + Send + use<>, Status> {
        let agents = self.agents().await?;
        let remote = request.remote_addr();
        let headers = request.metadata().clone();
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
        self.door.check(&headers, &hello.node).await?;
        let config = Digest::from_wire(&hello.config_digest);
        let session = agents.join(&hello.node, &hello.version, config);
        let outbound = Outbound {
            questions: hello.answers.then(|| session.questions()),
            offers: session.offers.clone(),
            ended: session.ended.clone(),
            guard: Digest::from_wire(&hello.guard_digest),
            config,
            queue: VecDeque::new(),
            // A value that was put up before the stream began has to be looked at too.
            fresh: true,
        };
        tokio::spawn(listen(session, inbound, Instant::now() + spread(self.age)));
        Ok(stream::unfold(outbound, |mut outbound| async {
            outbound.next().await.map(|frame| (frame, outbound))
        }))
    }
}

/// That span, a little longer or shorter. It has to be spread, not secret.
fn spread(age: Duration) -> Duration {
    let share = f64::from(u16::try_from(RandomState::new().hash_one(()) & 0xffff).unwrap_or(0)) / 65_535.0;
    age.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * share)
}

/// Takes what the agent says until its stream ends, grows too old, or another takes its place.
async fn listen(session: Session, mut inbound: Streaming<FromAgent>, until: Instant) {
    let mut due = Instant::now();
    let old = tokio::time::sleep_until(until);
    tokio::pin!(old);
    let mut newer_told = false;
    loop {
        let message = tokio::select! {
            () = session.ended.cancelled() => return,
            () = &mut old => {
                debug!(node = session.node, "the stream is old: the agent dials again and proves itself again");
                // What the agent has said holds until it comes again.
                session.rest();
                drop(inbound);
                tokio::time::sleep(REJOIN).await;
                return;
            }
            message = inbound.message() => message,
        };
        match message {
            Ok(Some(FromAgent { message: Some(message) })) => match message {
                from_agent::Message::Applied(applied) => session.applied(applied),
                from_agent::Message::Rejected(rejected) => session.rejected(rejected),
                from_agent::Message::Health(health) => session.health(health),
                from_agent::Message::Answer(answer) => session.answered(answer),
                from_agent::Message::Hello(_) => {
                    info!(node = session.node, "a second Hello on one stream is ignored");
                }
            },
            Ok(Some(FromAgent { message: None })) => {
                if !std::mem::replace(&mut newer_told, true) {
                    info!(
                        node = session.node,
                        "the agent says what this controller does not know: it is newer; update the controller"
                    );
                }
            }
            Ok(None) => break,
            Err(status) => {
                info!(node = session.node, %status, "the agent's stream broke");
                break;
            }
        }
        while let Err(wait) = MESSAGES.admit(&mut due, Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }
    // The way out ends with the way in: an agent never holds half a stream.
    session.ended.cancel();
}

/// What goes to one agent: pulled as fast as the agent takes it, always the newest.
struct Outbound {
    offers: watch::Receiver<Option<Offer>>,
    /// `None`: it takes none.
    questions: Option<mpsc::Receiver<wire::Question>>,
    ended: CancellationToken,
    guard: Option<Digest>,
    config: Option<Digest>,
    queue: VecDeque<Bytes>,
    fresh: bool,
}

impl Outbound {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.queue.pop_front() {
                return Some(frame);
            }
            if !std::mem::take(&mut self.fresh) {
                tokio::select! {
                    () = self.ended.cancelled() => return None,
                    changed = self.offers.changed() => changed.ok()?,
                    Some(question) = next(&mut self.questions) => {
                        return Some(framed(from_controller::Message::Question(question)).into());
                    }
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
        fn take(held: &mut Option<Digest>, offered: &Offered) -> Option<Bytes> {
            let new = held.replace(offered.digest) != Some(offered.digest);
            new.then(|| offered.frame.clone())
        }
        let guard = take(&mut self.guard, &offer.guard);
        let config = offer.config.as_ref().and_then(|config| take(&mut self.config, config));
        self.queue.extend([guard, config].into_iter().flatten());
    }
}

/// The next question, or none where none can come.
async fn next(questions: &mut Option<mpsc::Receiver<wire::Question>>) -> Option<wire::Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => None,
    }
}
