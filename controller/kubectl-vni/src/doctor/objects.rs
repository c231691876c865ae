//! Our objects and labels in the cluster, as others may have left them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::{
    calico::{Calico, CalicoSpec},
    keys,
};
use calico_vni_planner::Plan;

use super::{
    controller::{Controller, is_ours},
    facts::Facts,
    finding::Finding,
};
use crate::conditions;

/// All of them.
pub fn check(facts: &Facts, plan: &Plan, controller: Controller) -> Vec<Finding> {
    let snapshot = &facts.snapshot;
    let group = snapshot.calico_api.group();
    let mut found = taken("BGPPeer", &format!("bgppeers.{group}"), &snapshot.peers, &plan.peers);
    found.extend(taken("BGPFilter", &format!("bgpfilters.{group}"), &snapshot.filters, &plan.filters));
    found.extend(peers(facts, plan, controller));
    found.extend(labels(facts, plan, controller));
    found
}

/// Somebody else's objects that have the names of ours.
fn taken<S: CalicoSpec>(
    kind: &str,
    plural: &str,
    standing: &[Calico<S>],
    wanted: &BTreeMap<String, Calico<S>>,
) -> Vec<Finding> {
    let taken = standing.iter().filter(|object| wanted.contains_key(object.name()) && !is_ours(*object));
    let finding = |object: &Calico<S>| {
        let name = object.name();
        let tenant = wanted.get(name).and_then(|ours| ours.labels().remove(keys::OWNER)).unwrap_or_default();
        let cause = format!(
            "it has the name of the {kind} of Tenant {tenant} and was not made by calico-vni (label {}={} is missing): it is left alone, and the tenant is not announced",
            keys::MANAGED_BY,
            keys::MANAGED_BY_TENANT
        );
        Finding::problem(format!("{kind} {name}"), "NameTaken", cause)
            .remedy("delete it, or make it again under another name")
            .command(format!("kubectl get {plural} {name} -o yaml > {name}.yaml"))
            .command(format!("kubectl delete {plural} {name}"))
    };
    taken.map(finding).collect()
}

/// Our BGPPeers that are missing or were changed.
fn peers(facts: &Facts, plan: &Plan, controller: Controller) -> Vec<Finding> {
    let standing: BTreeMap<&str, _> = facts.snapshot.peers.iter().map(|peer| (peer.name(), peer)).collect();
    let mut found = Vec::new();
    for (name, wanted) in &plan.peers {
        let tenant = wanted.labels().remove(keys::OWNER).unwrap_or_default();
        let (reason, cause) = match standing.get(name.as_str()) {
            None => (
                "PeerMissing",
                format!(
                    "the BGPPeer of Tenant {tenant} is missing: BIRD meets no router of it, and its pods are not announced"
                ),
            ),
            Some(peer) if is_ours(peer) && peer.spec != wanted.spec => (
                "PeerChanged",
                format!("somebody changed the BGPPeer of Tenant {tenant}: it is not what the tenant needs"),
            ),
            Some(_) => continue,
        };
        let remedy = match controller {
            Controller::Leads => {
                "the controller puts it right within seconds; where it cannot, its log and the Tenant's Events say why (Contended: who changes it back)"
            }
            _ => "the controller puts it right; bring that up first",
        };
        found.push(
            Finding::problem(format!("BGPPeer {name}"), reason, cause)
                .remedy(remedy)
                .command(format!(
                    "kubectl get events -n default --field-selector involvedObject.name={tenant}"
                ))
                .fleeting(),
        );
    }
    found
}

/// Our labels and annotations on Nodes that another hand has written.
fn labels(facts: &Facts, plan: &Plan, controller: Controller) -> Vec<Finding> {
    let snapshot = &facts.snapshot;
    let tenants: BTreeSet<&str> =
        snapshot.tenants.iter().filter_map(|t| t.metadata.name.as_deref()).collect();
    let mut found = Vec::new();
    let mends = match controller {
        Controller::Gone => {
            "bring the controller up, which puts it right; keep others off it by the policy calico-vni-marks"
        }
        _ => "the controller puts it right; keep others off it by the policy calico-vni-marks",
    };
    for node in &snapshot.nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let edited = |cause: String| {
            Finding::problem(format!("Node {name}"), "LabelEdited", cause)
                .remedy(mends)
                .command("kubectl apply -f deploy/admission.yaml")
                .fleeting()
        };
        for (key, value) in node.metadata.labels.iter().flatten() {
            let Some(tenant) = key.strip_prefix(keys::READY_LABEL_PREFIX) else { continue };
            if !is_ready(value) {
                found.push(edited(format!(
                    "label {key}={value} is not what the controller writes: no BGPPeer selects it, so BIRD has lost its session of Tenant {tenant} here"
                )));
            } else if !tenants.contains(tenant) {
                found.push(edited(format!(
                    "label {key}={value} names a Tenant that there is not: a BGPPeer of that name would be admitted to a router that does not answer"
                )));
            }
        }
        // Whoever has a number and gets another had one that cannot be its own.
        let index = node.metadata.annotations.as_ref().and_then(|all| all.get(keys::ROUTER_INDEX));
        if let Some(index) = index.filter(|_| plan.allocations.nodes.contains_key(name)) {
            found.push(edited(format!(
                "annotation {}={index} cannot be its own: it is no number, is beyond its Underlay's spec.vtepCIDR, or is that of another Node, with which it would share a tunnel end point",
                keys::ROUTER_INDEX
            )));
        }
    }
    found.extend(missing(facts, mends));
    found
}

fn is_ready(value: &str) -> bool {
    value == keys::READY
        || value
            .strip_prefix(keys::READY)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|asn| asn.parse::<u32>().is_ok())
}

/// Labels that the status counts and that are not there.
fn missing(facts: &Facts, mends: &'static str) -> impl Iterator<Item = Finding> {
    facts.snapshot.tenants.iter().filter_map(move |tenant| {
        let name = tenant.metadata.name.as_deref()?;
        let counted = tenant.status.as_ref()?.nodes.as_ref()?.programmed;
        let labelled = conditions::admitted(&facts.snapshot, name);
        (u32::try_from(labelled.len()).unwrap_or(u32::MAX) < counted).then(|| {
            let on = if labelled.is_empty() { "none".to_owned() } else { labelled.join(", ") };
            let cause = format!(
                "it stands on {counted} nodes by its status, and label {} is on {on}: somebody took it off a Node, where BIRD has lost its session",
                keys::ready_label(name)
            );
            Finding::problem(format!("Tenant {name}"), "LabelMissing", cause)
                .remedy(mends)
                .command(format!("kubectl get nodes -l {}", keys::ready_label(name)))
                .fleeting()
        })
    })
}
