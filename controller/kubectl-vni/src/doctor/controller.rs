//! Whether a controller runs, leads, and follows what is wanted. Pure.

use std::collections::BTreeMap;

use calico_vni_crds::{calico::Calico, keys};
use calico_vni_planner::Plan;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    facts::{Facts, Part},
    finding::Finding,
};
use crate::conditions;

/// Name of the Lease of the controller that leads.
const LEASE: &str = "calico-vni-controller";
/// Seconds beyond the Lease's own duration after which it is stale for sure: clocks differ, and whoever takes over needs some.
const GRACE: i64 = 15;
/// How many outstanding things are named.
const NAMED: usize = 5;

/// What is known of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// One leads.
    Leads,
    /// None does.
    Gone,
    /// It has no Lease, as one that was started beside the cluster has none.
    Unknown,
}

/// What is known of it, and what is wrong with it.
pub fn check(facts: &Facts, plan: &Plan) -> (Controller, Vec<Finding>) {
    let outstanding = outstanding(facts, plan);
    let waiting = some_of(&outstanding);
    let logs =
        format!("kubectl -n {} logs -l app.kubernetes.io/component=controller --tail=50", facts.namespace);
    let mut found = Vec::new();
    let mut known = Controller::Unknown;
    if let Some(deployment) = facts.controller() {
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let about = format!("Deployment {}/{name}", facts.namespace);
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let available = deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        let pods: Vec<String> = facts.pods_of(Part::Controller).filter_map(trouble).collect();
        let pods = if pods.is_empty() { String::new() } else { format!(": {}", pods.join("; ")) };
        if available == 0 {
            known = Controller::Gone;
            let cause = if wanted == 0 {
                "spec.replicas is 0".to_owned()
            } else {
                format!("no pod of {wanted} is available{pods}")
            };
            let mend = if wanted == 0 {
                format!("kubectl -n {} scale deployment {name} --replicas=2", facts.namespace)
            } else {
                format!(
                    "kubectl -n {} describe pods -l app.kubernetes.io/component=controller",
                    facts.namespace
                )
            };
            found.push(
                Finding::problem(
                    about,
                    "ControllerNotRunning",
                    format!("{cause}; what stands goes on, nothing new is programmed{waiting}"),
                )
                .remedy("bring it up; its log says why it ends")
                .command(mend)
                .command(&logs),
            );
        } else if available < wanted {
            let cause =
                format!("{available} of {wanted} pods are available{pods}: nobody may be there to take over");
            found.push(Finding::hint(about, "ControllerReplicas", cause).command(&logs));
        }
    }
    if known == Controller::Unknown
        && let Some(lease) = facts.leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(LEASE))
    {
        match stale(facts, lease) {
            None => known = Controller::Leads,
            Some(why) => {
                known = Controller::Gone;
                found.push(
                    Finding::problem(format!("Lease {}/{LEASE}", facts.namespace), "ControllerNotLeading", format!("{why}; what stands goes on, nothing new is programmed{waiting}"))
                        .remedy("does the controller run, and does it reach the API server? Its log says why it does not lead")
                        .command(format!("kubectl -n {} get pods -l app.kubernetes.io/component=controller", facts.namespace))
                        .command(&logs),
                );
            }
        }
    }
    if known != Controller::Gone && !outstanding.is_empty() {
        let cause = if known == Controller::Leads {
            format!("a controller leads, and does not do what is wanted{waiting}")
        } else {
            let lease = format!("Lease {}/{LEASE}", facts.namespace);
            let unseen = if facts.knows("Lease") {
                format!("there is no {lease} by which one could be seen")
            } else {
                format!("the {lease}, by which one would be seen, could not be read")
            };
            format!("no controller does what is wanted{waiting}; {unseen}")
        };
        let finding = Finding::problem("controller", "ControllerBehind", cause).fleeting();
        found.push(match known {
            Controller::Leads => finding
                .remedy("its log says what it could not write: `forbidden` is a right that is missing, which the manifests of this release grant")
                .command(&logs)
                .command("kubectl apply -f deploy/rbac.yaml"),
            _ => finding
                .remedy("start it, or look into its log: where it runs, it says what it could not write")
                .command("calico-vni-controller --grpc-listen 0.0.0.0:9443 --namespace calico-vni        # or the Deployment"),
        });
    }
    (known, found)
}

/// Why nobody leads.
fn stale(facts: &Facts, lease: &Lease) -> Option<String> {
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Some("nobody holds it: the controller that led has stopped".to_owned());
    };
    let age = facts.now.as_second() - spec.renew_time.map_or(0, |renewed| renewed.0.as_second());
    let lasts = i64::from(spec.lease_duration_seconds.unwrap_or(15));
    (age > lasts + GRACE)
        .then(|| format!("{holder} renewed it last {age} s ago, and it lasts {lasts} s: nobody leads"))
}

/// Why a pod's containers do not run.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let troubles = containers.filter_map(|container| {
        let state = container.state.clone().unwrap_or_default();
        let why = state.waiting.and_then(|waiting| waiting.reason).or_else(|| {
            let ended = state.terminated.filter(|ended| ended.exit_code != 0)?;
            Some(format!("ended with {}", ended.exit_code))
        });
        let why =
            why.or_else(|| (!container.ready && state.running.is_some()).then(|| "not ready".to_owned()))?;
        Some(format!("{} {why}", container.name))
    });
    let mut troubles: Vec<String> = troubles.collect();
    if troubles.is_empty() && status.phase.as_deref() == Some("Pending") {
        let unscheduled =
            status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        troubles
            .extend(unscheduled.map(|c| c.message.clone().unwrap_or_else(|| "is not scheduled".to_owned())));
    }
    (!troubles.is_empty()).then(|| format!("{name}: {}", troubles.join(", ")))
}

/// What is wanted and does not stand, though the controller alone could make it.
fn outstanding(facts: &Facts, plan: &Plan) -> Vec<String> {
    let snapshot = &facts.snapshot;
    let mut all: Vec<String> = plan.tenants.keys().map(|name| format!("Tenant {name} is not made")).collect();
    let kept = plan.allocations.tenants.keys().filter(|name| !plan.tenants.contains_key(*name));
    all.extend(kept.map(|name| format!("Tenant {name} has no VNI and link of its own yet")));
    all.extend(
        plan.allocations.nodes.keys().map(|name| format!("Node {name} has no {} yet", keys::ROUTER_INDEX)),
    );
    all.extend(plan.tenants_to_delete.iter().map(|name| format!("Tenant {name} is not deleted")));
    for tenant in &snapshot.tenants {
        let name = tenant.metadata.name.as_deref().unwrap_or_default();
        let status = tenant.status.clone().unwrap_or_default();
        let pools = plan.tenant_status.get(name).is_none_or(|wanted| same(&wanted.pools, &status.pools));
        if let Some(what) = behind(&tenant.metadata, &status.conditions, pools) {
            all.push(format!("the status of Tenant {name} {what}"));
        }
    }
    for underlay in &snapshot.underlays {
        let name = underlay.metadata.name.as_deref().unwrap_or_default();
        let status = underlay.status.clone().unwrap_or_default();
        let wanted = plan.underlay_status.get(name);
        let pools = wanted.is_none_or(|wanted| same(&wanted.quarantined_pools, &status.quarantined_pools));
        if let Some(what) = behind(&underlay.metadata, &status.conditions, pools) {
            all.push(format!("the status of Underlay {name} {what}"));
        }
    }
    let annotations: BTreeMap<_, _> = (snapshot.namespaces.iter())
        .filter_map(|namespace| {
            Some((namespace.metadata.name.as_ref()?, namespace.metadata.annotations.as_ref()))
        })
        .collect();
    for (name, wanted) in &plan.namespaces {
        let standing = annotations.get(name).copied().flatten();
        if wanted.iter().any(|(key, value)| standing.and_then(|all| all.get(key)) != value.as_ref()) {
            all.push(format!("Namespace {name} does not have the annotations of its tenant"));
        }
    }
    let missing = plan.filters.keys().filter(|name| !snapshot.filters.iter().any(|f| f.name() == *name));
    all.extend(missing.map(|name| format!("BGPFilter {name} is missing")));
    let others = snapshot.filters.iter().filter(|filter| is_ours(filter));
    let changed = others.filter(|f| plan.filters.get(f.name()).is_some_and(|wanted| wanted.spec != f.spec));
    all.extend(changed.map(|filter| format!("BGPFilter {} is not as it should be", filter.name())));
    all
}

/// Whether the controller made it.
pub fn is_ours<S: calico_vni_crds::calico::CalicoSpec>(object: &Calico<S>) -> bool {
    object.labels().get(keys::MANAGED_BY).is_some_and(|by| by == keys::MANAGED_BY_TENANT)
}

fn same(
    wanted: &[calico_vni_crds::tenant::PoolStatus],
    standing: &[calico_vni_crds::tenant::PoolStatus],
) -> bool {
    let key =
        |pool: &calico_vni_crds::tenant::PoolStatus| (pool.name.clone(), pool.accepted, pool.reason.clone());
    let sorted = |pools: &[_]| {
        let mut keys: Vec<_> = pools.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(wanted) == sorted(standing)
}

fn behind(
    meta: &ObjectMeta,
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    pools: bool,
) -> Option<String> {
    if conditions.is_empty() {
        return Some("is empty".to_owned());
    }
    if !conditions::are_of_now(meta, conditions) {
        return Some("speaks of an older spec".to_owned());
    }
    (!pools).then(|| "does not speak of its pools as they are".to_owned())
}

fn some_of(outstanding: &[String]) -> String {
    if outstanding.is_empty() {
        return String::new();
    }
    let named = outstanding.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match outstanding.len().saturating_sub(NAMED) {
        0 => format!(": {named}"),
        more => format!(": {named}; and {more} more"),
    }
}
