//! The API side: a real etcd, kube-apiserver and kube-controller-manager on loopback, and kubectl. Always on this
//! machine, never in the virtual machine.

mod certs;
mod process;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::process::Command;

pub use process::Process;

use crate::{site::free_ports, wait};

/// Where services get their addresses; pods and nodes of the lab have none in it.
const SERVICE_CIDR: &str = "10.96.0.0/16";

/// How long each of the three may take to answer, on a machine that is busy.
const START: Duration = Duration::from_mins(2);

/// Somebody whom the API server knows by a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything.
    Admin,
    /// May do what `deploy/rbac.yaml` grants, and nothing else.
    Controller,
    /// May do what the roles calico-vni-viewer grant, from when they are bound to it, and nothing else.
    Viewer,
}

impl User {
    const ALL: [Self; 3] = [Self::Admin, Self::Controller, Self::Viewer];

    /// Name for RBAC.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            // As in a cluster, since admission policies know the controller by its name.
            Self::Controller => "system:serviceaccount:calico-vni:calico-vni-controller",
            Self::Viewer => "viewer",
        }
    }

    /// Name for files and tokens; a colon would part paths in KUBECONFIG.
    const fn short(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Controller => "controller",
            Self::Viewer => "viewer",
        }
    }

    const fn groups(self) -> &'static str {
        match self {
            Self::Admin => "system:masters",
            Self::Controller | Self::Viewer => "",
        }
    }
}

/// A running API side. Dropping it ends its processes.
pub struct ApiSide {
    dir: PathBuf,
    programs: PathBuf,
    certs: certs::Certs,
    port: u16,
    etcd: Process,
    apiserver: Process,
    controller_manager: Process,
}

impl ApiSide {
    /// Starts all three below `dir`, which is made, and returns when the API server is ready. `programs` is the folder
    /// of their binaries, `target/kube` or `KUBEBUILDER_ASSETS`.
    pub async fn start(dir: &Path, programs: &Path) -> Result<Self> {
        for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"] {
            let path = programs.join(program);
            ensure!(
                path.exists(),
                "{} is missing: run `make kube`, or set KUBEBUILDER_ASSETS",
                path.display()
            );
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let certs = certs::write(dir)?;
        let [etcd_client, etcd_peer, port] = free_ports()?;

        let etcd_url = format!("http://127.0.0.1:{etcd_client}");
        let peer_url = format!("http://127.0.0.1:{etcd_peer}");
        let mut command = Command::new(programs.join("etcd"));
        command
            .args(["--name", "lab", "--log-level", "warn"])
            // The data is thrown away with the lab.
            .arg("--unsafe-no-fsync")
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("lab={peer_url}")]);
        let etcd = Process::start("etcd", &command, dir)?;

        let tokens = dir.join("tokens.csv");
        let mut lines = String::new();
        for user in User::ALL {
            let (name, groups) = (user.name(), user.groups());
            writeln!(lines, "{},{name},{name},\"{groups}\"", certs.token(user))?;
        }
        write_private(&tokens, &lines)?;
        let mut command = Command::new(programs.join("kube-apiserver"));
        command
            .args(["--etcd-servers", &etcd_url])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &port.to_string()])
            // No pod of the lab reaches the API server by its service, so nobody has to list its address.
            .args(["--endpoint-reconciler-type", "none", "--service-cluster-ip-range", SERVICE_CIDR])
            .args(["--authorization-mode", "RBAC", "--allow-privileged"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        for (flag, file) in [
            ("--tls-cert-file", &certs.server_cert),
            ("--tls-private-key-file", &certs.server_key),
            ("--service-account-key-file", &certs.service_account_public),
            ("--service-account-signing-key-file", &certs.service_account_key),
            ("--token-auth-file", &tokens),
        ] {
            command.arg(flag).arg(file);
        }
        let apiserver = Process::start("kube-apiserver", &command, dir)?;

        for user in User::ALL {
            let config = kubeconfig(([127, 0, 0, 1], port).into(), &certs.ca, &certs.token(user), user)?;
            write_private(&kubeconfig_path(dir, user), &config)?;
        }
        let mut command = Command::new(programs.join("kube-controller-manager"));
        command
            .arg("--kubeconfig")
            .arg(kubeconfig_path(dir, User::Admin))
            .args([
                "--controllers",
                "garbage-collector-controller,namespace-controller,serviceaccount-controller",
            ])
            .args(["--leader-elect=false", "--bind-address", "127.0.0.1", "--secure-port", "0"])
            .arg("--service-account-private-key-file")
            .arg(&certs.service_account_key)
            .arg("--root-ca-file")
            .arg(&certs.ca);

        let mut side = Self {
            dir: dir.to_owned(),
            programs: programs.to_owned(),
            certs,
            port,
            etcd,
            apiserver,
            // It gives up when there is no API server, so it is started when there is one.
            controller_manager: Process::none("kube-controller-manager", dir),
        };
        side.ready().await?;
        side.controller_manager = Process::start("kube-controller-manager", &command, dir)?;
        Ok(side)
    }

    async fn ready(&mut self) -> Result<()> {
        let mut kubectl = self.kubectl_command(&["get", "--raw", "/readyz"]);
        let (etcd, apiserver) = (&mut self.etcd, &mut self.apiserver);
        wait::until("kube-apiserver to be ready", START, async || {
            etcd.check().map_err(wait::hopeless)?;
            apiserver.check().map_err(wait::hopeless)?;
            let output = kubectl.output().await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        })
        .await
    }

    /// Stops kube-apiserver where it is (SIGSTOP): whoever asks it gets no answer.
    pub fn pause(&self) -> Result<()> {
        self.apiserver.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.apiserver.signal(Signal::SIGCONT)
    }

    /// Port of kube-apiserver on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of data and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A user's kubeconfig.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        kubeconfig_path(&self.dir, user)
    }

    /// Certificate of the authority that kube-apiserver's was signed by.
    pub fn ca(&self) -> Result<String> {
        fs::read_to_string(&self.certs.ca).with_context(|| format!("cannot read {}", self.certs.ca.display()))
    }

    /// A kubeconfig for somewhere else: by which address the API server is reached there, and where the authority's
    /// certificate is.
    pub fn kubeconfig_by(&self, server: SocketAddr, ca: &str, user: User) -> Result<String> {
        kubeconfig(server, ca.as_ref(), &self.certs.token(user), user)
    }

    /// A client of a user.
    pub async fn client(&self, user: User) -> Result<kube::Client> {
        let config = kube::config::Kubeconfig::read_from(self.kubeconfig(user))?;
        let config =
            kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Runs kubectl as the administrator and returns what it prints; its own words are the error.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_command(args).output().await.context("kubectl does not start")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig(User::Admin)).args(args).kill_on_drop(true);
        command
    }

    /// Fails if one of the three has ended.
    pub fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.apiserver.check()?;
        self.controller_manager.check()
    }
}

fn kubeconfig_path(dir: &Path, user: User) -> PathBuf {
    dir.join(format!("{}.kubeconfig", user.short()))
}

fn kubeconfig(server: SocketAddr, ca: &Path, token: &str, user: User) -> Result<String> {
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": ca,
        } }],
        "users": [{ "name": user.name(), "user": { "token": token } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": user.name() } }],
        "current-context": "lab",
    });
    Ok(serde_yaml::to_string(&value)?)
}

fn write_private(path: &Path, contents: &str) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
