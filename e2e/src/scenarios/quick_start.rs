//! README.md's quick start, word by word: its commands are taken from there and run. What installs the programs is not: the
//! lab runs controller and routers itself (`make kind-e2e` installs them). As no kubelet runs here, the lab gives the
//! Deployment's pods their addresses, which is Calico's part.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use calico_vni_crds::keys::VNI;

use super::{
    demo::{PODS, RED_TENANT, RED_V6, all_cells},
    doctor,
};
use crate::{
    api::User,
    paths, step, wait,
    world::{PATIENCE, World},
};

/// Heading of the section whose first block holds the commands.
const SECTION: &str = "\n## Use it\n";

/// Pools that the demo has made and the quick start makes.
const POOLS: [&str; 2] = ["red", "red-v6"];

/// Plays it in a cluster without tenant red, and leaves red as it was.
pub async fn play(world: &mut World) -> Result<()> {
    let readme = fs::read_to_string(paths::checkout().join("README.md")).context("README.md")?;
    let commands = commands(&readme)?;
    without_red(world).await?;
    doctor::services(world, true).await?;
    let played = follow(world, &commands).await;
    doctor::services(world, false).await?;
    world.kubectl(&["delete", "deployment", "red-web", "--namespace=default", "--ignore-not-found"]).await?;
    world.annotate_pools(&["red-v6"], VNI, "1001").await?;
    played?;
    world.blocks_at_leaf("red-v6", 1001).await?;
    world.programmed(RED_TENANT).await?;
    all_cells(world, &["red", "blue"]).await
}

/// Runs the commands as a user does, and looks at what came of them.
async fn follow(world: &mut World, commands: &[&str]) -> Result<()> {
    let began = Instant::now();
    let mut waited = false;
    for command in commands {
        println!("\n$ {command}");
        waited |= run(world, command).await.with_context(|| (*command).to_owned())?;
    }
    ensure!(waited, "none of these commands waits for the Tenant: {commands:?}");
    world.blocks_at_leaf("red", 1001).await?;
    step!("from nothing to type-5 routes of pool red at the leaf: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The lines of the first code block of the section.
fn commands(readme: &str) -> Result<Vec<&str>> {
    let (_, section) = readme.split_once(SECTION).context("README.md has no section `Use it`")?;
    let block = section.split("```").nth(1).context("the section has no code block")?;
    let lines = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).collect())
}

/// Runs a command; whether it waited for the Tenant.
async fn run(world: &mut World, command: &str) -> Result<bool> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["helm", "install", ..] => {
            step!("the lab's controller and routers take its place");
            Ok(false)
        }
        // Its exit code says whether all is well, which it is when the last node has said how it does.
        ["kubectl", "vni", arguments @ ..] => {
            print!("{}", wait::until(command, PATIENCE, async || vni(world, arguments).await).await?);
            Ok(false)
        }
        ["kubectl", "apply", "-f", file] => {
            print!("{}", world.apply_file(file).await?);
            world.put_pool("red-v6", RED_V6).await?;
            world.add_pods("red", Some("red"), PODS).await?;
            Ok(false)
        }
        // kubectl gives up after 30 s, or at once where the Tenant is not there yet; an emulated machine is slower.
        ["kubectl", "wait", arguments @ ..] => {
            let words: Vec<&str> = ["wait"].into_iter().chain(arguments.iter().copied()).collect();
            let said = wait::until(command, PATIENCE, async || world.kubectl(&words).await).await?;
            print!("{said}");
            Ok(true)
        }
        _ => bail!("the lab does not know how to run this; teach it, or leave it out of README.md"),
    }
}

async fn vni(world: &World, arguments: &[&str]) -> Result<String> {
    let output = world.vni(User::Admin, arguments)?.output().await.context("start kubectl-vni")?;
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(output.status.success(), "{}: {said}{errors}", output.status);
    Ok(said.into_owned())
}

/// Takes red away: its pods, its pools, and by that its Tenant.
async fn without_red(world: &mut World) -> Result<()> {
    world.remove_pods("red", &POOLS).await?;
    let pools = world.resource("ippools");
    world.kubectl(&["delete", &pools, POOLS[0], POOLS[1]]).await?;
    wait::until("red's Tenant to go", PATIENCE, async || {
        let tenants = world.kubectl(&["get", "tenants", "-o", "name"]).await?;
        ensure!(!tenants.contains(RED_TENANT), "{tenants}");
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_of_the_sections_first_block() {
        let readme = "```\nkubectl get nodes\n```\n## Use it\n\n```\nhelm install x\nkubectl apply -f y   # why\n\n```\nand\n```\nz\n```";
        let readme = format!("\n{readme}");
        assert_eq!(commands(&readme).unwrap(), ["helm install x", "kubectl apply -f y"]);
        assert!(commands("## Other").is_err());
    }
}
