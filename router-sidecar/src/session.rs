//! The stream to the controller: takes what is wanted, tells what stands.
//!
//! It is dialled again for ever. Nothing on the node waits for it: what was taken last stays in force.

use std::{pin::pin, time::Duration};

use calico_vni_proto::{
    codec::{Codec, Digest},
    model::{Guard, NodeConfig},
    wire::{self, from_agent, from_controller, router_client::RouterClient},
};
use futures::future::{Fuse, FusedFuture as _, FutureExt as _};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{error, info, warn};

use crate::{
    dial::{Dial, DialError},
    frr::Driver,
    last_good::{Held, LastGood, Told},
    questions,
    report::{Health, Report},
};

/// Shortest and longest pause before dialling again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Longest where a controller answered that it does not lead. Behind a Service the next one to be reached may well be the
/// leader, which half a minute's pauses would find late.
const NEXT_CONTROLLER: Duration = Duration::from_secs(5);
/// How often it is sent though nothing changed.
const HEALTH_AT_LEAST: Duration = Duration::from_secs(30);
/// Octets of the longest message taken: a guard of 100,000 pools has about 4 MB.
const LONGEST_MESSAGE: usize = 64 << 20;
/// Messages to the controller that wait to be sent.
const QUEUE: usize = 16;

/// The agent's end of the stream.
pub struct Session {
    /// This node.
    pub node: String,
    /// How the controller is reached.
    pub dial: Dial,
    /// How long a stream may take to be opened: a controller that has just started lets agents wait until it knows the
    /// cluster. Connections have been seen that neither open a stream nor break.
    pub patience: Duration,
    /// Where what was taken is kept.
    pub last_good: LastGood,
    /// Where what was taken goes.
    pub told: watch::Sender<Told>,
    /// Results.
    pub report: watch::Receiver<Report>,
    /// FRR and its sessions.
    pub health: watch::Receiver<Option<Health>>,
    /// Whom the controller's questions are about.
    pub frr: Driver,
    /// Says whether the stream stands.
    pub connected: watch::Sender<bool>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The controller refused or the connection broke.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// The controller closed it.
    #[error("the controller closed the stream")]
    Closed,
    /// Neither a stream nor a refusal.
    #[error("the controller opened no stream within {} s", .0.as_secs())]
    Silent(Duration),
}

impl SessionError {
    /// Whether a controller answered that lives and does not lead.
    fn is_standby(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == tonic::Code::Unavailable)
    }
}

impl Session {
    /// Dials for ever.
    pub async fn run(mut self) {
        let mut failures: u32 = 0;
        loop {
            let began = Instant::now();
            let Err(error) = self.once().await;
            self.connected.send_replace(false);
            // A stream that lived past the longest pause was a good one.
            failures = if began.elapsed() > PAUSE.1 { 0 } else { failures.saturating_add(1) };
            let longest = if error.is_standby() { NEXT_CONTROLLER } else { PAUSE.1 };
            let pause = pause(failures, longest, jitter(&self.node, failures));
            warn!(node = self.node, controller = self.dial.controller, %error, ?pause, "dialling the controller again");
            sleep(pause).await;
        }
    }

    async fn once(&mut self) -> Result<std::convert::Infallible, SessionError> {
        let (to_controller, queue) = mpsc::channel(QUEUE);
        let say = |message| {
            let to_controller = &to_controller;
            async move {
                let message = wire::FromAgent { message: Some(message) };
                to_controller.send(message).await.map_err(|_| SessionError::Closed)
            }
        };
        say(from_agent::Message::Hello(self.hello())).await?;
        let opened = timeout(self.patience, self.open(queue)).await;
        let mut stream = opened.map_err(|_| SessionError::Silent(self.patience))??;
        info!(node = self.node, controller = self.dial.controller, "connected to the controller");
        self.connected.send_replace(true);

        self.report.mark_changed();
        self.health.mark_changed();
        let mut health_sent: Option<(Health, Instant)> = None;
        // Ends with the stream: nobody waits for it then.
        let mut answering = pin!(Fuse::terminated());
        loop {
            tokio::select! {
                // A result goes before the health that was looked at after it.
                biased;
                changed = self.report.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    let applied = self.report.borrow_and_update().to_wire();
                    if let Some(applied) = applied {
                        say(from_agent::Message::Applied(applied)).await?;
                    }
                }
                changed = self.health.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    let Some(health) = self.health.borrow_and_update().clone() else { continue };
                    let now = Instant::now();
                    let due = health_sent.as_ref().is_none_or(|(sent, at)| {
                        health.differs(sent) || now.duration_since(*at) >= HEALTH_AT_LEAST
                    });
                    if due {
                        say(from_agent::Message::Health(health.to_wire())).await?;
                        health_sent = Some((health, now));
                    }
                }
                answer = &mut answering => say(from_agent::Message::Answer(answer)).await?,
                message = stream.message() => {
                    let message = message.map_err(Box::new)?.ok_or(SessionError::Closed)?;
                    let reply = match message.message {
                        Some(from_controller::Message::Question(question)) if answering.is_terminated() => {
                            let config = self.told.borrow().config.as_ref().map(|held| held.value.clone());
                            answering.set(questions::answer(self.frr.clone(), config, question).fuse());
                            None
                        }
                        Some(from_controller::Message::Question(question)) => {
                            Some(from_agent::Message::Answer(questions::busy(&question)))
                        }
                        Some(from_controller::Message::Guard(payload)) => {
                            rejection(&self.node, "guard", &payload, self.take_guard(&payload))
                        }
                        Some(from_controller::Message::Config(payload)) => {
                            rejection(&self.node, "config", &payload, self.take_config(&payload))
                        }
                        None => None,
                    };
                    if let Some(reply) = reply {
                        say(reply).await?;
                    }
                }
            }
        }
    }

    /// A new connection, and the stream on it.
    async fn open(
        &self,
        queue: mpsc::Receiver<wire::FromAgent>,
    ) -> Result<Streaming<wire::FromController>, SessionError> {
        let channel = self.dial.connect().await?;
        let mut client = RouterClient::new(channel).max_decoding_message_size(LONGEST_MESSAGE);
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        if let Some(authorization) = self.dial.authorization().await? {
            request.metadata_mut().insert("authorization", authorization);
        }
        Ok(client.sync(request).await.map_err(Box::new)?.into_inner())
    }

    fn hello(&self) -> wire::Hello {
        let told = self.told.borrow();
        let bytes = |digest: Option<Digest>| digest.map(Digest::to_wire).unwrap_or_default();
        wire::Hello {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            guard_digest: bytes(told.guard.as_ref().map(|held| held.digest)),
            config_digest: bytes(told.config.as_ref().map(|held| held.digest)),
            answers: true,
        }
    }

    /// Takes a guard, or says why not; then the one that was taken before stands.
    fn take_guard(&self, payload: &wire::Payload) -> Result<(), String> {
        let (digest, value) = Guard::from_payload(payload).map_err(|e| e.to_string())?;
        info!(node = self.node, %digest, tenants = value.tenants.len(), "took the guard");
        let held = Held { digest, value };
        if let Err(error) = self.last_good.keep_guard(&held) {
            error!(%error, "the guard cannot be kept for the next start; is the state directory writable?");
        }
        self.told.send_modify(|told| told.guard = Some(held));
        Ok(())
    }

    /// The same of a configuration.
    fn take_config(&self, payload: &wire::Payload) -> Result<(), String> {
        let (digest, value) = NodeConfig::from_payload(payload).map_err(|e| e.to_string())?;
        if value.node != self.node {
            return Err(format!(
                "node: `{}`: this agent is of node `{}`; give it the right --node",
                value.node, self.node
            ));
        }
        info!(node = self.node, %digest, tenants = value.tenants.len(), "took the configuration");
        let held = Held { digest, value };
        if let Err(error) = self.last_good.keep_config(&held) {
            error!(%error, "the configuration cannot be kept for the next start; is the state directory writable?");
        }
        self.told.send_modify(|told| told.config = Some(held));
        Ok(())
    }
}

/// What is said of a payload that could not be taken.
fn rejection(
    node: &str,
    what: &str,
    payload: &wire::Payload,
    taken: Result<(), String>,
) -> Option<from_agent::Message> {
    let reason = taken.err()?;
    let digest = payload.digest.clone();
    error!(node, digest = hex::encode(&digest), what, reason, "refused what the controller sent");
    Some(from_agent::Message::Rejected(wire::Rejected { digest, reason }))
}

/// Anything between the shortest pause and one that doubles with each failure (full jitter): agents that lost their
/// controller together do not come back together. `share` is between 0 and 1.
fn pause(failures: u32, longest: Duration, share: f64) -> Duration {
    let longest = PAUSE.0.saturating_mul(2u32.saturating_pow(failures)).min(longest);
    PAUSE.0 + (longest.saturating_sub(PAUSE.0)).mul_f64(share)
}

/// A number between 0 and 1 that differs by node and moment. It has to be spread, not secret.
fn jitter(node: &str, failures: u32) -> f64 {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let hash = Sha256::digest([node.as_bytes(), &failures.to_be_bytes(), &now.to_be_bytes()].concat());
    f64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_between_their_bounds() {
        for failures in 0..40 {
            assert_eq!(pause(failures, PAUSE.1, 0.0), PAUSE.0);
            assert!(pause(failures, PAUSE.1, 1.0) <= PAUSE.1);
            assert!(pause(failures, NEXT_CONTROLLER, 1.0) <= NEXT_CONTROLLER);
        }
        assert_eq!(pause(2, PAUSE.1, 1.0), Duration::from_millis(800));
        assert_eq!(pause(20, PAUSE.1, 1.0), PAUSE.1);
        let (one, two) = (jitter("n1", 1), jitter("n2", 1));
        assert!((0.0..=1.0).contains(&one) && (0.0..=1.0).contains(&two));
    }

    #[test]
    fn only_a_controller_that_stands_by_is_dialled_again_soon() {
        let refused = |status| SessionError::from(Box::new(status));
        assert!(refused(tonic::Status::unavailable("standby; another leads")).is_standby());
        assert!(!refused(tonic::Status::unauthenticated("no token")).is_standby());
        assert!(!SessionError::Closed.is_standby());
    }
}
