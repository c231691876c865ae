//! The connected agents: what each has said last, and what each is offered. No I/O.
//!
//! An offer goes through a watch channel of its own, so that a slow agent gets the newest and never holds up others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use calico_vni_planner::snapshot::{Agent, AgentNotice, Session as BgpSession};
use calico_vni_proto::{
    codec::{self, Digest},
    wire::{self, from_controller::Message},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::questions::Line;
use crate::{metrics::Metrics, rollout::Heard};

pub mod questions;

/// Of this controller.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Characters of an agent's version that are told.
const VERSION_MAX: usize = 32;

/// An encoded message with its digest, shared by all that are offered it.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Names the payload's body.
    pub digest: Digest,
    /// As it goes over the wire, whole.
    pub frame: Bytes,
}

impl Offered {
    /// A payload with that body, in a message of that kind.
    pub fn new(body: Vec<u8>, kind: fn(wire::Payload) -> Message) -> Self {
        let digest = Digest::of(&body);
        let payload = wire::Payload { digest: digest.to_wire(), body };
        Self { digest, frame: codec::framed(kind(payload)).into() }
    }
}

impl PartialEq for Offered {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// What a node should hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// All tenant pools; the same for every node.
    pub guard: Offered,
    /// The node's own part; `None`: it keeps what it has.
    pub config: Option<Offered>,
    /// ASN of the router by that configuration; `None` where it has none.
    pub asn: Option<u32>,
}

impl Offer {
    /// Digest of the configuration.
    fn digest(&self) -> Option<Digest> {
        self.config.as_ref().map(|config| config.digest)
    }

    /// Whether that is a digest of it.
    fn names(&self, digest: Digest) -> bool {
        self.guard.digest == digest || self.digest() == Some(digest)
    }

    /// Whether a result of that guard and configuration is of it.
    fn is_held(&self, applied: (Digest, Digest)) -> bool {
        self.guard.digest == applied.0 && self.digest().is_none_or(|digest| digest == applied.1)
    }
}

/// How the agents stand together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Connected.
    pub connected: usize,
    /// Of these, those whose last result is of the guard and the configuration that they are offered now.
    pub in_step: usize,
}

/// All connected agents, by node.
pub struct Agents {
    inner: Mutex<Inner>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    sessions: u64,
    connected: BTreeMap<String, Connected>,
    offers: BTreeMap<String, Offer>,
}

/// When an agent has told its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Never,
    Before,
    /// After the result of the configuration that it holds.
    Since,
}

struct Connected {
    session: u64,
    version: String,
    /// Its stream has ended in good order and another is to come: what was said holds until then.
    resting: bool,
    offer: watch::Sender<Option<Offer>>,
    ended: CancellationToken,
    /// By which it is asked questions; `None`: it takes none.
    line: Option<Arc<Line>>,
    /// What it has said last; [`Agents::said`] adds what follows from the offers.
    agent: Arc<Agent>,
    /// What stands on the node is known from its first result on, and whether FRR answers from its first health. Before
    /// both have come nothing is known of the node, and what stands for it has to stay.
    has_applied: bool,
    health: Told,
    /// The configuration that it held when it came.
    held: Option<Digest>,
    /// Guard and configuration of the last result.
    applied: Option<(Digest, Digest)>,
    /// When the offer that is not acknowledged yet was put up for it.
    offered_at: Option<Instant>,
    rejected: Option<(Digest, String)>,
}

/// One stream of an agent. Dropping it takes the agent off the table.
pub struct Session {
    agents: Arc<Agents>,
    id: u64,
    /// Node of the agent.
    pub node: String,
    /// What the node should hold; `None` while it is unknown.
    pub offers: watch::Receiver<Option<Offer>>,
    /// Cancelled when another stream takes this one's place, and at shutdown.
    pub ended: CancellationToken,
}

impl Agents {
    /// An empty table. `changed` is told when something was said that a plan depends on.
    pub fn new(changed: Arc<Notify>, shutdown: CancellationToken, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed, shutdown, metrics })
    }

    /// A new stream of that node's agent. An older one ends: the node was restarted, or its connection was lost on one
    /// side alone.
    pub fn join(self: &Arc<Self>, node: &str, version: &str, held: Option<Digest>) -> Session {
        // It stands in statuses and metrics, and an agent may say anything.
        let version: String = version.chars().filter(char::is_ascii_graphic).take(VERSION_MAX).collect();
        let version = version.as_str();
        let mut inner = self.lock();
        inner.sessions += 1;
        let id = inner.sessions;
        let (offer, offers) = watch::channel(inner.offers.get(node).cloned());
        let ended = self.shutdown.child_token();
        let known = inner.offers.contains_key(node);
        let mut connected = Connected {
            session: id,
            version: version.to_owned(),
            resting: false,
            offer,
            ended: ended.clone(),
            line: None,
            agent: Arc::default(),
            has_applied: false,
            health: Told::Never,
            held,
            applied: None,
            offered_at: None,
            rejected: None,
        };
        match inner.connected.remove(node) {
            Some(older) if older.resting => {
                connected = Connected {
                    agent: older.agent,
                    has_applied: older.has_applied,
                    health: older.health,
                    applied: older.applied,
                    rejected: older.rejected,
                    ..connected
                };
                debug!(node, version, "the agent came again");
            }
            Some(older) => {
                older.ended.cancel();
                warn!(
                    node,
                    version, "the agent connected again while its former stream was open; that one ends"
                );
            }
            None => {
                info!(node, version, known, "agent connected");
                if version != VERSION {
                    warn!(
                        node,
                        version,
                        controller = VERSION,
                        "agent and controller are of different versions: each ignores what it does not know of the other's"
                    );
                }
            }
        }
        let known = connected.applied.is_some();
        inner.connected.insert(node.to_owned(), connected);
        drop(inner);
        if !known {
            // What it may be offered depends on what it holds.
            self.changed.notify_one();
        }
        Session { agents: Arc::clone(self), id, node: node.to_owned(), offers, ended }
    }

    /// What the agents have said, for the planner. An agent that has not said yet what stands is left out, unless it
    /// has refused what is wanted.
    pub fn said(&self) -> BTreeMap<String, Arc<Agent>> {
        let inner = self.lock();
        let said = inner.connected.iter().filter_map(|(node, connected)| {
            // A refusal counts as long as what was refused is still wanted.
            let rejected = connected.rejected.as_ref().and_then(|(digest, reason)| {
                let offer = inner.offers.get(node)?;
                offer.names(*digest).then(|| reason.clone())
            });
            let awaited = !connected.has_applied || connected.health == Told::Never;
            let agent = match rejected {
                None if awaited => return None,
                None => Arc::clone(&connected.agent),
                rejected => Arc::new(Agent { awaited, rejected, ..Agent::clone(&connected.agent) }),
            };
            Some((node.clone(), agent))
        });
        said.collect()
    }

    /// What the roll-out of changes goes by, of all that are connected.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        let inner = self.lock();
        let heard = inner.connected.iter().map(|(node, connected)| {
            let offer = inner.offers.get(node);
            let applied = connected.applied.map(|(_, config)| config);
            let refused =
                connected.rejected.as_ref().filter(|(digest, _)| offer.is_some_and(|o| o.names(*digest)));
            let sessions = connected.agent.sessions.iter();
            let heard = Heard {
                holds: applied.or(connected.held),
                in_step: applied.is_some() && applied == offer.and_then(Offer::digest),
                health: connected.health == Told::Since,
                refused: refused.map(|(_, reason)| reason.clone()),
                failed: connected.agent.failed.clone(),
                // Before it has said so nothing is known to be wrong.
                frr_running: connected.health == Told::Never || connected.agent.frr_running,
                sessions: sessions.filter(|s| s.tenant.is_none() && s.established).count(),
            };
            (node.clone(), heard)
        });
        heard.collect()
    }

    /// How many agents are connected, and how many of them have said that they hold what they are offered.
    pub fn standing(&self) -> Standing {
        let inner = self.lock();
        let in_step = inner.connected.iter().filter(|(node, connected)| {
            inner
                .offers
                .get(*node)
                .zip(connected.applied)
                .is_some_and(|(offer, applied)| offer.is_held(applied))
        });
        Standing { connected: inner.connected.len(), in_step: in_step.count() }
    }

    /// How many connected agents are of which version.
    pub fn versions(&self) -> BTreeMap<String, usize> {
        let mut versions = BTreeMap::new();
        for connected in self.lock().connected.values() {
            *versions.entry(connected.version.clone()).or_default() += 1;
        }
        versions
    }

    /// Nodes whose agents are of another version than this controller, with that.
    pub fn others(&self) -> BTreeMap<String, String> {
        let inner = self.lock();
        let others = inner.connected.iter().filter(|(_, connected)| connected.version != VERSION);
        others.map(|(node, connected)| (node.clone(), connected.version.clone())).collect()
    }

    /// Puts up what each known node should hold; whoever waits for it learns only what is new to it.
    pub fn offer(&self, offers: BTreeMap<String, Offer>) {
        let mut inner = self.lock();
        for (node, connected) in &mut inner.connected {
            let wanted = offers.get(node);
            let sent = connected.offer.send_if_modified(|current| {
                let differs = current.as_ref() != wanted;
                if differs {
                    *current = wanted.cloned();
                }
                differs
            });
            if let (true, Some(offer)) = (sent, wanted) {
                let digest = offer.digest().map(tracing::field::display);
                info!(node, digest, guard = %offer.guard.digest, "offered");
                // One that it did not come to in time counts from the first.
                connected.offered_at.get_or_insert_with(Instant::now);
                self.metrics.offered();
            }
        }
        inner.offers = offers;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Ends the stream in good order. Until this is dropped, or the agent's next stream takes its place, what it has said
    /// holds.
    pub fn rest(&self) {
        if let Some(connected) = self.agents.lock().connected.get_mut(&self.node)
            && connected.session == self.id
        {
            connected.resting = true;
        }
        self.ended.cancel();
    }

    /// What stands on the node after it applied and read back.
    pub fn applied(&self, applied: wire::Applied) {
        let digest = Digest::from_wire(&applied.config_digest);
        let guard = Digest::from_wire(&applied.guard_digest);
        let (failed, programmed): (Vec<_>, Vec<_>) =
            applied.tenants.into_iter().partition(|t| !t.error.is_empty());
        for result in &failed {
            warn!(
                node = self.node,
                tenant = result.name,
                vni = result.vni,
                error = result.error,
                "not programmed"
            );
        }
        info!(
            node = self.node,
            digest = digest.map(tracing::field::display),
            programmed = programmed.len(),
            failed = failed.len(),
            "applied"
        );
        self.agents.metrics.applied(failed.is_empty());
        self.update(|connected| {
            connected.has_applied = true;
            let agent = Arc::make_mut(&mut connected.agent);
            let offer = connected.offer.borrow().clone();
            if let Some(offer) = offer.as_ref().filter(|o| digest.is_some() && o.digest() == digest) {
                agent.asn = offer.asn;
            }
            if connected.applied.map(|(_, config)| config) != digest && connected.health == Told::Since {
                connected.health = Told::Before;
            }
            connected.applied = guard.zip(digest);
            let holds = offer.zip(connected.applied).is_some_and(|(offer, applied)| offer.is_held(applied));
            if let Some(at) = connected.offered_at.take_if(|_| holds) {
                self.agents.metrics.acknowledged(at.elapsed());
            }
            agent.programmed = programmed.into_iter().map(|t| (t.name, t.vni)).collect();
            agent.failed = failed.into_iter().map(|t| (t.name, t.error)).collect();
            let taken = |d: &Digest| Some(*d) == digest || Some(*d) == guard;
            if connected.rejected.as_ref().is_some_and(|(refused, _)| taken(refused)) {
                connected.rejected = None;
            }
        });
    }

    /// A payload that the node could not take at all; what stood before still stands.
    pub fn rejected(&self, rejected: wire::Rejected) {
        let Some(digest) = Digest::from_wire(&rejected.digest) else {
            warn!(
                node = self.node,
                reason = rejected.reason,
                "the agent refused something and named no digest"
            );
            return;
        };
        warn!(node = self.node, %digest, reason = rejected.reason, "refused by the agent");
        self.agents.metrics.rejected();
        self.update(|connected| {
            connected.rejected = Some((digest, rejected.reason));
        });
    }

    /// State of FRR and of its sessions.
    pub fn health(&self, health: wire::Health) {
        self.update(|connected| {
            connected.health = if connected.has_applied { Told::Since } else { Told::Before };
            let agent = Arc::make_mut(&mut connected.agent);
            agent.frr_running = health.frr_running;
            agent.sessions = health
                .sessions
                .into_iter()
                .map(|s| BgpSession {
                    tenant: (!s.tenant.is_empty()).then_some(s.tenant),
                    peer: s.peer,
                    established: s.established,
                    prefixes_received: s.prefixes_received,
                })
                .collect();
            agent.notices = health
                .notices
                .into_iter()
                .map(|n| AgentNotice {
                    tenant: (!n.tenant.is_empty()).then_some(n.tenant),
                    reason: n.reason,
                    message: n.message,
                })
                .collect();
            // Its order means nothing.
            agent.sessions.sort_by(|a, b| (&a.tenant, &a.peer).cmp(&(&b.tenant, &b.peer)));
        });
    }

    /// Changes this session's entry, and calls for a plan if that made a difference.
    fn update(&self, change: impl FnOnce(&mut Connected)) {
        let mut inner = self.agents.lock();
        let Some(connected) = inner.connected.get_mut(&self.node).filter(|c| c.session == self.id) else {
            return;
        };
        let state = |c: &Connected| {
            let config = c.applied.map(|(_, config)| config);
            (c.has_applied, c.health, config, Arc::clone(&c.agent), c.rejected.clone())
        };
        let before = state(connected);
        change(connected);
        let differs = before != state(connected);
        drop(inner);
        if differs {
            self.agents.changed.notify_one();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut inner = self.agents.lock();
        if inner.connected.get(&self.node).is_some_and(|c| c.session == self.id) {
            inner.connected.remove(&self.node);
            drop(inner);
            info!(node = self.node, "agent disconnected");
            self.agents.changed.notify_one();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
