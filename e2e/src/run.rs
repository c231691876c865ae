//! A run's directory below `target/lab`, and the note in it by which other commands find a lab that is up.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    api::{ApiSide, User},
    nodes::{client::Nodes, protocol::Command},
    paths,
    site::Site,
    step, wait,
};

/// The note's name.
const NOTE: &str = "lab.json";

/// Directories of runs that ended, which are kept since they may hold what explains a failure.
const KEPT: usize = 4;

/// Where a lab that is up is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// Its process.
    pub pid: u32,
    /// Its node side.
    pub nodes: SocketAddr,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
}

/// Makes this run's directory, and removes those of old runs but the newest few.
pub fn directory() -> Result<PathBuf> {
    let all = paths::target("lab")?;
    let mut ended = Vec::new();
    for entry in fs::read_dir(&all).with_context(|| format!("read {}", all.display()))? {
        let path = entry.context("an entry of the lab's directory")?.path();
        if owner(&path).is_some_and(|pid| !is_lab(pid)) {
            let age = path.metadata().and_then(|m| m.modified()).context("age of a run")?;
            ended.push((age, path));
        }
    }
    ended.sort();
    ended.truncate(ended.len().saturating_sub(KEPT));
    for (_, path) in ended {
        // Another run may remove it in this moment.
        drop(fs::remove_dir_all(path));
    }
    let directory = all.join(format!("run-{}", process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// Writes down how this run's lab is reached.
pub fn record(directory: &Path, site: &Site, api: &ApiSide) -> Result<()> {
    let note = Note { pid: process::id(), nodes: site.address, kubeconfig: api.kubeconfig(User::Admin) };
    let text = serde_json::to_string_pretty(&note).context("write a note")?;
    fs::write(directory.join(NOTE), text).context("write the note about this run")
}

/// The number in `run-NUMBER`.
fn owner(directory: &Path) -> Option<u32> {
    directory.file_name()?.to_str()?.strip_prefix("run-")?.parse().ok()
}

/// Whether that process is a lab: numbers are used again.
fn is_lab(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        let program = line.split(|&b| b == 0).next().unwrap_or_default();
        Path::new(&*String::from_utf8_lossy(program)).file_name().is_some_and(|name| name == "lab")
    })
}

/// Labs that are up.
pub fn running() -> Result<Vec<Note>> {
    let all = paths::target("lab")?;
    let mut notes = Vec::new();
    for entry in fs::read_dir(&all).with_context(|| format!("read {}", all.display()))? {
        let path = entry.context("an entry of the lab's directory")?.path();
        let Some(pid) = owner(&path).filter(|&pid| is_lab(pid)) else { continue };
        let Ok(text) = fs::read_to_string(path.join(NOTE)) else { continue };
        let note: Note =
            serde_json::from_str(&text).with_context(|| format!("note in {}", path.display()))?;
        if note.pid == pid {
            notes.push(note);
        }
    }
    Ok(notes)
}

/// Ends every lab of this checkout that is up, and waits for the end.
pub async fn down() -> Result<()> {
    let notes = running()?;
    if notes.is_empty() {
        step!("no lab is up");
    }
    for note in notes {
        let pid = Pid::from_raw(i32::try_from(note.pid).context("a process id")?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("end the lab with process id {pid}"))?;
        wait::until("the lab to end", Duration::from_secs(30), async || {
            ensure!(!is_lab(note.pid), "process {pid} runs");
            Ok(())
        })
        .await?;
        step!("the lab with process id {pid} has ended");
    }
    Ok(())
}

/// Runs a program in a namespace of the lab that is up, prints what it prints, and returns its exit code.
pub async fn exec(netns: String, argv: Vec<String>) -> Result<u8> {
    let notes = running()?;
    let [note] = notes.as_slice() else {
        bail!("{} labs are up; this needs one (`lab up` starts one, `lab down` ends all)", notes.len());
    };
    let nodes = Nodes::connect(note.nodes).await?;
    let command = Command { netns: Some(netns), argv, timeout_ms: 60_000, ..Command::default() };
    let output = nodes.exec(command).await?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    Ok(u8::try_from(output.code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_known_by_its_process() {
        assert_eq!(owner(Path::new("/x/run-42")), Some(42));
        assert_eq!(owner(Path::new("/x/run-")), None);
        assert_eq!(owner(Path::new("/x/image-42")), None);
        assert!(!is_lab(process::id()), "a test is no lab");
    }
}
