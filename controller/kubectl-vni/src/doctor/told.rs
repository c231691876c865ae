//! What agents say of their nodes, told apart by the words they say it in. Pure.
//!
//! Statuses hold an agent's sentence and not its one word, so this goes by the sentence. One that is not known here is
//! told as it is.

use super::finding::Finding;

/// A sentence of an agent that is known.
struct Known {
    /// All of these are in it.
    words: &'static [&'static str],
    reason: &'static str,
    remedy: &'static str,
    commands: &'static [&'static str],
}

const KNOWN: [Known; 12] = [
    Known {
        words: &["FRR does not answer"],
        reason: "FRRDown",
        remedy: "start `calico-vni-router frr` on the node, or see which daemon ends in its log; the agent waits, and goes on by itself",
        commands: &["kubectl -n NAMESPACE logs -l app.kubernetes.io/component=frr --tail=50 --prefix"],
    },
    Known {
        words: &["its configuration was refused"],
        reason: "ConfigurationRefused",
        remedy: "the message names the field; where the controller is newer than the agent, upgrade the agent",
        commands: &["kubectl -n NAMESPACE rollout restart daemonset calico-vni-agent"],
    },
    Known {
        words: &["of the underlay is in neither namespace"],
        reason: "UplinkMissing",
        remedy: "name an interface in the Underlay's spec.interfaces that the node has, or give the node one of that name",
        commands: &["ip -br link        # on the node", "kubectl edit underlays.calico-vni.io UNDERLAY"],
    },
    Known {
        words: &["makes no VRF device"],
        reason: "KernelWithoutVRF",
        remedy: "load or install the kernel's module `vrf` (CONFIG_NET_VRF)",
        commands: &["modprobe vrf        # on the node"],
    },
    Known {
        words: &["type vrf", "not supported"],
        reason: "KernelWithoutVRF",
        remedy: "load or install the kernel's module `vrf` (CONFIG_NET_VRF)",
        commands: &["modprobe vrf        # on the node"],
    },
    Known {
        words: &["pods have an MTU of"],
        reason: "PodMtu",
        remedy: "lower Calico's MTU and restart the tenant's pods, or raise the MTU of the fabric and the Underlay's spec.mtu",
        commands: &[
            "kubectl patch installations.operator.tigera.io default --type=merge -p '{\"spec\":{\"calicoNetwork\":{\"mtu\":NUMBER}}}'        # where the operator runs Calico",
        ],
    },
    Known {
        words: &["prefixes, so its session with", "was closed"],
        reason: "MaxPrefixes",
        remedy: "raise spec.maxPrefixes of the Tenant, or find what announces so much; FRR tries again every minute",
        commands: &[
            "kubectl get tenants.calico-vni.io -o custom-columns=NAME:.metadata.name,MAX:.spec.maxPrefixes",
        ],
    },
    Known {
        words: &["kube-ipvs0"],
        reason: "IPVS",
        remedy: "set kube-proxy's mode to nftables or iptables, and restart the node",
        commands: &["kubectl -n kube-system edit configmap kube-proxy"],
    },
    Known {
        words: &["switch IPv6 on"],
        reason: "IPv6Disabled",
        remedy: "switch IPv6 on, or take the tenant's IPv6 pools away",
        commands: &["sysctl -w net.ipv6.conf.all.disable_ipv6=0        # on the node"],
    },
    Known {
        words: &["is not opened; run the service's pods from another pool"],
        reason: "ServiceInsidePool",
        remedy: "run the Service's pods from another pool",
        commands: &[],
    },
    Known {
        words: &["no room left to keep strangers"],
        reason: "GuardAlone",
        remedy: "share fewer prefixes and Services with tenants, or keep tenants off this node by placement or nodeSelector",
        commands: &[],
    },
    Known {
        words: &["state directory"],
        reason: "LastGoodNotKept",
        remedy: "make room in the state directory /var/lib/calico-vni, or make it writable",
        commands: &["df -h /var/lib/calico-vni        # on the node"],
    },
];

/// What is known of such a sentence, of a node.
pub fn finding(node: &str, message: &str, namespace: &str, underlay: &str) -> Finding {
    let known = KNOWN.iter().find(|known| known.words.iter().all(|word| message.contains(word)));
    let about = format!("Node {node}");
    let Some(known) = known else {
        return Finding::problem(about, "NodeDegraded", message)
            .remedy(
                "what the kernel or FRR said; on the node, `calico-vni-router show` says what is outstanding",
            )
            .command(format!("calico-vni-router show --node {node}        # on the node"))
            .fleeting();
    };
    let filled = |command: &&str| command.replace("NAMESPACE", namespace).replace("UNDERLAY", underlay);
    let commands = known.commands.iter().map(filled);
    commands.fold(
        Finding::problem(about, known.reason, message).remedy(known.remedy).fleeting(),
        Finding::command,
    )
}

/// The nodes' sentences in a message that names several, `n1: …; n2: …; and 3 more`. Sentences have semicolons too, so it
/// is parted only where a node's name follows.
pub fn by_node<'m>(message: &'m str, nodes: &[String]) -> Vec<(&'m str, &'m str)> {
    let begins = |at: usize| {
        let rest = &message[at..];
        let before = at == 0 || message[..at].ends_with("; ");
        before
            && nodes
                .iter()
                .any(|node| rest.strip_prefix(node.as_str()).is_some_and(|rest| rest.starts_with(": ")))
    };
    let mut starts: Vec<usize> = message.char_indices().map(|(at, _)| at).filter(|&at| begins(at)).collect();
    let end = message.rfind("; and ").filter(|&at| message[at..].ends_with(" more")).unwrap_or(message.len());
    starts.push(end + "; ".len());
    let part = |pair: &[usize]| message.get(pair[0]..pair[1] - "; ".len())?.split_once(": ");
    starts.windows(2).filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_with_semicolons_stay_whole() {
        let nodes = ["n1".to_owned(), "n10".to_owned(), "n2".to_owned()];
        let message = "n1: kube-ipvs0: IPVS; set mode: nftables; n10: pods have an MTU of 1500; and 3 more";
        assert_eq!(
            by_node(message, &nodes),
            [("n1", "kube-ipvs0: IPVS; set mode: nftables"), ("n10", "pods have an MTU of 1500")]
        );
        assert_eq!(by_node("n2: FRR does not answer", &nodes), [("n2", "FRR does not answer")]);
        assert_eq!(by_node("all is well", &nodes), []);
    }

    #[test]
    fn what_agents_say_is_known() {
        for (message, reason) in [
            ("FRR does not answer", "FRRDown"),
            ("its configuration was refused: mtu", "ConfigurationRefused"),
            (
                "host: uplink eth9 move to router: interface `eth9` of the underlay is in neither namespace; `ip link` in the host names those there are",
                "UplinkMissing",
            ),
            ("this kernel makes no VRF device: load or install its module `vrf`", "KernelWithoutVRF"),
            (
                "router: link add vrf1001 type vrf table 1000001001: Operation not supported (os error 95)",
                "KernelWithoutVRF",
            ),
            ("pods have an MTU of 1500, the tenant carries 1450", "PodMtu"),
            (
                "BIRD announced more than 500 prefixes, so its session with 169.254.192.2 was closed and the tenant's routes of this node are gone",
                "MaxPrefixes",
            ),
            ("device kube-ipvs0: kube-proxy runs in IPVS mode", "IPVS"),
            ("it has IPv6 pools, but it is off; switch IPv6 on, or take the pools away", "IPv6Disabled"),
            (
                "service a/b: endpoint 10.200.0.1 lies in a tenant's or a quarantined pool and is not opened; run the service's pods from another pool",
                "ServiceInsidePool",
            ),
            (
                "this node's policy rules have no room left to keep strangers from the tenant's pods, should somebody take the guard away",
                "GuardAlone",
            ),
            (
                "the configuration is in force and cannot be kept for the next start (full): make room for it, or make the state directory writable",
                "LastGoodNotKept",
            ),
            ("router: link add br1001 type bridge: File exists", "NodeDegraded"),
        ] {
            let finding = finding("n1", message, "calico-vni", "fabric");
            assert_eq!((finding.reason.as_str(), finding.about.as_str()), (reason, "Node n1"), "{message}");
            assert!(!finding.remedy.is_empty(), "{message}");
        }
    }
}
