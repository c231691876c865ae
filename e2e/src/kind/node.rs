//! A node of the cluster, which is a container: commands in it, and looks at its network from outside, with this machine's
//! own tools.

use std::{net::IpAddr, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{Api, Client, api::ListParams};
use serde_json::json;
use tokio::process::Command;

use crate::{
    chart,
    program::{fed, output},
};

/// The interface that leads to the fabric.
pub const UPLINK: &str = "eth1";

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Kubernetes name, and the container's.
    pub name: String,
    address: IpAddr,
    pods: IpNet,
    /// The container's first process.
    pid: String,
}

impl Node {
    /// All of the cluster, by name.
    pub async fn all(client: &Client) -> Result<Vec<Self>> {
        let listed = Api::<KubeNode>::all(client.clone()).list(&ListParams::default()).await?;
        let mut nodes = Vec::new();
        for node in listed {
            let name = node.metadata.name.context("a Node without a name")?;
            let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
            let address =
                addresses.iter().find(|a| a.type_ == "InternalIP").context("a Node without an address")?;
            let pods = node.spec.and_then(|spec| spec.pod_cidr).context("a Node without a podCIDR")?;
            let pid = output("podman", &["inspect", "--format", "{{.State.Pid}}", &name]).await?;
            nodes.push(Self {
                address: address.address.parse()?,
                pods: pods.parse()?,
                pid: pid.trim().to_owned(),
                name,
            });
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// Runs a command in the node.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        output("podman", &[&["exec", &self.name], command].concat()).await
    }

    /// Runs a command of this machine's in the node's network namespace.
    pub async fn net(&self, command: &[&str]) -> Result<String> {
        output("nsenter", &[&["--target", &self.pid, "--net", "--"], command].concat()).await
    }

    /// The nftables of the node, as JSON, by the router image's own nft: an older one may not read what a newer one made.
    pub async fn tables(&self) -> Result<String> {
        let [_, image] = chart::IMAGES;
        let image = format!("{image}:{}", env!("CARGO_PKG_VERSION"));
        let root = output("podman", &["image", "mount", &image]).await?;
        self.net(&["chroot", root.trim(), "nft", "-j", "list", "tables"]).await
    }

    /// Writes the configuration of the reference plugins, routes to the others' pods, and gives the node an interface that
    /// leads to a fabric where nobody answers.
    pub async fn network(&self, all: &[Self]) -> Result<()> {
        let ranges = json!([[{ "subnet": self.pods.to_string() }]]);
        let ipam = json!({ "type": "host-local", "dataDir": "/run/cni-ipam", "routes": [{ "dst": "0.0.0.0/0" }], "ranges": ranges });
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                { "type": "ptp", "ipam": ipam },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        // Written where it stays: containerd looks when a file is written, and not when one is moved there.
        let write = "cat >/etc/cni/net.d/10-pods.conflist";
        let args = ["exec", "-i", &self.name, "sh", "-c", write];
        fed("podman", &args, config.to_string().as_bytes()).await?;
        for other in all.iter().filter(|other| other.name != self.name) {
            let (pods, address) = (other.pods.to_string(), other.address.to_string());
            self.net(&["ip", "route", "replace", &pods, "via", &address]).await?;
        }
        self.net(&["ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "fabric"]).await?;
        self.net(&["ip", "address", "add", "192.0.2.2/24", "dev", UPLINK]).await?;
        for link in [UPLINK, "fabric"] {
            self.net(&["ip", "link", "set", link, "up"]).await?;
        }
        Ok(())
    }

    /// Puts an archive's images into the runtime's store.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        let file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        let mut command = Command::new("podman");
        command.args([
            "exec",
            "-i",
            &self.name,
            "ctr",
            "-n",
            "k8s.io",
            "images",
            "import",
            "--digests=false",
            "-",
        ]);
        let command = command.stdin(file).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = command.output().await.context("start podman")?;
        ensure!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Number of the router's network namespace; an error where its name is none.
    pub async fn router(&self) -> Result<String> {
        let path = "/run/netns/calico-vni";
        let kind = self.exec(&["stat", "--file-system", "--format", "%T", path]).await?;
        ensure!(kind.trim() == "nsfs", "{}: {path} is {}", self.name, kind.trim());
        Ok(self.exec(&["stat", "--format", "%i", path]).await?.trim().to_owned())
    }
}
