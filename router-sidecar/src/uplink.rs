//! The record of an uplink that was taken from the host's namespace: written before it moves, read to give it back.
//!
//! One file for each interface below `<state-dir>/uplinks`. Touches those files alone.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{files, state::Uplink};

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content.
    #[error("{}: {source}; write it by hand as the interface was, or delete it", path.display())]
    Content {
        /// Of which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those below this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("uplinks") }
    }

    fn path(&self, name: &str) -> PathBuf {
        // An interface's name holds no slash (`dev_valid_name` in the kernel).
        self.dir.join(format!("{name}.json"))
    }

    /// That of one interface.
    pub fn of(&self, name: &str) -> Result<Option<Uplink>, RecordError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| RecordError::Content { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RecordError::File { path, source }),
        }
    }

    /// The interfaces that have one, damaged ones too.
    pub fn names(&self) -> Result<BTreeSet<String>, RecordError> {
        let failed = |source| RecordError::File { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            names.extend(file.to_str().and_then(|file| file.strip_suffix(".json")).map(str::to_owned));
        }
        Ok(names)
    }

    /// Writes one, to disk.
    pub fn write(&self, uplink: &Uplink) -> Result<(), RecordError> {
        let path = self.path(&uplink.name);
        let text = serde_json::to_vec_pretty(uplink)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        files::replace(&path, &text).map_err(|source| RecordError::File { path, source })
    }

    /// Takes one away; none is fine too.
    pub fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.path(name);
        files::remove(&path).map_err(|source| RecordError::File { path, source })
    }
}

/// What counts for an interface that is in the host's namespace: how it stands there. Where it still has a record, it was
/// on its way back when something stopped that, and has perhaps only a part of what it is to get: if all addresses that
/// it has are in the record, the record is right.
pub fn before_the_move(seen: Uplink, recorded: Option<&Uplink>) -> Uplink {
    match recorded {
        Some(recorded) if seen.addresses.iter().all(|there| recorded.addresses.contains(there)) => {
            let mut whole = recorded.clone();
            // A route that came later, as the node's default route may, belongs to it too.
            whole.routes.extend(seen.routes.into_iter().filter(|route| !recorded.routes.contains(route)));
            whole
        }
        _ => seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::uplink;

    #[test]
    fn records_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        assert!(records.names().unwrap().is_empty());
        let eth1 = uplink("eth1.100", 9000, &["192.0.2.3/31"]);
        records.write(&eth1).unwrap();
        assert_eq!(records.names().unwrap(), BTreeSet::from(["eth1.100".to_owned()]));
        assert_eq!(records.of("eth1.100").unwrap(), Some(eth1));
        records.remove("eth1.100").unwrap();
        records.remove("eth1.100").unwrap();
        assert!(records.names().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_named_and_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        records.write(&uplink("eth1", 1500, &[])).unwrap();
        fs::write(dir.path().join("uplinks/eth1.json"), "{").unwrap();
        records.write(&uplink("eth2", 1500, &[])).unwrap();
        assert!(records.of("eth1").unwrap_err().to_string().contains("uplinks/eth1.json"));
        assert!(records.of("eth2").unwrap().is_some());
        assert_eq!(records.names().unwrap().len(), 2);
    }

    #[test]
    fn an_interface_that_lost_its_addresses_has_those_of_its_record() {
        let (bare, full) = (uplink("eth1", 1500, &[]), uplink("eth1", 1500, &["192.0.2.3/31"]));
        assert_eq!(before_the_move(bare.clone(), Some(&full)), full);
        let two = uplink("eth1", 1500, &["192.0.2.3/31", "192.0.2.9/32"]);
        assert_eq!(before_the_move(full.clone(), Some(&two)), two, "half of them are back");
        let other = uplink("eth1", 1500, &["192.0.2.5/31"]);
        assert_eq!(before_the_move(other.clone(), Some(&full)), other);
        assert_eq!(before_the_move(bare.clone(), None), bare);
    }
}
