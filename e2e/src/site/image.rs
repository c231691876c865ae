//! The virtual machine's disk and kernel: built once by `vm/image.sh`, kept below `target/lab` under a hash of what they
//! are made from.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{paths, step};

/// What the image is made from; a change in any of them makes another image.
const SOURCES: [(&str, &str); 3] = [
    ("image.sh", include_str!("../../vm/image.sh")),
    ("init", include_str!("../../vm/init")),
    ("initramfs-init", include_str!("../../vm/initramfs-init")),
];

/// The distribution's release that gives kernel and daemons, whatever this machine runs.
const SUITE: &str = "bookworm";

const MIRROR: &str = "http://deb.debian.org/debian";

/// A finished image.
pub struct Image {
    /// Linux kernel.
    pub kernel: PathBuf,
    /// Initramfs that goes on to the disk.
    pub initrd: PathBuf,
    /// Root file system.
    pub disk: PathBuf,
    /// Its C library, as `getconf GNU_LIBC_VERSION` would tell it.
    pub glibc: String,
}

/// Finds the image or builds it. `LAB_SUITE` and `LAB_MIRROR` choose another Debian release or mirror.
pub async fn find_or_build() -> Result<Image> {
    let suite = env::var("LAB_SUITE").unwrap_or_else(|_| SUITE.to_owned());
    let mirror = env::var("LAB_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
    let directory = paths::target("lab")?.join(format!("image-{}", hash(&suite)));
    if !directory.join("complete").exists() {
        build(&directory, &suite, &mirror).await?;
    }
    let glibc = directory.join("glibc");
    Ok(Image {
        glibc: fs::read_to_string(&glibc).with_context(|| format!("read {}", glibc.display()))?,
        kernel: directory.join("vmlinuz"),
        initrd: directory.join("initrd.gz"),
        disk: directory.join("root.ext4"),
    })
}

fn hash(suite: &str) -> String {
    let mut hasher = Sha256::new();
    for (name, text) in SOURCES {
        hasher.update(format!("{name}\0{text}\0"));
    }
    hasher.update(suite);
    hex::encode(&hasher.finalize()[..6])
}

/// Removes images whose builders were interrupted.
fn remove_abandoned(images: &Path) -> Result<()> {
    for entry in fs::read_dir(images).with_context(|| format!("read {}", images.display()))? {
        let path = entry.context("an entry of the directory of images")?.path();
        let builder = path.extension().and_then(|e| e.to_str()?.strip_prefix("new-")?.parse::<u32>().ok());
        if builder.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

async fn build(directory: &Path, suite: &str, mirror: &str) -> Result<()> {
    step!("building the virtual machine's image once, from Debian {suite} at {mirror} (about a minute)");
    // Built aside and renamed, so that an image that was interrupted is never taken for one.
    let aside = directory.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&aside).with_context(|| format!("make {}", aside.display()))?;
    remove_abandoned(directory.parent().context("directory of images")?)?;
    let script = paths::crate_root().join("vm/image.sh");
    let mut child = Command::new(&script)
        .arg(&aside)
        .args([suite, mirror])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", script.display()))?;
    let mut lines = BufReader::new(child.stderr.take().context("output of the build")?).lines();
    let mut log = String::new();
    while let Some(line) = lines.next_line().await.context("output of the build")? {
        if let Some(progress) = line.strip_prefix("I: ").or_else(|| line.strip_prefix("image: ")) {
            step!("  {progress}");
        }
        log.push_str(&line);
        log.push('\n');
    }
    let status = child.wait().await.context("wait for the build")?;
    if !status.success() {
        let _ = fs::remove_dir_all(&aside);
        bail!("{} ended with {status} (is mmdebstrap installed? `make deps`):\n{log}", script.display());
    }
    fs::write(aside.join("complete"), log).context("mark the image as complete")?;
    match fs::rename(&aside, directory) {
        // Another run was faster; its image is the same.
        Err(_) if directory.join("complete").exists() => {
            fs::remove_dir_all(&aside).context("remove a second image")
        }
        result => result.with_context(|| format!("put {} in place", directory.display())),
    }
}
