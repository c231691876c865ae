//! Carries changes out, and keeps the failure of one tenant from touching another.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_proto::{model::NodeConfig, names};
use tracing::{error, info};

use crate::{
    frr_port::Frr,
    node::Platform,
    op::Op,
    state::{Space, Target},
};

/// How a round of changes went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many changes were made.
    pub made: usize,
    /// How many were tried, by kind and whether they were made.
    pub tried: BTreeMap<(&'static str, bool), u64>,
    /// What failed for all of the node: the change and the reason.
    pub node: Vec<Failure>,
    /// What failed first for a tenant, by VNI.
    pub tenants: BTreeMap<u32, Failure>,
}

/// A change that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The change.
    pub op: String,
    /// The reason.
    pub reason: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.op, self.reason)
    }
}

/// Makes these changes in their order, without those that `wait` says are to be left for later.
///
/// What comes after a failed change of the same tenant is left out, except what only takes away. A guard that cannot
/// be loaded stops everything that adds: no route of a tenant stands without its guard. Where rules were not changed
/// they may lead into a table that nobody wants any more; it keeps its last resort.
pub async fn execute(
    ops: &[Op],
    config: &NodeConfig,
    platform: &impl Platform,
    frr: &impl Frr,
    wait: impl Fn(&Op) -> bool,
) -> Outcome {
    let mut run = Run {
        config,
        outcome: Outcome::default(),
        unguarded: false,
        rules_stand: false,
        stopped: BTreeSet::new(),
    };
    let mut ops = ops.iter().peekable();
    while let Some(op) = ops.next() {
        if run.leaves_out(op) {
            run.rules_stand |= matches!(op, Op::Rules(_));
            continue;
        }
        if wait(op) {
            run.stop(op);
            continue;
        }
        let Op::Frr(first) = op else {
            let result = platform.apply(op).await.map_err(|e| e.to_string());
            run.note(op, result);
            continue;
        };
        // All of FRR's changes go in one batch.
        let mut batch = vec![op];
        let mut changes = vec![first.clone()];
        while let Some(next @ Op::Frr(change)) = ops.next_if(|op| matches!(op, Op::Frr(_))) {
            if wait(next) {
                run.stop(next);
            } else {
                batch.push(next);
                changes.push(change.clone());
            }
        }
        let mut results = frr.apply(&changes).await.into_iter();
        for op in batch {
            run.note(op, results.next().unwrap_or_else(|| Err("FRR gave no result for it".into())));
        }
    }
    run.outcome
}

struct Run<'a> {
    config: &'a NodeConfig,
    outcome: Outcome,
    unguarded: bool,
    /// Rules that were to go may still be there.
    rules_stand: bool,
    stopped: BTreeSet<u32>,
}

impl Run<'_> {
    /// Name of a tenant that the configuration knows.
    fn name(&self, vni: Option<u32>) -> Option<&str> {
        self.config.tenants.iter().find(|tenant| Some(tenant.vni) == vni).map(|tenant| tenant.name.as_str())
    }

    fn leaves_out(&self, op: &Op) -> bool {
        if takes_away(op) {
            return self.rules_stand && is_last_resort(op);
        }
        self.unguarded || op.vni().is_some_and(|vni| self.stopped.contains(&vni))
    }

    /// Nothing more of what this change belongs to.
    fn stop(&mut self, op: &Op) {
        match op.vni() {
            // FRR is told before the kernel's devices come, but devices without FRR harm nobody: a router that starts
            // reads what the kernel has.
            _ if matches!(op, Op::Frr(_)) => {}
            Some(vni) => {
                self.stopped.insert(vni);
            }
            None => {
                self.unguarded |= matches!(op, Op::GuardLoad(_));
                self.rules_stand |= matches!(op, Op::Rules(_));
            }
        }
    }

    fn note(&mut self, op: &Op, result: Result<(), String>) {
        let vni = op.vni();
        *self.outcome.tried.entry((op.kind(), result.is_ok())).or_default() += 1;
        match result {
            Ok(()) => {
                info!(
                    node = self.config.node,
                    tenant = self.name(vni),
                    vrf = vni.map(names::vrf),
                    vni,
                    op = op.headline(),
                    "done"
                );
                self.outcome.made += 1;
            }
            Err(reason) => {
                error!(
                    node = self.config.node,
                    tenant = self.name(vni),
                    vrf = vni.map(names::vrf),
                    vni,
                    op = op.headline(),
                    reason,
                    "failed"
                );
                self.stop(op);
                let failure = Failure { op: op.headline(), reason };
                match vni {
                    Some(vni) => {
                        self.outcome.tenants.entry(vni).or_insert(failure);
                    }
                    None => self.outcome.node.push(failure),
                }
            }
        }
    }
}

fn is_last_resort(op: &Op) -> bool {
    matches!(op, Op::RouteDelete(Space::Host, route) if route.target == Target::Unreachable)
}

fn takes_away(op: &Op) -> bool {
    match op {
        Op::GuardDelete
        | Op::RouteDelete(..)
        | Op::AddressDelete(..)
        | Op::LinkDelete(..)
        | Op::UplinkReturn(_) => true,
        Op::GuardLoad(_)
        | Op::Rules(_)
        | Op::RouteAdd(..)
        | Op::AddressAdd(..)
        | Op::LinkAdd(..)
        | Op::VethAdd { .. }
        | Op::LinkSet(..)
        | Op::Sysctl(..)
        | Op::UplinkTake(_)
        | Op::Frr(_) => false,
    }
}
