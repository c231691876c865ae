//! Disks of the virtual machine, by mke2fs.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// Makes a file system of what is in a directory, so many octets, which is removed then.
pub async fn file_system(tree: &Path, disk: &Path, size: u64) -> Result<()> {
    let megabytes = size / (1 << 20) * 11 / 10 + 8;
    let status = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
        .stdout(Stdio::null())
        .args([tree, disk])
        .arg(format!("{megabytes}M"))
        .status()
        .await
        .context("start mke2fs (package e2fsprogs)")?;
    ensure!(status.success(), "mke2fs ended with {status}");
    fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))
}
