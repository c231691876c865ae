//! The chart, helm, which `make helm` builds, and what the chart lets its containers do.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Container};
use serde::Deserialize as _;
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

/// What containers may, by their names: the capabilities that each has in the place of all.
#[derive(Clone, Debug, Default)]
pub struct Rights(BTreeMap<String, Vec<String>>);

impl Rights {
    /// Those of the containers of DaemonSets that give all others up.
    pub fn of(sets: impl IntoIterator<Item = DaemonSet>) -> Self {
        let pods = sets.into_iter().filter_map(|set| set.spec?.template.spec);
        let has = |container: Container| {
            let capabilities = container.security_context?.capabilities?;
            (capabilities.drop? == ["ALL"]).then(|| (container.name, capabilities.add.unwrap_or_default()))
        };
        Self(pods.flat_map(|pod| pod.containers).filter_map(has).collect())
    }

    /// Those of a release's manifests.
    pub fn of_release(release: Release) -> Result<Self> {
        let path = release.source()?.join("deploy/calico-vni.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::of_manifests(&text).with_context(|| path.display().to_string())
    }

    fn of_manifests(text: &str) -> Result<Self> {
        let mut sets = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let object = Value::deserialize(document)?;
            if object["kind"] == "DaemonSet" {
                sets.push(serde_json::from_value(object)?);
            }
        }
        Ok(Self::of(sets))
    }

    /// Of one container.
    pub fn get(&self, container: &str) -> Result<&[String]> {
        let rights = self.0.get(container);
        rights
            .map(Vec::as_slice)
            .with_context(|| format!("no DaemonSet has a container {container} that drops ALL"))
    }

    /// Before a program and its arguments: has it do what that container may, and no more (setpriv(1)).
    pub fn confine(&self, container: &str) -> Result<Vec<String>> {
        let added = self.get(container)?.iter().map(|right| format!(",+{}", right.to_lowercase()));
        let words = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set"].map(str::to_owned);
        Ok(words.into_iter().chain([format!("-all{}", added.collect::<String>())]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_what_its_manifest_says() {
        let set = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {}\nspec: { selector: {}, template: { spec: { containers: [{ \
                   name: agent, securityContext: { capabilities: { drop: [ALL], add: [NET_ADMIN, CHOWN] } } }] } } }";
        let text = format!("kind: Secret\n---\n{set}");
        let may = |text: &str, container| {
            let words = Rights::of_manifests(text).unwrap().confine(container).ok()?;
            words.last().cloned()
        };
        assert_eq!(may(&text, "agent").as_deref(), Some("-all,+net_admin,+chown"));
        assert_eq!(may(&text, "frr"), None);
        assert_eq!(may(&text.replace("[ALL]", "[KILL]"), "agent"), None);
    }
}
