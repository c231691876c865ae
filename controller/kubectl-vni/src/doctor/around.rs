//! What runs beside us and matters: kube-proxy, Calico's own settings, pods with addresses of another pool. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use calico_vni_crds::keys;
use calico_vni_planner::Plan;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;

use super::{facts::Facts, finding::Finding};

/// How many pods are named.
const NAMED: usize = 3;

/// All of it.
pub fn check(facts: &Facts, plan: &Plan) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(kube_proxy(facts));
    found.extend(bgp(facts));
    found.extend(pods(facts, plan));
    found
}

fn config<'f>(facts: &'f Facts, name: &str, key: &str) -> Option<&'f str> {
    let map = facts.config_maps.iter().find(|map| map.metadata.name.as_deref() == Some(name))?;
    map.data.as_ref()?.get(key).map(String::as_str)
}

fn kube_proxy(facts: &Facts) -> Option<Finding> {
    let text = config(facts, "kube-proxy", "config.conf")?;
    let mode = text.lines().find_map(|line| line.strip_prefix("mode:"))?.trim().trim_matches(['"', '\'']);
    (mode == "ipvs").then(|| {
        let cause = "kube-proxy runs in IPVS mode, which is not proven with tenants: it takes Services' packets past the rules by which a tenant's answers go";
        Finding::problem("ConfigMap kube-system/kube-proxy", "IPVS", cause)
            .remedy("set `mode: nftables` (or iptables) in config.conf, restart kube-proxy, then the nodes")
            .command("kubectl -n kube-system edit configmap kube-proxy")
            .command("kubectl -n kube-system rollout restart daemonset kube-proxy")
    })
}

/// Calico has to speak BGP: BIRD is who announces.
fn bgp(facts: &Facts) -> Option<Finding> {
    let remedy = "switch BGP on: without BIRD nothing of a tenant is announced";
    if let Some(backend) =
        config(facts, "calico-config", "calico_backend").filter(|backend| *backend != "bird")
    {
        let cause = format!("calico_backend is `{backend}`, so Calico's nodes run no BIRD");
        return Some(
            Finding::problem("ConfigMap kube-system/calico-config", "BGPDisabled", cause)
                .remedy(remedy)
                .command("kubectl -n kube-system patch configmap calico-config --type=merge -p '{\"data\":{\"calico_backend\":\"bird\"}}'")
                .command("kubectl -n kube-system rollout restart daemonset calico-node"),
        );
    }
    let off =
        |i: &&serde_json::Value| i.pointer("/spec/calicoNetwork/bgp").is_some_and(|bgp| bgp == "Disabled");
    facts.installations.iter().find(off).map(|_| {
        Finding::problem("Installation default", "BGPDisabled", "spec.calicoNetwork.bgp is Disabled, so Calico's nodes run no BIRD")
            .remedy(remedy)
            .command("kubectl patch installations.operator.tigera.io default --type=merge -p '{\"spec\":{\"calicoNetwork\":{\"bgp\":\"Enabled\"}}}'")
    })
}

/// Pods of a tenant's Namespaces that have no address of its pools.
fn pods(facts: &Facts, plan: &Plan) -> Vec<Finding> {
    let mut pools: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
    for status in plan.tenant_status.values() {
        for pool in status.pools.iter().filter(|pool| pool.accepted) {
            pools.entry(&pool.name).or_default().extend(pool.cidr.parse::<IpNet>());
        }
    }
    let mut found = Vec::new();
    for namespace in &facts.snapshot.namespaces {
        let (Some(name), Some(annotations)) = (&namespace.metadata.name, &namespace.metadata.annotations)
        else {
            continue;
        };
        // Only where the controller has said whose pods they are.
        let Some(listed) = annotations.get(keys::ASSIGNED).and(annotations.get(keys::CALICO_POOLS_V4)) else {
            continue;
        };
        let listed: Vec<String> = serde_json::from_str(listed).unwrap_or_default();
        let nets: Vec<IpNet> =
            listed.iter().filter_map(|pool| pools.get(pool.as_str())).flatten().copied().collect();
        if nets.is_empty() {
            continue;
        }
        let outside = |pod: &&Pod| {
            let host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            let status = pod.status.as_ref();
            let ended =
                status.and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
            let v4 = status.and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
            pod.metadata.namespace.as_ref() == Some(name)
                && !host
                && !ended
                && v4.is_some_and(|ip| ip.is_ipv4() && !nets.iter().any(|net| net.contains(&ip)))
        };
        let strays: Vec<&str> =
            facts.pods.iter().filter(outside).filter_map(|pod| pod.metadata.name.as_deref()).collect();
        if strays.is_empty() {
            continue;
        }
        let more = strays.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let first = strays[..strays.len().min(NAMED)].join(", ");
        let cause = format!(
            "pods {first}{more} have addresses of none of {}: they ran before the Namespace was the tenant's, and are in the flat network",
            listed.join(", ")
        );
        found.push(
            Finding::problem(format!("Namespace {name}"), "PodsOutsideTenant", cause)
                .remedy("restart them: a pod keeps the address that it started with")
                .command(format!(
                    "kubectl -n {name} delete pod {}",
                    strays[..strays.len().min(NAMED)].join(" ")
                )),
        );
    }
    found
}
