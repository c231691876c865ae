//! What somebody changes by hand comes back: on the node, in FRR, in the API. What is not ours is left alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::demo::{RED, RED_TENANT, all_cells};
use crate::{
    look, step, wait,
    world::{World, frr_dir},
};

/// How long it may take under emulation.
const BACK: Duration = Duration::from_mins(1);

/// Breaks one thing after another on node n1 and waits until every trace is there again.
pub async fn play(world: &mut World) -> Result<()> {
    let node = world.lab.members[0].clone();
    let (host, router) = (node.name.as_str(), node.router());
    let nodes = world.lab.nodes();
    // Foreign things of the same kinds.
    nodes
        .run(host, &["ip", "rule", "add", "pref", "12345", "from", "198.51.100.0/24", "lookup", "777"])
        .await?;
    nodes.run(host, &["ip", "route", "add", "198.51.100.0/24", "dev", "eth0", "table", "777"]).await?;
    let breakages: [(&str, &str, &[&str]); 6] = [
        ("policy rules flushed", host, &["ip", "rule", "flush", "protocol", "118"]),
        ("tenant's routes flushed", host, &["ip", "route", "flush", "table", "1000001001"]),
        ("link set down", host, &["ip", "link", "set", "cv1001", "down"]),
        ("link deleted", host, &["ip", "link", "del", "cv1001"]),
        ("VXLAN device deleted", &router, &["ip", "link", "del", "vx1001"]),
        ("guard deleted", host, &["nft", "delete", "table", "inet", "calico-vni"]),
    ];
    for (what, netns, argv) in breakages {
        nodes.run(netns, argv).await?;
        back(world, what).await?;
    }
    let bgpd = format!("{}/bgpd.vty", frr_dir(host));
    let lines = ["enable", "configure terminal", "router bgp 65001 vrf vrf1001", "address-family l2vpn evpn"];
    nodes.vty(&bgpd, &[&lines[..], &["no advertise ipv4 unicast"]].concat()).await?;
    back(world, "a line of FRR taken away").await?;

    let filter = format!("calico-vni-{RED_TENANT}");
    let kind = world.resource("bgpfilters");
    let open = r#"{"spec":{"exportV4":[{"action":"Accept"}]}}"#;
    world.kubectl(&["patch", &kind, &filter, "--type=merge", "-p", open]).await?;
    wait::until("the edited BGPFilter to be put right", BACK, async || {
        let rules = world.kubectl(&["get", &kind, &filter, "-o", "jsonpath={.spec.exportV4}"]).await?;
        ensure!(rules.contains("RemotePeers") && rules.contains(RED), "{rules}");
        Ok(())
    })
    .await?;
    world.kubectl(&["delete", &kind, &filter]).await?;
    back(world, "BGPFilter deleted").await?;

    let rules = nodes.run(host, &["ip", "rule"]).await?;
    ensure!(rules.contains("198.51.100.0/24"), "a foreign rule was taken away: {rules}");
    let routes = nodes.run(host, &["ip", "route", "show", "table", "777"]).await?;
    ensure!(routes.contains("198.51.100.0/24"), "a foreign route was taken away: {routes}");
    all_cells(world, &["red", "blue"]).await
}

/// Waits until red's cells answer again and every trace of it is there.
async fn back(world: &World, what: &str) -> Result<()> {
    let broken = Instant::now();
    wait::until(&format!("everything to be back after: {what}"), BACK, async || {
        let traces = look::traces(world, RED_TENANT, 1001, RED.parse()?).await?;
        ensure!(look::which(&traces, false).is_empty(), "missing: {:?}", look::which(&traces, false));
        let output = world.router(&world.lab.members[0]).show(world).await?;
        ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
        Ok(())
    })
    .await?;
    step!("{what}: back after {:.1} s", broken.elapsed().as_secs_f64());
    Ok(())
}
