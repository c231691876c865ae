//! A router's daemons in a network namespace of the test's own, run by the supervisor as it is shipped, and gone when the
//! test is over.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use calico_vni_proto::model::NodeConfig;
use calico_vni_router::{
    frr::{Config, Daemon, Driver, Observed, Op, OpResult, SessionState, Vty, diff, render},
    netns::Netns,
    supervisor::RUN_DIR,
};

use super::PATIENCE;

/// A set of daemons in a namespace, all of it gone when it is dropped.
pub struct Router {
    pub name: String,
    /// None until it is started.
    pub supervisor: Option<Child>,
}

impl Router {
    /// Its namespace, where nothing runs yet. `name` tells the sets of one test run apart; the process id tells the
    /// runs apart.
    pub fn new(name: &str, vtep: Ipv4Addr) -> Self {
        let name = format!("cvt{}{name}", std::process::id());
        let netns = netns(&name);
        Netns::create(&netns).expect("the test needs root");
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{vtep}/32"), "dev", "lo"]);
        Self { name, supervisor: None }
    }

    /// Starts the daemons. The links are there by then: zebra of FRR 8.4 hears of links and of addresses on two
    /// sockets, and forgets the address of a link of which it has not heard yet.
    pub fn start(mut self, initial: Option<&str>) -> Self {
        let file = initial.map(|text| {
            let file = std::env::temp_dir().join(format!("{}.conf", self.name));
            fs::write(&file, text).unwrap();
            file
        });
        self.supervisor = Some(supervise(&self.name, file.as_deref()).spawn().unwrap());
        self
    }

    pub fn supervisor(&mut self) -> &mut Child {
        self.supervisor.as_mut().expect("it was started")
    }

    /// What the supervisors and the daemons of this name have said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(log(&self.name)).unwrap_or_default()
    }

    /// A veth between two routers, its addresses those of a /31 (RFC 3021).
    pub fn link(&self, other: &Router, subnet: u8) {
        let device = format!("up{subnet}");
        let (near, far) = (&self.name, &other.name);
        ip(&["link", "add", &device, "netns", near, "type", "veth", "peer", "name", &device, "netns", far]);
        for (router, host) in [(self, 0), (other, 1)] {
            ip(&[
                "-n",
                &router.name,
                "addr",
                "add",
                &format!("192.0.2.{}/31", subnet * 2 + host),
                "dev",
                &device,
            ]);
            ip(&["-n", &router.name, "link", "set", &device, "up"]);
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        let run_dir = Path::new(RUN_DIR).join(&self.name);
        match other_root() {
            None => run_dir,
            // There `/var/run` is a link to `/run` of the root that is not this one.
            Some(root) => root.join("run/frr").join(&self.name),
        }
    }

    pub fn driver(&self) -> Driver {
        Driver::new(self.state_dir())
    }

    /// Everything that FRR has, once all its daemons answer.
    pub async fn observed(&self) -> Observed {
        let driver = self.driver();
        until("FRR answers", async || driver.observe().await.map_err(|e| e.to_string())).await
    }

    pub async fn desired(&self, node: &NodeConfig) -> Config {
        render(node, self.observed().await.version)
    }

    pub async fn plan(&self, node: &NodeConfig) -> Vec<Op> {
        let observed = self.observed().await;
        diff(&render(node, observed.version), &observed)
    }

    pub async fn converge(&self, node: &NodeConfig) -> Vec<OpResult> {
        self.driver().apply(&self.plan(node).await).await.unwrap()
    }

    pub async fn established(&self, peer: &str) -> SessionState {
        let peer: std::net::IpAddr = peer.parse().unwrap();
        until(&format!("session with {peer}"), async || {
            let sessions = self.driver().sessions().await.map_err(|e| e.to_string())?;
            let session = sessions.iter().find(|s| s.vrf.is_none() && s.peer == peer && s.established);
            session.cloned().ok_or_else(|| format!("{sessions:?}"))
        })
        .await
    }

    pub async fn ask(&self, daemon: Daemon, command: &str) -> String {
        Vty::connect(&self.driver().socket(daemon)).await.unwrap().ask(command).await.unwrap()
    }

    pub fn pid(&self, daemon: Daemon) -> i32 {
        let file = self.state_dir().join(format!("{daemon}.pid"));
        fs::read_to_string(&file).unwrap().trim().parse().unwrap()
    }

    pub fn kernel_routes(&self) -> String {
        let output =
            Command::new("ip").args(["-n", &self.name, "route", "show", "proto", "bgp"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.name, self.log());
        }
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.kill().ok();
            supervisor.wait().ok();
        }
        for daemon in [Daemon::Zebra, Daemon::Mgmtd, Daemon::Bgpd] {
            let file = self.state_dir().join(format!("{daemon}.pid"));
            let Ok(pid) = fs::read_to_string(file) else { continue };
            if is_alive(&self.name, pid.trim()) {
                Command::new("kill").args(["-9", pid.trim()]).status().ok();
            }
        }
        fs::remove_dir_all(self.state_dir()).ok();
        fs::remove_file(std::env::temp_dir().join(format!("{}.conf", self.name))).ok();
        fs::remove_file(log(&self.name)).ok();
        Netns::remove(&netns(&self.name)).ok();
    }
}

pub fn supervise(name: &str, initial: Option<&Path>) -> Command {
    let binary = env!("CARGO_BIN_EXE_calico-vni-router");
    let mut command = match other_root() {
        None => Command::new(binary),
        Some(root) => {
            // A mount namespace of its own, so that nothing stays mounted.
            let script = r#"
                root=$1 binary=$2; shift 2
                mkdir -p "$root/run/netns"; touch "$root/run/calico-vni-router"
                for dir in /proc /dev /run/netns /tmp; do mount --rbind "$dir" "$root$dir"; done
                mount --bind "$binary" "$root/run/calico-vni-router"
                exec chroot "$root" /run/calico-vni-router "$@""#;
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-ec", script, "sh"]).arg(root).arg(binary);
            command
        }
    };
    command.args(["frr", "--pathspace", name, "--router-netns"]).arg(netns(name));
    if let Some(file) = initial {
        command.arg("--initial").arg(file);
    }
    let log = fs::File::options().create(true).append(true).open(log(name)).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

pub fn log(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}.log"))
}

pub fn other_root() -> Option<PathBuf> {
    std::env::var_os("CALICO_VNI_FRR_ROOT").map(PathBuf::from)
}

pub fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

pub fn is_alive(name: &str, pid: &str) -> bool {
    let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.split('\0').any(|word| word == name)
}

pub fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {}", args.join(" "));
}

/// Asks again until there is an answer, and says at the deadline what was seen last.
pub async fn until<T>(awaited: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => panic!("awaited: {awaited}; seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
