//! What the planner itself finds in the objects, with the commands that mend it. Pure.

use calico_vni_crds::{TenantStatus, Underlay, calico::CalicoApi, keys, tenant::Advertise};
use calico_vni_planner::{
    Plan,
    plan::{About, Notice},
    reason,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{facts::Facts, finding::Finding};

/// All of it.
pub fn check(facts: &Facts, plan: &Plan) -> Vec<Finding> {
    let api = facts.snapshot.calico_api;
    let mut found: Vec<Finding> = plan.notices.iter().map(|notice| noticed(api, notice)).collect();
    found.extend(strict_affinity(facts, plan));
    found.extend(without_underlay(facts, plan));
    found.extend(facts.snapshot.underlays.iter().flat_map(|underlay| passwords(facts, underlay)));
    for (name, status) in &plan.tenant_status {
        found.extend(tenant(facts, name, status));
    }
    let ambiguous = plan.notices.iter().any(|notice| notice.reason == reason::UNDERLAY_AMBIGUOUS);
    for (name, status) in plan.underlay_status.iter().filter(|_| !ambiguous) {
        let nobody = |c: &&Condition| c.type_ == "Programmed" && c.reason == reason::NO_NODES;
        found.extend(status.conditions.iter().find(nobody).map(|condition| {
            Finding::problem(format!("Underlay {name}"), reason::NO_NODES, &condition.message)
                .remedy("let spec.nodeSelector match labels that Nodes have")
                .command("kubectl get nodes --show-labels")
                .command(format!("kubectl edit underlays.calico-vni.io {name}"))
        }));
    }
    found
}

/// What a notice says is cause and way out in one; the commands do it.
fn noticed(api: CalicoApi, notice: &Notice) -> Finding {
    let Notice { about, reason, message } = notice;
    let finding = Finding::problem(about.to_string(), reason, message);
    let finding = if reason == reason::LEAVING {
        Finding { level: super::finding::Level::Hint, ..finding }
    } else {
        finding
    };
    commands(api, about, reason).into_iter().fold(finding, Finding::command)
}

fn commands(api: CalicoApi, about: &About, reason: &str) -> Vec<String> {
    let of_calico = |plural: &str| format!("{plural}.{}", api.group());
    let pools = of_calico("ippools");
    let (vni, tenant) = (keys::VNI, keys::TENANT);
    let patch = |kind: &str, name: &str, spec: &str| {
        format!("kubectl patch {kind} {name} --type=merge -p '{{\"spec\":{{{spec}}}}}'")
    };
    match (about, reason) {
        (About::Pool(name), reason::ENCAPSULATED) => {
            vec![patch(&pools, name, "\"vxlanMode\":\"Never\",\"ipipMode\":\"Never\"")]
        }
        (About::Pool(name), reason::NAT_OUTGOING) => vec![patch(&pools, name, "\"natOutgoing\":false")],
        (About::Pool(name), reason::INVALID_VNI) => {
            vec![format!("kubectl annotate --overwrite {pools} {name} {vni}=NUMBER")]
        }
        (About::Pool(name), reason::TENANT_NOT_FOUND | reason::TENANT_TERMINATING) => vec![
            "kubectl get tenants.calico-vni.io".to_owned(),
            format!("kubectl annotate --overwrite {pools} {name} {tenant}=NAME"),
        ],
        (About::Pool(name), reason::TENANT_MISMATCH) => {
            vec![format!("kubectl annotate {pools} {name} {vni}-")]
        }
        (About::Pool(name), reason::POOL_OVERLAP | reason::INVALID_BLOCK_SIZE | reason::INVALID_CIDR) => {
            vec![
                format!("kubectl get {pools} {name} -o yaml > {name}.yaml"),
                format!("kubectl delete {pools} {name}"),
                format!("kubectl create -f {name}.yaml        # when spec is changed in it"),
            ]
        }
        (About::Pool(name), reason::LEAVING) => {
            vec![format!("kubectl annotate {pools} {name} {vni}=NUMBER        # to keep it")]
        }
        (About::Tenant(name), reason::VNI_CONFLICT) => vec![
            "kubectl get tenants.calico-vni.io".to_owned(),
            format!(
                "kubectl delete tenants.calico-vni.io {name}        # and make it again with another spec.vni"
            ),
        ],
        (About::Tenant(name), _) => vec![format!("kubectl edit tenants.calico-vni.io {name}")],
        (About::Underlay(name) | About::Node(name), reason::EBPF_DATA_PLANE) => {
            let felix =
                if matches!(about, About::Node(_)) { format!("node.{name}") } else { "default".into() };
            vec![patch(&of_calico("felixconfigurations"), &felix, "\"bpfEnabled\":false")]
        }
        (About::Underlay(name), reason::ASN_CONFLICT) => vec![
            format!(
                "kubectl get {} default -o jsonpath='{{.spec.asNumber}}'",
                of_calico("bgpconfigurations")
            ),
            format!(
                "kubectl delete underlays.calico-vni.io {name}        # and make it again with another spec.asn, which cannot be changed"
            ),
        ],
        (About::Underlay(_), reason::ROUTE_TABLES_OVERLAP) => {
            vec![format!("kubectl edit {} default", of_calico("felixconfigurations"))]
        }
        (About::Underlay(name), _) => vec![format!("kubectl edit underlays.calico-vni.io {name}")],
        (About::Node(name), reason::ROUTE_TABLES_OVERLAP) => {
            vec![format!("kubectl edit {} node.{name}", of_calico("felixconfigurations"))]
        }
        (About::Node(name), reason::UNDERLAY_AMBIGUOUS) => vec![
            format!("kubectl get node {name} --show-labels"),
            "kubectl edit underlays.calico-vni.io NAME".to_owned(),
        ],
        (About::Namespace(name), _) => vec![format!("kubectl get namespace {name} -o yaml")],
        _ => Vec::new(),
    }
}

/// Addresses may be borrowed, and some Tenant announces blocks alone.
fn strict_affinity(facts: &Facts, plan: &Plan) -> Option<Finding> {
    let conditions = plan.underlay_status.values().flat_map(|status| &status.conditions);
    let lax = conditions.into_iter().find(|c| c.type_ == "StrictAffinity" && c.status != "True")?;
    let tenants = &facts.snapshot.tenants;
    let pods = |t: &calico_vni_crds::Tenant| t.spec.advertise == Advertise::Pods;
    if !tenants.is_empty() && tenants.iter().all(pods) {
        return None;
    }
    let kind = match facts.snapshot.calico_api {
        CalicoApi::V3 => "ipamconfigurations.projectcalico.org",
        CalicoApi::CrdV1 => "ipamconfigs.crd.projectcalico.org",
    };
    Some(
        Finding::problem(format!("Calico's IPAM ({kind} default)"), reason::NOT_STRICT, &lax.message)
            .command("calicoctl ipam configure --strictaffinity=true"),
    )
}

/// No Underlay at all, or Nodes that host a tenant's block and that none selects.
fn without_underlay(facts: &Facts, plan: &Plan) -> Vec<Finding> {
    let snapshot = &facts.snapshot;
    if snapshot.underlays.is_empty() && facts.definitions_stand() {
        let cause = "there is no Underlay, so no node carries anything and all tenants' pods reach their own node alone";
        return vec![
            Finding::problem("cluster", reason::NO_UNDERLAY, cause)
                .remedy("make one that names the fabric's neighbours")
                .command("kubectl apply -f examples/underlay.yaml        # changed for your fabric"),
        ];
    }
    let pools = accepted(plan);
    let nowhere = plan.nodes.values().filter(|node| node.underlay.is_none());
    let mut found = Vec::new();
    for node in nowhere {
        let hosted =
            blocks(facts).find(|(on, block)| *on == node.node && pools.iter().any(|p| p.contains(block)));
        let Some((_, block)) = hosted else { continue };
        let cause = format!(
            "no Underlay selects it by spec.nodeSelector, and it holds {block} of a tenant's pool: its pods reach their own node alone"
        );
        found.push(
            Finding::problem(format!("Node {}", node.node), "NoUnderlaySelects", cause)
                .remedy("label the Node as an Underlay selects it, or keep the pool off it by the pool's nodeSelector")
                .command("kubectl get underlays.calico-vni.io -o custom-columns=NAME:.metadata.name,SELECTS:.spec.nodeSelector")
                .command(format!("kubectl label node {} KEY=VALUE", node.node)),
        );
    }
    found
}

/// Passwords of neighbours that are not there. Whether a Secret holds one is read by the controller alone, so that is told
/// as its status tells it.
fn passwords(facts: &Facts, underlay: &Underlay) -> Vec<Finding> {
    let name = underlay.metadata.name.as_deref().unwrap_or_default();
    let label = format!("{}={}", keys::BGP_PASSWORD, keys::BGP_PASSWORD_YES);
    let namespace = &facts.namespace;
    let finding = |reason: &str, cause: String, secret: &str| {
        Finding::problem(format!("Underlay {name}"), reason, cause)
            .remedy(format!("put the password into the key {} of a Secret in namespace {namespace}, with the label {label}; until then nothing on the Underlay's nodes changes", keys::BGP_PASSWORD_KEY))
            .command(format!("kubectl -n {namespace} create secret generic {secret} --from-literal={}=PASSWORD", keys::BGP_PASSWORD_KEY))
            .command(format!("kubectl -n {namespace} label secret {secret} {label}"))
    };
    let refs = underlay.spec.neighbors.iter().enumerate();
    let refs =
        refs.filter_map(|(i, neighbor)| Some((i, neighbor.password_secret_ref.as_ref()?.name.as_str())));
    let missing: Vec<Finding> = refs
        .filter(|(_, secret)| facts.knows("Secret") && !facts.passwords.contains(*secret))
        .map(|(i, secret)| {
            let cause = format!("spec.neighbors[{i}].passwordSecretRef.name: `{secret}`: no Secret of that name with the label {label} is in namespace {namespace}");
            finding(reason::PASSWORD_NOT_FOUND, cause, secret)
        })
        .collect();
    if !missing.is_empty() {
        return missing;
    }
    let status = underlay.status.iter().flat_map(|status| &status.conditions);
    let told = [reason::PASSWORD_NOT_FOUND, reason::INVALID_PASSWORD];
    let told = status.filter(|c| c.status == "False" && told.contains(&c.reason.as_str()));
    told.take(1).map(|c| finding(&c.reason, c.message.clone(), "NAME").fleeting()).collect()
}

fn accepted(plan: &Plan) -> Vec<IpNet> {
    let pools = plan.tenant_status.values().flat_map(|status| &status.pools).filter(|pool| pool.accepted);
    pools.filter_map(|pool| pool.cidr.parse().ok()).collect()
}

/// Blocks that are in use, with their nodes.
pub fn blocks(facts: &Facts) -> impl Iterator<Item = (&str, IpNet)> {
    facts.snapshot.blocks.iter().map(|block| (block.node.as_str(), block.net))
}

/// A Tenant's pools, and what it and its pods can be assigned and reach.
fn tenant(facts: &Facts, name: &str, status: &TenantStatus) -> Vec<Finding> {
    let about = format!("Tenant {name}");
    let mut found = Vec::new();
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind && c.status != "True");
    // Where pools are refused, they are told themselves.
    if let Some(condition) = condition("Programmed")
        && condition.reason == reason::NO_POOLS
        && status.pools.is_empty()
    {
        let pools = format!("ippools.{}", facts.snapshot.calico_api.group());
        found.push(
            Finding::problem(&about, reason::NO_POOLS, "no IPPool names it, so no pod can be in it")
                .remedy("annotate a pool, or delete the Tenant")
                .command(format!("kubectl annotate {pools} POOL {}={name}", keys::TENANT)),
        );
    }
    if let Some(condition) = condition("ServicesReachable")
        && condition.reason != reason::NOT_ACCEPTED
        && facts.knows("EndpointSlice")
    {
        found.push(
            Finding::problem(&about, &condition.reason, &condition.message)
                .command("kubectl get endpointslices -A"),
        );
    }
    if let Some(condition) = condition("NamespacesAssigned")
        && condition.reason == reason::FAMILY_CLOSED
    {
        found.push(Finding::problem(&about, &condition.reason, &condition.message));
    }
    for pool in status.pools.iter().filter(|pool| pool.accepted && pool.reason.is_none()) {
        let Ok(net) = pool.cidr.parse::<IpNet>() else { continue };
        if facts.knows("BlockAffinity") && !blocks(facts).any(|(_, block)| net.contains(&block)) {
            found.push(unused(facts, name, &pool.name));
        }
    }
    found
}

/// A pool from which no pod has an address.
fn unused(facts: &Facts, tenant: &str, name: &str) -> Finding {
    let pool = facts.snapshot.pools.iter().find(|pool| pool.name() == name);
    let spec = pool.map(|pool| &pool.spec);
    let none = "no node has a block of it, so no pod has an address of it";
    let about = format!("IPPool {name}");
    let pools = format!("ippools.{}", facts.snapshot.calico_api.group());
    if spec.is_some_and(|spec| spec.disabled == Some(true)) {
        return Finding::hint(about, "PoolUnused", format!("{none}: spec.disabled is true"))
            .remedy("set it to false")
            .command(format!(
                "kubectl patch {pools} {name} --type=merge -p '{{\"spec\":{{\"disabled\":false}}}}'"
            ));
    }
    let manual = spec.is_some_and(|spec| spec.assignment_mode.as_deref() == Some("Manual"));
    let why = if manual { ": spec.assignmentMode is Manual, so only pods that name it get one" } else { "" };
    let family = if spec.is_some_and(|spec| spec.cidr.contains(':')) { "ipv6pools" } else { "ipv4pools" };
    Finding::hint(about, "PoolUnused", format!("{none}{why}"))
        .remedy(format!(
            "name it on a Namespace or a pod, or give Tenant {tenant} a spec.namespaceSelector; pods that run already keep the addresses they have"
        ))
        .command(format!("kubectl annotate namespace NAMESPACE 'cni.projectcalico.org/{family}=[\"{name}\"]'"))
}
