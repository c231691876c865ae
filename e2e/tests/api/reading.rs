//! How objects read: columns, defaults, and waiting for a condition.

use serde_json::{Value, json};

use crate::server::{Server, bases, merged};

fn columns(table: &str) -> Vec<&str> {
    table.lines().next().unwrap().split_whitespace().collect()
}

/// `kubectl get` answers whether it works.
pub async fn tables(server: &Server) {
    let (bases, kubectl) = (bases(), async |args: &[&str]| server.api.kubectl(args).await.unwrap());
    let tenant =
        merged(bases["tenant"].clone(), &json!({ "metadata": { "name": "shown" }, "spec": { "vni": 77 } }));
    server.create("break-glass", &tenant, false).await.unwrap();
    server.create("break-glass", &bases["underlay"], false).await.unwrap();

    // Defaults are in the object, so a reader of it need not know them.
    let path =
        "jsonpath={.spec.neighbors[0].holdTimeSeconds} {.spec.hostLinkCIDR} {.spec.interfaces[0].mode}";
    assert_eq!(kubectl(&["get", "ul", "fixture", "-o", path]).await, "9 169.254.192.0/18 Move");
    assert_eq!(
        kubectl(&["get", "ten", "shown", "-o", "jsonpath={.spec.placement} {.spec.maxPrefixes}"]).await,
        "OnDemand 1000"
    );

    let status = json!({ "status": {
        "vni": 77, "vrf": "vrf77", "acceptedPools": "1/2", "prefixes": 12,
        "nodes": { "desired": 3, "programmed": 2, "degraded": 1, "ready": "2/3" },
        "conditions": [condition("Accepted", "True", 1), condition("Programmed", "False", 1)],
    } });
    server.merge("break-glass", &tenant, Some("status"), &status, false).await.unwrap();
    let table = kubectl(&["get", "tenants", "shown"]).await;
    assert_eq!(columns(&table), ["NAME", "VNI", "POOLS", "NODES", "PREFIXES", "READY", "AGE"]);
    assert!(
        table
            .lines()
            .nth(1)
            .unwrap()
            .split_whitespace()
            .take(6)
            .eq(["shown", "77", "1/2", "2/3", "12", "False"])
    );
    let wide = kubectl(&["get", "ten", "shown", "-o", "wide"]).await;
    assert_eq!(
        columns(&wide),
        ["NAME", "VNI", "POOLS", "NODES", "PREFIXES", "READY", "VRF", "REASON", "MESSAGE", "AGE"]
    );
    assert!(wide.contains("vrf77   Because   As told"), "{wide}");
    assert_eq!(
        columns(&kubectl(&["get", "underlays"]).await),
        ["NAME", "ASN", "VTEPS", "NODES", "SESSIONS", "READY", "AGE"]
    );
    let both = kubectl(&["get", "calico-vni", "-o", "name"]).await;
    assert!(
        both.contains("tenant.calico-vni.io/shown") && both.contains("underlay.calico-vni.io/fixture"),
        "{both}"
    );
}

/// `kubectl wait` believes a condition that is true of the present generation, and no other.
pub async fn waiting(server: &Server) {
    let tenant = merged(
        bases()["tenant"].clone(),
        &json!({ "metadata": { "name": "awaited" }, "spec": { "vni": 78 } }),
    );
    server.create("break-glass", &tenant, false).await.unwrap();
    let wait = async |timeout: &str| {
        server.api.kubectl(&["wait", "--for=condition=Programmed", "tenant/awaited", timeout]).await
    };
    let say = async |value: &str, generation: u32| {
        let status = json!({ "status": { "conditions": [condition("Programmed", value, generation)] } });
        server.merge("break-glass", &tenant, Some("status"), &status, false).await.unwrap();
    };
    say("False", 1).await;
    wait("--timeout=1s").await.expect_err("it is not programmed");
    let change = json!({ "spec": { "maxPrefixes": 7 } });
    server.merge("break-glass", &tenant, None, &change, false).await.unwrap();
    say("True", 1).await;
    wait("--timeout=1s").await.expect_err("the change has not been seen yet");
    say("True", 2).await;
    wait("--timeout=60s").await.unwrap();
    // Conditions are merged by their type, so one type is there once.
    let twice = json!({ "status": { "conditions": [condition("Programmed", "True", 2), condition("Programmed", "False", 2)] } });
    let error = server.merge("break-glass", &tenant, Some("status"), &twice, false).await.unwrap_err();
    assert!(error.contains("status.conditions[1]: Duplicate value"), "{error}");
}

fn condition(kind: &str, status: &str, generation: u32) -> Value {
    json!({
        "type": kind, "status": status, "observedGeneration": generation, "reason": "Because", "message": "As told",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}
