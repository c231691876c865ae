//! What happens to one node: its agent or its FRR dies, and somebody takes away by hand what the agent has made.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Through, places};
use crate::{
    step, wait,
    world::{PATIENCE, World},
};

/// Plays them, one after the other, on node n1.
pub async fn play(world: &World) -> Result<()> {
    agent_killed(world).await?;
    agent_without_memory(world).await?;
    for breakage in BREAKAGES {
        by_hand(world, &breakage).await?;
    }
    guard_flushed(world).await?;
    frr_down(world).await
}

/// Something that is taken away by hand.
struct Breakage {
    what: &'static str,
    commands: &'static [&'static [&'static str]],
}

const BREAKAGES: [Breakage; 2] = [
    Breakage {
        what: "policy rules of a node flushed",
        commands: &[
            &["ip", "rule", "flush", "protocol", "118"],
            &["ip", "-6", "rule", "flush", "protocol", "118"],
        ],
    },
    Breakage { what: "a tenant's link set down", commands: &[&["ip", "link", "set", "cv1001", "down"]] },
];

async fn agent_killed(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.router(node).kill_agent(world).await?;
    through.flow().await?;
    world.router(node).start_agent(world).await?;
    world.in_step(node, PATIENCE).await?;
    through.end("agent killed and started again").await
}

/// The agent starts as on a node that it has never been on, but for the interface that it holds already.
async fn agent_without_memory(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.router(node).kill_agent(world).await?;
    for file in ["guard.last-good", "config.last-good", "guard.loaded"] {
        // It fails when there is no such file.
        world.lab.nodes().run(&node.name, &["rm", &world.router(node).state_file(file)]).await?;
    }
    world.router(node).start_agent(world).await?;
    world.in_step(node, PATIENCE).await?;
    through.end("agent started without a last good configuration").await
}

async fn by_hand(world: &World, breakage: &Breakage) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    for command in breakage.commands {
        world.lab.nodes().run(&node.name, command).await?;
    }
    in_step_again(world, breakage.what).await?;
    through.end(breakage.what).await
}

/// The whole of the node's packet filter goes, Calico's too, which is put back at once. Until the agent has seen it, and as
/// long as there is no agent, the policy rules hold by themselves.
async fn guard_flushed(world: &World) -> Result<()> {
    let node = &world.lab.members[0];
    let flush = async || -> Result<()> {
        world.lab.nodes().run(&node.name, &["nft", "flush", "ruleset"]).await?;
        world.lab.reverse_path_rule(node).await
    };
    let stands = async || -> Result<bool> {
        let tables = world.lab.nodes().run(&node.name, &["nft", "list", "tables"]).await?;
        Ok(tables.lines().any(|table| table == "table inet calico-vni"))
    };

    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    flush().await?;
    in_step_again(world, "all nft rules of a node flushed").await?;
    ensure!(stands().await?, "the guard of {} is not back", node.name);
    through.end("all nft rules of a node flushed").await?;

    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    world.router(node).kill_agent(world).await?;
    flush().await?;
    through.flow().await?;
    ensure!(!stands().await?, "somebody put the guard of {} back", node.name);
    world.router(node).start_agent(world).await?;
    world.in_step(node, PATIENCE).await?;
    through.end("all nft rules of a node flushed while its agent was dead").await
}

/// A VRF of node n1's router goes, and with it what FRR has put into it.
pub async fn vrf_deleted(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.lab.nodes().run(&node.router(), &["ip", "link", "del", "vrf1001"]).await?;
    in_step_again(world, "a VRF deleted by hand").await?;
    through.end("a VRF deleted by hand").await
}

async fn frr_down(world: &World) -> Result<()> {
    let through = Through::start(world, places(world, &["red", "blue"])).await?;
    let node = &world.lab.members[0];
    world.router(node).kill_frr(world).await?;
    through.go_on().await?;
    world.router(node).start_frr(world).await?;
    in_step_again(world, "FRR killed and started again").await?;
    through.end("FRR killed and started again").await
}

async fn in_step_again(world: &World, what: &str) -> Result<()> {
    let broken = Instant::now();
    let node = &world.lab.members[0];
    wait::until(&format!("{} to be in step after: {what}", node.name), PATIENCE, async || {
        let output = world.router(node).show(world).await?;
        ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
        Ok(())
    })
    .await?;
    step!("{what}: {} is in step after {:.1} s", node.name, broken.elapsed().as_secs_f64());
    Ok(())
}
