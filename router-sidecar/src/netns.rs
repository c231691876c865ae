//! Network namespaces: opened, made persistent, entered.
//!
//! A namespace is entered on a thread of its own that ends with the closure, so the calling thread never leaves its
//! own. Touches the file of the namespace and, in [`Netns::create`], the mount table.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use crate::waiting::wait;

/// Between two looks whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why a namespace could not be made, opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file cannot be opened.
    #[error(
        "network namespace {}: {source}; `calico-vni-router init` makes it, with which FRR's pod begins",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no namespace: what was mounted there is gone.
    #[error("{} is no network namespace; `calico-vni-router init` makes it one, with which FRR's pod begins", .0.display())]
    NotOne(PathBuf),
    /// It could not be entered, made or taken away.
    #[error("cannot {what} network namespace {}: {source}", path.display())]
    Failed {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// The one that a file names.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        if fstatfs(&file).map_err(|e| open(e.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotOne(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// The one that a file names, when it does.
    pub async fn wait(path: &Path) -> Result<Self, NetnsError> {
        let look = || match Self::open(path) {
            Ok(there) => Ok(Ok(there)),
            Err(missing @ (NetnsError::Open { .. } | NetnsError::NotOne(_))) => {
                Ok(Err(format!("{missing}; waiting for it")))
            }
            Err(error) => Err(error),
        };
        wait(LOOK_AGAIN, look).await
    }

    /// Whether the file names another one by now. One that names none is not judged.
    pub fn is_replaced(&self) -> bool {
        let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        Self::open(&self.path).is_ok_and(|now| id(&now.file) != id(&self.file))
    }

    /// The one that this thread is in.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a persistent one, or does nothing where there is one already.
    pub fn create(path: &Path) -> Result<Self, NetnsError> {
        if let Ok(there) = Self::open(path) {
            return Ok(there);
        }
        let failed = |source: io::Error| NetnsError::Failed { what: "make", path: path.to_owned(), source };
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(failed)?;
        share_mounts(dir).map_err(|e| failed(e.into()))?;
        File::create(path).map_err(failed)?;
        on_a_thread(|| -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let new = Some("/proc/thread-self/ns/net");
            nix::mount::mount(new, path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .map_err(|e| failed(e.into()))?;
        Self::open(path)
    }

    /// Takes the name away. The namespace itself lives until the last process leaves it.
    pub fn remove(path: &Path) -> Result<(), NetnsError> {
        let failed = |source: io::Error| NetnsError::Failed { what: "remove", path: path.to_owned(), source };
        // Otherwise nothing is mounted there.
        if Self::open(path).is_ok() {
            nix::mount::umount2(path, MntFlags::MNT_DETACH).map_err(|e| failed(e.into()))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs the closure inside. What it opens there, sockets and files below `/proc/sys/net`, stays there.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(closure())
        })
        .map_err(|e: nix::Error| NetnsError::Failed {
            what: "enter",
            path: self.path.clone(),
            source: e.into(),
        })
    }
}

fn on_a_thread<T: Send>(closure: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(closure).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `dir` a mount point of its own that passes new mounts on to other mount namespaces, as `ip netns` does: the
/// other containers of the node must see the namespace that is mounted below it.
fn share_mounts(dir: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    let share = || nix::mount::mount(none, dir, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Err(nix::Error::EINVAL) => {
            nix::mount::mount(Some(dir), dir, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            share()
        }
        result => result,
    }
}
