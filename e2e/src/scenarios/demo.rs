//! The main job: two tenants over the fabric, one by an annotation alone and one by a Tenant, and everybody tries to
//! reach everybody.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::keys::VNI;
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    leaf, look,
    matrix::Way,
    step, wait,
    world::{Matrix, PATIENCE, World},
};

/// Pool of tenant red.
pub const RED: &str = "10.200.0.0/16";

/// Tenant red's pool of IPv6.
pub const RED_V6: &str = "fd00:200::/64";

/// The Tenant that the controller makes for pool red's annotation.
pub const RED_TENANT: &str = "vni-1001";

/// Pods of each pool on each node.
pub const PODS: u8 = 2;

/// Plays it.
pub async fn play(world: &mut World) -> Result<()> {
    world.put_pool("red", RED).await?;
    world.put_pool("red-v6", RED_V6).await?;
    world.add_pods("default", None, PODS).await?;
    world.add_pods("red", Some("red"), PODS).await?;

    shell("kubectl annotate ippool red red-v6 calico-vni.io/vni=1001");
    let annotated = Instant::now();
    print(&world.annotate_pools(&["red", "red-v6"], VNI, "1001").await?);
    for pool in ["red", "red-v6"] {
        world.blocks_at_leaf(pool, 1001).await?;
        step!(
            "from annotation to type-5 routes of pool {pool} of both nodes at the leaf: {:.1} s",
            annotated.elapsed().as_secs_f64()
        );
    }

    let files = ["examples/tenant-blue.yaml", "examples/pool-blue.yaml", "examples/pool-blue-v6.yaml"];
    shell(&format!("kubectl apply -f {}", files.join(" -f ")));
    for file in files {
        print(&world.apply_file(file).await?);
    }
    world.add_pods("blue", Some("blue"), PODS).await?;
    for pool in ["blue", "blue-v6"] {
        world.blocks_at_leaf(pool, 1002).await?;
    }
    for tenant in [RED_TENANT, "blue"] {
        world.programmed(tenant).await?;
    }

    shell("kubectl get tenants,underlays");
    print(&world.kubectl(&["get", "tenants,underlays"]).await?);
    let kinds = [world.resource("bgppeers"), world.resource("bgpfilters")].join(",");
    shell("kubectl get bgppeers,bgpfilters -o yaml        # made by the controller");
    print(&world.kubectl(&["get", &kinds, "-o", "yaml"]).await?);
    shell("vtysh -c 'show bgp l2vpn evpn route type prefix'        # on the leaf");
    print(&leaf::type5_text(world.lab.nodes()).await?);

    let matrix = world.matrix(&world.places(&["red", "blue"]), &Way::ICMP).await?;
    println!(
        "\nWho reaches whom by ICMP, IPv4 and IPv6 (`ok`: an answer, as it must be; `.`: nothing arrives, as it must be):\n\n{}",
        matrix.table(&Way::ICMP)
    );
    all_right(&matrix);
    routers_say(world).await
}

/// What each router says by way of the controller: its sessions stand, and of tenant red it has each other node's block by
/// that node's tunnel end point, and nothing of blue's.
async fn routers_say(world: &World) -> Result<()> {
    let members = &world.lab.members;
    let said =
        wait::until("all sessions to stand", PATIENCE, async || world.routers_say(&["sessions"]).await)
            .await?;
    let sessions = said["sessions"].as_array().context("no sessions")?;
    for node in members {
        for (tenant, count) in [(None, 1), (Some(RED_TENANT), 2), (Some("blue"), 2)] {
            let of = |s: &&Value| s["node"] == node.name && s["tenant"].as_str() == tenant;
            let states: Vec<_> = sessions.iter().filter(of).map(|session| &session["state"]).collect();
            ensure!(states == vec!["Established"; count], "{} {tenant:?}: {states:?} in {said:#}", node.name);
        }
    }
    let mut vteps = BTreeMap::new();
    for node in members {
        let addresses = ["ip", "-o", "-4", "address", "show", "dev", "lo"];
        let addresses = world.lab.nodes().run(&node.router(), &addresses).await?;
        let words = addresses.lines().filter_map(|line| line.split_whitespace().nth(3)?.split_once('/'));
        let vtep = words.map(|(address, _)| address).find(|address| !address.starts_with("127."));
        let vtep = vtep.with_context(|| format!("{}: a router without a VTEP: {addresses}", node.name))?;
        vteps.insert(node.name.as_str(), vtep.to_owned());
    }
    let red = [RED.parse()?, RED_V6.parse()?];
    let mut seen = 0;
    for node in members {
        let said = world.routers_say(&["routes", RED_TENANT, "--node", &node.name]).await?;
        let held = said["held"].as_array().context("no routes")?;
        for pool in red {
            for (owner, block) in look::blocks(world, pool).await? {
                let (from, next_hop) = if owner == node.name {
                    ("node", None)
                } else {
                    ("fabric", Some(vteps[owner.as_str()].as_str()))
                };
                let is_it = |route: &&Value| {
                    route["prefix"] == block.to_string()
                        && route["from"] == from
                        && next_hop.is_none_or(|vtep| route["nextHop"] == vtep)
                };
                ensure!(held.iter().any(|r| is_it(&r)), "{}: no {block} of {owner} in {said:#}", node.name);
                seen += 1;
            }
        }
        for pool in ["blue", "blue-v6"] {
            for (_, block) in world.blocks(pool).await? {
                let blues = held.iter().find(|route| route["prefix"] == block.to_string());
                ensure!(blues.is_none(), "{}: blue's {block} is in red's VRF: {said:#}", node.name);
            }
        }
    }
    ensure!(seen >= 8, "{seen} blocks on two nodes are too few");
    step!(
        "the routers say by way of the controller: {} sessions stand, and {seen} routes of red are right",
        sessions.len()
    );
    Ok(())
}

/// Tries every cell by ICMP among all pods, these tenants' external hosts, the nodes and the host outside.
pub async fn all_cells(world: &World, tenants: &[&str]) -> Result<()> {
    all_right(&world.matrix(&world.places(tenants), &Way::ICMP).await?);
    Ok(())
}

/// Waits for the type-5 routes of all blocks of a pool at the leaf, and tells how long that took since `started`.
pub async fn route_at_leaf(world: &World, pool: IpNet, started: Instant) -> Result<()> {
    wait::until(&format!("type-5 routes of {pool} at the leaf"), PATIENCE, async || {
        let (blocks, text) = (look::blocks(world, pool).await?, look::leaf_type5(world).await?);
        ensure!(!blocks.is_empty(), "no node has a block of {pool}");
        let missing: Vec<_> = blocks.iter().filter(|(_, block)| !look::has_type5(&text, *block)).collect();
        ensure!(missing.is_empty(), "no route to {missing:?}");
        Ok(())
    })
    .await?;
    step!("type-5 routes of {pool} at the leaf after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Says so.
pub fn all_right(matrix: &Matrix) {
    let (open, closed) = (matrix.open(), matrix.closed());
    step!("all {} cells are right: {open} answers, in {closed} nothing arrives", open + closed);
}

fn shell(command: &str) {
    println!("\n$ {command}");
}

fn print(text: &str) {
    println!("{}", text.trim_end());
}
