//! Small clusters, good and bad, for the laws that hold for all of them.
//!
//! Everything is drawn from few values, so that names, numbers, prefixes and ages meet.

use std::collections::BTreeMap;

use calico_vni_crds::calico::CalicoApi;
use calico_vni_planner::{Snapshot, snapshot::Agent};
use proptest::{option, prelude::*, sample::select};
use serde_json::{Value, json};

const TENANTS: [&str; 5] = ["amber", "blue", "coral", "vni-1001", "vni-1002"];
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// Days of January; `None` is an object without a creation time.
fn created() -> BoxedStrategy<Value> {
    option::weighted(0.9, 1..5u8)
        .prop_map(|day| day.map_or(Value::Null, |d| json!(format!("2026-01-{d:02}T00:00:00Z"))))
        .boxed()
}

fn tenant(name: &'static str) -> BoxedStrategy<Value> {
    let numbers = (
        option::of(select(vec![0u32, 1001, 1002, 1003])),
        option::of(select(vec![1001u32, 1002, 1003, 5000, 5001])),
        option::of(0..5u32),
    );
    let shape = (
        select(vec![json!("OnDemand"), json!("AllNodes")]),
        select(vec![json!("Blocks"), json!("Pods")]),
        select(vec![json!([]), json!([]), json!(["65000:7"]), json!(["nonsense"])]),
        select(vec![json!([]), json!([]), json!(["10.96.0.0/16"]), json!(["10.1.0.0/16"])]),
        option::of(select(vec!["a", "b"])),
    );
    let services = select(vec![
        json!(null),
        json!(["kube-system/kube-dns"]),
        json!(["default/kubernetes", "team/api"]),
        json!(["nonsense"]),
        json!([]),
    ]);
    let selector =
        select(vec![json!(null), json!(null), json!({}), json!({ "team": "a" }), json!({ "team": "b" })]);
    // Pools that were its own when its status was last written.
    let before = prop::collection::vec(
        (select(vec!["p1", "p2", "p9"]), select(vec!["10.1.0.0/16", "10.2.0.0/16", "10.77.0.0/16"])),
        0..2,
    );
    let more = (services, selector, before);
    (created(), numbers, shape, more, prop::bool::weighted(0.2), any::<bool>()).prop_map(
        move |(created, numbers, shape, (services, selector, before), deleting, managed)| {
            let (vni, kept, link) = numbers;
            let (placement, advertise, targets, shared, zone) = shape;
            let before: Vec<Value> = (before.iter())
                .map(|(name, cidr)| json!({ "name": name, "cidr": cidr, "accepted": true }))
                .collect();
            let mut shared = json!({ "cidrs": shared, "services": services });
            if shared["services"].is_null() {
                shared.as_object_mut().unwrap().remove("services");
            }
            json!({
                "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
                "metadata": {
                    "name": name, "uid": format!("uid-{name}"), "generation": 2, "creationTimestamp": created,
                    "finalizers": if deleting { json!(["calico-vni.io/teardown"]) } else { Value::Null },
                    "deletionTimestamp": if deleting { json!("2026-02-01T00:00:00Z") } else { Value::Null },
                    "labels": if managed && name.starts_with("vni-") { json!({ "calico-vni.io/managed-by": "pool-annotation" }) } else { json!({}) },
                },
                "spec": {
                    "vni": vni, "placement": placement, "advertise": advertise, "routeTargets": { "export": targets },
                    "sharedServices": shared,
                    "namespaceSelector": if selector.is_null() { Value::Null } else { json!({ "matchLabels": selector }) },
                    "nodeSelector": zone.map(|zone| json!({ "matchLabels": { "zone": zone } })),
                },
                "status": { "vni": kept, "linkIndex": link, "pools": before },
            })
        },
    ).boxed()
}

fn pool(name: String) -> BoxedStrategy<Value> {
    let cidrs = vec![
        "10.1.0.0/16",
        "10.1.128.0/17",
        "10.2.0.0/16",
        "10.3.0.0/16",
        "10.4.0.0/24",
        "10.0.0.0/13",
        "fd01::/64",
        "fd02::/64",
        "fd01::/80",
        "10.255.0.0/25",
        "10.5.0.1/16",
        "nonsense",
        "10.6.0.0/29",
    ];
    let annotations = (
        option::weighted(0.5, select(vec!["1001", "1002", "1003", "0", "16777216", "abc"])),
        option::weighted(0.5, select([&TENANTS[..], &["nobody"]].concat())),
    );
    let settings = (
        option::weighted(0.2, select(vec!["Never", "Always"])),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.2),
        option::weighted(0.2, select(vec![19u8, 24, 26, 30, 32, 124])),
        option::weighted(0.5, select(vec!["Automatic", "Manual"])),
        option::weighted(0.3, select(vec!["all()", "team == 'a'"])),
    );
    (created(), select(cidrs), annotations, settings).prop_map(
        move |(created, cidr, (vni, tenant), (vxlan, nat, disabled, block_size, mode, selector))| {
            let mut annotations = BTreeMap::new();
            annotations.extend(vni.map(|vni| ("calico-vni.io/vni", vni)));
            annotations.extend(tenant.map(|tenant| ("calico-vni.io/tenant", tenant)));
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
                "metadata": { "name": name, "creationTimestamp": created, "annotations": annotations },
                "spec": { "cidr": cidr, "vxlanMode": vxlan, "natOutgoing": nat, "disableBGPExport": disabled, "blockSize": block_size, "assignmentMode": mode, "namespaceSelector": selector },
            })
        },
    ).boxed()
}

fn node(name: &'static str) -> BoxedStrategy<Value> {
    let index = option::weighted(0.7, select(vec!["1", "2", "3", "200", "x"]));
    let asn = option::weighted(0.1, select(vec!["65000", "64600"]));
    let ready = prop::sample::subsequence([&TENANTS[..], &["gone"]].concat(), 0..3);
    (created(), index, asn, ready, select(vec!["a", "b"])).prop_map(move |(created, index, asn, ready, zone)| {
        let mut annotations = BTreeMap::new();
        annotations.extend(index.map(|index| ("calico-vni.io/router-index", index)));
        annotations.extend(asn.map(|asn| ("projectcalico.org/ASNumber", asn)));
        let mut labels: BTreeMap<String, &str> =
            ready.iter().map(|tenant| (format!("tenant.calico-vni.io/{tenant}"), "ready")).collect();
        labels.insert("zone".into(), zone);
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "creationTimestamp": created, "annotations": annotations, "labels": labels },
        })
    }).boxed()
}

fn underlay(name: &'static str) -> BoxedStrategy<Value> {
    let asn = select(vec![65000u32, 65000, 65000, 65001, 64512]);
    let vtep =
        select(vec!["10.255.0.0/24", "10.254.0.0/29", "10.254.0.0/24", "fd00:255::/64", "10.255.0.0/31"]);
    let range = option::of(select(vec![
        json!({ "min": 5000, "max": 5001 }),
        json!({ "min": 5001, "max": 5001 }),
        json!({ "min": 9, "max": 8 }),
    ]));
    let links = select(vec!["169.254.192.0/18", "169.254.192.0/18", "169.254.192.0/29"]);
    (created(), asn, vtep, range, links, option::of(select(vec!["a", "b"]))).prop_map(
        move |(created, asn, vtep, range, links, zone)| {
            json!({
                "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay",
                "metadata": { "name": name, "creationTimestamp": created },
                "spec": {
                    "asn": asn, "vtepCIDR": vtep, "vniRange": range, "hostLinkCIDR": links,
                    "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }], "interfaces": [{ "name": "eth1" }],
                    "nodeSelector": zone.map(|zone| json!({ "matchLabels": { "zone": zone } })),
                },
            })
        },
    ).boxed()
}

fn blocks() -> BoxedStrategy<Vec<Value>> {
    let cidrs = vec![
        "10.1.0.0/26",
        "10.1.128.0/26",
        "10.2.0.0/26",
        "10.3.0.64/26",
        "10.4.0.0/26",
        "fd01::/122",
        "10.77.0.0/26",
    ];
    prop::collection::btree_set((select(&NODES[..]), select(cidrs), prop::bool::weighted(0.1)), 0..8).prop_map(|blocks| {
        let blocks: BTreeMap<_, _> = blocks.into_iter().map(|(node, cidr, deleted)| ((node, cidr), deleted)).collect();
        let object = |(i, ((node, cidr), deleted)): (usize, ((&str, &str), bool))| {
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity", "metadata": { "name": format!("b{i}") },
                "spec": { "node": node, "cidr": cidr, "deleted": deleted },
            })
        };
        blocks.into_iter().enumerate().map(object).collect()
    }).boxed()
}

fn namespace(name: &'static str) -> BoxedStrategy<Value> {
    let lists =
        || option::weighted(0.4, select(vec!["[\"p1\"]", "[\"p2\",\"p3\"]", "[ \"p1\" ]", "nonsense"]));
    let marker = option::weighted(
        0.4,
        select(vec![
            r#"{"tenant":"amber","ipv4pools":["p1"]}"#,
            r#"{"tenant":"blue","ipv4pools":["p2","p3"],"ipv6pools":["p1"]}"#,
            r#"{"tenant":"nobody","ipv6pools":["p1"]}"#,
            "nonsense",
        ]),
    );
    (option::of(select(vec!["a", "b"])), lists(), lists(), marker, prop::bool::weighted(0.1)).prop_map(move |(team, v4, v6, marker, going)| {
        let mut annotations = BTreeMap::new();
        annotations.extend(v4.map(|v4| ("cni.projectcalico.org/ipv4pools", v4)));
        annotations.extend(v6.map(|v6| ("cni.projectcalico.org/ipv6pools", v6)));
        annotations.extend(marker.map(|marker| ("calico-vni.io/assigned-pools", marker)));
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": name, "annotations": annotations, "labels": team.map(|team| json!({ "team": team })),
                "deletionTimestamp": if going { json!("2026-02-01T00:00:00Z") } else { Value::Null },
            },
        })
    }).boxed()
}

/// Slices of services that some name, with endpoints on nodes, in plain and in tenants' pools.
fn slices() -> BoxedStrategy<Vec<Value>> {
    let service = select(vec![
        ("default", "kubernetes"),
        ("kube-system", "kube-dns"),
        ("team", "api"),
        ("team", "other"),
    ]);
    let address = select(vec![
        ("IPv4", "192.168.1.11"),
        ("IPv4", "10.1.0.5"),
        ("IPv4", "10.2.3.4"),
        ("IPv4", "10.60.0.9"),
        ("IPv6", "fd01::5"),
        ("IPv6", "fd77::5"),
        ("FQDN", "api.example"),
        ("IPv4", "127.0.0.1"),
    ]);
    let ready = option::of(any::<bool>());
    let port = select(vec![json!(53), json!(6443), json!(null)]);
    let slice =
        (service, address, ready, port).prop_map(|((namespace, service), (kind, address), ready, port)| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": { "namespace": namespace, "labels": { "kubernetes.io/service-name": service } },
                "addressType": kind, "ports": [{ "protocol": "UDP", "port": port }],
                "endpoints": [{ "addresses": [address], "conditions": { "ready": ready } }],
            })
        });
    prop::collection::vec(slice, 0..5)
        .prop_map(|mut slices| {
            for (number, slice) in slices.iter_mut().enumerate() {
                slice["metadata"]["name"] = format!("slice-{number}").into();
            }
            slices
        })
        .boxed()
}

fn agent() -> BoxedStrategy<Agent> {
    let programmed =
        prop::collection::btree_set((select(&TENANTS[..]), select(vec![1001u32, 1002, 5000])), 0..3);
    let failed = option::weighted(0.2, select(&TENANTS[..]));
    (programmed, failed, prop::bool::weighted(0.9), prop::bool::weighted(0.1))
        .prop_map(|(programmed, failed, frr_running, rejected)| Agent {
            programmed: programmed.into_iter().map(|(tenant, vni)| (tenant.to_owned(), vni)).collect(),
            failed: failed.map(|tenant| (tenant.to_owned(), "FRR: no".to_owned())).into_iter().collect(),
            rejected: rejected.then(|| "underlay: no".to_owned()),
            frr_running,
            asn: None,
            ..Agent::default()
        })
        .boxed()
}

/// Any cluster.
pub fn any_snapshot() -> BoxedStrategy<Snapshot> {
    let some = |n: usize| prop::collection::vec(any::<bool>(), n);
    let objects = (
        (underlay("u1"), underlay("u2")).prop_map(|(a, b)| vec![a, b]),
        TENANTS.map(tenant).prop_map(Vec::from),
        ["p1", "p2", "p3", "p4", "p5", "p6"].map(|name| pool(name.to_owned())).prop_map(Vec::from),
        NODES.map(node).prop_map(Vec::from),
        blocks(),
        option::of(any::<bool>()),
    );
    let agents = prop::collection::btree_map(select(&NODES[..]), agent(), 0..4);
    let others = (
        ["team-a", "team-b", "other"].map(namespace).prop_map(Vec::from),
        slices(),
        select(vec![CalicoApi::V3, CalicoApi::CrdV1]),
    );
    (objects, some(17), agents, others).prop_map(|((underlays, tenants, pools, nodes, blocks, strict), there, agents, (namespaces, slices, api))| {
        let ipam = strict.map(|strict| {
            json!({ "apiVersion": "projectcalico.org/v3", "kind": "IPAMConfiguration", "metadata": { "name": "default" }, "spec": { "strictAffinity": strict } })
        });
        // One underlay is always there, and the second seldom is, for nothing is planned where they quarrel.
        let all = underlays.into_iter().chain(tenants).chain(pools).chain(nodes);
        let kept = all.zip(there).enumerate().filter(|(i, (_, there))| *i == 0 || *there).map(|(_, (object, _))| object);
        let mut snapshot = Snapshot::from_objects(kept.chain(blocks).chain(ipam).chain(namespaces).chain(slices)).expect("well-formed objects");
        snapshot.calico_api = api;
        snapshot.agents = agents.into_iter().map(|(node, agent)| (node.to_owned(), agent.into())).collect();
        snapshot
    }).boxed()
}

/// Objects that cannot be honoured, all younger than any other by having no time of creation and the last of names, and the names of the tenants they may touch.
pub fn bad_objects() -> Vec<(&'static str, Vec<Value>, Option<&'static str>)> {
    let pool = |cidr: &str, annotation: Value, more: Value| {
        let mut spec = json!({ "cidr": cidr });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": { "name": "zz-bad", "annotations": annotation }, "spec": spec,
        })
    };
    let vni = |vni: &str| json!({ "calico-vni.io/vni": vni });
    let tenant = |spec: Value| {
        json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant",
            "metadata": { "name": "zz-bad" }, "spec": spec,
        })
    };
    let underlay = |asn: u32, vtep: &str| {
        json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay",
            "metadata": { "name": "zz-bad" },
            "spec": { "asn": asn, "vtepCIDR": vtep, "neighbors": [{ "address": "192.0.2.1", "asn": 65100 }], "interfaces": [{ "name": "eth1" }] },
        })
    };
    let plain = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": { "name": "plain" }, "spec": { "cidr": "10.60.0.0/16", "assignmentMode": "Manual" },
    });
    let services = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "zz-services", "creationTimestamp": "2025-12-01T00:00:00Z" }, "spec": { "cidrs": ["10.55.0.0/16"] },
    });
    vec![
        ("a VNI of 0", vec![pool("10.50.0.0/16", vni("0"), json!({}))], None),
        ("a VNI that is a word", vec![pool("10.1.0.0/16", vni("abc"), json!({}))], None),
        ("a VNI too large", vec![pool("0.0.0.0/0", vni("16777216"), json!({}))], None),
        ("a pool over all others", vec![pool("10.0.0.0/8", vni("1009"), json!({})), plain], Some("vni-1009")),
        (
            "an encapsulated pool",
            vec![pool("10.51.0.0/16", vni("1009"), json!({ "vxlanMode": "Always" }))],
            Some("vni-1009"),
        ),
        (
            "a pool of nobody",
            vec![pool("10.52.0.0/16", json!({ "calico-vni.io/tenant": "nobody" }), json!({}))],
            None,
        ),
        (
            "a pool among Services",
            vec![pool("10.55.4.0/24", vni("1009"), json!({})), services],
            Some("vni-1009"),
        ),
        ("a tenant with another's VNI", vec![tenant(json!({ "vni": 1001 }))], Some("zz-bad")),
        (
            "a tenant with a bad target",
            vec![tenant(json!({ "vni": 1010, "routeTargets": { "import": ["x"] } }))],
            Some("zz-bad"),
        ),
        ("an underlay with Calico's ASN", vec![underlay(64512, "10.253.0.0/24")], None),
        ("an underlay of IPv6", vec![underlay(65000, "fd00::/64")], None),
    ]
}
