//! `status`, `sessions` and `routes`, on a cluster in which all is well and on changes of it.
//! `UPDATE_GOLDEN=1` writes `world/*.txt` anew.

mod support;

use std::{env, fs};

use serde_json::{Value, json};
use support::{World, run, stderr, stdout, world_folder};

/// Now would be another second for each of two answers.
const DOCTOR: [&str; 3] = ["doctor", "--now", "2026-01-10T12:00:00Z"];

/// Compares with the golden file of that name, and returns the exit code.
fn golden(name: &str, arguments: &[&str], world: &World) -> Option<i32> {
    let output = run(&[arguments, &["-f", "-"]].concat(), &world.text());
    let file = world_folder().join(format!("{name}.txt"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &output.stdout).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert!(!expected.is_empty(), "{name}: {}{}", stdout(&output), stderr(&output));
    similar_asserts::assert_eq!(
        stdout(&output),
        expected,
        "{name}: when it is right, run with UPDATE_GOLDEN=1"
    );
    output.status.code()
}

/// A pool that is refused, a node whose FRR is down, a session that is down, a label that is missing.
fn unwell() -> World {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({ "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
            "lastTransitionTime": "2026-01-10T00:00:00Z" })
    };
    let nodes = json!({ "desired": 2, "programmed": 1, "degraded": 1, "ready": "1/2",
        "problems": [{ "node": "n2", "message": "FRR does not answer" }] });
    World::well().with(&[
        json!({ "kind": "Tenant", "metadata": { "name": "red" }, "status": {
            "nodes": nodes, "prefixes": 0,
            "pools": [
                { "name": "red", "cidr": "10.200.0.0/16", "accepted": true },
                { "name": "red-v6", "cidr": "fd00:200::/64", "accepted": false, "reason": "NatOutgoing", "message": "spec.natOutgoing: true" },
            ],
            "conditions": [
                condition("Accepted", "True", "Accepted", "m"),
                condition("Programmed", "False", "NodesDegraded", "stands on 1 of 2 nodes; n2: FRR does not answer"),
                condition("Degraded", "True", "NodesDegraded", "n2: FRR does not answer"),
                condition("NamespacesAssigned", "False", "NoNamespaces", "m"),
            ] } }),
        json!({ "kind": "Tenant", "metadata": { "name": "blue", "generation": 2 } }),
        json!({ "kind": "Underlay", "metadata": { "name": "fabric" },
            "status": { "nodes": nodes, "sessions": { "established": 1, "configured": 2, "ready": "1/2" } } }),
        json!({ "kind": "Node", "metadata": { "name": "n2", "labels": { "tenant.calico-vni.io/red": null } } }),
    ])
}

#[test]
fn status_of_all_and_of_one() {
    assert_eq!(golden("status", &["status"], &World::well()), Some(0));
    assert_eq!(golden("status-red", &["status", "red"], &World::well()), Some(0));
    assert_eq!(golden("status-unwell", &["status"], &unwell()), Some(1));
    let rolling = json!({ "type": "RolledOut", "status": "False", "reason": "RollingOut", "message": "m",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-10T00:00:00Z" });
    let stopped = |reason: &str| {
        let mut condition = rolling.clone();
        condition["reason"] = json!(reason);
        World::well().with(&[json!({ "kind": "Tenant", "metadata": { "name": "red" }, "status": { "conditions": [condition] } })])
    };
    for (reason, code) in [("RollingOut", 0), ("RollOutStopped", 1)] {
        let output = run(&["status", "-f", "-"], &stopped(reason).text());
        assert_eq!(output.status.code(), Some(code), "{reason}: {}", stdout(&output));
    }
    assert_eq!(golden("status-unwell-red", &["status", "red"], &unwell()), Some(1));
}

#[test]
fn sessions_as_statuses_have_them() {
    assert_eq!(golden("sessions", &["sessions"], &World::well()), Some(0));
    assert_eq!(golden("sessions-unwell", &["sessions"], &unwell()), Some(1));
}

#[test]
fn routes_as_the_plan_has_them() {
    assert_eq!(golden("routes-red", &["routes", "red"], &World::well()), Some(0));
    assert_eq!(golden("routes-red-n2", &["routes", "red", "--node", "n2"], &World::well()), Some(0));
    assert_eq!(golden("routes-unwell-red", &["routes", "red"], &unwell()), Some(1));
    let gone =
        json!({ "kind": "BlockAffinity", "metadata": { "name": "n2-red" }, "spec": { "deleted": true } });
    let left = run(&["routes", "red", "-f", "-"], &World::well().with(&[gone]).text());
    assert!(
        stdout(&left).contains("10.200.0.0/26") && !stdout(&left).contains("10.200.0.64/26"),
        "{}",
        stdout(&left)
    );
    let pods = World::well().with(&[json!({ "kind": "Tenant", "metadata": { "name": "blue" },
        "spec": { "advertise": "Pods", "routeTargets": { "export": ["65001:7", "65001:8"] } } })]);
    assert_eq!(golden("routes-blue-pods", &["routes", "blue"], &pods), Some(0));
}

#[test]
fn json_and_yaml_hold_the_same() {
    for arguments in [&["status"][..], &["status", "red"], &["sessions"], &["routes", "red"], &DOCTOR] {
        let [json, yaml] = ["json", "yaml"]
            .map(|format| run(&[arguments, &["-o", format, "-f", "-"]].concat(), &unwell().text()));
        let (json, yaml): (Value, Value) =
            (serde_json::from_str(stdout(&json)).unwrap(), serde_yaml::from_str(stdout(&yaml)).unwrap());
        assert_eq!(json, yaml, "{arguments:?}");
        assert!(json.as_object().is_some_and(|object| !object.is_empty()), "{arguments:?}");
    }
    let red = run(&["status", "red", "-o", "json", "-f", "-"], &unwell().text());
    let red: Value = serde_json::from_str(stdout(&red)).unwrap();
    assert_eq!((&red["tenants"][0]["well"], &red["tenants"][1]), (&json!(false), &Value::Null));
    assert_eq!(red["tenants"][0]["nodes"]["problems"][0]["node"], "n2");
}

#[test]
fn what_is_not_there_is_told() {
    for (arguments, said) in [
        (&["status", "green"][..], "there is no Tenant `green`"),
        (&["routes", "green"], "there is no Tenant `green`"),
        (&["routes", "red", "--node", "n9"], "there is no Node `n9`"),
        (&["routes"], "<TENANT>"),
        (&["sessions", "-o", "wide"], "invalid value 'wide'"),
    ] {
        let output = run(&[arguments, &["-f", "-"]].concat(), &World::well().text());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_command_has_examples_and_says_its_exit_codes() {
    for command in ["plan", "status", "sessions", "routes", "doctor"] {
        let output = run(&[command, "--help"], "");
        assert_eq!(output.status.code(), Some(0), "{command}");
        for words in ["Examples:", "kubectl vni", "Exit codes:", "--output"] {
            assert!(stdout(&output).contains(words), "{command}: {words}");
        }
    }
}
