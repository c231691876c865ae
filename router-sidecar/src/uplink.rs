//! The record of an uplink that was taken from the host's namespace: written before it moves, read to give it back.
//!
//! One file for each interface below `<state-dir>/uplinks`. Touches those files alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{files, observe::Uplinks, state::Uplink};

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

    /// All of them, by the interface's name.
    pub fn all(&self) -> Result<Uplinks, RecordError> {
        let failed = |path: &Path, source| RecordError::File { path: path.to_owned(), source };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Uplinks::new()),
            Err(error) => return Err(failed(&self.dir, error)),
        };
        let mut uplinks = Uplinks::new();
        for entry in entries {
            let path = entry.map_err(|e| failed(&self.dir, e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(|e| failed(&path, e))?;
            let uplink: Uplink =
                serde_json::from_slice(&text).map_err(|source| RecordError::Content { path, source })?;
            uplinks.insert(uplink.name.clone(), uplink);
        }
        Ok(uplinks)
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
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::File { path, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// What counts for an interface that is in the host's namespace: how it stands there, unless it has lost the addresses
/// that its record has. Then it was on its way back when something stopped it, and the record is right.
pub fn before_the_move(seen: Uplink, recorded: Option<&Uplink>) -> Uplink {
    match recorded {
        Some(recorded) if seen.addresses.is_empty() && !recorded.addresses.is_empty() => recorded.clone(),
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
        assert!(records.all().unwrap().is_empty());
        let eth1 = uplink("eth1.100", 9000, &["192.0.2.3/31"]);
        records.write(&eth1).unwrap();
        assert_eq!(records.all().unwrap(), Uplinks::from([("eth1.100".to_owned(), eth1)]));
        records.remove("eth1.100").unwrap();
        records.remove("eth1.100").unwrap();
        assert!(records.all().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        records.write(&uplink("eth1", 1500, &[])).unwrap();
        fs::write(dir.path().join("uplinks/eth1.json"), "{").unwrap();
        assert!(records.all().unwrap_err().to_string().contains("uplinks/eth1.json"));
    }

    #[test]
    fn an_interface_that_lost_its_addresses_has_those_of_its_record() {
        let (bare, full) = (uplink("eth1", 1500, &[]), uplink("eth1", 1500, &["192.0.2.3/31"]));
        assert_eq!(before_the_move(bare.clone(), Some(&full)), full);
        let other = uplink("eth1", 1500, &["192.0.2.5/31"]);
        assert_eq!(before_the_move(other.clone(), Some(&full)), other);
        assert_eq!(before_the_move(bare.clone(), None), bare);
    }
}
