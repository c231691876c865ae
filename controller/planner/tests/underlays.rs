//! Several Underlays, Nodes that move between them, numbers that change under running tenants, and tenants that linger.

mod world;

use std::sync::Arc;

use calico_vni_planner::{
    Plan, Snapshot, plan, reason,
    simulate::{carry_out, settle},
    snapshot::Agent,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn underlay(name: &str, day: u8, asn: u32, vtep: &str) -> Value {
    json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay",
        "metadata": { "name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z") },
        "spec": {
            "asn": asn, "vtepCIDR": vtep, "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }],
            "interfaces": [{ "name": "eth1" }], "nodeSelector": { "matchLabels": { "rack": name } },
        },
    })
}

fn node(name: &str, rack: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "rack": rack } } })
}

fn block(node: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity", "metadata": { "name": node },
        "spec": { "node": node, "cidr": cidr },
    })
}

fn red() -> [Value; 2] {
    [
        json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": "red" }, "spec": {} }),
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": { "name": "red", "annotations": { "calico-vni.io/tenant": "red" } }, "spec": { "cidr": "10.1.0.0/16" },
        }),
    ]
}

/// Two racks with a Node each, on both of which the tenant stands.
fn racks(first: u32, second: u32) -> (Snapshot, Plan) {
    let [mut tenant, pool] = red();
    tenant["spec"]["vni"] = json!(1001);
    let mut snapshot = Snapshot::from_objects([
        underlay("a", 1, first, "10.254.0.0/24"),
        underlay("b", 2, second, "10.255.0.0/24"),
        node("n1", "a"),
        node("n2", "b"),
        block("n1", "10.1.0.0/26"),
        block("n2", "10.1.0.64/26"),
        tenant,
        pool,
    ])
    .unwrap();
    for node in ["n1", "n2"] {
        snapshot.agents.insert(node.into(), Agent { frr_running: true, ..Agent::default() }.into());
    }
    settle(&snapshot).expect("it comes to rest")
}

fn peers(plan: &Plan) -> Vec<(&str, i32, &str)> {
    (plan.peers.values())
        .map(|p| (p.name(), p.spec.as_number.unwrap(), p.spec.node_selector.as_deref().unwrap()))
        .collect()
}

const PLAIN: (&str, i32, &str) = ("calico-vni-red", 65000, "tenant.calico-vni.io/red == 'ready'");
const SECOND: (&str, i32, &str) =
    ("calico-vni-red.65001", 65001, "tenant.calico-vni.io/red == 'ready-65001'");

#[test]
fn racks_of_one_asn_share_a_peer_and_racks_of_two_do_not() {
    assert_eq!(peers(&racks(65000, 65000).1), [PLAIN]);
    let (_, planned) = racks(65000, 65001);
    assert_eq!(peers(&planned), [PLAIN, SECOND]);
    assert_eq!(planned.label_values, [("n2".to_owned(), "ready-65001".to_owned())].into());
    assert!(planned.labels.values().all(|tenants| tenants.contains("red")));
    assert_eq!(planned.filters.len(), 1, "one filter for both");
}

/// A change of a peer that stands, or of a label, would end sessions.
#[test]
fn sessions_of_one_rack_outlive_the_underlay_of_the_other() {
    let (mut rest, _) = racks(65000, 65001);
    rest.underlays.retain(|u| u.metadata.name.as_deref() == Some("b"));
    for _ in 0..6 {
        let planned = plan(&rest);
        assert!(peers(&planned).contains(&SECOND), "{:?}", peers(&planned));
        assert_eq!(planned.label_values.get("n2").map(String::as_str), Some("ready-65001"));
        assert!(planned.labels["n2"].contains("red"));
        rest = carry_out(&rest, &planned);
    }
    assert_eq!(peers(&plan(&rest)), [SECOND], "it keeps its name, and the other is gone");
}

/// As long as its labels stand, BIRD speaks to the router with the ASN of before.
#[test]
fn an_underlay_that_is_refused_keeps_its_peers() {
    let (mut rest, before) = racks(65000, 65001);
    rest.underlays.iter_mut().find(|u| u.metadata.name.as_deref() == Some("a")).unwrap().spec.mtu = Some(1);
    let after = plan(&rest);
    assert_eq!(after.peers, before.peers);
    assert_eq!(after.labels, before.labels);
    assert_eq!(after.label_values, before.label_values);
    assert!(!after.nodes.contains_key("n1") && after.nodes.contains_key("n2"));

    // Nor may a new one take what its routers have.
    let thief = Snapshot::from_objects([underlay("c", 9, 65000, "10.254.0.0/16")]).unwrap();
    rest.underlays.extend(thief.underlays);
    let told: Vec<_> =
        plan(&rest).notices.into_iter().filter(|n| n.message.contains("of Underlay `a`")).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].reason, reason::OVERLAPPING_CIDRS);
}

/// Two refused Underlays that select one Node leave its router as it is no less than one does.
#[test]
fn what_a_refused_underlays_routers_have_is_theirs_whoever_else_is_refused() {
    let (mut rest, _) = racks(65000, 65000);
    rest.underlays.iter_mut().find(|u| u.metadata.name.as_deref() == Some("a")).unwrap().spec.mtu = Some(1);
    let mut bad = underlay("c", 7, 64512, "10.253.0.0/24");
    bad["spec"]["nodeSelector"] = json!({});
    let thief = underlay("d", 9, 65000, "10.254.0.0/16");
    rest.underlays.extend(Snapshot::from_objects([bad, thief]).unwrap().underlays);
    let notices = plan(&rest).notices;
    assert!(notices.iter().any(|n| n.reason == reason::OVERLAPPING_CIDRS), "{notices:?}");
}

/// Names, values and ASNs are settled among Underlays that work.
#[test]
fn no_bad_object_moves_a_rack_to_another_peer() {
    let (rest, before) = racks(65000, 65001);
    for (what, objects, _) in world::bad_objects() {
        let bad = Snapshot::from_objects(objects).unwrap();
        let mut with = rest.clone();
        with.underlays.extend(bad.underlays);
        with.tenants.extend(bad.tenants);
        let after = plan(&with);
        assert_eq!(after.peers, before.peers, "{what}");
        assert_eq!((&after.labels, &after.label_values), (&before.labels, &before.label_values), "{what}");
    }
}

#[test]
fn a_node_that_moves_to_a_rack_of_another_asn_is_relabelled_in_order() {
    let (mut rest, _) = racks(65000, 65001);
    let rack = |snapshot: &mut Snapshot, rack: &str| {
        let node = snapshot.nodes.iter_mut().find(|n| n.metadata.name.as_deref() == Some("n1")).unwrap();
        Arc::make_mut(node).metadata.labels.as_mut().unwrap().insert("rack".into(), rack.into());
    };
    rack(&mut rest, "b");
    let first = plan(&rest);
    assert!(first.labels["n1"].is_empty() && !first.nodes.contains_key("n1"), "labels first");
    let unlabelled = carry_out(&rest, &first);
    let second = plan(&unlabelled);
    assert_eq!(second.nodes["n1"].underlay.as_ref().unwrap().asn, 65001);
    assert!(second.labels["n1"].is_empty(), "what stands is still of the other rack");
    let third = plan(&carry_out(&unlabelled, &second));
    assert!(third.labels["n1"].contains("red"));
    assert_eq!(third.label_values["n1"], "ready-65001");
}

#[test]
fn a_node_of_two_underlays_keeps_what_it_has() {
    let (mut rest, before) = racks(65000, 65001);
    let all = rest.underlays.iter_mut().find(|u| u.metadata.name.as_deref() == Some("a")).unwrap();
    all.spec.node_selector = None;
    let after = plan(&rest);
    assert_eq!((&after.labels, &after.label_values), (&before.labels, &before.label_values));
    assert_eq!(after.peers, before.peers);
    assert!(after.notices.iter().any(|n| n.reason == reason::UNDERLAY_AMBIGUOUS));
}

/// Numbers that nobody has anywhere come first, so that a router which was not told yet shares its address with nobody.
#[test]
fn the_index_of_a_node_that_moved_is_not_given_away_at_once() {
    let (mut rest, _) = racks(65000, 65000);
    let moved = rest.nodes.iter_mut().find(|n| n.metadata.name.as_deref() == Some("n1")).unwrap();
    Arc::make_mut(moved).metadata.labels.as_mut().unwrap().insert("rack".into(), "b".into());
    rest.nodes.extend(Snapshot::from_objects([node("n3", "a")]).unwrap().nodes);
    let given = plan(&rest).allocations.nodes;
    assert!(given.get("n3").is_some_and(|index| *index > 1), "{given:?}");
}

#[test]
fn a_vni_set_under_a_running_tenant_takes_labels_off_first() {
    let (mut rest, before) = racks(65000, 65000);
    rest.tenants[0].spec.vni = Some(2002);
    let first = plan(&rest);
    assert!(first.labels.values().all(std::collections::BTreeSet::is_empty));
    assert_eq!(first.peers, before.peers, "sessions go by the labels");
    assert_eq!(first.nodes["n1"].tenants[0].vni, 1001, "it is carried until the label is off");
    assert!(first.allocations.is_empty(), "and the number is its own until then");
    let (_, planned) = settle(&rest).expect("it comes to rest");
    assert!(planned.nodes.values().all(|n| n.tenants.iter().all(|t| t.vni == 2002)));
    assert!(planned.labels.values().all(|tenants| tenants.contains("red")));
}

#[test]
fn a_shrunken_link_prefix_takes_labels_off_first() {
    let (mut rest, _) = racks(65000, 65000);
    rest.tenants[0].status.as_mut().unwrap().link_index = Some(9);
    let (mut rest, before) = settle(&rest).unwrap();
    for underlay in &mut rest.underlays {
        underlay.spec.host_link_cidr = "169.254.192.0/28".into();
    }
    let first = plan(&rest);
    assert!(first.labels.values().all(std::collections::BTreeSet::is_empty));
    assert_eq!(first.nodes, before.nodes);
    assert_eq!(first.peers, before.peers);
    let (_, planned) = settle(&rest).expect("it comes to rest");
    assert!(planned.nodes.values().all(|n| n.tenants.iter().all(|t| t.link_index == 1)));
}

#[test]
fn a_tenant_lingers_after_its_last_block_until_its_while_is_over() {
    let (mut rest, before) = racks(65000, 65000);
    Arc::make_mut(&mut rest.blocks).retain(|block| block.node != "n1");
    let pair = ("n1".to_owned(), "red".to_owned());
    let lingers = plan(&rest);
    assert_eq!(lingers.lingering, [pair.clone()].into());
    assert_eq!((&lingers.nodes, &lingers.labels), (&before.nodes, &before.labels));
    rest.lingered.insert(pair);
    let over = plan(&rest);
    assert!(over.lingering.is_empty() && over.labels["n1"].is_empty());
    assert_eq!(over.nodes["n1"].tenants.len(), 1, "the label goes first");
    let (_, gone) = settle(&rest).unwrap();
    assert!(gone.nodes["n1"].tenants.is_empty());

    // Whoever deletes a tenant, or keeps it off a node, wants it gone.
    rest.lingered.clear();
    let mut deleted = rest.clone();
    deleted.tenants[0].metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-02-01T00:00:00Z")).unwrap();
    let mut elsewhere = rest.clone();
    elsewhere.tenants[0].spec.node_selector =
        serde_json::from_value(json!({ "matchLabels": { "rack": "b" } })).unwrap();
    for gone in [deleted, elsewhere] {
        let planned = plan(&gone);
        assert!(planned.lingering.is_empty() && planned.labels["n1"].is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Lingering keeps nothing that is not labelled, and ends with the whole time of all pairs.
    #[test]
    fn lingering_begins_with_a_label_and_ends(snapshot in world::any_snapshot()) {
        let mut now = snapshot;
        for _ in 0..4 {
            let planned = plan(&now);
            for (node, tenant) in &planned.lingering {
                let object = now.nodes.iter().find(|n| n.metadata.name.as_ref() == Some(node)).unwrap();
                let label = format!("tenant.calico-vni.io/{tenant}");
                prop_assert!(object.metadata.labels.as_ref().unwrap().contains_key(&label));
                prop_assert!(!now.lingered.contains(&(node.clone(), tenant.clone())));
            }
            now = carry_out(&now, &planned);
        }
        let (mut rest, mut planned) = settle(&now).expect("it comes to rest");
        while !planned.lingering.is_empty() {
            rest.lingered.extend(planned.lingering);
            (rest, planned) = settle(&rest).expect("it comes to rest");
        }
        // As if no label had ever stood there without a block.
        let mut fresh = rest.clone();
        fresh.lingered.clear();
        let fresh = plan(&fresh);
        prop_assert_eq!(fresh.nodes, planned.nodes);
        prop_assert_eq!(fresh.labels, planned.labels);
    }
}
