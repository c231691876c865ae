//! The root file system of the routers' container image, as a disk of the virtual machine: what is shipped is what is tested.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use super::disk;
use crate::step;

/// Where the machine mounts it; the init script names it too.
pub const MOUNTED: &str = "/router";

/// Engines that may hold the image.
const ENGINES: [&str; 2] = ["podman", "docker"];

/// Room for the file system's own books about some thousand small files.
const BOOKS: u64 = 64 << 20;

/// Makes the disk below `directory`, of an image that podman or docker has by this name.
pub async fn disk(directory: &Path, name: &str) -> Result<PathBuf> {
    let engine = engine(name).await?;
    step!("routers run in {name}, which {engine} has");
    let (tree, disk) = (directory.join("router"), directory.join("router.ext4"));
    fs::create_dir_all(&tree).context("directory for the routers' disk")?;
    let container = run(engine, &["create", name]).await?;
    let exported = export(engine, container.trim(), &tree).await;
    run(engine, &["rm", container.trim()]).await?;
    exported?;
    // What the machine mounts there is in no image.
    for place in ["opt/lab", "var/lib/calico-vni", "run", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(place)).with_context(|| format!("make {place}"))?;
    }
    let size = run("du", &["-s", "-B1", &tree.to_string_lossy()]).await?;
    let size: u64 =
        size.split_whitespace().next().unwrap_or_default().parse().context("size of the image")?;
    disk::file_system(&tree, &disk, size + BOOKS).await?;
    Ok(disk)
}

async fn engine(image: &str) -> Result<&'static str> {
    for engine in ENGINES {
        let mut look = Command::new(engine);
        look.args(["image", "inspect", image]).stdout(Stdio::null()).stderr(Stdio::null());
        if look.status().await.is_ok_and(|status| status.success()) {
            return Ok(engine);
        }
    }
    anyhow::bail!("neither {} has an image {image}; `make images` builds it", ENGINES.join(" nor "))
}

/// Writes all files of a container to a directory.
async fn export(engine: &str, container: &str, tree: &Path) -> Result<()> {
    let mut export = Command::new(engine)
        .args(["export", container])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {engine}"))?;
    let archive: Stdio =
        export.stdout.take().context("output of the export")?.try_into().context("a pipe")?;
    let unpacked = Command::new("tar")
        .args(["-x", "-C"])
        .arg(tree)
        .stdin(archive)
        .status()
        .await
        .context("start tar")?;
    let exported = export.wait().await.context("wait for the export")?;
    ensure!(
        exported.success() && unpacked.success(),
        "{engine} export ended with {exported}, tar with {unpacked}"
    );
    Ok(())
}

async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().await.with_context(|| format!("start {program}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), told.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
