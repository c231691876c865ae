//! Runs FRR's daemons inside the router's network namespace, keeps them running, and stops them the one way that loses
//! no packet.
//!
//! zebra is killed first and outright. Asked politely it takes its routes out of the kernel, and so does bgpd; and a
//! zebra that sees bgpd go deletes every remote router's MAC at once. Killed first, it leaves all of it standing, and
//! the next zebra adopts it.
//!
//! Touches the state directory `/var/run/frr/<pathspace>` and the processes it started, and takes the namespace's name away
//! where it is the last to leave a clean node ([`crate::leaving`]).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown},
};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    frr::{self, Daemon, Driver, Version, VersionError, Vty},
    leaving::{LeavingError, Shared},
    lock::{Lock, LockError, SUPERVISOR},
    netns::{Netns, NetnsError},
    waiting::wait,
};

/// Where FRR is built to keep its sockets, in Debian and in FRR's own images.
pub const RUN_DIR: &str = "/var/run/frr";
/// Whom the daemons run as; their default too.
const USER: &str = "frr";

/// Seconds for which a new zebra keeps the routes of the one before. Attached to its option: from FRR 10 on a detached
/// number is not read.
const ADOPT: &str = "-K60";

/// How long a daemon may take until it answers.
const START: Duration = Duration::from_secs(30);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(20);
/// Waiting before a restart: none at first, then twice as long after each short life.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A life that is not short.
const LONG_LIFE: Duration = Duration::from_secs(30);

/// How the daemons are run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// File of the network namespace to run in, such as /run/netns/calico-vni; the present one when not given.
    #[arg(long, value_name = "FILE")]
    pub router_netns: Option<PathBuf>,
    /// Name of this set of daemons: their sockets, pid files and configuration are in /var/run/frr/NAME.
    #[arg(long, value_name = "NAME", default_value = "calico-vni")]
    pub pathspace: String,
    /// Directory of FRR's daemons.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/frr")]
    pub daemons: PathBuf,
    /// Configuration to start with where there is none from before, as vtysh prints it.
    #[arg(long, value_name = "FILE")]
    pub initial: Option<PathBuf>,
}

impl Options {
    /// Where the sockets are, for [`Driver::new`].
    pub fn state_dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.pathspace)
    }
}

/// Why FRR could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that FRR does not take.
    #[error("pathspace `{0}`: use letters, digits, `-` and `_` alone")]
    Pathspace(String),
    /// A file, directory or executable.
    #[error("cannot {what} {}: {source}", path.display())]
    Path {
        /// The verb.
        what: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user is missing.
    #[error("there is no user `{USER}`, which FRR's daemons run as; FRR's package makes it")]
    NoUser,
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The state directory's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The end, on a clean node.
    #[error(transparent)]
    Leaving(#[from] LeavingError),
    /// The release.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A daemon that ended instead of answering.
    #[error("{daemon} ended at its start ({status}); its own messages above say why")]
    Died {
        /// The daemon.
        daemon: Daemon,
        /// How it ended.
        status: ExitStatus,
    },
    /// A daemon that runs and does not answer.
    #[error("{daemon} does not answer on {} after {} s", socket.display(), START.as_secs())]
    Silent {
        /// The daemon.
        daemon: Daemon,
        /// Its socket.
        socket: PathBuf,
    },
}

/// Runs the daemons until SIGTERM or SIGINT, or until one cannot be started. Waits for another supervisor that has the state
/// directory: a pod may be there before the one that it replaces has gone.
pub async fn run(options: Options) -> Result<(), Error> {
    let state_dir = options.state_dir();
    let ends = |kind| {
        signal(kind).map_err(|source| Error::Path {
            what: "listen for signals of",
            path: "itself".into(),
            source,
        })
    };
    let (mut terminate, mut interrupt) = (ends(SignalKind::terminate())?, ends(SignalKind::interrupt())?);
    let mut asked = pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let lock = tokio::select! {
        lock = prepare(&options, &state_dir) => lock?,
        () = &mut asked => return Ok(()),
    };
    let version = version(&options.daemons).await?;
    kill_leftovers(&options.pathspace, &state_dir).await;
    let netns = options.router_netns.as_deref().map(Netns::open).transpose()?;
    let set = Arc::new(Set { options, state_dir, netns });

    let mut kept = Vec::new();
    let reason = tokio::select! {
        outcome = start_all(&set, version, &mut kept) => outcome,
        () = asked => Ok(()),
    };
    if reason.is_ok() {
        info!(%version, "stopping FRR, zebra first");
    }
    stop(kept).await;
    drop(lock);
    reason?;
    if let Some(netns) = &set.options.router_netns
        && (Shared { frr_dir: &set.state_dir, netns }).frr_is_done()?
    {
        info!("the node is clean: the name of the router's namespace was taken away");
    }
    Ok(())
}

/// What all daemons of one router share.
struct Set {
    options: Options,
    state_dir: PathBuf,
    netns: Option<Netns>,
}

/// A daemon and the task that keeps it running.
struct Kept {
    daemon: Daemon,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts each when the one before answers, then waits for ever.
async fn start_all(set: &Arc<Set>, version: Version, kept: &mut Vec<Kept>) -> Result<(), Error> {
    for daemon in version.daemons() {
        let (tell, started) = oneshot::channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(Arc::clone(set), *daemon, stop.clone(), tell));
        kept.push(Kept { daemon: *daemon, stop, task });
        if let Ok(outcome) = started.await {
            outcome?;
        }
    }
    info!(%version, state_dir = %set.state_dir.display(), "FRR runs");
    std::future::pending().await
}

/// Kills zebra, and when it is gone, the others.
async fn stop(kept: Vec<Kept>) {
    let (zebra, rest): (Vec<_>, Vec<_>) = kept.into_iter().partition(|k| k.daemon == Daemon::Zebra);
    for group in [zebra, rest] {
        for kept in &group {
            kept.stop.cancel();
        }
        for Kept { daemon, task, .. } in group {
            if let Err(error) = task.await {
                error!(%daemon, %error, "its keeper failed");
            }
        }
    }
}

/// Runs one daemon, again and again, until told to stop. The first start may fail; a later one is tried for ever.
async fn keep(
    set: Arc<Set>,
    daemon: Daemon,
    stop: CancellationToken,
    tell: oneshot::Sender<Result<(), Error>>,
) {
    let mut tell = Some(tell);
    let mut delay = Duration::ZERO;
    loop {
        let born = Instant::now();
        let life = set.live(daemon, &stop, &mut tell).await;
        if stop.is_cancelled() {
            return;
        }
        if let Some(tell) = tell.take() {
            // Nobody listens any more only when all is being stopped.
            tell.send(life.map(|_| ())).ok();
            return;
        }
        delay = if born.elapsed() >= LONG_LIFE { Duration::ZERO } else { delay };
        match life {
            Ok(status) => warn!(%daemon, %status, ?delay, "FRR's daemon ended, starting it again"),
            Err(error) => warn!(%daemon, %error, ?delay, "FRR's daemon does not start, trying again"),
        }
        tokio::select! {
            () = sleep(delay) => {}
            () = stop.cancelled() => return,
        }
        delay = (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
    }
}

impl Set {
    /// One life of a daemon, from its start to its end. Says once that it answers.
    async fn live(
        &self,
        daemon: Daemon,
        stop: &CancellationToken,
        tell: &mut Option<oneshot::Sender<Result<(), Error>>>,
    ) -> Result<ExitStatus, Error> {
        let socket = self.state_dir.join(format!("{daemon}.vty"));
        let mut child = self.spawn(daemon)?;
        info!(%daemon, pid = child.id(), "started");
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            status = child.wait() => Some(status.map(|status| Error::Died { daemon, status })),
            answer = timeout(START, answers(&socket)) => match answer {
                Ok(()) => None,
                Err(_) => Some(Ok(Error::Silent { daemon, socket: socket.clone() })),
            },
        };
        if let Some(outcome) = outcome {
            kill_child(daemon, &mut child).await;
            return Err(outcome.unwrap_or_else(|source| lost(daemon, source)));
        }
        if daemon == Daemon::Mgmtd && !stop.is_cancelled() {
            self.remind().await;
        }
        if !stop.is_cancelled()
            && let Some(tell) = tell.take()
        {
            tell.send(Ok(())).ok();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                kill_child(daemon, &mut child).await;
                info!(%daemon, "killed");
                child.wait().await
            }
            status = child.wait() => status,
        }
        .map_err(|source| lost(daemon, source))
    }

    /// mgmtd takes no option that names its file, and the place where it looks is the same for every pathspace. So it
    /// is told its part, which is in zebra's file, whenever it has started.
    async fn remind(&self) {
        if let Err(error) = Driver::new(self.state_dir.clone()).load_vrfs().await {
            warn!(%error, "mgmtd could not be told its configuration; the agent puts it right");
        }
    }

    /// Starts it inside the namespace, in a process group of its own: a terminal's interrupt is for us alone, since
    /// the daemons must not be asked to end.
    fn spawn(&self, daemon: Daemon) -> Result<Child, Error> {
        let path = self.options.daemons.join(daemon.name());
        let mut command = Command::new(&path);
        // Port 0: no telnet. Our sockets are the only way in.
        command.args(["-N", &self.options.pathspace, "-P", "0"]);
        command.args(["--log", "stdout", "--log-level", "informational"]);
        if daemon != Daemon::Mgmtd {
            command.arg("-f").arg(Driver::file(&self.state_dir, daemon));
        }
        if daemon == Daemon::Zebra {
            command.arg(ADOPT);
        }
        command.stdin(Stdio::null()).process_group(0);
        let runtime = Handle::current();
        let mut spawn = || {
            let _inside = runtime.enter();
            command.spawn()
        };
        let child = match &self.netns {
            Some(netns) => netns.run(spawn)?,
            None => spawn(),
        };
        child.map_err(|source| Error::Path { what: "start", path, source })
    }
}

fn lost(daemon: Daemon, source: io::Error) -> Error {
    Error::Path { what: "wait for", path: daemon.name().into(), source }
}

async fn kill_child(daemon: Daemon, child: &mut Child) {
    if let Err(error) = child.kill().await {
        warn!(%daemon, %error, "could not be killed");
    }
}

async fn answers(socket: &Path) {
    while Vty::connect(socket).await.is_err() {
        sleep(LOOK).await;
    }
}

/// Makes the state directory and the files in it, and takes it for this process alone.
async fn prepare(options: &Options, state_dir: &Path) -> Result<Lock, Error> {
    let name = &options.pathspace;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(Error::Pathspace(name.clone()));
    }
    let user = User::from_name(USER).ok().flatten().ok_or(Error::NoUser)?;
    for dir in [Path::new(RUN_DIR), state_dir] {
        on(dir, "make", |dir| {
            fs::create_dir_all(dir)?;
            chown(dir, Some(user.uid), Some(user.gid)).map_err(io::Error::from)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        })?;
    }
    let lock = take(&state_dir.join(SUPERVISOR)).await?;
    let initial = match &options.initial {
        Some(path) => frr::split(&on(path, "read", |file| fs::read_to_string(file))?),
        None => BTreeMap::default(),
    };
    for daemon in [Daemon::Zebra, Daemon::Bgpd] {
        let path = Driver::file(state_dir, daemon);
        if !path.exists() {
            on(&path, "write", |path| {
                // It may hold passwords.
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                chown(path, Some(user.uid), Some(user.gid)).map_err(io::Error::from)?;
                fs::write(path, initial.get(&daemon).map_or("", String::as_str))
            })?;
        }
    }
    Ok(lock)
}

/// Takes the lock as soon as nobody has it.
async fn take(path: &Path) -> Result<Lock, LockError> {
    let look = || match Lock::take(path) {
        Ok(lock) => Ok(Ok(lock)),
        Err(LockError::Taken(path)) => Ok(Err(format!(
            "another `calico-vni-router frr` holds {}; waiting until it has ended",
            path.display()
        ))),
        Err(error) => Err(error),
    };
    wait(LOOK, look).await
}

async fn version(daemons: &Path) -> Result<Version, Error> {
    let zebra = daemons.join(Daemon::Zebra.name());
    let output = Command::new(&zebra).arg("--version").output().await;
    let output = output.map_err(|source| Error::Path { what: "start", path: zebra, source })?;
    Ok(String::from_utf8_lossy(&output.stdout).parse()?)
}

/// Daemons of the same pathspace outlive a supervisor that was killed. They are stopped as ours are: zebra first.
async fn kill_leftovers(pathspace: &str, state_dir: &Path) {
    for daemon in [Daemon::Zebra, Daemon::Mgmtd, Daemon::Bgpd] {
        let file = fs::read_to_string(state_dir.join(format!("{daemon}.pid"))).unwrap_or_default();
        let Ok(pid) = file.trim().parse::<i32>() else { continue };
        if !is_ours(pid, daemon, pathspace) {
            continue;
        }
        warn!(%daemon, pid, "left over from an earlier run, killing it");
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            while is_ours(pid, daemon, pathspace) {
                sleep(LOOK).await;
            }
        }
    }
}

/// The number in a pid file may long belong to somebody else.
fn is_ours(pid: i32, daemon: Daemon, pathspace: &str) -> bool {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let executable = words.first().is_some_and(|w| w.ends_with(daemon.name().as_bytes()));
    executable && words.windows(2).any(|w| w[0] == b"-N" && w[1] == pathspace.as_bytes())
}

fn on<T>(path: &Path, what: &'static str, act: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, Error> {
    act(path).map_err(|source| Error::Path { what, path: path.to_owned(), source })
}
