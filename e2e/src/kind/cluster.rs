//! The cluster: made and deleted by kind, reached by kubectl and helm. Starts programs, and touches podman's storage of this
//! checkout alone.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube::Client;

use super::node::Node;
use crate::{
    chart, paths,
    program::{fed, output},
    step, wait,
};

/// Name of the kind cluster.
pub const NAME: &str = "calico-vni";
/// A second tag of the same images, for an upgrade.
pub const NEXT: &str = "next";

/// How long anything may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// A running cluster.
pub struct Cluster {
    /// For typed objects.
    pub client: Client,
    /// Control plane and workers, by name.
    pub nodes: Vec<Node>,
    kind: PathBuf,
    tools: PathBuf,
}

impl Cluster {
    /// Makes it. One that an earlier run left behind goes first.
    pub async fn create(kind: &Path) -> Result<Self> {
        delete().await?;
        let image = fs::read_to_string(kind.join("node-image")).context("name of the node image")?;
        let config = paths::crate_root().join("kind/cluster.yaml");
        let config = config.to_str().context("path of the checkout")?;
        let args =
            ["create", "cluster", "--name", NAME, "--image", image.trim(), "--config", config, "--retain"];
        output("kind", &args).await?;
        let tools = paths::target("kube")?;
        let kubeconfig = kube::config::Kubeconfig::read().context("kubeconfig of kind")?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let mut cluster =
            Self { client: Client::try_from(config)?, nodes: Vec::new(), kind: kind.to_owned(), tools };
        cluster.nodes = Node::all(&cluster.client).await?;
        ensure!(cluster.nodes.len() == 3, "nodes: {:?}", cluster.nodes);
        step!("kind: cluster with {} nodes", cluster.nodes.len());
        Ok(cluster)
    }

    /// A network for pods, in the place of Calico's: each node's own subnet, and routes between the nodes.
    pub async fn network(&self) -> Result<()> {
        for node in &self.nodes {
            node.network(&self.nodes).await?;
        }
        self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"]).await?;
        self.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=180s"])
            .await?;
        step!("kind: nodes are ready, and the cluster's DNS answers");
        Ok(())
    }

    /// Brings our images to the nodes, each by two tags.
    pub async fn load_images(&self) -> Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        let images = chart::IMAGES.map(|image| format!("{image}:{version}"));
        let archive = self.kind.join("images.tar");
        fs::remove_file(&archive).ok();
        let path = archive.to_str().context("path of the checkout")?;
        let save = ["save", "--quiet", "--multi-image-archive", "-o", path, &images[0], &images[1]];
        output("podman", &save).await.context("`make kind-e2e` makes the images")?;
        let load = async |node: &Node| {
            node.import(&archive).await?;
            for image in chart::IMAGES {
                let [this, next] = [version, NEXT].map(|tag| format!("{image}:{tag}"));
                node.exec(&["ctr", "-n", "k8s.io", "images", "tag", &this, &next]).await?;
            }
            anyhow::Ok(())
        };
        try_join_all(self.nodes.iter().map(load)).await?;
        fs::remove_file(&archive)?;
        step!("kind: images of controller and router are on the nodes");
        Ok(())
    }

    /// kubectl, as the administrator.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(&self.tools.join("kubectl").to_string_lossy(), args).await
    }

    /// Applies manifests.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        let kubectl = self.tools.join("kubectl");
        fed(&kubectl.to_string_lossy(), &["apply", "-f", "-"], manifests.as_bytes()).await.map(drop)
    }

    /// helm, in our namespace. It does not wait: an agent all of whose tenants fail, as where the kernel has no VRF, is not
    /// ready, and what is waited for here says more.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        chart::helm(None, args).await
    }

    /// What all pods of a component have logged, those of before their last restart too.
    pub async fn logs(&self, component: &str) -> Result<String> {
        let selector = format!("app.kubernetes.io/component={component}");
        let args = [
            "-n",
            "calico-vni",
            "logs",
            "--all-containers",
            "--prefix",
            "--tail=-1",
            "--ignore-errors",
            "-l",
            &selector,
        ];
        self.kubectl(&args).await
    }
}

/// Deletes it.
pub async fn delete() -> Result<()> {
    output("kind", &["delete", "cluster", "--name", NAME]).await?;
    // The nodes' control groups outlive them, empty; one that is not empty is somebody's, and stays.
    let groups = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/libpod_parent*", "-delete"];
    output("find", &groups).await.ok();
    Ok(())
}

/// Waits with this file's patience.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    wait::until(what, PATIENCE, look).await
}
