//! What is kept when something fails: one folder with the state of everything.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::World;

impl World {
    /// Writes it all below `failed-NAME` in the directory of this run, and returns that path.
    pub async fn keep_evidence(&self, name: &str) -> Result<PathBuf> {
        let folder = self.lab.directory.join(format!("failed-{name}"));
        let mut files = match self.lab.nodes().dump().await {
            Ok(files) => files,
            Err(error) => [("nodes-could-not-be-asked.txt".to_owned(), format!("{error:#}"))].into(),
        };
        let calico = ["ippools", "bgppeers", "bgpfilters", "blockaffinities"].map(|k| self.resource(k));
        let kinds = format!("tenants,underlays,nodes,{}", calico.join(","));
        for (file, arguments) in [
            ("kubernetes/objects.yaml", vec!["get", &kinds, "-o", "yaml", "--show-managed-fields"]),
            ("kubernetes/objects.txt", vec!["get", &kinds, "-o", "wide"]),
            ("kubernetes/events.txt", vec!["get", "events", "-A"]),
        ] {
            let text = self.kubectl(&arguments).await.unwrap_or_else(|e| format!("{e:#}"));
            files.insert(file.to_owned(), text);
        }
        for (path, text) in files {
            let path = folder.join(path);
            let parent = path.parent().context("a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        for log in [
            self.controller.log().to_path_buf(),
            self.lab.directory.join("console.log"),
            self.api.dir().join("kube-apiserver.log"),
        ] {
            let Some(file) = log.file_name() else { continue };
            // A virtual machine has a console, this machine has none.
            drop(fs::copy(&log, folder.join("log").join(file)));
        }
        Ok(folder)
    }
}
