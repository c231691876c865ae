//! The last guard and configuration that were taken, kept on disk for the next start.
//!
//! Each file is one line, `calico-vni <kind> <version> <SHA-256>`, and the encoded message after it. A file that is
//! damaged, or of a version that is not known, is set aside under another name and counts as none. Touches these files
//! alone.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use calico_vni_proto::{
    codec::{Codec, Digest},
    model::{Guard, NodeConfig},
    wire,
};
use tracing::{error, info};

use crate::files;

/// Version of the file's form.
const VERSION: &str = "1";

/// What follows the name of a damaged file, before the second in which it was set aside.
const DAMAGED: &str = ".damaged-";

/// A message together with the digest that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<T> {
    /// Digest of its encoded form.
    pub digest: Digest,
    /// The message.
    pub value: T,
}

/// What an agent holds of what it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// All tenant pools of the cluster.
    pub guard: Option<Held<Guard>>,
    /// What this node carries.
    pub config: Option<Held<NodeConfig>>,
}

/// The folder of the files.
#[derive(Clone, Debug)]
pub struct LastGood {
    dir: PathBuf,
    looks_only: bool,
    /// Why a file was not written last time, by its kind.
    troubles: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl LastGood {
    /// That below this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.to_owned(), looks_only: false, troubles: Arc::default() }
    }

    /// The same, for one who changes nothing: a damaged file stays where it is.
    pub fn for_a_look(state_dir: &Path) -> Self {
        Self { looks_only: true, ..Self::new(state_dir) }
    }

    /// Why what was taken last could not be kept, if it could not.
    pub fn trouble(&self) -> Option<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }

    /// The damaged files that were set aside, by name.
    pub fn damaged(&self) -> Vec<String> {
        let names = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut damaged: Vec<String> = names.filter(|name| name.contains(DAMAGED)).collect();
        damaged.sort();
        damaged
    }

    /// What was kept. The configuration of another node is none: a disk can be moved.
    pub fn load(&self, node: &str) -> Told {
        let guard = self.read("guard");
        let config = self.read::<NodeConfig>("config").filter(|held| {
            let same = held.value.node == node;
            if !same {
                error!(node, digest = %held.digest, of = %held.value.node,
                    "the kept configuration is another node's and is not used");
            }
            same
        });
        Told { guard, config }
    }

    /// Keeps the guard.
    pub fn keep_guard(&self, guard: &Held<Guard>) -> io::Result<()> {
        self.write("guard", guard)
    }

    /// Keeps the configuration.
    pub fn keep_config(&self, config: &Held<NodeConfig>) -> io::Result<()> {
        self.write("config", config)
    }

    /// Forgets both, and what was set aside.
    pub fn forget(&self) -> io::Result<()> {
        let kept = ["guard", "config"].map(|kind| self.path(kind));
        let aside = self.damaged().into_iter().map(|name| self.dir.join(name));
        kept.into_iter().chain(aside).try_for_each(|path| files::remove(&path))
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{kind}.last-good"))
    }

    fn write<T: Codec>(&self, kind: &'static str, held: &Held<T>) -> io::Result<()> {
        let body = held.value.encode();
        let digest = hex::encode(Digest::of(&body).to_wire());
        let mut content = format!("calico-vni {kind} {VERSION} {digest}\n").into_bytes();
        content.extend(body);
        let written = files::replace(&self.path(kind), &content);
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match &written {
            Ok(()) => drop(troubles.remove(kind)),
            Err(error) => drop(troubles.insert(kind, error.to_string())),
        }
        written
    }

    fn read<T: Codec>(&self, kind: &str) -> Option<Held<T>> {
        let path = self.path(kind);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    error!(path = %path.display(), %error, "cannot read what was kept of the last configuration");
                }
                return None;
            }
        };
        match parse(kind, &content) {
            Ok(held) => {
                info!(path = %path.display(), digest = %held.digest, "starting from what was kept");
                Some(held)
            }
            Err(reason) if self.looks_only => {
                error!(path = %path.display(), reason, "what was kept of the last configuration is damaged");
                None
            }
            Err(reason) => {
                set_aside(&path, &reason);
                None
            }
        }
    }
}

fn parse<T: Codec>(kind: &str, content: &[u8]) -> Result<Held<T>, String> {
    let end = content.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let head = std::str::from_utf8(&content[..end]).map_err(|_| "its first line is no text")?;
    let body = &content[end + 1..];
    let words: Vec<&str> = head.split(' ').collect();
    let ["calico-vni", of, version, digest] = words.as_slice() else {
        return Err(format!("its first line is `{head}`"));
    };
    if (*of, *version) != (kind, VERSION) {
        return Err(format!("it holds `{of}` of version {version}, not `{kind}` of version {VERSION}"));
    }
    let digest = hex::decode(digest).map_err(|e| format!("its digest is no hexadecimal number: {e}"))?;
    let payload = wire::Payload { digest, body: body.to_vec() };
    let (digest, value) = T::from_payload(&payload).map_err(|e| e.to_string())?;
    Ok(Held { digest, value })
}

fn set_aside(path: &Path, reason: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{DAMAGED}{now}"));
    let aside = path.with_file_name(name);
    match fs::rename(path, &aside) {
        Ok(()) => error!(path = %path.display(), aside = %aside.display(), reason,
            "what was kept of the last configuration is damaged and was set aside; waiting for the controller"),
        Err(error) => error!(path = %path.display(), reason, %error,
            "what was kept of the last configuration is damaged and cannot be set aside"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, tenant};

    fn held() -> Held<NodeConfig> {
        let value = config(vec![tenant("red", 1001, &["10.200.0.0/16"])]);
        Held { digest: Digest::of(&value.encode()), value }
    }

    fn files_in(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        assert_eq!(last_good.load("n1"), Told::default());
        let guard = Held { digest: Digest::of(&Guard::default().encode()), value: Guard::default() };
        last_good.keep_guard(&guard).unwrap();
        last_good.keep_config(&held()).unwrap();
        assert_eq!(last_good.load("n1"), Told { guard: Some(guard), config: Some(held()) });
        last_good.forget().unwrap();
        last_good.forget().unwrap();
        assert_eq!(last_good.load("n1"), Told::default());
    }

    #[test]
    fn another_nodes_configuration_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        last_good.keep_config(&held()).unwrap();
        assert_eq!(last_good.load("n2"), Told::default());
        assert_eq!(files_in(dir.path()), ["config.last-good"]);
    }

    #[test]
    fn who_only_looks_sets_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.last-good"), "?").unwrap();
        assert_eq!(LastGood::for_a_look(dir.path()).load("n1"), Told::default());
        assert_eq!(files_in(dir.path()), ["config.last-good"]);
        let last_good = LastGood::new(dir.path());
        assert_eq!(last_good.load("n1"), Told::default());
        assert_eq!(last_good.damaged(), files_in(dir.path()));
        last_good.forget().unwrap();
        assert!(files_in(dir.path()).is_empty());
    }

    #[test]
    fn every_damage_is_found_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        last_good.keep_config(&held()).unwrap();
        let path = dir.path().join("config.last-good");
        let whole = fs::read(&path).unwrap();

        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut of_the_future = whole.clone();
        of_the_future[18] = b'9';
        let guard = String::from_utf8_lossy(&whole).replacen("config", "guard", 1).into_bytes();
        for damaged in [flipped, whole[..whole.len() / 2].to_vec(), vec![], of_the_future, guard] {
            fs::write(&path, &damaged).unwrap();
            assert_eq!(last_good.load("n1"), Told::default(), "{}", String::from_utf8_lossy(&damaged));
            let names = files_in(dir.path());
            assert!(names.len() == 1 && names[0].contains(".damaged-"), "{names:?}");
            fs::remove_file(dir.path().join(&names[0])).unwrap();
        }
    }
}
