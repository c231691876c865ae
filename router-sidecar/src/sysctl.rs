//! Kernel switches below `/proc/sys` of a network namespace: read and written.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::netns::{Netns, NetnsError};

/// Why a switch could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn file(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

/// Values of those that are there; a device's switches come and go with it.
pub fn read<'a>(
    netns: &Netns,
    paths: impl Iterator<Item = &'a String> + Send,
) -> Result<BTreeMap<String, String>, NetnsError> {
    netns.run(|| {
        paths
            .filter_map(|path| Some((path.clone(), fs::read_to_string(file(path)).ok()?.trim().to_owned())))
            .collect()
    })
}

/// Sets one.
pub fn write(netns: &Netns, path: &str, value: &str) -> Result<(), SysctlError> {
    let path = file(path);
    netns.run(|| fs::write(&path, value))?.map_err(|source| SysctlError::File { path, source })
}
