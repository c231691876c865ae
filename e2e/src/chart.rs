//! The chart, and helm, which `make helm` builds.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{paths, program::output, release::Release};

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
