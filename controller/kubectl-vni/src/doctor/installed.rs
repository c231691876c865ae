//! Whether what the cluster needs is installed: Calico, our definitions, our admission policies, one release of FRR. Pure.

use calico_vni_crds::keys;
use k8s_openapi::{
    api::{admissionregistration::v1::ValidatingAdmissionPolicy, apps::v1::DaemonSet, core::v1::PodSpec},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};

use super::{
    facts::{Facts, Part},
    finding::Finding,
};

/// Our kinds.
pub const DEFINITIONS: [&str; 2] = ["tenants.calico-vni.io", "underlays.calico-vni.io"];
/// Our admission policies, with what each refuses.
const POLICIES: [(&str, &str); 4] = [
    ("calico-vni-pool-annotations", "annotations of IPPools that are no VNI or no Tenant's name"),
    ("calico-vni-tenant-pools", "pods that name a pool of a Tenant that is not for their namespace"),
    ("calico-vni-marks", "changes of our Node labels and annotations by anybody but the controller"),
    ("calico-vni-port-forward", "port-forwards to routers, which reach their nodes, for who may look alone"),
];
/// The policy that knows the controller by its user name.
const MARKS: &str = "calico-vni-marks";

/// All that is missing.
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.without_calico {
        found.push(
            Finding::problem("cluster", "CalicoMissing", "the API server serves no IPPools, neither as projectcalico.org/v3 nor as crd.projectcalico.org/v1")
                .remedy("install Calico; the controller waits for it"),
        );
    }
    if facts.knows("CustomResourceDefinition") {
        found.extend(definitions(facts));
    }
    if facts.knows("ValidatingAdmissionPolicy") && facts.knows("ValidatingAdmissionPolicyBinding") {
        found.extend(policies(facts));
    }
    found.extend(frr_of_before(facts));
    found
}

/// Nodes where FRR runs in another image than its DaemonSet has now.
fn nodes_of_another_image(facts: &Facts, set: &DaemonSet) -> String {
    let images = |pod: Option<&PodSpec>| -> Vec<Option<String>> {
        pod.map(|pod| pod.containers.iter().map(|c| c.image.clone()).collect()).unwrap_or_default()
    };
    let now = images(set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    let other = facts.pods_of(Part::Frr).filter(|pod| images(pod.spec.as_ref()) != now);
    let mut nodes: Vec<&str> = other.filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    nodes.sort_unstable();
    nodes.join(", ")
}

/// Pods of FRR that an upgrade has left, as it does: they are replaced when somebody deletes them.
fn frr_of_before(facts: &Facts) -> Option<Finding> {
    let set = facts.daemon_set(Part::Frr)?;
    let (status, name) = (set.status.as_ref()?, set.metadata.name.as_deref()?);
    let all = status.current_number_scheduled;
    // None of them is written as nothing.
    let before = all - status.updated_number_scheduled.unwrap_or(0);
    (before > 0).then(|| {
        let on = nodes_of_another_image(facts, set);
        let on = if on.is_empty() { on } else { format!(", on {on}") };
        Finding::hint(
            format!("DaemonSet {}/{name}", facts.namespace),
            "FRROfBefore",
            format!("{before} of {all} pods are of before it was changed{on}"),
        )
        .remedy("delete these pods, node by node and when the node is drained or a pause of some seconds is no matter: docs/operations.md, Upgrade")
        .command(format!(
            "kubectl -n {} get pods -l app.kubernetes.io/component=frr -o custom-columns=NODE:.spec.nodeName,POD:.metadata.name,IMAGE:.spec.containers[0].image",
            facts.namespace
        ))
    })
}

fn definitions(facts: &Facts) -> impl Iterator<Item = Finding> {
    DEFINITIONS.iter().filter_map(|name| {
        let named = |d: &&CustomResourceDefinition| d.metadata.name.as_deref() == Some(*name);
        let cause = match facts.definitions.iter().find(named) {
            None => format!(
                "the definition {name} is missing, so there can be no such object and the controller waits"
            ),
            Some(definition) if !is_established(definition) => {
                format!("the definition {name} is not Established: the API server does not serve it")
            }
            Some(_) => return None,
        };
        Some(
            Finding::problem(format!("CustomResourceDefinition {name}"), "DefinitionMissing", cause)
                .remedy("apply the definitions of this release")
                .command("kubectl apply -f crds/generated"),
        )
    })
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Established" && c.status == "True"))
}

fn policies(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, refuses) in POLICIES {
        let about = format!("ValidatingAdmissionPolicy {name}");
        let missing = |cause: String| {
            Finding::problem(&about, "PolicyMissing", cause)
                .remedy("apply the admission policies of this release")
                .command("kubectl apply -f deploy/admission.yaml")
        };
        let Some(policy) = facts.policies.iter().find(|p| p.metadata.name.as_deref() == Some(name)) else {
            found.push(missing(format!("it is missing, so the API server does not refuse {refuses}")));
            continue;
        };
        let denies = facts.bindings.iter().map(|binding| &binding.spec).any(|spec| {
            spec.policy_name == name && spec.validation_actions.iter().any(|action| action == "Deny")
        });
        if !denies {
            found.push(missing(format!(
                "no binding puts it in force with Deny, so the API server does not refuse {refuses}"
            )));
        } else if name == MARKS {
            found.extend(another_controller(facts, policy, about));
        }
    }
    found
}

/// A policy that lets another account write our marks than the one that the controller has.
fn another_controller(facts: &Facts, policy: &ValidatingAdmissionPolicy, about: String) -> Option<Finding> {
    let pod = facts.controller()?.spec.as_ref()?.template.spec.as_ref()?;
    let account = pod.service_account_name.as_deref().unwrap_or("default");
    let user = format!("system:serviceaccount:{}:{account}", facts.namespace);
    let variables = policy.spec.as_ref()?.variables.iter().flatten();
    let knows =
        variables.clone().any(|v| v.name == "controller" && v.expression.contains(&format!("'{user}'")));
    if knows || !variables.into_iter().any(|v| v.name == "controller") {
        return None;
    }
    let label = keys::READY_LABEL_PREFIX;
    Some(
        Finding::problem(
            about,
            "PolicyForAnotherController",
            format!("the controller runs as {user}, and the policy's variable `controller` names another: the API server refuses its labels {label}… and its annotations, so no tenant comes to a node"),
        )
        .remedy(format!("write '{user}' into the variable `controller` of deploy/admission.yaml and apply it")),
    )
}
