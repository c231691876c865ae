//! What cannot be honoured is told, on the object and as an Event, and nothing else changes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{controller_gone::owned_versions, demo::all_cells};
use crate::{
    look, step, wait,
    world::{ADMISSION, World},
};

/// Reason of an annotation that is no VNI.
const INVALID_VNI: &str = "InvalidVNI";

/// How long the controller may take to tell.
const TOLD: Duration = Duration::from_secs(30);

struct Mistake {
    what: &'static str,
    cidr: &'static str,
    annotation: (&'static str, &'static str),
    encapsulated: bool,
    reason: &'static str,
    /// All of these have to be in the message.
    words: &'static [&'static str],
}

const MISTAKES: [Mistake; 7] = [
    mistake("VNI of 0", ("calico-vni.io/vni", "0"), INVALID_VNI, &["calico-vni.io/vni", "`0`", "16777215"]),
    mistake("VNI above 24 bits", ("calico-vni.io/vni", "16777216"), INVALID_VNI, &["16777216", "16777215"]),
    mistake(
        "VNI that is no number",
        ("calico-vni.io/vni", "abc"),
        INVALID_VNI,
        &["calico-vni.io/vni", "abc"],
    ),
    mistake("VNI with two tenants", ("calico-vni.io/tenant", "thief"), "TenantNotAccepted", &["thief"]),
    mistake("tenant that is not there", ("calico-vni.io/tenant", "nobody"), "TenantNotFound", &["nobody"]),
    Mistake {
        cidr: "10.200.128.0/17",
        words: &["10.200.0.0/16", "red"],
        ..mistake("overlap with red's pool", ("calico-vni.io/vni", "3001"), "PoolOverlap", &[])
    },
    Mistake {
        encapsulated: true,
        ..mistake("encapsulated pool", ("calico-vni.io/vni", "3002"), "Encapsulated", &["vxlanMode", "Never"])
    },
];

const fn mistake(
    what: &'static str,
    annotation: (&'static str, &'static str),
    reason: &'static str,
    words: &'static [&'static str],
) -> Mistake {
    Mistake { what, cidr: "10.210.0.0/16", annotation, encapsulated: false, reason, words }
}

/// Makes each mistake, reads what is said, takes it back.
pub async fn play(world: &mut World) -> Result<()> {
    let (versions, configs) = (owned_versions(world).await?, configurations(world).await?);
    let sessions = look::sessions(world, 1001).await?;
    // Blue has VNI 1002 and is older, so it keeps it.
    let thief = json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": "thief" }, "spec": { "vni": 1002 } });
    world.apply(&thief).await?;
    let conflict = wait::until("the second tenant of VNI 1002 to be refused", TOLD, async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Accepted\")].reason}: {.status.conditions[?(@.type==\"Accepted\")].message}";
        let seen = world.kubectl(&["get", "tenant", "thief", "-o", path]).await?;
        ensure!(seen.starts_with("VNIConflict") && seen.contains("1002") && seen.contains("blue"), "{seen}");
        event(world, "Tenant", "thief", "VNIConflict").await?;
        Ok(seen)
    });
    step!("two tenants of one VNI: {}", conflict.await?);
    for mistake in MISTAKES.iter().filter(|mistake| mistake.reason == INVALID_VNI) {
        refused(world, mistake).await.with_context(|| mistake.what)?;
    }
    // A cluster need not have the policies; then it is told all the same.
    world.kubectl(&["delete", "validatingadmissionpolicybinding", "calico-vni-pool-annotations"]).await?;
    for mistake in &MISTAKES {
        told(world, mistake).await.with_context(|| mistake.what)?;
        ensure!(
            owned_versions(world).await? == versions,
            "{}: generated objects of others were written",
            mistake.what
        );
        ensure!(configurations(world).await? == configs, "{}: FRR's configuration changed", mistake.what);
    }
    world.apply_file(ADMISSION).await?;
    world.kubectl(&["delete", "tenant", "thief"]).await?;
    for (node, was) in sessions {
        let is =
            look::session(world, world.lab.members.iter().find(|n| n.name == node).context("a node")?, 1001)
                .await?;
        ensure!(is.times_up == was.times_up, "{node}: red's session came up again");
    }
    all_cells(world, &["red", "blue"]).await
}

impl Mistake {
    fn pool(&self, world: &World) -> Value {
        let mode = if self.encapsulated { "Always" } else { "Never" };
        let spec = json!({ "cidr": self.cidr, "vxlanMode": mode, "ipipMode": "Never", "natOutgoing": false });
        let mut pool = world.manifest("IPPool", "bad", &spec);
        pool["metadata"]["annotations"] = json!({ self.annotation.0: self.annotation.1 });
        pool
    }
}

/// The API server does not take it. A policy is heard of a moment after it was applied, so the pool may get in at first.
async fn refused(world: &World, mistake: &Mistake) -> Result<()> {
    let message = wait::until("the API server to refuse the pool", TOLD, async || {
        let Err(error) = world.apply(&mistake.pool(world)).await else {
            world.kubectl(&["delete", &world.resource("ippools"), "bad"]).await?;
            bail!("it was taken")
        };
        Ok(format!("{error:#}"))
    })
    .await?;
    for word in [mistake.annotation.0, mistake.annotation.1, "16777215"] {
        ensure!(message.contains(word), "`{word}` is not in: {message}");
    }
    step!("{}: refused at once", mistake.what);
    Ok(())
}

async fn told(world: &World, mistake: &Mistake) -> Result<()> {
    // It may be a moment until the API server has heard that the policy no longer holds.
    wait::until("the pool to be taken", TOLD, async || world.apply(&mistake.pool(world)).await).await?;
    let message = wait::until("the pool to be told", TOLD, async || {
        let entry = status_of_pool(world, "bad").await?;
        ensure!(entry["accepted"] == false && entry["reason"] == mistake.reason, "{entry}");
        let message = entry["message"].as_str().context("no message")?.to_owned();
        for word in mistake.words {
            ensure!(message.contains(word), "`{word}` is not in: {message}");
        }
        event(world, "IPPool", "bad", mistake.reason).await?;
        Ok(message)
    })
    .await?;
    step!("{}: {message}", mistake.what);
    world.kubectl(&["delete", &world.resource("ippools"), "bad"]).await?;
    wait::until("the pool to be forgotten", TOLD, async || {
        let entry = status_of_pool(world, "bad").await;
        ensure!(entry.is_err(), "it is told still: {entry:?}");
        world.kubectl(&["delete", "events", "--field-selector", "involvedObject.name=bad"]).await?;
        Ok(())
    })
    .await
}

/// What a Tenant or an Underlay says of a pool.
async fn status_of_pool(world: &World, pool: &str) -> Result<Value> {
    for (kind, list) in [("tenants", "pools"), ("underlays", "quarantinedPools")] {
        let all: Value = serde_json::from_str(&world.kubectl(&["get", kind, "-o", "json"]).await?)?;
        for item in all["items"].as_array().into_iter().flatten() {
            let entries = item["status"][list].as_array().into_iter().flatten();
            if let Some(entry) = entries.clone().find(|e| e["name"] == pool) {
                return Ok(entry.clone());
            }
        }
    }
    bail!("nobody says anything of pool {pool}")
}

/// Fails unless there is a warning of that reason on the object.
async fn event(world: &World, kind: &str, name: &str, reason: &str) -> Result<()> {
    let selector =
        format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason},type=Warning");
    let found = world.kubectl(&["get", "events", "-A", "--field-selector", &selector, "-o", "name"]).await?;
    ensure!(!found.trim().is_empty(), "no Event {reason} on {kind} {name}");
    Ok(())
}

/// FRR's configuration on all nodes.
async fn configurations(world: &World) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in &world.lab.members {
        for daemon in ["zebra", "bgpd"] {
            let socket = format!("{}/{daemon}.vty", crate::world::frr_dir(&node.name));
            all.push(world.lab.nodes().vty(&socket, &["enable", "show running-config"]).await?.concat());
        }
    }
    Ok(all)
}
