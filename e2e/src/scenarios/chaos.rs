//! Whatever becomes of controller, API server, agents and the way between them, permitted flows lose nothing, and afterwards
//! everything is in step without a person.

use std::time::Duration;

use anyhow::{Result, ensure};
use calico_vni_crds::keys::VNI;

use super::{
    controller_gone::owned_versions,
    flows::{Flows, all_in_step},
};
use crate::{
    nodes::protocol::Health,
    topology::Node,
    wait,
    world::{PATIENCE, World, link},
};

/// How long the API server and its store are away.
const AWAY: Duration = Duration::from_mins(1);

/// Plays all of it, one after the other.
pub async fn play(world: &mut World) -> Result<()> {
    others_come_and_go(world).await?;
    controller_killed(world).await?;
    api_server_away(world).await?;
    agent_killed(world).await?;
    agent_replaced(world).await?;
    blackholed(world).await?;
    clocks_apart(world).await?;
    disk_full(world).await?;
    two_controllers(world).await
}

/// Sets what the routers' configurations show, and returns its line.
async fn change(world: &World, most: usize) -> Result<String> {
    let patch = format!(r#"{{"spec":{{"maxPrefixes":{most}}}}}"#);
    world.kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", &patch]).await?;
    Ok(format!("maximum-prefix {most} restart"))
}

/// Waits until a node's FRR has a line.
async fn has_line(world: &World, node: &Node, line: &str) -> Result<()> {
    wait::until(&format!("`{line}` on {}", node.name), PATIENCE, async || {
        let config = world.router(node).vty(world, &["enable", "show running-config"]).await?.concat();
        ensure!(config.contains(line), "it is not in FRR's configuration");
        Ok(())
    })
    .await
}

/// Pools of a tenant that nobody of these knows, and how often they come and go.
const VIOLET: [(&str, &str); 2] = [("violet", "10.204.0.0/16"), ("violet-v6", "fd00:204::/64")];
const TIMES: usize = 6;

/// Every node's guard has to learn of each tenant of the cluster, and to forget it.
async fn others_come_and_go(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let (names, prefixes) = (VIOLET.map(|(name, _)| name), VIOLET.map(|(_, cidr)| cidr));
    for _ in 0..TIMES {
        for (name, cidr) in VIOLET {
            world.put_pool(name, cidr).await?;
        }
        world.annotate_pools(&names, VNI, "1005").await?;
        world.guarded(&prefixes, true).await?;
        let ippools = world.resource("ippools");
        world.kubectl(&[&["delete", &ippools], &names[..]].concat()).await?;
        world.guarded(&prefixes, false).await?;
    }
    all_in_step(world).await?;
    flows.end(&format!("tenants of others came and went {TIMES} times")).await
}

async fn controller_killed(world: &mut World) -> Result<()> {
    let flows = Flows::start(world).await?;
    world.kill_controller().await?;
    flows.go_on().await?;
    world.start_controller().await?;
    all_in_step(world).await?;
    flows.end("controller killed and started again").await
}

async fn api_server_away(world: &mut World) -> Result<()> {
    let flows = Flows::start(world).await?;
    world.api.pause()?;
    let away = wait::always("the API server's silence", AWAY, async || {
        // Asked seldom, and given up soon: the flows are what matters.
        let asked = world.kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).await;
        ensure!(asked.is_err(), "it answers");
        Ok(())
    })
    .await;
    world.api.resume()?;
    away?;
    flows.go_on().await?;
    // What is asked for afterwards is brought about.
    let line = change(world, 499).await?;
    for node in &world.lab.members {
        has_line(world, node, &line).await?;
    }
    change(world, 500).await?;
    all_in_step(world).await?;
    flows.end("API server and etcd away for a minute").await
}

async fn agent_killed(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let node = &world.lab.members[0];
    world.router(node).kill_agent(world).await?;
    flows.go_on().await?;
    world.router(node).start_agent(world).await?;
    all_in_step(world).await?;
    flows.end("agent killed and started again").await
}

/// As a rolling upgrade does it: SIGTERM, and another one with what the first has kept.
async fn agent_replaced(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    for node in &world.lab.members {
        world.router(node).stop_agent(world).await?;
        world.router(node).start_agent(world).await?;
        world.in_step(node, PATIENCE).await?;
    }
    all_in_step(world).await?;
    flows.end("agents replaced one after the other").await
}

/// The connection of n1's agent stays open and carries nothing; then it carries again. Meanwhile something changes.
async fn blackholed(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let node = &world.lab.members[0];
    world.lab.nodes().link(&link(&node.name), Health::Blackhole).await?;
    let line = change(world, 498).await?;
    has_line(world, &world.lab.members[1], &line).await?;
    flows.go_on().await?;
    world.lab.nodes().link(&link(&node.name), Health::Healthy).await?;
    has_line(world, node, &line).await?;
    change(world, 500).await?;
    all_in_step(world).await?;
    flows.end("the agent's connection blackholed").await
}

/// The agent's clock is a day ahead, then a day behind.
async fn clocks_apart(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let node = &world.lab.members[0];
    for (number, offset) in ["+1d", "-1d"].into_iter().enumerate() {
        world.router(node).stop_agent(world).await?;
        world.router(node).start_agent_at(world, Some(offset)).await?;
        let line = change(world, 490 + number).await?;
        has_line(world, node, &line).await?;
        let log = world.router(node).agent_log(world).await?;
        let day = shifted_day(world, offset).await?;
        ensure!(log.contains(&day), "the agent's log has no line of {day}: its clock was not shifted");
    }
    world.router(node).stop_agent(world).await?;
    world.router(node).start_agent(world).await?;
    change(world, 500).await?;
    all_in_step(world).await?;
    flows.end("the agent's clock a day ahead and a day behind").await
}

/// The date that a clock with this offset shows on the node side.
async fn shifted_day(world: &World, offset: &str) -> Result<String> {
    let days = offset.replace('d', " day");
    let node = &world.lab.members[0].name;
    Ok(world.lab.nodes().run(node, &["date", "-u", "-d", &days, "+%Y-%m-%dT"]).await?.trim().to_owned())
}

/// What the agent keeps goes to a file system of 256 KiB, and somebody fills it.
async fn disk_full(world: &World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let node = &world.lab.members[0];
    let (nodes, router) = (world.lab.nodes(), world.router(node));
    let run = async |line: &str| nodes.run(&node.name, &["sh", "-ec", line]).await;
    let (state, filler) = (router.state_file(""), router.state_file("filler"));
    router.stop_agent(world).await?;
    // The agent finds there what it had.
    run(&format!("cp -a {state}. /tmp/state; mount -t tmpfs -o size=256k lab {state}; cp -a /tmp/state/. {state}; rm -r /tmp/state"))
        .await?;
    router.start_agent(world).await?;
    world.in_step(node, PATIENCE).await?;

    let played = async {
        run(&format!(
            "dd if=/dev/zero of={filler} bs=1k count=1024 2>/dev/null || true; ! echo full >{filler}.more"
        ))
        .await?;
        let line = change(world, 480).await?;
        has_line(world, node, &line).await?;
        flows.go_on().await?;
        run(&format!("rm -f {filler} {filler}.more")).await?;
        let line = change(world, 481).await?;
        has_line(world, node, &line).await
    }
    .await;
    router.stop_agent(world).await?;
    run(&format!("umount {state}")).await?;
    router.start_agent(world).await?;
    played?;
    change(world, 500).await?;
    all_in_step(world).await?;
    flows.end("the disk full under the agent").await
}

/// A second controller that takes itself for the only one, and that no agent speaks to.
async fn two_controllers(world: &mut World) -> Result<()> {
    let flows = Flows::start(world).await?;
    let versions = owned_versions(world).await?;
    let mut second = world.second_controller()?;
    flows.go_on().await?;
    let line = change(world, 470).await?;
    for node in &world.lab.members {
        has_line(world, node, &line).await?;
    }
    ensure!(owned_versions(world).await? == versions, "two controllers wrote what stood as it should");
    second.check()?;
    second.stop().await?;
    change(world, 500).await?;
    all_in_step(world).await?;
    flows.end("two controllers").await
}
