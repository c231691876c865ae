//! A change of many nodes goes to one first; where that refuses it, it goes no further, whoever leads.

use std::{collections::BTreeMap, time::Duration};

use calico_vni_crds::{Underlay, calico::CalicoApi, keys};
use serde_json::json;

use crate::support::{
    agent::{FakeAgent, Held},
    eventually,
    stage::{Controller, Stage},
};

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

type Agents = BTreeMap<&'static str, FakeAgent>;

fn agents(controller: &Controller, held: &BTreeMap<&'static str, Held>) -> Agents {
    let start = |node| {
        let held = held.get(node).cloned().unwrap_or_default();
        (node, FakeAgent::start(node, controller.address, true, held, None))
    };
    NODES.into_iter().map(start).collect()
}

/// MTU by the configuration that each holds.
fn mtus(agents: &Agents) -> Vec<Option<u32>> {
    let mtu = |agent: &FakeAgent| agent.held().config?.underlay?.mtu;
    agents.values().map(mtu).collect()
}

async fn all_have(agents: &Agents, mtu: Option<u32>) {
    eventually(&format!("all nodes to have {mtu:?}"), async || {
        let seen = mtus(agents);
        let underlays = agents.values().all(|a| a.held().config.is_some_and(|c| c.underlay.is_some()));
        if underlays && seen.iter().all(|seen| *seen == mtu) { Ok(()) } else { Err(seen) }
    })
    .await;
}

async fn rolled_out(stage: &Stage, reason: &str) -> String {
    eventually(&format!("the roll-out to be {reason}"), async || {
        let status = stage.underlay().await.status.unwrap_or_default();
        match status.conditions.into_iter().find(|condition| condition.type_ == "RolledOut") {
            Some(condition) if condition.reason == reason => Ok(condition.message),
            other => Err(other),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_refuses_no_other_is_sent() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    stage.node("n3").await;
    stage.node("n4").await;
    let controller = Controller::start(&stage.server).await;
    let agents = agents(&controller, &BTreeMap::new());
    all_have(&agents, None).await;

    agents["n1"].refuse(true);
    let underlays = stage.of::<Underlay>();
    let mtu = |mtu: u32| json!({ "spec": { "mtu": mtu } });
    stage.patch(&underlays, "fabric", mtu(9000)).await;
    let message = rolled_out(&stage, "RollOutStopped").await;
    assert!(message.contains("n1: it cannot be taken") && message.contains("undo"), "{message}");

    // A tenant that is new there, and the guard everywhere, wait for nothing.
    stage.pool("red", "10.200.0.0/16", json!({ keys::VNI: "1001" })).await;
    stage.block("n3", "10.200.0.0/26").await;
    stage.labelled("n3", &["vni-1001"]).await;
    eventually("n1 to have the new guard", async || {
        let held = agents["n1"].held();
        if held.guard.tenants.iter().any(|tenant| tenant.vni == 1001) { Ok(()) } else { Err(held) }
    })
    .await;
    stage.quiet(Duration::from_secs(1)).await;
    assert_eq!(mtus(&agents), [None; 4]);

    // Another controller does not know how it came to this, and is as careful.
    let held = agents.iter().map(|(node, agent)| (*node, agent.held())).collect();
    drop(agents);
    controller.stop().await;
    let controller = Controller::start(&stage.server).await;
    let agents = self::agents(&controller, &held);
    agents["n1"].refuse(true);
    rolled_out(&stage, "RollOutStopped").await;
    stage.quiet(Duration::from_secs(1)).await;
    assert_eq!(mtus(&agents), [None; 4]);
    let events = stage.events("Underlay", "fabric").await;
    assert!(events.iter().any(|(reason, _)| reason == "RollOutStopped"), "{events:?}");

    // What can be taken reaches all of them.
    agents["n1"].refuse(false);
    stage.patch(&underlays, "fabric", mtu(8000)).await;
    all_have(&agents, Some(8000)).await;
    rolled_out(&stage, "RolledOut").await;
    stage.labelled("n3", &["vni-1001"]).await;
    for agent in agents.values() {
        agent.check();
    }
    controller.stop().await;
}
