//! What is checked in is what the types say.

use std::{fs, path::Path};

use calico_vni_crds::{calico::CalicoApi, generate, reference};

#[test]
fn generated_files_are_fresh() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (folder, files) in [
        ("crds/generated", generate::own()),
        ("e2e/calico-crds/v3", generate::calico(CalicoApi::V3)),
        ("e2e/calico-crds/v1", generate::calico(CalicoApi::CrdV1)),
    ] {
        assert_eq!(fs::read_dir(top.join(folder)).expect(folder).count(), files.len(), "files in {folder}");
        for (name, yaml) in files {
            let path = top.join(folder).join(name);
            let found = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(found == yaml, "{} is stale: run `make generate`", path.display());
        }
    }
}

#[test]
fn the_reference_is_fresh_and_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let page = reference::api();
    assert!(
        fs::read_to_string(&path).is_ok_and(|found| found == page),
        "docs/api.md is stale: run `make generate`"
    );
    // A field whose comment is missing would leave an empty last cell.
    let empty: Vec<&str> =
        page.lines().filter(|line| line.starts_with('|') && line.ends_with("|  |")).collect();
    assert!(empty.is_empty(), "fields without a description: {empty:#?}");
}
