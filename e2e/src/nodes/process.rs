//! Programs on the node side: run to their end, or kept under a name.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{io::AsyncWriteExt as _, process, runtime::Handle, sync::watch, time::timeout};

use super::{
    LOG_DIR, netns,
    protocol::{Command, Output, ProcessState},
};

/// Runs a program to its end, or kills it when its time is over.
pub async fn exec(command: Command) -> Result<Output> {
    let limit = Duration::from_millis(command.timeout_ms);
    let text = command.argv.join(" ");
    let stdin = command.stdin.clone();
    let mut child = start(command, |c| {
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(())
    })
    .await?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its input closes the pipe; its exit code says whether that is a fault.
        drop(pipe.write_all(stdin.as_bytes()).await);
    }
    let output = timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| anyhow!("`{text}` did not end within {} ms", limit.as_millis()))?
        .with_context(|| format!("wait for `{text}`"))?;
    Ok(Output {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Processes that stay, by name.
#[derive(Default)]
pub struct Processes(Mutex<BTreeMap<String, Entry>>);

struct Entry {
    pid: u32,
    ended: watch::Receiver<Option<i32>>,
}

impl Processes {
    /// Starts a program in a process group of its own, its output appended to `NAME.log`.
    pub async fn spawn(&self, name: &str, command: Command) -> Result<u32> {
        if self.lock().get(name).is_some_and(|e| e.ended.borrow().is_none()) {
            bail!("a process named {name} runs already");
        }
        let log = format!("{LOG_DIR}/{name}.log");
        let mut child = start(command, move |c| {
            fs::create_dir_all(LOG_DIR).context("make the directory for logs")?;
            let out = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| format!("open {log}"))?;
            let err = out.try_clone().context("share the log")?;
            c.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
            Ok(())
        })
        .await?;
        let pid = child.id().context("the process ended before it had an id")?;
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.map_or(-1, code);
            sender.send_replace(Some(status));
        });
        self.lock().insert(name.to_owned(), Entry { pid, ended });
        Ok(pid)
    }

    /// Sends a signal to a process that runs.
    pub fn signal(&self, name: &str, signal: i32) -> Result<()> {
        let signal = Signal::try_from(signal).with_context(|| format!("{signal} is no signal"))?;
        let processes = self.lock();
        let entry = processes.get(name).with_context(|| format!("no process is named {name}"))?;
        if let Some(code) = *entry.ended.borrow() {
            bail!("the process {name} has ended with {code}");
        }
        kill(pid(entry.pid), signal).with_context(|| format!("signal {signal} to {name}"))
    }

    /// Waits for the end and tells the exit code.
    pub async fn wait(&self, name: &str) -> Result<i32> {
        let mut ended =
            self.lock().get(name).with_context(|| format!("no process is named {name}"))?.ended.clone();
        let state = ended.wait_for(Option::is_some).await.context("the process was lost")?;
        state.context("the process has no exit code")
    }

    /// Kills the process with its group, if there is one, and forgets it.
    pub async fn kill(&self, name: &str) -> Result<()> {
        let Some(entry) = self.lock().remove(name) else { return Ok(()) };
        let mut ended = entry.ended;
        if ended.borrow().is_none() {
            match killpg(pid(entry.pid), Signal::SIGKILL) {
                // It ended by itself in this moment.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("kill {name}")),
            }
            ended.wait_for(Option::is_some).await.context("the process was lost")?;
        }
        Ok(())
    }

    /// State of every process that was not forgotten.
    pub fn states(&self) -> BTreeMap<String, ProcessState> {
        let state = |e: &Entry| ProcessState { pid: e.pid, ended: *e.ended.borrow() };
        self.lock().iter().map(|(name, entry)| (name.clone(), state(entry))).collect()
    }

    /// Kills all that runs; for the server's own end.
    pub fn kill_all(&self) {
        for entry in self.lock().values().filter(|e| e.ended.borrow().is_none()) {
            // One that has ended in this moment is no fault.
            let _ = killpg(pid(entry.pid), Signal::SIGKILL);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().expect("no thread panics while it holds the table of processes")
    }
}

/// Starts the program from a thread inside its namespace, since a child inherits its parent thread's.
async fn start<F>(command: Command, prepare: F) -> Result<process::Child>
where
    F: FnOnce(&mut process::Command) -> Result<()> + Send + 'static,
{
    let runtime = Handle::current();
    let netns = command.netns.clone();
    netns::within(netns.as_deref(), move || {
        let _entered = runtime.enter();
        let (program, args) = command.argv.split_first().context("a command needs a program")?;
        let mut child = process::Command::new(program);
        child.args(args).envs(command.env);
        prepare(&mut child)?;
        child.spawn().with_context(|| format!("start {program}"))
    })
    .await
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("a process id fits"))
}
