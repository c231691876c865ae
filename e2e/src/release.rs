//! Releases of ours: this one, which is built of the checkout, and the one before it, which `make previous` builds of the
//! history.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::paths;

/// What builds the one before; it names the commit.
const BUILD: &str = include_str!("../previous/build.sh");

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// What this checkout holds.
    This,
    /// The one before it.
    Previous,
}

impl Release {
    /// Root of its files: definitions, manifests, examples.
    pub fn source(self) -> Result<PathBuf> {
        match self {
            Self::This => Ok(paths::checkout().to_owned()),
            Self::Previous => Ok(previous()?.join("source")),
        }
    }

    /// Where its programs were built.
    pub fn programs(self) -> Result<PathBuf> {
        match self {
            Self::This => paths::programs(),
            Self::Previous => Ok(previous()?.join("programs")),
        }
    }

    /// A program of it.
    pub fn program(self, name: &str) -> Result<PathBuf> {
        let path = self.programs()?.join(name);
        ensure!(path.exists(), "{} is missing: run `make build`", path.display());
        Ok(path)
    }

    /// What its programs say that they are.
    pub fn version(self) -> Result<String> {
        let chart = self.source()?.join("deploy/helm/calico-vni/Chart.yaml");
        let text = fs::read_to_string(&chart).with_context(|| format!("read {}", chart.display()))?;
        let chart: Value = serde_yaml::from_str(&text).context("the chart's description")?;
        Ok(chart["appVersion"].as_str().context("the chart has no appVersion")?.to_owned())
    }
}

/// Where the one before it was built, by the script as it is now.
fn previous() -> Result<PathBuf> {
    let folder = paths::target("previous")?;
    let stamp = fs::read_to_string(folder.join("stamp")).unwrap_or_default();
    let built = !stamp.is_empty() && BUILD.contains(&format!("commit={}\n", stamp.trim()));
    ensure!(built, "the version before this one is not built: run `make previous`");
    Ok(folder)
}
