//! Who takes the name of the router's namespace away when nothing is left on the node: agent and FRR are in pods of their own,
//! which come and go in any order, and whichever of the two ends last does it.
//!
//! The agent leaves a mark in FRR's folder once the node is clean. FRR's supervisor holds a lock there for as long as it
//! lives, and looks for the mark when it has let go of it; the agent looks for the lock when it has left the mark. So one of
//! them sees the other gone. Touches these two files and the namespace's name.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{
    files,
    lock::{Lock, LockError, SUPERVISOR},
    netns::{Netns, NetnsError},
};

/// What says that the agent has taken everything of ours off the node.
const MARK: &str = "node-is-clean";

/// Why the name could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum LeavingError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// FRR's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The mark.
    #[error("{}: {source}", path.display())]
    Mark {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The two that agent and FRR share.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// The folder of FRR's sockets.
    pub frr_dir: &'a Path,
    /// The file of the router's namespace.
    pub netns: &'a Path,
}

impl Shared<'_> {
    /// An agent begins: from now on something may be on the node.
    pub fn agent_begins(self) -> Result<(), LeavingError> {
        at(&self.mark(), files::remove)
    }

    /// The agent has left the node clean. Says whether the name is gone: it stays for an FRR that runs.
    pub fn agent_is_done(self) -> Result<bool, LeavingError> {
        if self.frr_dir.is_dir() {
            at(&self.mark(), |mark| File::create(mark).map(drop))?;
        }
        if self.frr_runs()? {
            return Ok(false);
        }
        self.take_away().map(|()| true)
    }

    /// FRR is down, and its lock free. Says whether the name is gone: it stays for an agent, or what an agent has left.
    pub fn frr_is_done(self) -> Result<bool, LeavingError> {
        if !self.mark().exists() {
            return Ok(false);
        }
        self.take_away().map(|()| true)
    }

    fn take_away(self) -> Result<(), LeavingError> {
        Netns::remove(self.netns)?;
        at(&self.mark(), files::remove)
    }

    fn mark(self) -> PathBuf {
        self.frr_dir.join(MARK)
    }

    fn frr_runs(self) -> Result<bool, LeavingError> {
        let lock = self.frr_dir.join(SUPERVISOR);
        if !lock.exists() {
            return Ok(false);
        }
        match Lock::take(&lock) {
            Ok(_) => Ok(false),
            Err(LockError::Taken(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn at<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, LeavingError> {
    act(path).map_err(|source| LeavingError::Mark { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder of FRR's, and a file in the place of a namespace's.
    struct Place {
        frr_dir: PathBuf,
        netns: PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = Self { frr_dir: dir.path().join("frr"), netns: dir.path().join("netns"), _dir: dir };
            fs::create_dir(&place.frr_dir).unwrap();
            File::create(&place.netns).unwrap();
            place
        }

        fn frr(&self) -> Lock {
            Lock::take(&self.frr_dir.join(SUPERVISOR)).unwrap()
        }

        fn shared(&self) -> Shared<'_> {
            Shared { frr_dir: &self.frr_dir, netns: &self.netns }
        }
    }

    #[test]
    fn whichever_ends_last_takes_the_name_away() {
        let place = Place::new();
        let frr = place.frr();
        assert!(!place.shared().agent_is_done().unwrap() && place.netns.exists());
        drop(frr);
        assert!(place.shared().frr_is_done().unwrap() && !place.netns.exists());
        assert!(!place.shared().frr_is_done().unwrap(), "the mark went with it");

        let place = Place::new();
        drop(place.frr());
        assert!(!place.shared().frr_is_done().unwrap() && place.netns.exists());
        assert!(place.shared().agent_is_done().unwrap() && !place.netns.exists());

        let place = Place::new();
        fs::remove_dir(&place.frr_dir).unwrap();
        assert!(place.shared().agent_is_done().unwrap() && !place.netns.exists(), "FRR never ran");
    }

    #[test]
    fn an_agent_that_has_begun_again_keeps_it() {
        let place = Place::new();
        let frr = place.frr();
        assert!(!place.shared().agent_is_done().unwrap());
        place.shared().agent_begins().unwrap();
        drop(frr);
        assert!(!place.shared().frr_is_done().unwrap() && place.netns.exists());
    }
}
