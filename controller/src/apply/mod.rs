//! Carries a plan out: compares it with what stands and writes the difference, in an order in which no half-done state
//! does harm.
//!
//! - [`write`]: the writes as values, and the one trait that carries them out; [`api_server`] is the real one.
//! - [`diff`]: which writes are missing. Pure.
//! - [`ledger`]: allocations that were written and not yet seen.
//! - [`retry`]: when to try again what failed.
//!
//! A write that fails rests by itself; all others go on.

use std::collections::BTreeSet;

use calico_vni_planner::{Plan, plan::Notice};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::{
    diff::{Puts, Settled},
    ledger::Ledger,
    retry::Retries,
    write::{Cluster, Key, Write, WriteError},
};
use crate::{observe::Observed, status};

pub mod api_server;
pub mod diff;
pub mod ledger;
pub mod retry;
pub mod write;

/// Writes under way at a time.
const CONCURRENT: usize = 16;

/// Carries out plans, one after the other.
pub struct Applier<C> {
    cluster: C,
    retries: Retries,
    ledger: Ledger,
    settled: Settled,
}

/// One plan being carried out.
pub struct Pass<'a> {
    plan: &'a Plan,
    observed: &'a Observed,
    wanted: BTreeSet<Key>,
    failed: BTreeSet<Key>,
    /// Kind and name of what was written: its version is not the observed one any more.
    touched: BTreeSet<(&'static str, String)>,
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
            touched: BTreeSet::new(),
            notices: BTreeSet::new(),
        }
    }
}

impl<C: Cluster> Applier<C> {
    /// Writes by that cluster.
    pub fn new(cluster: C) -> Self {
        Self { cluster, retries: Retries::default(), ledger: Ledger::default(), settled: Settled::new() }
    }

    /// Adds to what was observed the allocations that were written and not yet seen. Before each plan.
    pub fn complete(&mut self, observed: &mut Observed) {
        self.ledger.fill(&mut observed.snapshot);
    }

    /// First: Tenants for annotated pools, allocations, finalizers. Nothing uses a number before it is kept, and no
    /// Tenant in use can vanish.
    pub async fn prepare(&mut self, pass: &mut Pass<'_>) {
        self.stage(pass, diff::new_tenants(pass.plan, pass.observed)).await;
        let allocations = self.ledger.writes(diff::allocations(pass.plan, pass.observed));
        self.stage(pass, allocations).await;
        self.stage(pass, diff::holds(pass.plan, pass.observed)).await;
    }

    /// Second, before nodes are told: ready labels, by which BIRD gets and loses its peers, and the end of BGPPeers.
    pub async fn withdraw(&mut self, pass: &mut Pass<'_>) {
        self.stage(pass, diff::labels(pass.plan, pass.observed)).await;
        self.stage(pass, diff::surplus_peers(pass.plan, pass.observed)).await;
    }

    /// Third, after nodes were told: BGPFilters, then the BGPPeers that go by them (BIRD talks to a peer whose filter
    /// is missing without any), then the end of filters, of Tenants, and their statuses. `now` is for conditions.
    pub async fn establish(&mut self, mut pass: Pass<'_>, now: Timestamp) -> BTreeSet<Notice> {
        let (plan, observed) = (pass.plan, pass.observed);
        let filters = diff::filters(plan, observed, &self.settled);
        let mut unready = self.puts(&mut pass, filters).await;
        let mut peers = diff::peers(plan, observed, &self.settled);
        peers.writes.retain(|write| match write {
            Write::PutPeer { filters, .. } => filters.is_disjoint(&unready),
            _ => true,
        });
        unready.extend(self.puts(&mut pass, peers).await);

        self.stage(&mut pass, diff::surplus_filters(plan, observed)).await;
        self.stage(&mut pass, diff::releases(plan, observed)).await;
        self.stage(&mut pass, diff::surplus_tenants(plan, observed)).await;

        let mut reports = status::reports(plan, &observed.snapshot, now);
        reports.retain(|write| {
            let Key { kind, name, .. } = write.key();
            !pass.touched.contains(&(kind, name))
        });
        self.stage(&mut pass, reports).await;

        self.retries.keep(|key| pass.wanted.contains(key));
        self.settled.retain(|(kind, name), _| match *kind {
            "BGPFilter" => plan.filters.contains_key(name),
            _ => plan.peers.contains_key(name),
        });
        pass.notices
    }

    /// When something that failed is to be tried again.
    pub fn next_due(&self) -> Option<Instant> {
        self.retries.next_due()
    }

    /// Writes them; the names of those that do not stand now.
    async fn puts(&mut self, pass: &mut Pass<'_>, puts: Puts) -> BTreeSet<String> {
        let names: Vec<Key> = puts.writes.iter().map(Write::key).collect();
        self.stage(pass, puts.writes).await;
        pass.notices.extend(puts.notices);
        let failed = names.into_iter().filter(|key| pass.failed.contains(key)).map(|key| key.name);
        failed.chain(puts.blocked).collect()
    }

    /// Carries out writes that do not depend on each other.
    async fn stage(&mut self, pass: &mut Pass<'_>, writes: Vec<Write>) {
        let now = Instant::now();
        let (due, resting): (Vec<_>, Vec<_>) =
            writes.into_iter().partition(|write| self.retries.is_due(&write.key(), now));
        for write in resting {
            pass.wanted.insert(write.key());
            pass.failed.insert(write.key());
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
            match result {
                Ok(stored) => {
                    log_done(&write, &key);
                    self.retries.forget(&key);
                    if let (Write::PutFilter(wanted) | Write::PutPeer { peer: wanted, .. }, Some(stored)) =
                        (&write, stored)
                    {
                        let forms = (diff::form(wanted), diff::form(&stored));
                        self.settled.insert((key.kind, key.name.clone()), forms);
                    }
                    pass.touched.insert((key.kind, key.name.clone()));
                }
                Err(error) => {
                    let rest = self.retries.failed(&key, Instant::now());
                    log_failed(&key, &error, rest);
                    pass.failed.insert(key.clone());
                }
            }
            pass.wanted.insert(key);
        }
    }
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
            let tenant = object.labels().get(calico_vni_crds::keys::OWNER).map(String::as_str);
            info!(op, kind, name, tenant, created, "written");
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
