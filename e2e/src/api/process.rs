//! A process of the API side: started with its output in a log file, ended when it is dropped or when the lab dies.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

/// A process, or the place of one that has not been started.
pub struct Process {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts it; its output goes to `DIR/NAME.log`.
    pub fn start(name: &'static str, command: &Command, dir: &Path) -> Result<Self> {
        let mut process = Self::none(name, dir);
        let log = File::options().create(true).append(true).open(&process.log)?;
        // The kernel kills it when the lab's process goes, however that goes (prctl(2), PR_SET_PDEATHSIG).
        let inner = command.as_std();
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        wrapped.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        process.child = Some(wrapped.spawn().with_context(|| format!("{name} does not start"))?);
        Ok(process)
    }

    /// Nothing yet.
    pub fn none(name: &'static str, dir: &Path) -> Self {
        Self { name, log: dir.join(format!("{name}.log")), child: None }
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails if it was started and has ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() else {
            return Ok(());
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        bail!("{} ended ({status}); its log {} ends with:\n{}", self.name, self.log.display(), {
            let mut tail = tail;
            tail.reverse();
            tail.join("\n")
        })
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        child.wait().await?;
        self.child = None;
        Ok(())
    }

    /// Sends it a signal; none to one that was not started or has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(id) = self.child.as_ref().and_then(Child::id) else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(id)?), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }
}
