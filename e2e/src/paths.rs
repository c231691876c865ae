//! Where things are in the checkout.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Root of this crate in the checkout that the program was built from.
pub fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Root of the checkout.
pub fn checkout() -> &'static Path {
    crate_root().parent().expect("the crate is a directory of the workspace")
}

/// A directory below `target`, made when it is missing.
pub fn target(name: &str) -> Result<PathBuf> {
    let directory =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from).join(name);
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}
