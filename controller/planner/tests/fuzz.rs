//! Whatever people write into annotations, selectors and prefixes: there is a plan, no pool is in two places, and what goes
//! to nodes can be taken by them. `make fuzz` draws a million cases.

use calico_vni_planner::{Snapshot, plan, plan::About};
use calico_vni_proto::{
    codec::Codec as _,
    model::{Guard, NodeConfig},
    names::VNI_MAX,
};
use proptest::{
    collection::vec, option, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner,
};
use serde_json::{Value, json};

/// Something right in many cases, and in others anything.
fn text(right: &'static [&'static str]) -> BoxedStrategy<String> {
    const ODD: [&str; 12] = [
        "",
        " 1001",
        "01001",
        "+1001",
        "16777216",
        "99999999999999999999",
        "1001\n",
        "[]",
        "[\"red\"",
        "In",
        "a/b/c",
        "\u{0}",
    ];
    prop_oneof![
        60 => select(right).prop_map(str::to_owned),
        2 => select(&ODD[..]).prop_map(str::to_owned),
        1 => "\\PC{0,30}",
    ]
    .boxed()
}

const LABELS: &[&str] = &["rack", "kubernetes.io/hostname", "zone", "a"];
const VALUES: &[&str] = &["a", "b", "n1", ""];

fn selector() -> BoxedStrategy<Value> {
    let operators = &["In", "NotIn", "Exists", "DoesNotExist"];
    let expression = (text(LABELS), text(operators), option::of(vec(text(VALUES), 0..3)));
    let expression = expression
        .prop_map(|(key, operator, values)| json!({ "key": key, "operator": operator, "values": values }));
    (vec((text(LABELS), text(VALUES)), 0..3), vec(expression, 0..3))
        .prop_map(|(labels, expressions)| {
            let labels: serde_json::Map<_, _> = labels.into_iter().map(|(k, v)| (k, v.into())).collect();
            json!({ "matchLabels": labels, "matchExpressions": expressions })
        })
        .boxed()
}

fn pool() -> BoxedStrategy<Value> {
    let nets = &[
        "10.1.0.0/16",
        "10.2.0.0/24",
        "10.1.128.0/17",
        "fd00:1::/64",
        "0.0.0.0/0",
        "10.1.0.9/16",
        "169.254.1.1/32",
    ];
    let annotations = (
        option::of(text(&["1001", "1002", "16777215", "0"])),
        option::weighted(0.2, text(&["red", "vni-1001", "nobody", "Red"])),
        option::weighted(
            0.2,
            text(&["{\"annotations\":{\"calico-vni.io/vni\":\"1001\"}}", "{}", "{\"annotations\":7}"]),
        ),
    );
    (text(nets), option::weighted(0.1, any::<u8>()), annotations)
        .prop_map(|(cidr, block_size, (vni, tenant, hidden))| {
            let mut annotations = serde_json::Map::new();
            let all = [
                ("calico-vni.io/vni", vni),
                ("calico-vni.io/tenant", tenant),
                ("projectcalico.org/metadata", hidden),
            ];
            annotations
                .extend(all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into()))));
            let mut spec =
                json!({ "cidr": cidr, "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false });
            if let Some(size) = block_size {
                spec["blockSize"] = size.into();
            }
            object("crd.projectcalico.org/v1", "IPPool", "p", json!({ "annotations": annotations }), &spec)
        })
        .boxed()
}

fn object(api: &str, kind: &str, name: &str, mut meta: Value, spec: &Value) -> Value {
    // An object without a name is no object.
    meta["name"] = if name.is_empty() { "x".into() } else { name.into() };
    json!({ "apiVersion": api, "kind": kind, "metadata": meta, "spec": spec })
}

fn labels() -> BoxedStrategy<Vec<(String, String)>> {
    vec((text(LABELS), text(VALUES)), 0..3).boxed()
}

prop_compose! {
    fn any_cluster()(
        pools in vec(pool(), 0..4),
        tenant in (
            text(&["red", "vni-1001", "blue"]),
            option::of(0u32..3000),
            selector(),
            selector(),
            vec(text(&["*:1001", "65000:1"]), 0..2),
        ),
        underlay in (
            prop_oneof![4 => Just(json!({})), 1 => selector()],
            text(&["10.255.0.0/24", "10.1.0.0/24"]),
            text(&["192.0.2.1"]),
            text(&["eth1"]),
            vec(text(&["10.96.0.0/12"]), 0..2),
        ),
        nodes in vec(
            (text(&["n1", "n2"]), labels(), option::of(text(&["1", "2"])), option::of(text(&["64513"]))),
            0..3,
        ),
        namespace in (
            labels(),
            option::of(text(&["[\"red\"]", "[\"10.1.0.0/16\"]"])),
            option::of(text(&["{}", "{\"cni.projectcalico.org/ipv4pools\":\"[]\"}"])),
        ),
        blocks in vec((text(&["n1", "n2"]), text(&["10.1.0.0/26", "10.2.0.0/26", "fd00:1::/122"])), 0..4),
    ) -> Vec<Value> {
        let map = |pairs: Vec<(String, String)>| -> Value {
            Value::Object(pairs.into_iter().map(|(key, value)| (key, value.into())).collect())
        };
        let named = |(number, mut object): (usize, Value)| {
            object["metadata"]["name"] = format!("p{number}").into();
            object
        };
        let mut objects: Vec<Value> = pools.into_iter().enumerate().map(named).collect();
        let (name, vni, node_selector, namespace_selector, import) = tenant;
        objects.push(object("calico-vni.io/v1alpha1", "Tenant", &name, json!({}), &json!({
            "vni": vni, "nodeSelector": node_selector, "namespaceSelector": namespace_selector, "routeTargets": { "import": import },
        })));
        let (node_selector, vtep, neighbor, interface, shared) = underlay;
        objects.push(object("calico-vni.io/v1alpha1", "Underlay", "fabric", json!({}), &json!({
            "asn": 65001, "nodeSelector": node_selector, "vtepCIDR": vtep, "neighbors": [{ "address": neighbor, "asn": 65100 }],
            "interfaces": [{ "name": interface }], "sharedCIDRs": shared,
        })));
        for (name, labels, index, asn) in nodes {
            let annotations = [("calico-vni.io/router-index", index), ("projectcalico.org/ASNumber", asn)];
            let annotations = annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
            let meta = json!({ "labels": map(labels), "annotations": map(annotations) });
            objects.push(object("v1", "Node", &name, meta, &json!({})));
        }
        let (labels, pools, assigned) = namespace;
        let annotations = [("cni.projectcalico.org/ipv4pools", pools), ("calico-vni.io/assigned-pools", assigned)];
        let annotations = annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let meta = json!({ "labels": map(labels), "annotations": map(annotations) });
        objects.push(object("v1", "Namespace", "team", meta, &json!({})));
        for (number, (node, cidr)) in blocks.into_iter().enumerate() {
            let spec = json!({ "node": node, "cidr": cidr });
            objects.push(object("crd.projectcalico.org/v1", "BlockAffinity", &format!("b{number}"), json!({}), &spec));
        }
        objects
    }
}

/// Clusters in which nothing is accepted show nothing.
#[test]
fn enough_is_accepted_and_enough_is_not() {
    let mut runner = TestRunner::deterministic();
    let clusters = any_cluster();
    let (mut tenants, mut quarantined, mut nodes) = (0, 0, 0);
    for _ in 0..400 {
        let objects = clusters.new_tree(&mut runner).unwrap().current();
        let Ok(snapshot) = Snapshot::from_objects(objects) else { continue };
        let plan = plan(&snapshot);
        tenants += usize::from(!plan.guard.tenants.is_empty());
        quarantined += usize::from(!plan.quarantined.is_empty());
        nodes += usize::from(plan.nodes.values().any(|config| config.underlay.is_some()));
    }
    let counts = [tenants, quarantined, nodes];
    assert!(
        counts.iter().all(|count| (40..390).contains(count)),
        "tenants, quarantines, nodes: {counts:?} of 400"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_there_is_a_plan_that_nodes_can_take(objects in any_cluster()) {
        // Two of one name, or a text where the definition has a number, are refused before.
        let Ok(snapshot) = Snapshot::from_objects(objects) else { return Ok(()) };
        let plan = plan(&snapshot);
        for tenant in &plan.guard.tenants {
            prop_assert!((1..=VNI_MAX).contains(&tenant.vni));
        }
        for pool in &snapshot.pools {
            let net = pool.spec.cidr.parse::<ipnet::IpNet>().ok().map(|net| net.trunc());
            let open = plan.guard.tenants.iter().filter(|t| net.is_some_and(|net| t.pools.contains(&net))).count();
            prop_assert!(open <= 1, "{} is in {open} tenants", pool.name());
            if plan.quarantined.contains_key(pool.name()) {
                let told = plan.notices.iter().any(|n| n.about == About::Pool(pool.name().to_owned()));
                let terminating = plan.quarantined[pool.name()] == "TenantTerminating";
                prop_assert!(told || terminating, "nobody is told why {} is shut", pool.name());
            }
        }
        for config in plan.nodes.values() {
            let config = config.config();
            let taken = NodeConfig::decode(&config.encode());
            prop_assert!(taken.is_ok(), "{config:?}: {taken:?}");
        }
        prop_assert!(Guard::decode(&plan.guard.encode()).is_ok(), "{:?}", plan.guard);
    }
}
