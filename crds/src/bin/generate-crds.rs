//! Writes the generated YAML and the API's reference: `cargo run -p calico-vni-crds --bin generate-crds`, from the top of the repository.

use std::{fs, io, path::Path};

use calico_vni_crds::{calico::CalicoApi, generate, reference};

fn main() -> io::Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (folder, files) in [
        ("crds/generated", generate::own()),
        ("e2e/calico-crds/v3", generate::calico(CalicoApi::V3)),
        ("e2e/calico-crds/v1", generate::calico(CalicoApi::CrdV1)),
    ] {
        let folder = top.join(folder);
        fs::create_dir_all(&folder)?;
        for (name, yaml) in files {
            fs::write(folder.join(name), yaml)?;
        }
    }
    fs::write(top.join("docs/api.md"), reference::api())
}
