//! The virtual machine: its second disk with our programs, and QEMU.
//!
//! Under emulation every fork costs, so the machine runs the nodes alone; the API side stays outside and is reached as
//! 10.0.2.2, the address that QEMU's user-mode network gives to the outside's loopback.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use super::{
    KUBE_PROXY, Mode, Programs, ROUTER_IMAGE, Site, alive, dies_with_us, disk, free_ports, image,
    router_image,
};
use crate::{calico::real::RealConfd, nodes::client::Nodes, paths, release::Release, step, wait};

/// Programs of ours that run on nodes.
const PROGRAMS: [&str; 2] = ["lab", ROUTER];

/// The node's program of each release.
const ROUTER: &str = "calico-vni-router";

/// Where below those the programs of the release before are.
const PREVIOUS: &str = "previous";

/// Where the machine mounts its second disk; the init script names it too.
const MOUNTED: &str = "/opt/lab";

/// Port of the node side in the machine; the init script names it too.
const NODES_PORT: u16 = 7000;

/// The outside's loopback as the machine sees it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// Builds what is missing and boots.
pub async fn start(directory: &Path, release: Release) -> Result<Site> {
    let image = image::find_or_build().await?;
    let (disk, confd) = programs_disk(directory, &image.glibc, release).await?;
    let router = match env::var(ROUTER_IMAGE) {
        Ok(name) => Some(router_image::disk(directory, &name).await?),
        Err(_) => None,
    };
    let [port] = free_ports()?;
    let console = directory.join("console.log");
    let kvm = kvm_works(&image.kernel).await;
    let mut qemu = dies_with_us("qemu-system-x86_64");
    // `max` under emulation offers more than it can do quickly; Westmere has what the kernel and glibc look for.
    let machine = if kvm { ["kvm", "host"] } else { ["tcg,thread=multi", "Westmere"] };
    qemu.args(["-accel", machine[0], "-cpu", machine[1]])
        .args(["-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", &format!("file:{}", console.display())])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0"])
        // The image stays as it was built: what the machine writes goes to a file that QEMU deletes.
        .args(["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", image.disk.display())])
        .args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", disk.display())])
        .args(["-netdev", &format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:{NODES_PORT}")])
        .args(["-device", "virtio-net-pci,netdev=n0,romfile="])
        .args(["-device", "virtio-rng-pci"])
        .env("TMPDIR", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("qemu.log")).context("log of QEMU")?)
        .kill_on_drop(true);
    if let Some(disk) = &router {
        qemu.args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", disk.display())]);
    }
    let mut child = qemu.spawn().context("start qemu-system-x86_64 (`make deps` installs it)")?;
    step!(
        "booting the virtual machine ({})",
        if kvm { "KVM" } else { "emulated, since KVM does not work here" }
    );
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let look = async || {
        alive(&mut child, directory, "qemu.log")?;
        Nodes::connect(address).await.context("the console so far is in console.log")
    };
    let nodes =
        wait::until("the virtual machine's node side to answer", Duration::from_mins(3), look).await?;
    nodes.own().await?;
    step!("node side ready in the virtual machine");
    let previous = (release == Release::Previous).then(|| Path::new(MOUNTED).join(PREVIOUS));
    let router_root = router.map(|_| PathBuf::from(router_image::MOUNTED));
    let programs = Programs::new(MOUNTED.into(), previous, router_root)?;
    let outside = OUTSIDE.into();
    let kube_proxy = programs.path(KUBE_PROXY);
    Ok(Site {
        mode: Mode::Vm,
        real_processor: kvm,
        nodes,
        programs,
        kube_proxy,
        confd,
        outside,
        address,
        child,
    })
}

/// Whether this kernel runs on KVM as far as its first words. Inside another virtual machine the device may open and the
/// processor start, and yet nothing moves.
async fn kvm_works(kernel: &Path) -> bool {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "512",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args(["-serial", "stdio", "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1", "-kernel"])
    .arg(kernel)
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .kill_on_drop(true);
    let Ok(mut child) = qemu.spawn() else { return false };
    let Some(console) = child.stdout.take() else { return false };
    let first_words = async {
        let mut lines = BufReader::new(console).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            if line.windows(KERNEL_SPEAKS.len()).any(|part| part == KERNEL_SPEAKS) {
                return true;
            }
        }
        false
    };
    timeout(Duration::from_secs(15), first_words).await.unwrap_or(false)
}

/// How every kernel begins.
const KERNEL_SPEAKS: &[u8] = b"Linux version ";

/// Makes the file system with our programs, which the machine mounts at `/opt/lab`.
async fn programs_disk(
    directory: &Path,
    glibc: &str,
    release: Release,
) -> Result<(PathBuf, Option<RealConfd>)> {
    let tree = directory.join("opt-lab");
    let mut size = 0;
    for program in PROGRAMS {
        size += stripped(&Release::This.program(program)?, &tree).await?;
    }
    if release == Release::Previous {
        size += stripped(&release.program(ROUTER)?, &tree.join(PREVIOUS)).await?;
    }
    let kube_proxy = paths::kube()?.join(KUBE_PROXY);
    size += fs::copy(&kube_proxy, tree.join(KUBE_PROXY))
        .with_context(|| format!("copy {}; `make kube` builds it", kube_proxy.display()))?;
    size += c_library(&Release::This.program(PROGRAMS[0])?, glibc, &tree).await?;
    let confd = confd_on_disk(&tree).await?;
    size += confd.as_ref().map_or(0, |(_, size)| *size);
    let disk = directory.join("programs.ext4");
    disk::file_system(&tree, &disk, size).await?;
    Ok((disk, confd.map(|(confd, _)| confd)))
}

/// Copies a program without its symbols, which would be most of the disk though nobody debugs in there, and tells its octets.
async fn stripped(program: &Path, folder: &Path) -> Result<u64> {
    fs::create_dir_all(folder).context("directory for the second disk")?;
    let copy = folder.join(program.file_name().context("a program without a name")?);
    let status = Command::new("strip")
        .arg("-o")
        .args([&copy, program])
        .stderr(Stdio::null())
        .status()
        .await
        .context("start strip")?;
    if !status.success() {
        fs::copy(program, &copy).with_context(|| format!("copy {}", program.display()))?;
    }
    Ok(fs::metadata(&copy).context("size of a program")?.size())
}

/// Puts Calico's own confd on the disk, where the environment names one, and tells where it will be and its octets.
async fn confd_on_disk(tree: &Path) -> Result<Option<(RealConfd, u64)>> {
    let Some(real) = RealConfd::from_env().map_err(Error::msg)? else { return Ok(None) };
    for (from, to) in [(&real.binary, "confd"), (&real.templates, "confd.d")] {
        let status =
            Command::new("cp").arg("-rL").args([from, &tree.join(to)]).status().await.context("start cp")?;
        ensure!(status.success(), "cannot copy {}: cp ended with {status}", from.display());
    }
    let size = fs::metadata(tree.join("confd")).context("size of confd")?.size();
    let mounted = Path::new(MOUNTED);
    Ok(Some((RealConfd { binary: mounted.join("confd"), templates: mounted.join("confd.d") }, size)))
}

/// Puts this machine's C library on the disk too, where it is newer than the image's, and tells its octets. Programs that
/// were linked here need it, and the image's own programs run with it, for glibc is compatible that way.
async fn c_library(program: &Path, glibc: &str, tree: &Path) -> Result<u64> {
    let here = Command::new("getconf").arg("GNU_LIBC_VERSION").output().await.context("start getconf")?;
    let here = String::from_utf8_lossy(&here.stdout).into_owned();
    let version =
        |text: &str| parse_glibc(text).with_context(|| format!("`{}` is no version of glibc", text.trim()));
    if version(&here)? <= version(glibc)? {
        return Ok(0);
    }
    step!(
        "taking this machine's C library along: {} is newer than the image's {}",
        here.trim(),
        glibc.trim()
    );
    let output = Command::new("ldd").arg(program).output().await.context("start ldd")?;
    ensure!(
        output.status.success(),
        "ldd {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let directory = tree.join("libc");
    fs::create_dir_all(&directory).context("directory for the C library")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let loaded: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let home = loaded.iter().find(|p| p.ends_with("/libc.so.6")).and_then(|p| Path::new(p).parent());
    let home = home.with_context(|| format!("ldd names no libc.so.6:\n{text}"))?;
    let mut size = 0;
    // All that belongs together, also what only the image's programs load.
    for name in GLIBC_FILES {
        let from =
            loaded.iter().map(Path::new).find(|p| p.ends_with(name)).map_or(home.join(name), Path::to_owned);
        if from.exists() {
            size +=
                fs::copy(&from, directory.join(name)).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(size)
}

/// Files of glibc, and of the compiler's runtime, which is compatible in the same way.
const GLIBC_FILES: [&str; 12] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libresolv.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "libutil.so.1",
    "libanl.so.1",
    "libnss_files.so.2",
    "libgcc_s.so.1",
];

/// `glibc 2.36`
fn parse_glibc(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(parse_glibc("glibc 2.9\n") < parse_glibc("glibc 2.36\n"));
        assert_eq!(parse_glibc("glibc 2.39.1"), Some((2, 39)));
        assert_eq!(parse_glibc("musl"), None);
    }
}
