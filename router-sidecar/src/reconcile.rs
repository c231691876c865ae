//! Goes round: observe, diff, execute, observe again, report.
//!
//! A round is started by a new configuration, by what the kernel tells, by a guard or an FRR that no longer is what it
//! was, by a pause that ends, and by the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use calico_vni_proto::{
    codec::Digest,
    model::{NodeConfig, Tenant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    backoff::Backoff,
    desired::{Desired, desired},
    diff::diff,
    executor::{Outcome, execute},
    frr_port::Frr,
    last_good::Told,
    metrics::Metrics,
    node::{NodeError, Platform},
    observe::Observed,
    op::Op,
    patience::Patience,
    report::{Report, TenantReport},
    state::Kind,
};

/// Rounds of changes before what is left counts as failed: a change can undo another (a device that is made anew loses
/// its routes), and then the next one puts it right.
const ROUNDS: usize = 3;

/// How often the agent looks.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Everything, though nothing was told.
    pub resync: Duration,
    /// The guard and FRR, which tell nothing by themselves.
    pub poll: Duration,
    /// Whether anybody has changed any packet filter of the node, which costs one question to the kernel. A guard that is
    /// gone opens the tenants' pods to their own node's neighbours until it is loaded again.
    pub guard: Duration,
    /// How long to gather what the kernel tells.
    pub debounce: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resync: Duration::from_secs(15),
            poll: Duration::from_secs(3),
            guard: Duration::from_millis(200),
            debounce: Duration::from_millis(200),
        }
    }
}

/// What a look at the node found, and what it lacks.
#[derive(Debug)]
pub struct Look {
    /// What is wanted.
    pub desired: Desired,
    /// What stands.
    pub observed: Observed,
    /// What is missing.
    pub ops: Vec<Op>,
}

/// Looks once.
pub async fn look(told: &Told, platform: &impl Platform, frr: &impl Frr) -> Result<Option<Look>, NodeError> {
    let Some(config) = told.config.as_ref().map(|held| &held.value) else { return Ok(None) };
    let interfaces = config.underlay.as_ref().map_or(&[][..], |underlay| &underlay.interfaces);
    let uplinks = platform.uplinks(interfaces).await?;
    let desired = desired(config, told.guard.as_ref().map(|held| &held.value), &uplinks);
    let (observed, ops) = compare(&desired, platform, frr).await?;
    Ok(Some(Look { desired, observed, ops }))
}

/// Observes, and names what is missing.
pub async fn compare(
    desired: &Desired,
    platform: &impl Platform,
    frr: &impl Frr,
) -> Result<(Observed, Vec<Op>), NodeError> {
    let mut observed = platform.observe(desired).await?;
    match frr.plan(&desired.config).await {
        Ok(changes) => observed.frr = changes,
        Err(silent) => observed.frr_error = Some(silent.to_string()),
    }
    let ops = diff(desired, &observed);
    Ok((observed, ops))
}

/// Goes round until nothing is missing or nothing more can be done, and says how it ended.
async fn settle(
    look: Look,
    platform: &impl Platform,
    frr: &impl Frr,
    metrics: &Metrics,
    wait: impl Fn(&Op) -> bool,
) -> Result<(Look, Outcome), NodeError> {
    let Look { desired, mut observed, mut ops } = look;
    let mut last = Outcome::default();
    for _ in 0..ROUNDS {
        if ops.is_empty() {
            break;
        }
        last = execute(&ops, &desired.config, platform, frr, &wait).await;
        metrics.tried(&last);
        (observed, ops) = compare(&desired, platform, frr).await?;
        if last.made == 0 {
            break;
        }
    }
    Ok((Look { desired, observed, ops }, last))
}

/// Why things are missing, remembered while they wait to be tried again.
#[derive(Debug, Default)]
struct Reasons {
    node: Option<String>,
    tenants: BTreeMap<u32, String>,
}

impl Reasons {
    /// Forgets those for whom nothing is missing, and takes what failed in this round.
    fn update(&mut self, left: &[Op], outcome: &Outcome) {
        let owners: BTreeSet<Option<u32>> = left.iter().map(Op::vni).collect();
        self.tenants.retain(|vni, _| owners.contains(&Some(*vni)));
        self.node.take_if(|_| !owners.contains(&None));
        for (vni, failure) in &outcome.tenants {
            if owners.contains(&Some(*vni)) {
                self.tenants.insert(*vni, failure.to_string());
            }
        }
        if let Some(failure) = outcome.node.first().filter(|_| owners.contains(&None)) {
            self.node = Some(failure.to_string());
        }
    }
}

/// How the tenants stand after a round: those for which something is still missing have an error. What failed is named
/// before what is only missing, since it may be why. A silent FRR is no error of those that it is trusted to carry.
fn judge(
    desired: &Desired,
    observed: &Observed,
    left: &[Op],
    reasons: &Reasons,
    trusted: impl Fn(&Tenant) -> bool,
) -> Vec<TenantReport> {
    let missing = |vni: Option<u32>| {
        left.iter().find(|op| op.vni() == vni).map(|op| format!("{}: not done yet", op.headline()))
    };
    let node_missing = missing(None);
    let of_frr = |tenant: &Tenant| observed.frr_error.clone().filter(|_| !trusted(tenant));
    desired
        .config
        .tenants
        .iter()
        .map(|tenant| TenantReport {
            name: tenant.name.clone(),
            vni: tenant.vni,
            error: (reasons.tenants.get(&tenant.vni).cloned())
                .or_else(|| reasons.node.clone())
                .or_else(|| of_frr(tenant))
                .or_else(|| missing(Some(tenant.vni)))
                .or_else(|| node_missing.clone())
                .or_else(|| desired.steering.refused.get(&tenant.vni).cloned()),
        })
        .collect()
}

/// The agent's loop.
pub struct Reconciler<P, F> {
    /// The node.
    pub platform: P,
    /// FRR.
    pub frr: F,
    /// How often it looks.
    pub settings: Settings,
    /// What is wanted.
    pub told: watch::Receiver<Told>,
    /// Where the results go.
    pub report: watch::Sender<Report>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    backoff: Backoff,
    reasons: Reasons,
    digests: (Option<Digest>, Option<Digest>),
    /// What FRR carried when it last answered, by VNI.
    carried: BTreeMap<u32, Tenant>,
    patience: Patience,
    /// Why the node could not be read in the last round; said once, not in every round.
    unreadable: Option<String>,
}

impl<P: Platform, F: Frr> Reconciler<P, F> {
    /// One that has seen nothing yet.
    pub fn new(
        platform: P,
        frr: F,
        settings: Settings,
        told: watch::Receiver<Told>,
        report: watch::Sender<Report>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            platform,
            frr,
            settings,
            told,
            report,
            metrics,
            backoff: Backoff::default(),
            reasons: Reasons::default(),
            digests: (None, None),
            carried: BTreeMap::new(),
            patience: Patience::default(),
            unreadable: None,
        }
    }

    /// One round. Whatever happens in it, the next one comes.
    pub async fn round(&mut self, now: Instant) {
        let told = self.told.borrow_and_update().clone();
        let digests =
            (told.guard.as_ref().map(|held| held.digest), told.config.as_ref().map(|held| held.digest));
        if self.digests != digests {
            // What failed before may be what was just changed.
            self.backoff = Backoff::default();
            self.reasons = Reasons::default();
            self.digests = digests;
        }
        let Some(config) = told.config.as_ref() else { return };
        let began = Instant::now();
        let mut report = Report { guard: digests.0, config: digests.1, tenants: vec![] };
        let node = config.value.node.as_str();
        report.tenants = if told.guard.is_none() && !config.value.tenants.is_empty() {
            // No tenant's route without the guard, and a guard of this node's pools alone would open all others.
            all_failed(&config.value, "waiting for the guard from the controller")
        } else {
            match self.settled(&told, now).await {
                Ok(tenants) => {
                    self.unreadable = None;
                    tenants
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.unreadable.as_ref() != Some(&reason) {
                        warn!(node, digest = %config.digest, reason, "the node cannot be read");
                    }
                    // What is due was not tried. Left due, it would start the next round at once, and so on for ever.
                    self.backoff.postpone(now);
                    let tenants = all_failed(&config.value, &reason);
                    self.unreadable = Some(reason);
                    tenants
                }
            }
        };
        let in_step = report.tenants.iter().all(|tenant| tenant.error.is_none());
        self.metrics.round(began.elapsed(), in_step && self.unreadable.is_none());
        self.report.send_if_modified(|last| {
            let news = *last != report;
            if news {
                let failed = report.tenants.iter().filter(|tenant| tenant.error.is_some()).count();
                info!(node, digest = %config.digest, tenants = report.tenants.len(), failed, "result");
                *last = report;
            }
            news
        });
    }

    async fn settled(&mut self, told: &Told, now: Instant) -> Result<Vec<TenantReport>, NodeError> {
        let Some(look) = look(told, &self.platform, &self.frr).await? else { return Ok(vec![]) };
        let waits = |op: &Op| self.backoff.waits(&op.to_string(), now);
        let remade = remade(&look.ops);
        let (look, outcome) = settle(look, &self.platform, &self.frr, &self.metrics, waits).await?;
        self.rejoin(remade, &look.ops).await;
        self.reasons.update(&look.ops, &outcome);
        let patient = !self.patience.is_over(now);
        let trusted = |tenant: &Tenant| patient && self.carried.get(&tenant.vni) == Some(tenant);
        let tenants = judge(&look.desired, &look.observed, &look.ops, &self.reasons, trusted);
        if look.observed.frr_error.is_none() {
            self.patience.hear(now);
            let fine = |tenant: &&Tenant| tenants.iter().any(|t| t.vni == tenant.vni && t.error.is_none());
            let carried = look.desired.config.tenants.iter().filter(fine);
            self.carried = carried.map(|tenant| (tenant.vni, tenant.clone())).collect();
        }
        self.backoff.settle(look.ops.iter().map(ToString::to_string), now);
        debug!(left = look.ops.len(), "round done");
        Ok(tenants)
    }

    /// Tells FRR of devices that came back beneath it: release 8.4 does not tell the kernel again which routers are behind
    /// them, and everything but the packets looks well.
    async fn rejoin(&self, remade: BTreeSet<u32>, left: &[Op]) {
        let vnis: Vec<u32> =
            remade.into_iter().filter(|vni| !left.iter().any(|op| op.vni() == Some(*vni))).collect();
        if vnis.is_empty() {
            return;
        }
        match self.frr.rejoin(&vnis).await {
            Ok(()) => info!(?vnis, "FRR looks again for devices that were made anew"),
            Err(error) => warn!(?vnis, %error, "FRR was not told of devices that were made anew"),
        }
    }

    /// Whether the guard is what it was told to be.
    async fn guard_stands(&self) -> bool {
        let told = self.told.borrow().clone();
        let Some(config) = &told.config else { return true };
        let guard = told.guard.as_ref().map(|held| &held.value);
        let interfaces = config.value.underlay.as_ref().map_or(&[][..], |underlay| &underlay.interfaces);
        let Ok(uplinks) = self.platform.uplinks(interfaces).await else { return false };
        let desired = desired(&config.value, guard, &uplinks);
        self.platform.guard_stands(&desired).await.unwrap_or(false)
    }

    /// Whether the guard or FRR is no longer what it was told to be.
    async fn has_drifted(&self) -> bool {
        if !self.guard_stands().await {
            return true;
        }
        let told = self.told.borrow().clone();
        let Some(config) = &told.config else { return false };
        let now = Instant::now();
        let fresh = |change| !self.backoff.waits(&Op::Frr(change).to_string(), now);
        match self.frr.plan(&config.value).await {
            Ok(changes) => changes.into_iter().any(fresh),
            Err(_) => false,
        }
    }

    /// Goes round for ever. `changed` gets a word for what the kernel tells.
    pub async fn run(mut self, mut changed: mpsc::Receiver<()>) {
        let mut listening = true;
        loop {
            self.round(Instant::now()).await;
            let resync = Instant::now() + self.settings.resync;
            let mut poll = Instant::now() + self.settings.poll;
            loop {
                let retry = self.backoff.next().map_or(resync, |next| next.min(resync));
                tokio::select! {
                    told = self.told.changed() => match told {
                        Ok(()) => break,
                        // Whoever could tell us something is gone: the process ends.
                        Err(_) => return,
                    },
                    word = changed.recv(), if listening => {
                        if word.is_none() {
                            warn!("the kernel tells nothing any more; looking by the clock alone");
                            listening = false;
                            continue;
                        }
                        sleep(self.settings.debounce).await;
                        while changed.try_recv().is_ok() {}
                        break;
                    }
                    () = sleep_until(retry) => break,
                    () = sleep_until(poll) => {
                        if self.has_drifted().await {
                            break;
                        }
                        poll = Instant::now() + self.settings.poll;
                    }
                    () = sleep(self.settings.guard) => {
                        if self.platform.filters_changed().await && !self.guard_stands().await {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// Tenants whose devices are made while FRR's part of them stands.
fn remade(ops: &[Op]) -> BTreeSet<u32> {
    let of_tunnel = |op: &&Op| match op {
        Op::LinkAdd(_, link) => matches!(link.kind, Kind::Vrf { .. } | Kind::Bridge | Kind::Vxlan { .. }),
        _ => false,
    };
    let mut remade: BTreeSet<u32> = ops.iter().filter(of_tunnel).filter_map(Op::vni).collect();
    for op in ops.iter().filter(|op| matches!(op, Op::Frr(_))) {
        if let Some(vni) = op.vni() {
            remade.remove(&vni);
        }
    }
    remade
}

fn all_failed(config: &NodeConfig, reason: &str) -> Vec<TenantReport> {
    config
        .tenants
        .iter()
        .map(|tenant| TenantReport {
            name: tenant.name.clone(),
            vni: tenant.vni,
            error: Some(reason.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests;
