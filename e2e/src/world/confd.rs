//! What feeds the nodes' BIRD: the stand-in, or Calico's own confd on every node.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use super::World;
use crate::{
    api::User,
    calico::{
        Family,
        confd::Confd,
        real::{NodeConfd, RealConfd},
    },
    nodes::{RUN_DIR, protocol::Command},
    sink::{NodeBird, control_socket, start_bird},
    step,
    topology::Node,
    wait,
};

/// Port on every node's own loopback by which its confd reaches the API server.
const API_SERVER: u16 = 6443;

impl World {
    /// Starts whichever the environment asks for.
    pub(super) async fn start_confd(&self) -> Result<()> {
        if let Some(real) = &self.lab.site.confd {
            try_join_all(self.lab.members.iter().map(|node| self.start_real_confd(real, node))).await?;
            step!("Calico's own confd feeds BIRD on all nodes");
            return Ok(());
        }
        let sink = NodeBird::new(self.lab.nodes().clone());
        tokio::spawn(Confd::new(self.client.clone(), self.calico, sink).run(self.stop.clone()));
        Ok(())
    }

    /// Lets a program on a node reach the API server by a port of the node's own loopback, as the administrator: writes what
    /// it needs for that into a directory, and returns the path of the kubeconfig there.
    pub async fn reach_api_server(&self, node: &Node, who: &str, port: u16, dir: &str) -> Result<String> {
        let (nodes, name) = (self.lab.nodes(), node.name.as_str());
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let to = SocketAddr::new(self.lab.site.outside, self.api.port());
        nodes.forward(&format!("{name}-{who}-apiserver"), name, listen, to).await?;
        let (ca, kubeconfig) = (format!("{dir}/ca.crt"), format!("{dir}/kubeconfig"));
        nodes.write(&ca, &self.api.ca()?, 0o644, None).await?;
        nodes.write(&kubeconfig, &self.api.kubeconfig_by(listen, &ca, User::Admin)?, 0o600, None).await?;
        Ok(kubeconfig)
    }

    async fn start_real_confd(&self, real: &RealConfd, node: &Node) -> Result<()> {
        let (nodes, name) = (self.lab.nodes(), node.name.as_str());
        let dir = format!("{RUN_DIR}/{name}-confd");
        let kubeconfig = self.reach_api_server(node, "confd", API_SERVER, &dir).await?;
        let [bird, bird6] = Family::ALL.map(|family| control_socket(name, family));
        let at = NodeConfd {
            node: name,
            kubeconfig: Path::new(&kubeconfig),
            dir: Path::new(&dir),
            bird: Path::new(&bird),
            bird6: Path::new(&bird6),
        };
        let (file, process) = real.prepare(at);
        nodes.write(&file.path.to_string_lossy(), &file.text, file.mode, None).await?;
        let command = Command {
            netns: Some(name.to_owned()),
            argv: process.argv,
            env: process.env,
            ..Command::default()
        };
        nodes.spawn(&format!("{name}-confd"), command).await?;
        for family in Family::ALL {
            let file = format!("{dir}/{}.cfg", family.daemon());
            wait::until(&format!("confd's first {file} on {name}"), Duration::from_mins(2), async || {
                let text = nodes.read(&file).await?;
                text.contains("protocol").then_some(()).context("it holds no protocol")
            })
            .await?;
            start_bird(nodes, name, family, &file).await?;
        }
        Ok(())
    }
}
