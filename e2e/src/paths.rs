//! Where things are in the checkout.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Root of this crate in the checkout that the program was built from.
pub fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Root of the checkout.
pub fn checkout() -> &'static Path {
    crate_root().parent().expect("the crate is a directory of the workspace")
}

/// A directory below `target`, made when it is missing.
pub fn target(name: &str) -> Result<PathBuf> {
    let directory =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from).join(name);
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// Where Kubernetes' programs are: where `make kube` builds them, unless `KUBEBUILDER_ASSETS` names another directory.
pub fn kube() -> Result<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| target("kube"), |directory| Ok(directory.into()))
}

/// Where our programs were built: beside this one, or, for a test, one directory up.
pub fn programs() -> Result<PathBuf> {
    let this = env::current_exe().context("path of this program")?;
    let directory = this.parent().context("directory of this program")?;
    let tests = directory.file_name().is_some_and(|name| name == "deps");
    Ok(if tests { directory.parent().context("directory of the build")? } else { directory }.to_owned())
}
