//! One agent to a node, and one supervisor of FRR: a locked file, which the kernel frees when the process ends.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// What an agent holds, in its state directory, and a clean-up too.
pub const AGENT: &str = "lock";
/// What FRR's supervisor holds, in the folder of FRR's sockets.
pub const SUPERVISOR: &str = "supervisor.lock";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("an agent, a clean-up or a `calico-vni-router frr` holds {}; stop it first", .0.display())]
    Taken(PathBuf),
    /// The file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The lock; dropped, it is free.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes it. The file and its folder are made where they are missing.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::File { path: path.to_owned(), source };
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(LockError::Taken(path.to_owned())),
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join(AGENT);
        let first = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(LockError::Taken(_))));
        drop(first);
        Lock::take(&path).unwrap();
    }
}
