//! A Service that a Tenant names is reached by its pods as its endpoints come, move and go, on every node; it opens no
//! connection into the tenant; and nobody else's pods reach it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{demo::all_cells, transitions};
use crate::{
    calico::Family,
    matrix::{self, Cell, Place, Protocol, Way},
    step, wait,
    world::{PATIENCE, World},
};

/// How soon a change has to be in force where the processor is real. A look's own time comes on top.
const FOLLOWED: Duration = Duration::from_secs(1);

/// The Service, in namespace `default`.
const SERVICE: &str = "collector";

/// Both families by TCP, which is what the endpoint's port is opened for.
const TCP: [Way; 2] = [
    Way { family: Family::V4, protocol: Protocol::Tcp },
    Way { family: Family::V6, protocol: Protocol::Tcp },
];

/// Blue names a Service whose endpoints are pods of the default pool.
pub async fn play(world: &mut World) -> Result<()> {
    let played = followed(world).await;
    // Later scenarios know nothing of it.
    forget_endpoints(world).await?;
    let patch = r#"{"spec":{"sharedServices":null}}"#;
    world.kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", patch]).await?;
    played?;
    all_cells(world, &["red", "blue"]).await
}

async fn followed(world: &World) -> Result<()> {
    let places = transitions::places(world, &["red", "blue"]);
    let find = |name: &str| places.iter().position(|p| p.name == name).context("a place");
    let (first, second) = (find("dflt-n1-a")?, find("dflt-n2-a")?);
    let askers = [find("blue-n1-a")?, find("blue-n2-a")?];
    let strangers = [find("red-n1-a")?, find("red-n2-a")?];

    let services = json!({ "spec": { "sharedServices": { "services": [format!("default/{SERVICE}")] } } });
    world.kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", &services.to_string()]).await?;
    wait::until("blue to be told that its Service has no endpoints", PATIENCE, async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"ServicesReachable\")].message}";
        let told = world.kubectl(&["get", "tenant", "blue", "-o", path]).await?;
        ensure!(told.contains(SERVICE) && told.contains("EndpointSlice"), "{told}");
        Ok(())
    })
    .await?;
    silent(world, &places, &askers, first).await?;

    let began = endpoints(world, &places[first]).await?;
    in_force(world, &places, "an endpoint comes", began, (&askers, first, true)).await?;
    silent(world, &places, &strangers, first).await?;
    silent(world, &places, &[first], askers[0]).await?;

    let began = endpoints(world, &places[second]).await?;
    in_force(world, &places, "the endpoint is on another node now", began, (&askers, second, true)).await?;
    in_force(world, &places, "the old endpoint is closed", began, (&askers, first, false)).await?;
    silent(world, &places, &strangers, second).await?;
    silent(world, &places, &[second], askers[1]).await?;

    let began = Instant::now();
    forget_endpoints(world).await?;
    in_force(world, &places, "the endpoint has gone", began, (&askers, second, false)).await
}

/// Lets the Service have this place as its one endpoint, and says since when.
async fn endpoints(world: &World, place: &Place) -> Result<Instant> {
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let name = format!("{SERVICE}-{}", kind.to_lowercase());
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": SERVICE },
            },
            "addressType": kind,
            "ports": [{ "name": "web", "protocol": "TCP", "port": crate::topology::PORT }],
            "endpoints": [{ "addresses": [place.addresses.of(family)], "conditions": { "ready": true } }],
        });
        world.apply(&slice).await?;
    }
    Ok(Instant::now())
}

async fn forget_endpoints(world: &World) -> Result<()> {
    let of_service = format!("kubernetes.io/service-name={SERVICE}");
    world.kubectl(&["delete", "endpointslices", "-l", &of_service]).await.map(drop)
}

fn cells(from: &[usize], to: usize, reach: bool) -> Vec<Cell> {
    from.iter().flat_map(|&from| TCP.map(|way| Cell { from, to, way, reach })).collect()
}

/// Waits until these cells are as they have to be, and judges how long that took.
async fn in_force(
    world: &World,
    places: &[Place],
    what: &str,
    began: Instant,
    (from, to, reach): (&[usize], usize, bool),
) -> Result<()> {
    let cells = cells(from, to, reach);
    let mut look = Duration::ZERO;
    wait::until(what, PATIENCE, async || {
        let looked = Instant::now();
        // Short: who is not answered at once is asked again.
        let probes = cells.iter().map(|cell| {
            let mut probe = matrix::probe(cell, places);
            probe.timeout_ms = 500;
            probe
        });
        let results = world.lab.nodes().probe(probes.collect()).await?;
        let verdict = matrix::judge(places, &cells, &results);
        ensure!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("; "));
        look = looked.elapsed();
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    step!(
        "{what}: in force after {:.1} s, {:.1} s of them the last look",
        took.as_secs_f64(),
        look.as_secs_f64()
    );
    if world.lab.site.real_processor {
        let most = FOLLOWED + look + wait::PAUSE;
        ensure!(took <= most, "{what}: in force after {took:?}, at most {most:?} are allowed");
    }
    Ok(())
}

/// Nothing of these may arrive.
async fn silent(world: &World, places: &[Place], from: &[usize], to: usize) -> Result<()> {
    let cells = cells(from, to, false);
    let verdict = matrix::judge(places, &cells, &world.probe(places, &cells).await?);
    ensure!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("; "));
    Ok(())
}
