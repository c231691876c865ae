//! Where the nodes live: on this machine when its kernel has VRF, else in a virtual machine. Starts the node side there
//! and stops it.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use tokio::process::{Child, Command};

use crate::{
    calico::real::RealConfd, chart::Rights, nodes::client::Nodes, paths, release::Release, step, wait,
};

mod disk;
pub mod image;
mod router_image;
pub mod vm;

/// Name of Kubernetes' program that gives Services their addresses.
pub const KUBE_PROXY: &str = "kube-proxy";

/// Names the container image whose root file system the routers are to run in: what is shipped, and its FRR.
const ROUTER_IMAGE: &str = "ROUTER_IMAGE";

/// Where programs of ours are found on the node side.
#[derive(Clone, Debug)]
pub struct Programs {
    this: Build,
    /// Those of the release before, where they were brought along.
    previous: Option<Build>,
    /// Root file system of the routers, where it is another one than the node side's.
    router_root: Option<PathBuf>,
}

/// One release's.
#[derive(Clone, Debug)]
struct Build {
    folder: PathBuf,
    /// What its chart lets its containers do.
    rights: Rights,
}

impl Build {
    fn new(release: Release, folder: PathBuf) -> Result<Self> {
        Ok(Self { folder, rights: Rights::of_release(release)? })
    }
}

impl Programs {
    /// By their folders.
    pub fn new(this: PathBuf, previous: Option<PathBuf>, router_root: Option<PathBuf>) -> Result<Self> {
        let previous = previous.map(|folder| Build::new(Release::Previous, folder)).transpose()?;
        Ok(Self { this: Build::new(Release::This, this)?, previous, router_root })
    }

    /// Path of a program on the node side.
    pub fn path(&self, name: &str) -> String {
        self.this.folder.join(name).to_string_lossy().into_owned()
    }

    /// What starts a release's router, before its arguments; as a container of the chart where one is named.
    pub fn router(&self, release: Release, container: Option<&str>) -> Result<Vec<String>> {
        const PROGRAM: &str = "calico-vni-router";
        let build = match release {
            Release::This => &self.this,
            Release::Previous => self.previous.as_ref().context("the lab was begun without that release")?,
        };
        let confine = container.map_or(Ok(Vec::new()), |name| build.rights.confine(name))?;
        let (enter, folder) = match &self.router_root {
            Some(root) if release == Release::This => {
                (vec!["chroot".to_owned(), root.to_string_lossy().into_owned()], Path::new("/usr/local/bin"))
            }
            _ => (Vec::new(), build.folder.as_path()),
        };
        Ok([enter, confine, vec![folder.join(PROGRAM).to_string_lossy().into_owned()]].concat())
    }
}

/// Which of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On this machine.
    Native,
    /// In a virtual machine.
    Vm,
}

impl Mode {
    /// `LAB_MODE` decides where it is set, else the kernel.
    pub async fn choose() -> Result<Self> {
        match env::var("LAB_MODE").as_deref() {
            Ok("native") => Ok(Self::Native),
            Ok("vm") => Ok(Self::Vm),
            Ok(other) => bail!("LAB_MODE is `{other}`; it can be `native` or `vm`"),
            Err(_) => Ok(if kernel_has_vrf().await? { Self::Native } else { Self::Vm }),
        }
    }
}

/// Tries in a namespace that ends with the try.
pub async fn kernel_has_vrf() -> Result<bool> {
    // Fails where the module is built in or absent; what counts is the device.
    drop(Command::new("modprobe").arg("vrf").stdout(Stdio::null()).stderr(Stdio::null()).status().await);
    let argv = ["--net", "ip", "link", "add", "lab-try", "type", "vrf", "table", "10"];
    let status: ExitStatus = Command::new("unshare")
        .args(argv)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .context("start unshare (package util-linux)")?;
    Ok(status.success())
}

/// The running place with a connection to its node side. Dropping it ends the place with all that runs there.
pub struct Site {
    /// Which way it is.
    pub mode: Mode,
    /// Whether programs there run as fast as on this machine: not under emulation, where bounds on time mean nothing.
    pub real_processor: bool,
    /// The node side.
    pub nodes: Nodes,
    /// Where our programs are there.
    pub programs: Programs,
    /// Kubernetes' kube-proxy there.
    pub kube_proxy: String,
    /// Calico's own confd there, where the environment names one.
    pub confd: Option<RealConfd>,
    /// The address by which the node side reaches this machine's loopback.
    pub outside: IpAddr,
    /// Where the node side listens.
    pub address: SocketAddr,
    child: Child,
}

impl Site {
    /// Starts the node side; its logs and disks go below `directory`. Programs of `release` are there too.
    pub async fn start(mode: Mode, directory: &Path, release: Release) -> Result<Self> {
        match mode {
            Mode::Native => native(directory, release).await,
            Mode::Vm => vm::start(directory, release).await,
        }
    }

    /// Ends it and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        self.child.start_kill().context("end the node side")?;
        self.child.wait().await.context("wait for the node side's end")?;
        Ok(())
    }
}

async fn native(directory: &Path, release: Release) -> Result<Site> {
    let previous = (release == Release::Previous).then(|| release.programs()).transpose()?;
    let programs = Programs::new(Release::This.programs()?, previous, None)?;
    let lab = programs.path("lab");
    let address_file = directory.join("nodes.address");
    let log = std::fs::File::create(directory.join("nodes.log")).context("log of the node side")?;
    // The process namespace ends with its first process, and takes along whatever the nodes have started.
    let mut child = dies_with_us("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(&lab)
        .args(["nodes", "--listen", "127.0.0.1:0", "--exit-with-owner", "--private", "--address-file"])
        .arg(&address_file)
        .stdin(Stdio::null())
        .stderr(log.try_clone().context("share the log")?)
        .stdout(log)
        .kill_on_drop(true)
        .spawn()
        .context("start unshare (package util-linux)")?;
    let look = async || {
        alive(&mut child, directory, "nodes.log")?;
        let text = std::fs::read_to_string(&address_file).context("the node side has not listened yet")?;
        let address: SocketAddr = text.trim().parse().context("address of the node side")?;
        Ok((address, Nodes::connect(address).await?))
    };
    let (address, nodes) = wait::until("the node side to answer", Duration::from_secs(20), look).await?;
    nodes.own().await?;
    step!("node side ready on this machine");
    let outside = Ipv4Addr::LOCALHOST.into();
    let confd = RealConfd::from_env().map_err(Error::msg)?;
    ensure!(
        env::var_os(ROUTER_IMAGE).is_none(),
        "{ROUTER_IMAGE} wants a virtual machine: set LAB_MODE=vm too"
    );
    let kube_proxy = paths::kube()?.join(KUBE_PROXY).to_string_lossy().into_owned();
    Ok(Site {
        mode: Mode::Native,
        real_processor: true,
        nodes,
        programs,
        kube_proxy,
        confd,
        outside,
        address,
        child,
    })
}

/// A command for a program that the kernel kills when the lab's process goes, however that goes (prctl(2),
/// PR_SET_PDEATHSIG). Dropping a child does it in all cases but the lab's own death by SIGKILL.
pub fn dies_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Fails for good when the process has ended.
fn alive(child: &mut Child, directory: &Path, log: &str) -> Result<()> {
    let Some(status) = child.try_wait().context("state of a process")? else { return Ok(()) };
    let path = directory.join(log);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let tail: Vec<&str> = text.lines().rev().take(8).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(wait::hopeless(anyhow!("it ended with {status}; {} ends with:\n{}", path.display(), tail.join("\n"))))
}

/// TCP ports of the loopback that nobody uses at this moment, all different.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held until the last is had, or the kernel may give one twice.
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        *port = listener.local_addr().context("address of a listener")?.port();
        held.push(listener);
    }
    Ok(ports)
}
