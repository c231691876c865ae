//! Carries a plan out: compares it with what stands and writes the difference, in an order in which no half-done state
//! does harm.
//!
//! - [`write`]: the writes as values, and the one trait that carries them out; [`api_server`] is the real one.
//! - [`diff`]: which writes are missing. Pure.
//! - [`ledger`]: allocations that were written and not yet seen; [`echo`]: the same of any write.
//! - [`retry`]: when to try again what failed; [`fight`]: what somebody else undoes.
//! - [`settle`]: which statuses wait because they are about to change again.
//!
//! A write that fails rests by itself; all others go on. Where there is much to write a pass does a part of each kind
//! and the rest is planned afresh, so that what is urgent never waits for a thousand writes that are not.

use std::{collections::BTreeSet, sync::Arc};

use calico_vni_crds::keys;
use calico_vni_planner::{
    Plan,
    plan::{About, Notice},
};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{ResourceExt, core::ObjectMeta};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::{
    diff::{Puts, Settled},
    echo::Echoes,
    fight::Fights,
    ledger::Ledger,
    retry::Retries,
    settle::Settling,
    write::{Cluster, Key, Write, WriteError},
};
use crate::{metrics::Metrics, observe::Observed, status};

pub mod api_server;
pub mod diff;
pub mod echo;
pub mod fight;
pub mod ledger;
pub mod retry;
pub mod settle;
pub mod write;

/// Writes under way at a time.
const CONCURRENT: usize = 16;
/// Writes of one stage in one pass.
const AT_ONCE: usize = 256;
/// Failed attempts at a filter that stands, before its peer goes.
const ATTEMPTS: u32 = 3;

/// Carries out plans, one after the other.
pub struct Applier<C> {
    cluster: C,
    metrics: Arc<Metrics>,
    retries: Retries,
    ledger: Ledger,
    settled: Settled,
    echoes: Echoes,
    fights: Fights,
    settling: Settling,
    /// When what rests or waits for its echo is to be looked at again.
    due: Option<Instant>,
}

/// One plan being carried out.
pub struct Pass<'a> {
    plan: &'a Plan,
    observed: &'a Observed,
    wanted: BTreeSet<Key>,
    failed: BTreeSet<Key>,
    /// Left to the next pass.
    deferred: BTreeSet<Key>,
    notices: BTreeSet<Notice>,
}

impl<'a> Pass<'a> {
    /// A new one.
    pub fn new(plan: &'a Plan, observed: &'a Observed) -> Self {
        Self {
            plan,
            observed,
            wanted: BTreeSet::new(),
            failed: BTreeSet::new(),
            deferred: BTreeSet::new(),
            notices: BTreeSet::new(),
        }
    }
}

impl<C: Cluster> Applier<C> {
    /// Writes by that cluster.
    pub fn new(cluster: C, metrics: Arc<Metrics>) -> Self {
        Self {
            cluster,
            metrics,
            retries: Retries::default(),
            ledger: Ledger::default(),
            settled: Settled::new(),
            echoes: Echoes::default(),
            fights: Fights::default(),
            settling: Settling::default(),
            due: None,
        }
    }

    /// Writes by another one from now on, which serves some objects in another form.
    pub fn turn_to(&mut self, cluster: C) {
        self.cluster = cluster;
        self.settled.clear();
        self.echoes = Echoes::default();
        self.fights = Fights::default();
    }

    /// Adds to what was observed the allocations that were written and not yet seen. Before each plan.
    pub fn complete(&mut self, observed: &mut Observed) {
        self.ledger.fill(&mut observed.snapshot);
    }

    /// First: Tenants for annotated pools, finalizers, allocations. No Tenant in use can vanish, and nothing uses a
    /// number before it is kept.
    pub async fn prepare(&mut self, pass: &mut Pass<'_>) {
        self.due = None;
        let now = Instant::now();
        self.echoes.observed(now);
        self.fights.expire(now);
        self.stage(pass, diff::new_tenants(pass.plan, pass.observed)).await;
        self.stage(pass, diff::holds(pass.plan, pass.observed)).await;
        let allocations = self.ledger.writes(diff::allocations(pass.plan, pass.observed));
        self.stage(pass, allocations).await;
    }

    /// Second, before nodes are told: ready labels, by which BIRD gets and loses its peers, and the end of BGPPeers.
    pub async fn withdraw(&mut self, pass: &mut Pass<'_>) {
        self.stage(pass, diff::labels(pass.plan, pass.observed)).await;
        self.stage(pass, diff::surplus_peers(pass.plan, pass.observed)).await;
    }

    /// Third, after nodes were told: BGPFilters, then the BGPPeers that go by them (BIRD talks to a peer whose filter
    /// is missing without any), then the end of filters, of Tenants, and their statuses. `now` is for conditions;
    /// `awaiting` says that some routers may be about to connect again and have not been heard yet.
    pub async fn establish(
        &mut self,
        mut pass: Pass<'_>,
        now: Timestamp,
        awaiting: bool,
    ) -> BTreeSet<Notice> {
        let (plan, observed) = (pass.plan, pass.observed);
        let filters = diff::filters(plan, observed, &self.settled);
        let absent: BTreeSet<String> = filters.missing.union(&filters.blocked).cloned().collect();
        let mut unready = self.puts(&mut pass, filters).await;
        self.close(&mut pass, &absent, &unready).await;

        let mut peers = diff::peers(plan, observed, &self.settled);
        peers.writes.retain(|write| match write {
            Write::PutPeer { filters, .. } => filters.is_disjoint(&unready),
            _ => true,
        });
        unready.extend(self.puts(&mut pass, peers).await);

        self.stage(&mut pass, diff::namespaces(plan, observed)).await;
        self.stage(&mut pass, diff::surplus_filters(plan, observed)).await;
        self.stage(&mut pass, diff::releases(plan, observed)).await;
        self.stage(&mut pass, diff::surplus_tenants(plan, observed)).await;
        let reports = status::reports(plan, &observed.snapshot, now, awaiting);
        let statuses = self.settling.due(reports, Instant::now());
        self.stage(&mut pass, statuses).await;

        self.retries.keep(|key| pass.wanted.contains(key));
        self.settled.retain(|(kind, name), _| match *kind {
            "BGPFilter" => plan.filters.contains_key(name),
            _ => plan.peers.contains_key(name),
        });
        pass.notices
    }

    /// Takes away the peers of filters that do not stand and could not be made to: better no session than an open one.
    /// A filter that stands and is merely not the newest keeps its peer for a few attempts.
    async fn close(&mut self, pass: &mut Pass<'_>, absent: &BTreeSet<String>, unready: &BTreeSet<String>) {
        let key = |name: &str| Key { kind: "BGPFilter", name: name.to_owned(), op: "put" };
        let lost: BTreeSet<String> = unready
            .iter()
            .filter(|name| {
                absent.contains(*name) && !pass.deferred.contains(&key(name))
                    || self.retries.attempts(&key(name)) > ATTEMPTS
                    || self.fights.undone(&key(name)).is_some()
            })
            .cloned()
            .collect();
        let peers = diff::exposed_peers(pass.observed, &lost);
        for write in &peers {
            let Key { name, .. } = write.key();
            let Some(tenant) = pass.observed.peers.get(&name).and_then(|peer| owner_of(peer.as_ref())) else {
                continue;
            };
            pass.notices.insert(Notice {
                about: About::Tenant(tenant),
                reason: "FilterNotWritten".to_owned(),
                message: format!(
                    "the BGPFilter of BGPPeer {name} is not as it has to be and cannot be written, so the peer is taken away rather than left without it; see what holds or changes the filter"
                ),
            });
        }
        self.stage(pass, peers).await;
    }

    /// When something that failed, rests or was not seen yet is to be looked at again.
    pub fn next_due(&self) -> Option<Instant> {
        [self.retries.next_due(), self.settling.next_due(), self.due].into_iter().flatten().min()
    }

    /// Writes them; the names of those that do not stand now.
    async fn puts(&mut self, pass: &mut Pass<'_>, puts: Puts) -> BTreeSet<String> {
        let names: Vec<Key> = puts.writes.iter().map(Write::key).collect();
        self.stage(pass, puts.writes).await;
        pass.notices.extend(puts.notices);
        let open = names.into_iter().filter(|key| pass.failed.contains(key) || pass.deferred.contains(key));
        open.map(|key| key.name).chain(puts.blocked).collect()
    }

    /// Carries out writes that do not depend on each other.
    async fn stage(&mut self, pass: &mut Pass<'_>, writes: Vec<Write>) {
        let now = Instant::now();
        let mut due = Vec::new();
        for write in writes {
            let key = write.key();
            if let Some(until) = self.echoes.awaited(&write) {
                self.due = Some(self.due.map_or(until, |due| due.min(until)));
                pass.wanted.insert(key);
                continue;
            }
            let rests = self.fights.rests(&key, &write, now);
            if let Some(until) = rests {
                self.due = Some(self.due.map_or(until, |due| due.min(until)));
            }
            pass.notices
                .extend(self.fights.undone(&key).and_then(|undone| contended(&write, pass.observed, undone)));
            if rests.is_some() || !self.retries.is_due(&key, now) {
                pass.failed.insert(key.clone());
            } else {
                due.push(write);
            }
            pass.wanted.insert(key);
        }
        if due.len() > AT_ONCE {
            pass.deferred.extend(due.drain(AT_ONCE..).map(|write| write.key()));
            self.due = Some(now);
        }
        let cluster = &self.cluster;
        let mut results = stream::iter(due)
            .map(|write| async move {
                let result = cluster.write(&write).await;
                (write, result)
            })
            .buffer_unordered(CONCURRENT);
        while let Some((write, result)) = results.next().await {
            let key = write.key();
            self.ledger.record(&write, result.as_ref().map(drop));
            self.metrics.wrote(&key, result.as_ref().err());
            match result {
                Ok(stored) => {
                    log_done(&write, &key);
                    self.retries.forget(&key);
                    self.echoes.written(&write, &stored, Instant::now());
                    self.fights.written(&key, &write, Instant::now());
                    if let (Write::PutFilter(wanted) | Write::PutPeer { peer: wanted, .. }, Some(held)) =
                        (&write, stored.object)
                    {
                        let forms = (diff::form(wanted), diff::form(&held));
                        self.settled.insert((key.kind, key.name), forms);
                    }
                }
                Err(error) => {
                    let rest = self.retries.failed(&key, Instant::now());
                    log_failed(&key, &error, rest);
                    pass.failed.insert(key);
                }
            }
        }
    }
}

/// The tenant that one of our objects follows from.
fn owner_of(object: &impl ResourceExt) -> Option<String> {
    object.labels().get(keys::OWNER).cloned()
}

/// Somebody undoes this write again and again: what is told of it, and on what.
fn contended(write: &Write, observed: &Observed, undone: u32) -> Option<Notice> {
    fn meta<'a, K: ResourceExt + 'a>(
        objects: impl IntoIterator<Item = &'a K>,
        name: &str,
    ) -> Option<ObjectMeta> {
        let mut objects = objects.into_iter();
        objects.find(|object| object.name_any() == name).map(|object| object.meta().clone())
    }
    let Key { kind, name, .. } = write.key();
    let snapshot = &observed.snapshot;
    let (about, meta) = match write {
        Write::PutFilter(object) => (
            About::Tenant(owner_of(object.as_ref())?),
            observed.filters.get(&name).map(|o| o.metadata.clone()),
        ),
        Write::PutPeer { peer, .. } => {
            (About::Tenant(owner_of(peer.as_ref())?), observed.peers.get(&name).map(|o| o.metadata.clone()))
        }
        _ => match kind {
            "Tenant" => (About::Tenant(name.clone()), meta(&snapshot.tenants, &name)),
            "Underlay" => (About::Underlay(name.clone()), meta(&snapshot.underlays, &name)),
            "Node" => (About::Node(name.clone()), meta(snapshot.nodes.iter().map(Arc::as_ref), &name)),
            "Namespace" => (About::Namespace(name.clone()), meta(&snapshot.namespaces, &name)),
            _ => return None,
        },
    };
    let manager = meta.and_then(|meta| meta.managed_fields?.into_iter().next()?.manager);
    let who =
        manager.map_or_else(|| "somebody".to_owned(), |manager| format!("the field manager `{manager}`"));
    // The count only grows; told at each step it would be news each time.
    let times = if undone > 10 { "more than 10" } else { "several" };
    Some(Notice {
        about,
        reason: "Contended".to_owned(),
        message: format!(
            "{kind} {name}: what is written there was changed back {times} times, last by {who}; it is corrected less and less often; keep that writer off this object"
        ),
    })
}

fn log_done(write: &Write, key: &Key) {
    let Key { kind, name, op } = key;
    match write {
        Write::AllocateTenant { allocation, .. } => {
            info!(op, tenant = name, vni = allocation.vni, link_index = allocation.link_index, "written");
        }
        Write::AllocateNode { index, .. } => info!(op, node = name, router_index = index, "written"),
        Write::LabelNode { labels, .. } => {
            let (on, off): (Vec<_>, Vec<_>) = labels.iter().partition(|(_, value)| value.is_some());
            let keys = |side: Vec<(&String, _)>| {
                side.into_iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(" ")
            };
            info!(op, node = name, on = keys(on), off = keys(off), "written");
        }
        Write::PutFilter(object) | Write::PutPeer { peer: object, .. } => {
            let created = object.metadata.resource_version.is_none();
            info!(op, kind, name, tenant = owner_of(object.as_ref()), created, "written");
        }
        Write::TenantStatus { .. } | Write::UnderlayStatus { .. } => debug!(op, kind, name, "written"),
        _ => info!(op, kind, name, "written"),
    }
}

fn log_failed(key: &Key, error: &WriteError, rest: std::time::Duration) {
    let Key { kind, name, op } = key;
    let retry_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
    match error {
        WriteError::Conflict | WriteError::Gone => debug!(op, kind, name, %error, retry_ms, "not written"),
        _ => warn!(op, kind, name, %error, retry_ms, "not written"),
    }
}

#[cfg(test)]
mod tests;
