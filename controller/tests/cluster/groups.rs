//! Calico moves from `crd.projectcalico.org/v1` to definitions of its own for `projectcalico.org/v3`. The new group
//! counts when the old one goes, and not before; then what was carried over stays as it is, what was not is made, and no
//! session ends for it. On the way each right of the role is used in both groups.

use std::{collections::BTreeSet, time::Duration};

use calico_vni_crds::{
    Tenant,
    calico::{BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, CalicoApi, IpPoolSpec},
    keys,
};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use crate::{
    rights,
    support::{
        agent::{FakeAgent, Held},
        eventually,
        stage::{Controller, Stage},
    },
};

/// What Calico's migration carries over: kind, and plural in either group.
const CARRIED: [(&str, &str, &str); 5] = [
    ("IPPool", "ippools", "ippools"),
    ("BlockAffinity", "blockaffinities", "blockaffinities"),
    ("IPAMConfig", "ipamconfigs", "ipamconfigurations"),
    ("BGPPeer", "bgppeers", "bgppeers"),
    ("BGPFilter", "bgpfilters", "bgpfilters"),
];

/// The old group's definitions, in the order in which they go.
const OLD: [&str; 7] = [
    "bgpfilters",
    "bgpconfigurations",
    "bgppeers",
    "blockaffinities",
    "felixconfigurations",
    "ipamconfigs",
    "ippools",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calico_moves_to_its_new_group_and_no_session_ends_for_it() {
    let mut stage = Stage::set(CalicoApi::CrdV1).await;
    // Before anything of Calico is there: it waits.
    let controller = Controller::start(&stage.server).await;
    stage.definitions().await;
    stage.basics().await;
    let n1 = FakeAgent::start("n1", controller.address, true, Held::default(), None);
    stage.create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team" } })).await;
    stage
        .create(json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": "red" },
            "spec": {
                "vni": 1001,
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "team" } },
            },
        }))
        .await;
    stage.pool("red", "10.200.0.0/16", json!({ keys::TENANT: "red" })).await;
    stage.block("n1", "10.200.0.0/26").await;
    stage
        .create(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": { "name": "reflector" },
            "spec": { "peerIP": "192.0.2.7", "asNumber": 64999 },
        }))
        .await;
    stage.labelled("n1", &["red"]).await;
    eventually("the team's pods to get the tenant's addresses", async || {
        let team = stage.of::<Namespace>().get("team").await.unwrap();
        let pools = team.annotations().get("cni.projectcalico.org/ipv4pools").cloned();
        if pools.as_deref() == Some(r#"["red"]"#) { Ok(()) } else { Err(pools) }
    })
    .await;
    every_right(&stage).await;

    // The new group comes beside the old one, and is empty: nothing changes.
    let quiet = stage.quiet(Duration::from_secs(1)).await.len();
    let (asked, received) = (stage.server.audit().len(), n1.held().received);
    stage.server.create("e2e/calico-crds/v3").await;
    eventually("the controller to see both groups", async || {
        let asked = stage.server.audit().split_off(asked);
        let looks = |name: &str| {
            asked.iter().any(|entry| entry.what == format!("get customresourcedefinitions {name}"))
        };
        let both = looks("ippools.projectcalico.org") && looks("ippools.crd.projectcalico.org");
        if both { Ok(()) } else { Err(asked) }
    })
    .await;
    // Longer than it takes to turn.
    let writes = stage.quiet(Duration::from_secs(12)).await.split_off(quiet);
    assert_eq!(writes, [], "the old group counts");
    stage.tenant("blue", 1002).await;
    stage.pool("blue", "10.201.0.0/16", json!({ keys::TENANT: "blue" })).await;
    stage.block("n1", "10.201.0.0/26").await;
    stage.labelled("n1", &["blue", "red"]).await;
    let before = stage.quiet(Duration::from_secs(1)).await.len();
    let with_blue = n1.held().received;
    assert_eq!(with_blue[received.len()..], ["guard", "config"], "of blue, and of nothing else");

    // Carried over, but for what is blue's; then the old group goes, definition by definition.
    carry_over(&stage).await;
    let carried = versions(&stage, CalicoApi::V3).await;
    assert_eq!(names(&carried), ["calico-vni-red", "reflector"], "the test's own copy");
    assert_eq!(stage.quiet(Duration::from_secs(1)).await.split_off(before), [], "the old group counts still");
    let definitions: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    for plural in OLD {
        let name = format!("{plural}.crd.projectcalico.org");
        definitions.delete(&name, &DeleteParams::default()).await.unwrap();
        if plural == OLD[0] {
            // With the first of them all filters vanish, and whoever took that for a user's wish would take peers away.
            stage.quiet(Duration::from_secs(1)).await;
        }
    }
    stage.api = CalicoApi::V3;
    eventually("what is blue's to be made in the new group", async || {
        let names = names(&versions(&stage, CalicoApi::V3).await);
        if names == ["calico-vni-blue", "calico-vni-red", "reflector"] { Ok(()) } else { Err(names) }
    })
    .await;
    let writes = stage.quiet(Duration::from_secs(2)).await.split_off(before);
    let did: Vec<&str> = writes.iter().map(|write| write.what.as_str()).collect();
    assert_eq!(
        did,
        ["create bgpfilters calico-vni-blue", "create bgppeers calico-vni-blue"],
        "and nothing else"
    );
    assert!(writes.iter().all(|w| w.group == "projectcalico.org" && w.code < 300), "{writes:#?}");
    let mut now = versions(&stage, CalicoApi::V3).await;
    now.retain(|(_, name, _)| name != "calico-vni-blue");
    assert_eq!(now, carried, "what was carried over stays as it is");
    assert_eq!(n1.held().received, with_blue, "routers hear nothing of it");
    stage.labelled("n1", &["blue", "red"]).await;

    every_right(&stage).await;
    n1.check();
    controller.stop().await;
    rights::compare(&stage.server.audit());
}

/// Everything that the controller ever does to the API server, once.
async fn every_right(stage: &Stage) {
    // A tenant by annotation comes.
    let name = "calico-vni-vni-1003";
    stage.pool("auto", "10.203.0.0/16", json!({ keys::VNI: "1003" })).await;
    stage.block("n1", "10.203.0.0/26").await;
    eventually("the peer of an annotated pool", async || stage.peer(name).await.ok_or("none")).await;
    stage.quiet(Duration::from_secs(1)).await;

    // What others change is put right.
    let right = (stage.filter(name).await.unwrap().spec, stage.peer(name).await.unwrap().spec);
    let edit = json!({ "spec": { "exportV4": [{ "action": "Accept" }] } });
    stage.patch(&stage.calico::<BgpFilterSpec>(), name, edit).await;
    stage.patch(&stage.calico::<BgpPeerSpec>(), name, json!({ "spec": { "peerIP": "192.0.2.9" } })).await;
    eventually("an edited filter and its peer to be put right", async || {
        let seen = (stage.filter(name).await.map(|f| f.spec), stage.peer(name).await.map(|p| p.spec));
        if seen == (Some(right.0.clone()), Some(right.1.clone())) { Ok(()) } else { Err(seen) }
    })
    .await;

    // A mistake is told, and counted up when it is made again.
    let bad = format!("bad-{}", stage.api.version());
    stage.pool(&bad, "10.210.0.0/16", json!({ keys::VNI: "abc" })).await;
    let bad = bad.as_str();
    let told = |count: Option<i32>| async move {
        eventually(&format!("an Event on the bad pool, with count {count:?}"), async || {
            let events: Api<k8s_openapi::api::events::v1::Event> =
                Api::namespaced(stage.client.clone(), "default");
            let events = events.list(&ListParams::default()).await.unwrap();
            let of_pool = |event: &&k8s_openapi::api::events::v1::Event| {
                let about = event.regarding.clone().unwrap_or_default();
                about.name.as_deref() == Some(bad)
            };
            let counts: Vec<_> =
                events.iter().filter(of_pool).map(|event| event.series.as_ref().map(|s| s.count)).collect();
            if counts.contains(&count) { Ok(()) } else { Err(counts) }
        })
        .await;
    };
    told(None).await;
    stage.annotate(bad, keys::VNI, None).await;
    stage.quiet(Duration::from_secs(1)).await;
    stage.annotate(bad, keys::VNI, Some("abc")).await;
    told(Some(2)).await;

    // And away with all of it.
    stage.delete(&stage.calico::<IpPoolSpec>(), bad).await;
    stage.delete(&stage.calico::<IpPoolSpec>(), "auto").await;
    stage.delete(&stage.calico::<BlockAffinitySpec>(), "n1-10-203-0-0-26").await;
    eventually("the tenant of the annotated pool to be gone", async || {
        match stage.of::<Tenant>().get_opt("vni-1003").await.unwrap() {
            None => Ok(()),
            Some(tenant) => Err(tenant),
        }
    })
    .await;
    assert!(stage.peer(name).await.is_none() && stage.filter(name).await.is_none());
}

/// As Calico's migration does it, but for blue's peer and filter.
async fn carry_over(stage: &Stage) {
    for (kind, old, new) in CARRIED {
        let gvk = GroupVersionKind::gvk("crd.projectcalico.org", "v1", kind);
        let api: Api<DynamicObject> =
            Api::all_with(stage.client.clone(), &ApiResource::from_gvk_with_plural(&gvk, old));
        for object in api.list(&ListParams::default()).await.unwrap() {
            let name = object.name_any();
            if name == "calico-vni-blue" {
                continue;
            }
            let mut spec = object.data["spec"].clone();
            if let Some(deleted) = spec.get_mut("deleted") {
                *deleted = (*deleted == json!("true")).into();
            }
            let metadata = json!({
                "name": name, "labels": object.metadata.labels, "annotations": object.metadata.annotations,
                "ownerReferences": object.metadata.owner_references,
            });
            let kind = if new == "ipamconfigurations" { "IPAMConfiguration" } else { kind };
            let copy: Value = json!({
                "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec,
            });
            stage.create(copy).await;
        }
    }
}

type Versions = BTreeSet<(&'static str, String, Option<String>)>;

/// All peers and filters of a group, with their versions.
async fn versions(stage: &Stage, api: CalicoApi) -> Versions {
    let mut found = Versions::new();
    for (kind, plural) in [("BGPPeer", "bgppeers"), ("BGPFilter", "bgpfilters")] {
        let gvk = GroupVersionKind::gvk(api.group(), api.version(), kind);
        let objects: Api<DynamicObject> =
            Api::all_with(stage.client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural));
        let list = objects.list(&ListParams::default()).await.unwrap();
        found.extend(list.into_iter().map(|object| (plural, object.name_any(), object.resource_version())));
    }
    found
}

fn names(versions: &Versions) -> Vec<String> {
    let names: BTreeSet<&String> = versions.iter().map(|(_, name, _)| name).collect();
    names.into_iter().cloned().collect()
}
