//! What explains a failure, kept below `target/kind/logs`. Fails never: the failure itself is what has to be told.

use std::{fs, path::Path};

use super::cluster::{self, Cluster};
use crate::{program::output, step};

/// What kind and its nodes say of a cluster that did not come up.
pub async fn of_creation(folder: &Path) {
    let path = folder.to_string_lossy();
    match output("kind", &["export", "logs", "--name", cluster::NAME, &path]).await {
        Ok(_) => step!("kind: what may explain the failure is in {path}"),
        Err(error) => step!("kind: no logs could be had: {error:#}"),
    }
}

/// Writes it.
pub async fn keep(cluster: &Cluster, folder: &Path) {
    fs::remove_dir_all(folder).ok();
    if fs::create_dir_all(folder).is_err() {
        return;
    }
    let get = ["get", "nodes,pods,events,tenants.calico-vni.io,underlays.calico-vni.io", "-A", "-o", "yaml"];
    let files = [
        ("objects.yaml", cluster.kubectl(&get).await),
        ("pods.txt", cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).await),
        ("describe.txt", cluster.kubectl(&["-n", "calico-vni", "describe", "pods"]).await),
        ("controller.log", cluster.logs("controller").await),
        ("agent.log", cluster.logs("agent").await),
        ("frr.log", cluster.logs("frr").await),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text.unwrap_or_else(|error| format!("{error:#}\n"))).ok();
    }
    for node in &cluster.nodes {
        let journal =
            node.exec(&["journalctl", "--no-pager", "-u", "kubelet", "-u", "containerd", "-n", "400"]).await;
        let text = journal.unwrap_or_else(|error| format!("{error:#}\n"));
        fs::write(folder.join(format!("{}.log", node.name)), text).ok();
    }
    step!("kind: what may explain the failure is in {}", folder.display());
}
