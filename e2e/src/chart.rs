//! The chart, helm, which `make helm` builds, and what the chart lets its containers do.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{paths, program::output, release::Release};

/// Its images, as `deploy/images/build.sh` names them: the controller's, and that of agent and FRR.
pub const IMAGES: [&str; 2] =
    ["ghcr.io/calico-vni/calico-vni-controller", "ghcr.io/calico-vni/calico-vni-router"];

/// Folder of a release's chart.
pub fn folder(release: Release) -> Result<String> {
    let folder = release.source()?.join("deploy/helm/calico-vni");
    Ok(folder.to_str().context("path of the checkout")?.to_owned())
}

/// helm, in our namespace; `kubeconfig` where it is not the one of the environment.
pub async fn helm(kubeconfig: Option<&Path>, args: &[&str]) -> Result<String> {
    let helm = paths::target("tools")?.join("bin/helm");
    ensure!(helm.exists(), "{} is missing: run `make helm`", helm.display());
    let mut args = [args, &["--namespace", "calico-vni"]].concat();
    if let Some(path) = kubeconfig {
        args.extend(["--kubeconfig", path.to_str().context("path of a kubeconfig")?]);
    }
    output(&helm.to_string_lossy(), &args).await
}

/// Before a program and its arguments: has it do what the chart's container of that name may, and no more (setpriv(1)).
pub fn confined(release: Release, container: &str) -> Result<Vec<String>> {
    let manifests = release.source()?.join("deploy/calico-vni.yaml");
    let text = fs::read_to_string(&manifests).with_context(|| format!("read {}", manifests.display()))?;
    let rights = capabilities(&text, container)
        .with_context(|| format!("{}: a DaemonSet with a container {container}", manifests.display()))?;
    let words = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set"].map(str::to_owned);
    Ok(words.into_iter().chain([rights]).collect())
}

/// `-all,+net_admin,…`: what a DaemonSet's container adds to nothing.
fn capabilities(manifests: &str, container: &str) -> Option<String> {
    let sets = manifests.split("\n---\n").filter(|text| text.contains("\nkind: DaemonSet\n"));
    let pods = sets.filter_map(|text| serde_yaml::from_str::<Value>(text).ok());
    let containers = pods.flat_map(|set| {
        set["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default()
    });
    let found = containers.into_iter().find(|found| found["name"] == container)?;
    let rights = &found["securityContext"]["capabilities"];
    if rights["drop"] != serde_json::json!(["ALL"]) {
        return None;
    }
    let added = rights["add"].as_array()?.iter().filter_map(Value::as_str).map(str::to_lowercase);
    Some(added.fold("-all".to_owned(), |all, right| all + ",+" + &right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_what_its_manifest_says() {
        let set = "apiVersion: apps/v1\nkind: DaemonSet\nspec: { template: { spec: { containers: [{ name: agent, \
                   securityContext: { capabilities: { drop: [ALL], add: [NET_ADMIN, CHOWN] } } }] } } }";
        let text = format!("kind: Secret\n---\n{set}");
        assert_eq!(capabilities(&text, "agent").as_deref(), Some("-all,+net_admin,+chown"));
        assert_eq!(capabilities(&text, "frr"), None);
        assert_eq!(capabilities(&text.replace("[ALL]", "[KILL]"), "agent"), None);
    }
}
