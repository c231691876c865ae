//! Kernel switches below `/proc/sys` of a network namespace: read and written.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
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

/// Where the node's own are mounted in a container, whose `/proc/sys` is read-only. In either place a file is that of
/// the network namespace from which it is opened.
const MOUNTED: &str = "/host/proc/sys";

fn file(path: &str) -> PathBuf {
    static ROOT: LazyLock<&Path> =
        LazyLock::new(|| Path::new(if Path::new(MOUNTED).exists() { MOUNTED } else { "/proc/sys" }));
    ROOT.join(path)
}

/// Values of those that are there; a device's switches come and go with it. One that the kernel has not at all, IPv6's
/// where it was started without IPv6, has nothing to switch: it counts as being as it is wanted.
pub fn read(
    netns: &Netns,
    wanted: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, NetnsError> {
    netns.run(|| {
        let value = |(path, wanted): (&String, &String)| match fs::read_to_string(file(path)) {
            Ok(value) => Some((path.clone(), value.trim().to_owned())),
            Err(_) if !file(family_of(path)).exists() => Some((path.clone(), wanted.clone())),
            Err(_) => None,
        };
        wanted.iter().filter_map(value).collect()
    })
}

/// What has to be there for the switch to be one of this kernel's: the folder of its family where it is a device's, else
/// the file itself.
fn family_of(path: &str) -> &str {
    if path.contains("/conf/") { path.split_once("/conf/").map_or(path, |(family, _)| family) } else { path }
}

/// Sets one.
pub fn write(netns: &Netns, path: &str, value: &str) -> Result<(), SysctlError> {
    let path = file(path);
    netns.run(|| fs::write(&path, value))?.map_err(|source| SysctlError::File { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_the_kernel_has_not_is_as_it_is_wanted() {
        let here = Netns::current().unwrap();
        let wanted = ["net/ipvx/conf/all/forwarding", "net/ipv4/no_such", "net/ipv4/conf/no-dev/rp_filter"]
            .map(|path| (path.to_owned(), "7".to_owned()));
        let read = read(&here, &BTreeMap::from(wanted.clone())).unwrap();
        assert_eq!(read, BTreeMap::from([wanted[0].clone(), wanted[1].clone()]));
    }
}
