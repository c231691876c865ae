//! Files that are there whole or not at all, and that nobody but their owner reads: a configuration may hold passwords.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Puts `content` in the place of the file, so that a crash at any point leaves the old one or the new one.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = dir.join(name);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    // One that was left behind may have had other rights.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename is on disk when the folder is.
    File::open(dir)?.sync_all()
}

/// Deletes a file; none is fine too.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        replace(&path, b"1").unwrap();
        assert_eq!(mode(&path), 0o600);
        // What an earlier release, or a crash, has left behind.
        for left in [path.clone(), dir.path().join("config.new")] {
            fs::write(&left, "0").unwrap();
            fs::set_permissions(&left, Permissions::from_mode(0o644)).unwrap();
        }
        replace(&path, b"2").unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"2".to_vec(), 0o600));
    }
}
