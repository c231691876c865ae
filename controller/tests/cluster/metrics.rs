//! Metrics and probes, asked for over HTTP as Prometheus and the kubelet do.

use calico_vni_crds::{calico::CalicoApi, keys};
use calico_vni_telemetry::testing::{Scrape, get};
use serde_json::json;

use crate::support::{
    agent::{FakeAgent, Held},
    eventually,
    stage::{Controller, Stage},
};

async fn scrape(controller: &Controller) -> Scrape {
    let (status, text) = get(controller.http, "/metrics").await;
    assert_eq!(status, 200);
    Scrape::parse(&text).unwrap()
}

/// Waits until a series has that value; no value is no series.
async fn value(controller: &Controller, name: &str, labels: &[(&str, &str)], wanted: Option<f64>) {
    let name = format!("calico_vni_controller_{name}");
    eventually(&format!("{name} {labels:?} to be {wanted:?}"), async || {
        let scrape = scrape(controller).await;
        if scrape.value(&name, labels) == wanted { Ok(()) } else { Err(scrape.series(&name)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_appears_in_the_metrics_and_goes() {
    let stage = Stage::set(CalicoApi::V3).await;
    let controller = Controller::start(&stage.server).await;
    // Nothing of Calico is there yet.
    assert_eq!(get(controller.http, "/healthz").await, (200, "ok\n".to_owned()));
    eventually("the controller to say what it waits for", async || {
        match get(controller.http, "/readyz").await {
            (503, body) if body.contains("Calico's kinds") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    stage.definitions().await;
    stage.basics().await;
    eventually("the controller to be ready", async || match get(controller.http, "/readyz").await {
        (200, body) if body.contains("leads") => Ok(()),
        other => Err(other),
    })
    .await;

    stage.pool("red", "10.200.0.0/16", json!({ keys::VNI: "1001" })).await;
    let nat =
        json!({ "cidr": "10.201.0.0/16", "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": true });
    stage.pool_with("bad", nat, json!({ keys::VNI: "1002" })).await;
    let bad = [("pool", "bad"), ("reason", "NatOutgoing")];
    value(&controller, "pool_quarantined", &bad, Some(1.0)).await;
    value(&controller, "quarantined_pools", &bad[1..], Some(1.0)).await;
    let seen = scrape(&controller).await;
    assert_eq!(seen.series("calico_vni_controller_pool_quarantined").len(), 1, "and no other");

    // An agent, and what it says.
    value(&controller, "agents_connected", &[], Some(0.0)).await;
    let agent = {
        let held = Held { version: Some("test"), ..Held::default() };
        FakeAgent::start("n1", controller.address, false, held, None)
    };
    value(&controller, "agents_connected", &[], Some(1.0)).await;
    value(&controller, "agents", &[("version", "test")], Some(1.0)).await;
    value(&controller, "agents_in_step", &[], Some(0.0)).await;
    eventually("the Underlay to tell of it", async || {
        let status = stage.underlay().await.status.unwrap_or_default();
        match status.conditions.into_iter().find(|condition| condition.type_ == "VersionsAgree") {
            Some(told) if told.status == "False" && told.message.contains("n1 has test") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    agent.acknowledge();
    value(&controller, "agents_in_step", &[], Some(1.0)).await;

    stage
        .patch(
            &stage.calico::<calico_vni_crds::calico::IpPoolSpec>(),
            "bad",
            json!({ "spec": { "natOutgoing": false } }),
        )
        .await;
    value(&controller, "pool_quarantined", &bad, None).await;
    value(&controller, "quarantined_pools", &bad[1..], None).await;
    value(&controller, "tenants", &[("condition", "Accepted"), ("status", "True")], Some(2.0)).await;
    let made = [("kind", "BGPPeer"), ("op", "put"), ("result", "done")];
    value(&controller, "writes_total", &made, Some(2.0)).await;
    agent.check();

    let seen = scrape(&controller).await;
    let total = |name: &str, labels: &[(&str, &str)]| {
        seen.value(&format!("calico_vni_controller_{name}"), labels).unwrap_or_default()
    };
    assert!(total("reconcile_duration_seconds_count", &[]) > 1.0);
    assert!(total("stage_duration_seconds_count", &[("stage", "establish")]) > 1.0);
    controller.stop().await;
}
