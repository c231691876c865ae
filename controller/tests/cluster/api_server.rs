//! An annotated pool from beginning to end, what others break, bad objects, a restart; and the group that Calico keeps
//! its objects in.

use std::time::Duration;

use crate::support::{
    agent::{FakeAgent, Held},
    eventually,
    server::Audited,
    stage::{Controller, Stage},
};
use calico_vni_crds::{
    Tenant,
    calico::{BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, CalicoApi, IpPoolSpec},
    keys,
};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::json;

const QUIET: Duration = Duration::from_secs(3);

/// Place of a write in the audit log.
fn place(writes: &[Audited], what: &str) -> usize {
    let found = writes.iter().position(|write| write.what.starts_with(what) && write.code < 300);
    found.unwrap_or_else(|| panic!("no `{what}` in {writes:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_annotated_pool_from_beginning_to_end() {
    let stage = Stage::set(CalicoApi::V3).await;
    // Before anything of Calico is there: it waits, and lets nobody in.
    let controller = Controller::start(&stage.server).await;
    stage.definitions().await;
    stage.basics().await;
    let agent = |node, acknowledges| {
        FakeAgent::start(node, controller.address, acknowledges, Held::default(), Some(stage.client.clone()))
    };
    let (n1, n2) = (agent("n1", false), agent("n2", true));

    stage.pool("red", "10.200.0.0/16", json!({})).await;
    stage.block("n1", "10.200.0.0/26").await;
    stage.annotate("red", keys::VNI, Some("1001")).await;
    let tenant = stage.tenant_when("vni-1001", "to be made and numbered", |t| allocated(t).is_some()).await;
    let (vni, link) = allocated(&tenant).unwrap();
    assert_eq!(vni, 1001);
    assert_eq!(tenant.labels()[keys::MANAGED_BY], keys::MANAGED_BY_ANNOTATION);

    // The node gets it, and only those that have to.
    eventually("n1 to get the tenant", async || {
        let held = n1.held();
        if held.tenants() == [("vni-1001".to_owned(), 1001, link)] { Ok(()) } else { Err(held) }
    })
    .await;
    assert!(n2.held().tenants().is_empty());
    eventually("all nodes to guard the pool", async || {
        let held = n2.held();
        if held.guard.tenants.iter().any(|t| t.vni == 1001) { Ok(()) } else { Err(held) }
    })
    .await;
    eventually("the peer to be made", async || stage.peer("calico-vni-vni-1001").await.ok_or("none")).await;
    assert!(stage.filter("calico-vni-vni-1001").await.is_some());

    // No label without a word of the node.
    assert_eq!(stage.ready_labels("n1").await, [].into());
    n1.acknowledge();
    stage.labelled("n1", &["vni-1001"]).await;
    stage.labelled("n2", &[]).await;
    let tenant =
        stage.tenant_when("vni-1001", "to be programmed", |t| condition(t, "Programmed") == "True").await;
    assert_eq!(tenant.status.unwrap().nodes.unwrap().ready, "1/1");

    let writes = stage.quiet(Duration::from_secs(1)).await;
    let order = [
        "create tenants vni-1001",
        "patch tenants/status vni-1001",
        "create bgpfilters calico-vni-vni-1001",
        "create bgppeers calico-vni-vni-1001",
        "patch nodes n1",
    ];
    // The first patch of a node is its number's.
    assert!(order[..4].is_sorted_by_key(|what| place(&writes, what)), "{writes:#?}");
    let label = writes.iter().rposition(|w| w.what == order[4]).unwrap();
    assert!(place(&writes, order[3]) < label, "{writes:#?}");
    assert!(writes.iter().all(|w| w.code != 403), "the role is too small: {writes:#?}");

    repairs_what_others_change(&stage).await;
    a_restart_changes_nothing(&stage, controller, n1, n2, link).await;
}

/// From here on with a new controller and new agents, which hold what the former held.
async fn a_restart_changes_nothing(
    stage: &Stage,
    controller: Controller,
    n1: FakeAgent,
    n2: FakeAgent,
    link: u32,
) {
    let before = stage.quiet(QUIET).await.len();
    let held = (n1.held(), n2.held());
    n1.check();
    n2.check();
    controller.stop().await;
    let controller = Controller::start(&stage.server).await;
    let agent = |node, held| FakeAgent::start(node, controller.address, true, held, None);
    let (n1, n2) = (agent("n1", held.0.clone()), agent("n2", held.1.clone()));
    stage.labelled("n1", &["vni-1001"]).await;
    let writes = stage.quiet(QUIET).await.split_off(before);
    assert_eq!(writes, [], "nothing changed, so nothing is written");
    assert_eq!(n1.held().received, held.0.received, "nothing changed, so nothing is sent");

    bad_objects_stop_themselves_alone(stage, &n1).await;

    // Away with the annotation: live pods keep their VRF.
    stage.annotate("red", keys::VNI, None).await;
    stage.tenant_when("vni-1001", "to say that its pool leaves", is_leaving).await;
    stage.quiet(Duration::from_secs(1)).await;
    stage.labelled("n1", &["blue", "vni-1001"]).await;

    // With the last block all is gone; the filter after the peer, the Tenant last.
    let before = stage.quiet(Duration::from_secs(1)).await.len();
    stage.delete(&stage.calico::<BlockAffinitySpec>(), "n1-10-200-0-0-26").await;
    eventually("Tenant vni-1001 to be gone", async || {
        match stage.of::<Tenant>().get_opt("vni-1001").await.unwrap() {
            None => Ok(()),
            Some(tenant) => Err(tenant),
        }
    })
    .await;
    assert!(stage.peer("calico-vni-vni-1001").await.is_none());
    assert!(stage.filter("calico-vni-vni-1001").await.is_none());
    stage.labelled("n1", &["blue"]).await;
    let carried: Vec<_> = n1.held().tenants().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(carried, ["blue"]);
    eventually("the guard to forget the pool", async || {
        let held = n2.held();
        if held.guard.tenants.iter().all(|t| t.vni != 1001)
            && !held.quarantined().contains(&"10.200.0.0/16".to_owned())
        {
            Ok(())
        } else {
            Err(held)
        }
    })
    .await;
    let writes = stage.quiet(Duration::from_secs(1)).await.split_off(before);
    let order = [
        "patch nodes n1",
        "delete bgppeers calico-vni-vni-1001",
        "delete bgpfilters calico-vni-vni-1001",
        "patch tenants vni-1001",
    ];
    assert!(order.is_sorted_by_key(|what| place(&writes, what)), "{writes:#?}");

    // And here again, with the same number.
    stage.annotate("red", keys::VNI, Some("1001")).await;
    stage.block("n1", "10.200.0.0/26").await;
    let tenant = stage
        .tenant_when("vni-1001", "to be programmed again", |t| condition(t, "Programmed") == "True")
        .await;
    assert_eq!(allocated(&tenant), Some((1001, link)));
    stage.labelled("n1", &["blue", "vni-1001"]).await;
    n1.check();
    n2.check();
    controller.stop().await;
}

async fn repairs_what_others_change(stage: &Stage) {
    let (filters, peers) = (stage.calico::<BgpFilterSpec>(), stage.calico::<BgpPeerSpec>());
    let name = "calico-vni-vni-1001";
    let right = (stage.filter(name).await.unwrap().spec, stage.peer(name).await.unwrap().spec);
    let restored = async |what: &str| {
        eventually(what, async || {
            let seen = (stage.filter(name).await.map(|f| f.spec), stage.peer(name).await.map(|p| p.spec));
            if seen == (Some(right.0.clone()), Some(right.1.clone())) { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    stage.patch(&filters, name, json!({ "spec": { "exportV4": [{ "action": "Accept" }] } })).await;
    restored("an edited filter to be put right").await;
    stage.delete(&filters, name).await;
    restored("a deleted filter to be made again").await;
    stage
        .patch(&peers, name, json!({ "spec": { "peerIP": "192.0.2.9", "sourceAddress": "UseNodeIP" } }))
        .await;
    restored("an edited peer to be put right").await;

    // A field that nobody asked for, which this project does not even know.
    stage
        .patch(
            &peers,
            name,
            json!({ "spec": { "password": { "secretKeyRef": { "name": "x", "key": "y" } } } }),
        )
        .await;
    let gvk = kube::core::ApiResource::erase::<calico_vni_crds::calico::BgpPeer>(&stage.api);
    let raw: kube::Api<kube::core::DynamicObject> = kube::Api::all_with(stage.client.clone(), &gvk);
    eventually("a foreign field of the peer to be taken out", async || {
        let peer = raw.get(name).await.unwrap();
        if peer.data["spec"].get("password").is_none() { Ok(()) } else { Err(peer.data) }
    })
    .await;

    let label = |value| json!({ "metadata": { "labels": { keys::ready_label("vni-1001"): value } } });
    stage.patch(&stage.of::<Node>(), "n1", label(json!("maybe"))).await;
    stage.labelled("n1", &["vni-1001"]).await;
    stage.patch(&stage.of::<Node>(), "n1", label(json!(null))).await;
    stage.labelled("n1", &["vni-1001"]).await;
    stage
        .patch(
            &stage.of::<Node>(),
            "n2",
            json!({ "metadata": { "labels": { keys::ready_label("nobody"): "ready" } } }),
        )
        .await;
    stage.labelled("n2", &[]).await;

    // One of ours that follows from no tenant.
    stage
        .create(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BGPFilter",
            "metadata": { "name": "calico-vni-left-over", "labels": { keys::MANAGED_BY: keys::MANAGED_BY_TENANT } },
            "spec": {},
        }))
        .await;
    eventually("an orphan to be collected", async || match stage.filter("calico-vni-left-over").await {
        None => Ok(()),
        Some(orphan) => Err(orphan),
    })
    .await;
}

/// Each gets its message in a status and an Event; nothing of any other tenant is touched.
async fn bad_objects_stop_themselves_alone(stage: &Stage, n1: &FakeAgent) {
    stage.server.create("examples/tenant-blue.yaml").await;
    stage.server.create("examples/pool-blue.yaml").await;
    stage.block("n1", "10.201.0.0/26").await;
    stage.labelled("n1", &["blue", "vni-1001"]).await;
    stage.tenant_when("blue", "to be programmed", |t| condition(t, "Programmed") == "True").await;
    stage.tenant("one", 3000).await;
    stage.tenant_when("one", "to be accepted", |t| condition(t, "Accepted") == "True").await;
    stage.tenant("two", 3000).await;
    stage.tenant_when("two", "to be refused", |t| condition(t, "Accepted") == "False").await;
    stage.quiet(Duration::from_secs(1)).await;

    let plain =
        |cidr: &str| json!({ "cidr": cidr, "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false });
    let encapsulated =
        json!({ "cidr": "10.220.0.0/16", "vxlanMode": "Always", "ipipMode": "Never", "natOutgoing": false });
    let cases = [
        ("zero", plain("10.210.0.0/16"), json!({ keys::VNI: "0" }), "10.210.0.0/16"),
        ("large", plain("10.212.0.0/16"), json!({ keys::VNI: "16777216" }), "10.212.0.0/16"),
        ("word", plain("10.214.0.0/16"), json!({ keys::VNI: "abc" }), "10.214.0.0/16"),
        ("refused", plain("10.216.0.0/16"), json!({ keys::TENANT: "two" }), "10.216.0.0/16"),
        // Prefixes that are no halves of one: the guard joins those.
        // The VNI is blue's, but the tenant is said to be another.
        ("torn", plain("10.218.0.0/16"), json!({ keys::TENANT: "one", keys::VNI: "1002" }), "10.218.0.0/16"),
        ("wrapped", encapsulated, json!({ keys::TENANT: "one" }), "10.220.0.0/16"),
        ("inside", plain("10.201.128.0/17"), json!({ keys::TENANT: "one" }), "10.201.128.0/17"),
    ];
    for (name, spec, annotations, cidr) in cases {
        let before = (stage.versions_of("blue").await, stage.versions_of("vni-1001").await);
        stage.pool_with(name, spec, annotations).await;
        let (reason, message) = eventually(&format!("the reason against pool {name}"), async || {
            let pools = pool_statuses(stage).await;
            let status = pools.iter().find(|p| p.name == name && !p.accepted).ok_or_else(|| pools.clone())?;
            Ok::<_, Vec<calico_vni_crds::tenant::PoolStatus>>((
                status.reason.clone().unwrap_or_default(),
                status.message.clone().unwrap_or_default(),
            ))
        })
        .await;
        assert!(!reason.is_empty() && !message.is_empty(), "{name}: {reason}: {message}");
        eventually(&format!("an Event on pool {name}"), async || {
            let events = stage.events("IPPool", name).await;
            if events.contains(&(reason.clone(), message.clone())) {
                Ok(())
            } else {
                Err((reason.clone(), events))
            }
        })
        .await;
        if name != "inside" {
            eventually(&format!("pool {name} to be quarantined"), async || {
                let quarantined = n1.held().quarantined();
                if quarantined.contains(&cidr.to_owned()) { Ok(()) } else { Err(quarantined) }
            })
            .await;
        }
        stage.quiet(Duration::from_millis(300)).await;
        let mut after = (stage.versions_of("blue").await, stage.versions_of("vni-1001").await);
        for versions in [&mut after.0, &mut after.1] {
            versions.remove(&format!("IPPool {name}"));
        }
        assert_eq!(before, after, "pool {name} touched what is not its own");
        assert_eq!(stage.events("IPPool", name).await.len(), 1, "told once");
    }
    for (name, ..) in ["zero", "large", "word", "refused", "torn", "wrapped", "inside"].map(|n| (n,)) {
        stage.delete(&stage.calico::<IpPoolSpec>(), name).await;
    }
    for name in ["one", "two"] {
        stage.delete(&stage.of::<Tenant>(), name).await;
    }
    eventually("nothing to be quarantined", async || {
        let quarantined = n1.held().quarantined();
        if quarantined.is_empty() { Ok(()) } else { Err(quarantined) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_only_the_storage_group_is_served() {
    let stage = Stage::set(CalicoApi::CrdV1).await;
    stage.definitions().await;
    stage.basics().await;
    let controller = Controller::start(&stage.server).await;
    let n1 = FakeAgent::start("n1", controller.address, true, Held::default(), Some(stage.client.clone()));

    // As calicoctl leaves it: the annotation is hidden in JSON, and what stands beside it does not count.
    let hidden = json!({ "annotations": { keys::VNI: "1001" } }).to_string();
    stage.pool("red", "10.200.0.0/16", json!({ keys::CALICO_METADATA: hidden, keys::VNI: "999" })).await;
    stage.block("n1", "10.200.0.0/26").await;
    stage.labelled("n1", &["vni-1001"]).await;
    stage.quiet(Duration::from_secs(1)).await;

    // Calico moves the labels of ours where no selector finds them: it is still ours.
    let (filters, name) = (stage.calico::<BgpFilterSpec>(), "calico-vni-vni-1001");
    let right = stage.filter(name).await.unwrap();
    let hidden =
        json!({ "labels": right.metadata.labels, "ownerReferences": right.metadata.owner_references })
            .to_string();
    stage
        .patch(
            &filters,
            name,
            json!({
                "metadata": {
                    "labels": { keys::MANAGED_BY: null, keys::OWNER: null },
                    "annotations": { keys::CALICO_METADATA: hidden },
                },
                "spec": { "exportV4": [] },
            }),
        )
        .await;
    eventually("the filter to be put right", async || {
        let filter = stage.filter(name).await.unwrap();
        if filter.spec == right.spec && filter.labels() == right.labels() { Ok(()) } else { Err(filter) }
    })
    .await;

    // A user's own peer has the name that a new tenant's would get.
    stage
        .create(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": { "name": "calico-vni-green" },
            "spec": { "peerIP": "192.0.2.7", "asNumber": 64999 },
        }))
        .await;
    let own = stage.peer("calico-vni-green").await.unwrap();
    stage.tenant("green", 1003).await;
    stage.pool("green", "10.203.0.0/16", json!({ keys::TENANT: "green" })).await;
    stage.block("n1", "10.203.0.0/26").await;
    eventually("an Event about the taken name", async || {
        let events = stage.events("Tenant", "green").await;
        if events.iter().any(|(reason, text)| reason == "NameTaken" && text.contains("calico-vni-green")) {
            Ok(())
        } else {
            Err(events)
        }
    })
    .await;
    stage.delete(&stage.of::<Tenant>(), "green").await;
    stage.quiet(Duration::from_secs(1)).await;
    assert_eq!(stage.peer("calico-vni-green").await.unwrap(), own, "it is left alone");

    let writes = stage.quiet(QUIET).await;
    assert!(writes.iter().all(|w| w.code != 403), "the role is too small: {writes:#?}");
    assert_eq!(n1.held().received[..2], ["guard", "config"]);
    n1.check();
    controller.stop().await;
}

fn allocated(tenant: &Tenant) -> Option<(u32, u32)> {
    let status = tenant.status.as_ref()?;
    Some((status.vni?, status.link_index?))
}

fn condition<'a>(tenant: &'a Tenant, kind: &str) -> &'a str {
    let conditions = tenant.status.iter().flat_map(|s| &s.conditions);
    conditions.into_iter().find(|c| c.type_ == kind).map_or("", |c| c.status.as_str())
}

fn is_leaving(tenant: &Tenant) -> bool {
    let pools = tenant.status.iter().flat_map(|s| &s.pools);
    pools.into_iter().any(|pool| pool.reason.as_deref() == Some("Leaving"))
}

/// Of all Tenants, and of the Underlay for pools that are nobody's.
async fn pool_statuses(stage: &Stage) -> Vec<calico_vni_crds::tenant::PoolStatus> {
    let tenants = stage.of::<Tenant>().list(&kube::api::ListParams::default()).await.unwrap();
    let mut pools: Vec<_> = tenants.into_iter().filter_map(|t| t.status).flat_map(|s| s.pools).collect();
    pools.extend(stage.underlay().await.status.unwrap_or_default().quarantined_pools);
    pools
}
