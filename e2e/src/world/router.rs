//! A node's router: the namespace, FRR under our supervisor, the agent; started as the containers of their pods are.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{CONTROLLER, PATIENCE, World, frr_dir, link};
use crate::{
    nodes::{
        LOG_DIR,
        protocol::{Command, Output},
    },
    topology::Node,
    wait,
};

/// Shifts the clock of a program that is started with it (package faketime; Debian's path on x86-64).
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A node's router, by its node.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a>(pub(super) &'a Node);

impl Router<'_> {
    fn netns_file(self) -> String {
        format!("/run/netns/{}", self.0.router())
    }

    fn state_dir(self) -> String {
        format!("/var/lib/calico-vni/{}", self.0.name)
    }

    fn agent_name(self) -> String {
        format!("{}-agent", self.0.name)
    }

    fn frr_name(self) -> String {
        format!("{}-frr", self.0.name)
    }

    /// Arguments that say where this node's things are.
    fn places(self) -> Vec<String> {
        let pairs = [
            ("--router-netns", self.netns_file()),
            ("--frr-dir", frr_dir(&self.0.name)),
            ("--state-dir", self.state_dir()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// In a container of the chart, or as root on the node.
    fn command(self, world: &World, container: Option<&str>, arguments: Vec<String>) -> Result<Command> {
        let mut argv = world.lab.site.programs.router(world.release, container)?;
        argv.extend(arguments);
        Ok(Command {
            netns: Some(self.0.name.clone()),
            argv,
            env: vec![("NO_COLOR".into(), "1".into())],
            timeout_ms: 60_000,
            ..Command::default()
        })
    }

    /// Starts all of it. FRR answers when this returns; the agent has begun.
    pub async fn start(self, world: &World) -> Result<()> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, CONTROLLER));
        let outside = SocketAddr::new(world.lab.site.outside, world.controller_port);
        world.lab.nodes().forward(&link(&self.0.name), &self.0.name, listen, outside).await?;
        self.make_namespace(world).await?;
        self.start_frr(world).await?;
        self.start_agent(world).await
    }

    /// Makes the router's namespace, as the init container of FRR's pod does.
    pub async fn make_namespace(self, world: &World) -> Result<()> {
        let init =
            self.command(world, None, vec!["init".into(), "--router-netns".into(), self.netns_file()])?;
        let output = world.lab.nodes().exec(init).await?;
        ensure!(output.code == 0, "the router's namespace on {}: {}", self.0.name, output.stderr.trim());
        Ok(())
    }

    /// Kills FRR's supervisor and then its daemons (SIGKILL), which nothing else ends: they are to outlive a supervisor.
    pub async fn kill_frr(self, world: &World) -> Result<()> {
        let nodes = world.lab.nodes();
        nodes.kill(&self.frr_name()).await?;
        let running = async || nodes.run(&self.0.name, &["ip", "netns", "pids", &self.0.router()]).await;
        let daemons = running().await?;
        ensure!(!daemons.trim().is_empty(), "FRR's daemons on {} were not running", self.0.name);
        let argv: Vec<&str> = ["kill", "-KILL"].into_iter().chain(daemons.split_whitespace()).collect();
        nodes.run(&self.0.name, &argv).await?;
        wait::until(&format!("FRR's daemons on {} to be gone", self.0.name), PATIENCE, async || {
            let left = running().await?;
            ensure!(left.trim().is_empty(), "processes {left}");
            Ok(())
        })
        .await
    }

    /// A file in the agent's state directory.
    pub fn state_file(self, name: &str) -> String {
        format!("{}/{name}", self.state_dir())
    }

    /// Starts FRR's supervisor and waits until bgpd answers.
    pub async fn start_frr(self, world: &World) -> Result<()> {
        let arguments =
            ["frr", "--router-netns", &self.netns_file(), "--pathspace", &self.0.name].map(str::to_owned);
        world
            .lab
            .nodes()
            .spawn(&self.frr_name(), self.command(world, Some("frr"), arguments.into())?)
            .await?;
        wait::until(&format!("FRR on {} to answer", self.0.name), PATIENCE, async || {
            self.vty(world, &["show version"]).await.map(drop)
        })
        .await
    }

    /// Starts the agent.
    pub async fn start_agent(self, world: &World) -> Result<()> {
        self.start_agent_at(world, None).await
    }

    /// Starts it with a clock that differs by so much, in the words of faketime(1).
    pub async fn start_agent_at(self, world: &World, offset: Option<&str>) -> Result<()> {
        let mut arguments =
            vec!["run".into(), "--cleanup-when-idle".into(), "--node".into(), self.0.name.clone()];
        arguments.extend(["--controller".into(), format!("http://127.0.0.1:{CONTROLLER}")]);
        arguments.extend(self.places());
        let mut command = self.command(world, Some("agent"), arguments)?;
        if let Some(offset) = offset {
            command.env.extend([("LD_PRELOAD".into(), FAKETIME.into()), ("FAKETIME".into(), offset.into())]);
        }
        world.lab.nodes().spawn(&self.agent_name(), command).await.map(drop)
    }

    /// Asks the agent to end (SIGTERM), as when its pod goes, and waits until it has.
    pub async fn stop_agent(self, world: &World) -> Result<()> {
        self.stop(world, self.agent_name()).await
    }

    /// Likewise FRR.
    pub async fn stop_frr(self, world: &World) -> Result<()> {
        self.stop(world, self.frr_name()).await
    }

    async fn stop(self, world: &World, name: String) -> Result<()> {
        let nodes = world.lab.nodes();
        nodes.signal(&name, Signal::SIGTERM as i32).await?;
        let code = nodes.wait(&name).await?;
        ensure!(code == 0, "{name} ended with {code}");
        Ok(())
    }

    /// What the agent has logged since the lab began.
    pub async fn agent_log(self, world: &World) -> Result<String> {
        world.lab.nodes().read(&format!("{LOG_DIR}/{}.log", self.agent_name())).await
    }

    /// Kills the agent (SIGKILL).
    pub async fn kill_agent(self, world: &World) -> Result<()> {
        world.lab.nodes().kill(&self.agent_name()).await
    }

    /// What the agent's `show` says, and whether the node is in step.
    pub async fn show(self, world: &World) -> Result<Output> {
        let mut arguments = vec!["show".into(), "--node".into(), self.0.name.clone()];
        arguments.extend(self.places());
        world.lab.nodes().exec(self.command(world, Some("agent"), arguments)?).await
    }

    /// Takes everything of ours off the node, and says what it did; the agent must not run.
    pub async fn cleanup(self, world: &World) -> Result<String> {
        let mut arguments = vec!["cleanup".into()];
        arguments.extend(self.places());
        let output = world.lab.nodes().exec(self.command(world, None, arguments)?).await?;
        ensure!(output.code == 0, "cleanup of {}: {}", self.0.name, output.stderr.trim());
        Ok(output.stdout)
    }

    /// Asks bgpd; a text for each command.
    pub async fn vty(self, world: &World, commands: &[&str]) -> Result<Vec<String>> {
        world.lab.nodes().vty(&format!("{}/bgpd.vty", frr_dir(&self.0.name)), commands).await
    }
}

impl World {
    /// A node's router.
    pub fn router<'a>(&self, node: &'a Node) -> Router<'a> {
        Router(node)
    }

    /// Waits until the agent says that everything on this node is as it is wanted.
    pub async fn in_step(&self, node: &Node, limit: Duration) -> Result<()> {
        wait::until(&format!("{} to be in step", node.name), limit, async || {
            let output = self.router(node).show(self).await?;
            ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
            Ok(())
        })
        .await
    }
}
