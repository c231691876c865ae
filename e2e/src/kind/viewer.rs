//! `kubectl vni` as people have it: by the API server's port-forward to the leader's pod, with the rights of a viewer, and with
//! fewer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::cluster::{Cluster, until};
use crate::{paths, step};

/// Somebody of the cluster.
const LOOKER: &str = "looker";

/// Asks the routers without the right to, and with it.
pub async fn asks(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["-n", "default", "create", "serviceaccount", LOOKER]).await?;
    let kubeconfig = kubeconfig(cluster).await?;
    let subject = format!("--serviceaccount=default:{LOOKER}");
    let role = ["create", "clusterrolebinding", LOOKER, "--clusterrole=calico-vni-viewer", &subject];
    cluster.kubectl(&role).await?;
    let (code, text) = until("the statuses to be read", async || {
        let (code, text) = vni(Some(&kubeconfig), "sessions").await?;
        ensure!(text.contains("WITH THE FABRIC"), "{code}: {text}");
        Ok((code, text))
    })
    .await?;
    ensure!(
        code == 2 && text.contains("no router was asked") && text.contains("forbidden"),
        "{code}: {text}"
    );

    let role = ["-n", "calico-vni", "create", "rolebinding", LOOKER, "--role=calico-vni-viewer", &subject];
    cluster.kubectl(&role).await?;
    let text = until("every router to answer", async || {
        let (code, text) = vni(Some(&kubeconfig), "sessions").await?;
        // No switch is here, so no session with one stands.
        ensure!(code == 1 && !text.contains("NO ANSWER"), "{code}: {text}");
        let (_, said) = text.split_once("IN THE ROUTERS").context("no router was asked")?;
        for node in &cluster.nodes {
            let own =
                |line: &&str| line.starts_with(&format!("{} ", node.name)) && line.contains("192.0.2.1 ");
            ensure!(said.lines().any(|line| own(&line)), "{}: {text}", node.name);
        }
        Ok(text)
    })
    .await?;
    println!("{text}");
    let refused = forward_to_router(cluster, &kubeconfig).await?;
    ensure!(refused.contains("for the controller alone"), "{refused}");

    cluster.kubectl(&["delete", "clusterrolebinding", LOOKER]).await?;
    cluster.kubectl(&["-n", "calico-vni", "delete", "rolebinding", LOOKER]).await?;
    cluster.kubectl(&["-n", "default", "delete", "serviceaccount", LOOKER]).await?;
    step!(
        "kind: a viewer asks all routers by a port-forward to the leader; who is none is refused, and no router is forwarded to"
    );
    Ok(())
}

/// `kubectl vni`, as the administrator or by another kubeconfig: exit code, and all that is printed.
pub async fn vni(kubeconfig: Option<&Path>, argument: &str) -> Result<(i32, String)> {
    let mut command = Command::new(paths::programs()?.join("kubectl-vni"));
    command.envs(kubeconfig.map(|file| ("KUBECONFIG", file))).arg(argument).kill_on_drop(true);
    let output = command.output().await.context("kubectl-vni does not start")?;
    let text =
        String::from_utf8([output.stdout, output.stderr].concat()).context("what kubectl-vni prints")?;
    Ok((output.status.code().context("kubectl-vni was killed")?, text))
}

/// Why a router is not forwarded to.
async fn forward_to_router(cluster: &Cluster, kubeconfig: &Path) -> Result<String> {
    let routers = ListParams::default().labels("app.kubernetes.io/component=agent");
    let listed = Api::<Pod>::namespaced(cluster.client.clone(), "calico-vni").list(&routers).await?;
    let router = listed.items.into_iter().find_map(|pod| pod.metadata.name).context("no router")?;
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, "calico-vni");
    match pods.portforward(&router, &[9445]).await {
        Ok(_) => Ok("it was forwarded".to_owned()),
        Err(error) => Ok(error.to_string()),
    }
}

/// The administrator's, with somebody else's token.
async fn kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let view = ["config", "view", "--raw", "--minify", "--flatten", "-o", "json"];
    let mut config: Value = serde_json::from_str(&cluster.kubectl(&view).await?)?;
    let token = cluster.kubectl(&["-n", "default", "create", "token", LOOKER]).await?;
    config["users"][0]["user"] = json!({ "token": token.trim() });
    let file = paths::target("kind")?.join("run/looker.kubeconfig");
    fs::write(&file, config.to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
