//! What was left behind: by Nodes that went, by routers of Nodes that are gone, by objects that cannot be read well.

use calico_vni_planner::{Snapshot, plan, reason, snapshot::Agent};
use serde_json::{Value, json};

fn snapshot(objects: &[Value]) -> Snapshot {
    let underlay = json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": "fabric" },
        "spec": {
            "asn": 65000, "vtepCIDR": "10.255.0.0/30", "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }],
            "interfaces": [{ "name": "eth1" }], "nodeSelector": { "matchLabels": { "fabric": "yes" } },
        },
    });
    Snapshot::from_objects([&[underlay], objects].concat()).unwrap()
}

fn node(name: &str, labels: &Value, index: Option<&str>) -> Value {
    let annotations = index.map(|index| json!({ "calico-vni.io/router-index": index }));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": labels, "annotations": annotations },
    })
}

fn pool(spec: &Value) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
        "metadata": { "name": "red", "annotations": { "calico-vni.io/vni": "1001" } }, "spec": spec,
    })
}

/// An address that still answers on a router is given to no other: not even when its Node left the Underlay.
#[test]
fn the_index_of_a_node_that_left_is_not_given_away() {
    let left = |index| node("left", &json!({}), index);
    let new = |name| node(name, &json!({ "fabric": "yes" }), None);
    let planned = plan(&snapshot(&[left(Some("1")), new("new")]));
    assert_eq!(planned.allocations.nodes, [("new".to_owned(), 2)].into());

    let planned = plan(&snapshot(&[left(Some("1")), new("new"), new("newer")]));
    let full = planned.notices.iter().find(|n| n.reason == reason::NO_ROUTER_INDEX).expect("no room is told");
    assert!(full.message.contains("`left`"), "names who holds what: {}", full.message);
    assert_eq!(plan(&snapshot(&[left(None), new("new"), new("newer")])).allocations.nodes.len(), 2);
}

/// Nothing can be told to a router whose Node is gone, so nothing waits for it.
#[test]
fn a_deleted_tenant_does_not_wait_for_a_node_that_is_gone() {
    let tenant = json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
        "metadata": { "name": "red", "finalizers": ["calico-vni.io/teardown"], "deletionTimestamp": "2026-02-01T00:00:00Z" },
        "spec": { "vni": 1001 }, "status": { "vni": 1001, "linkIndex": 1 },
    });
    let mut snapshot = snapshot(&[tenant, node("n1", &json!({ "fabric": "yes" }), Some("1"))]);
    let carries =
        Agent { programmed: [("red".to_owned(), 1001)].into(), frr_running: true, ..Agent::default() };
    snapshot.agents.insert("gone".to_owned(), carries.clone().into());
    assert!(plan(&snapshot).finished_tenants.contains("red"));
    snapshot.agents.insert("n1".to_owned(), carries.into());
    assert!(plan(&snapshot).finished_tenants.is_empty());
}

/// The storage group of older releases of Calico takes what its own API server would refuse. A pool that could not be
/// read would be nobody's, and its pods on the flat network.
#[test]
fn a_pool_with_odd_values_is_quarantined_or_understood_never_passed_over() {
    for (odd, why) in [
        (json!({ "cidr": "10.1.0.0/16", "vxlanMode": "always" }), reason::ENCAPSULATED),
        (json!({ "cidr": "10.1.0.0/16", "ipipMode": "Sometimes" }), reason::ENCAPSULATED),
        (json!({ "cidr": "10.1.0.0/16", "blockSize": 282 }), reason::INVALID_BLOCK_SIZE),
        (json!({ "cidr": "10.1.0.0/16", "blockSize": -1 }), reason::INVALID_BLOCK_SIZE),
    ] {
        let planned = plan(&snapshot(&[pool(&odd)]));
        assert_eq!(planned.guard.quarantined, ["10.1.0.0/16".parse().unwrap()], "{odd}");
        assert_eq!(planned.notices.first().map(|n| n.reason.as_str()), Some(why), "{odd}");
    }
    let planned =
        plan(&snapshot(&[pool(&json!({ "cidr": "10.1.0.0/16", "vxlanMode": "", "ipipMode": "" }))]));
    assert_eq!(planned.notices, [].into(), "an empty mode is none");
}
