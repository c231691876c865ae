//! A thousand tenants at once against a real API server: they settle, and nothing is written that need not be.
//!
//! Every write is in the API server's audit log, so what is counted is what the API server was asked for.

use std::{collections::BTreeMap, time::Duration};

use crate::support::{
    agent::{FakeAgent, Held},
    server::{Audited, create},
    stage::{Controller, Stage},
};
use calico_vni_crds::{Tenant, calico::CalicoApi, keys};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::ListParams;
use serde_json::json;
use tokio::time::Instant;

const TENANTS: u32 = 1000;
/// The machine may be busy: half a minute is enough on one that is not.
const DEADLINE: Duration = Duration::from_mins(10);
/// Nothing changes for so long, so nothing is written.
const REST: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tenants_settle_and_each_object_is_written_no_more_than_it_needs() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    let controller = Controller::start(&stage.server).await;
    let agents =
        ["n1", "n2"].map(|node| FakeAgent::start(node, controller.address, true, Held::default(), None));

    let began = Instant::now();
    stream::iter(0..TENANTS).map(|i| apply_one(&stage, i)).buffer_unordered(32).collect::<Vec<()>>().await;
    let applied = began.elapsed();
    let deadline = began + DEADLINE;
    loop {
        let tenants = stage.of::<Tenant>().list(&ListParams::default()).await.unwrap();
        let programmed = tenants.iter().filter(|t| is_programmed(t)).count();
        if programmed == TENANTS as usize {
            break;
        }
        assert!(Instant::now() < deadline, "{programmed} of {TENANTS} are programmed after {DEADLINE:?}");
        // A look costs the API server as much as many writes.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let settled = began.elapsed();
    let writes = stage.quiet(Duration::from_secs(3)).await;
    let counts = count(&writes);
    let refused: Vec<_> = writes.iter().filter(|write| write.code >= 300).collect();
    println!(
        "{TENANTS} tenants applied in {applied:.1?}, all programmed after {settled:.1?}; writes: {counts:#?}, {} refused",
        refused.len()
    );
    assert!(refused.len() <= TENANTS as usize / 100, "writes that were in vain: {refused:#?}");
    // Once each: filter and peer are made right at once, and the finalizer is set.
    for what in ["create bgpfilters", "create bgppeers", "patch tenants"] {
        assert_eq!(counts.get(what).copied(), Some(TENANTS), "{what}: {counts:#?}");
    }
    for what in ["update bgpfilters", "update bgppeers", "delete bgpfilters", "delete bgppeers"] {
        assert_eq!(counts.get(what), None, "{what}: {counts:#?}");
    }
    // Its numbers, which have to be kept before they are used; its pools, which have to be remembered; that it stands.
    let statuses = counts["patch tenants/status"];
    assert!(statuses <= 3 * TENANTS, "{statuses} writes of {TENANTS} Tenants' statuses");
    // Labels come in bundles: many tenants in one write to a Node.
    assert!(counts["patch nodes"] <= TENANTS, "{counts:#?}");

    let before = stage.server.controller_writes().len();
    tokio::time::sleep(REST).await;
    let late = stage.server.controller_writes().split_off(before);
    assert_eq!(late, [], "nothing changed, so nothing is written");
    for agent in &agents {
        agent.check();
        assert_eq!(agent.held().tenants().len(), TENANTS as usize / 2, "a node carries what it hosts");
    }
    controller.stop().await;
}

/// A Tenant, its pool, and a block of it on one of two nodes.
pub async fn apply_one(stage: &Stage, i: u32) {
    let name = format!("t{i}");
    let prefix = format!("10.{}.{}", 100 + i / 250, i % 250);
    let objects = [
        json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": name },
            "spec": { "vni": 10_000 + i },
        }),
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": { "name": name, "annotations": { keys::TENANT: name } },
            "spec": { "cidr": format!("{prefix}.0/24"), "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false },
        }),
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity", "metadata": { "name": format!("b{i}") },
            "spec": {
                "node": if i.is_multiple_of(2) { "n1" } else { "n2" }, "cidr": format!("{prefix}.0/26"),
                "state": "confirmed", "type": "host", "deleted": false,
            },
        }),
    ];
    let created = stream::iter(objects.map(Ok::<_, ()>));
    created
        .try_for_each(|object| async {
            create(&stage.client, object).await;
            Ok(())
        })
        .await
        .unwrap();
}

fn is_programmed(tenant: &Tenant) -> bool {
    let status = tenant.status.clone().unwrap_or_default();
    let holds = status.conditions.iter().any(|c| c.type_ == "Programmed" && c.status == "True");
    holds && status.nodes.is_some_and(|nodes| nodes.ready == "1/1")
}

/// Writes that were carried out, by verb and resource.
fn count(writes: &[Audited]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for write in writes.iter().filter(|write| write.code < 300) {
        let what = write.what.rsplit_once(' ').map_or(write.what.as_str(), |(what, _)| what);
        *counts.entry(what.to_owned()).or_default() += 1;
    }
    counts
}
