//! A BGP password's way from its Secret to the agents, and what becomes of it when the Secret goes; with the rights of
//! `deploy/rbac.yaml`.

use std::time::Duration;

use calico_vni_controller::runtime::Settings;
use calico_vni_crds::{Underlay, calico::CalicoApi, keys};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::json;

use crate::support::{
    agent::{FakeAgent, Held},
    eventually,
    stage::{Controller, Stage},
};

const NAMESPACE: &str = "calico-vni";
const SECRETS: [&str; 2] = ["s3cr3t-One", "s3cr3t-Two"];

/// The condition `Accepted` of the Underlay: its reason and words.
async fn accepted(stage: &Stage, reason: &str) -> String {
    eventually(&format!("the Underlay to say {reason}"), async || {
        let status = stage.underlay().await.status.unwrap_or_default();
        match status.conditions.into_iter().find(|c| c.type_ == "Accepted") {
            Some(condition) if condition.reason == reason => Ok(condition.message),
            other => Err(other),
        }
    })
    .await
}

fn password(held: &Held) -> Option<String> {
    let underlay = held.config.as_ref()?.underlay.as_ref()?;
    underlay.neighbors[0].password.as_ref().map(|password| password.reveal().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_reaches_the_agents_and_stays_when_its_secret_goes() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    let settings = Settings { linger: Duration::ZERO, namespace: Some(NAMESPACE.to_owned()) };
    let controller = Controller::start_with(&stage.server, settings).await;
    let agent = FakeAgent::start("n1", controller.address, true, Held::default(), None);
    let holds = async |wanted: Option<&str>| {
        eventually("n1 to hold that password", async || {
            let held = agent.held();
            let known = held.config.as_ref().is_some_and(|config| config.underlay.is_some());
            if known && password(&held).as_deref() == wanted { Ok(held) } else { Err(held) }
        })
        .await
    };
    holds(None).await;

    // Named, and not there.
    let neighbors = json!([{ "address": "192.0.2.1", "asn": 65100, "passwordSecretRef": { "name": "tor" } }]);
    let underlays = stage.of::<Underlay>();
    stage.patch(&underlays, "fabric", json!({ "spec": { "neighbors": neighbors } })).await;
    let message = accepted(&stage, "PasswordNotFound").await;
    assert!(
        message.contains("spec.neighbors[0].passwordSecretRef.name") && message.contains("`tor`"),
        "{message}"
    );
    // There, and not for us.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "tor", "namespace": NAMESPACE },
        "stringData": { "password": SECRETS[0] },
    });
    stage.create(secret).await;
    let secrets: Api<Secret> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let label = |value| json!({ "metadata": { "labels": { keys::BGP_PASSWORD: value } } });
    stage.patch(&secrets, "tor", label("false")).await;
    assert_eq!(password(&agent.held()), None);
    stage.patch(&secrets, "tor", label("true")).await;
    accepted(&stage, "Accepted").await;
    holds(Some(SECRETS[0])).await;

    // Changed, spoilt, and gone.
    let to = |word: &str| json!({ "stringData": { "password": word } });
    stage.patch(&secrets, "tor", to(SECRETS[1])).await;
    let before = holds(Some(SECRETS[1])).await.config_digest;
    stage.patch(&secrets, "tor", to(&format!("{}\n", SECRETS[0]))).await;
    let message = accepted(&stage, "InvalidPassword").await;
    assert!(message.contains("white space"), "{message}");
    stage.delete(&secrets, "tor").await;
    accepted(&stage, "PasswordNotFound").await;
    stage.quiet(Duration::from_secs(1)).await;
    assert_eq!((agent.held().config_digest, password(&agent.held()).as_deref()), (before, Some(SECRETS[1])));

    // A controller that begins now does not take it away either.
    let held = agent.held();
    controller.stop().await;
    let settings = Settings { linger: Duration::ZERO, namespace: Some(NAMESPACE.to_owned()) };
    let controller = Controller::start_with(&stage.server, settings).await;
    let again = FakeAgent::start("n1", controller.address, true, held, None);
    accepted(&stage, "PasswordNotFound").await;
    stage.quiet(Duration::from_secs(1)).await;
    assert_eq!(password(&again.held()).as_deref(), Some(SECRETS[1]));

    // Nowhere where people look.
    let underlay = serde_json::to_string(&stage.underlay().await).unwrap();
    let events = stage.events("Underlay", "fabric").await;
    let told = format!("{underlay} {events:?} {:?}", again.held());
    assert!(!events.is_empty() && SECRETS.iter().all(|secret| !told.contains(secret)), "{told}");
    let refused: Vec<_> = stage.server.audit().into_iter().filter(|entry| entry.code == 403).collect();
    assert!(refused.is_empty(), "the role is too small: {refused:#?}");
    controller.stop().await;
}
