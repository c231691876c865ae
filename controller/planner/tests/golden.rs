//! Folders of `golden/`: from `input.yaml` (and `agents.yaml`) follows `plan.yaml`. `UPDATE_GOLDEN=1` writes them anew.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use calico_vni_planner::{Plan, Snapshot, plan, snapshot::Agent};
use serde::Deserialize;

/// The objects of a file of several documents.
fn documents(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| {
            serde_json::Value::deserialize(document).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        })
        .collect()
}

/// The snapshot of a folder: `input.yaml`, and `agents.yaml` where there is one.
fn snapshot_of(folder: &Path) -> Snapshot {
    let mut snapshot = Snapshot::from_objects(documents(&folder.join("input.yaml")))
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let agents = folder.join("agents.yaml");
    if agents.exists() {
        let text = fs::read_to_string(&agents).expect("the file is there");
        let agents = serde_yaml::from_str::<BTreeMap<String, Agent>>(&text)
            .unwrap_or_else(|e| panic!("{}: {e}", agents.display()));
        snapshot.agents = agents.into_iter().map(|(node, agent)| (node, agent.into())).collect();
    }
    snapshot
}

fn yaml(plan: &Plan) -> String {
    // By way of JSON, as it is printed elsewhere, so that enums look the same.
    let value = serde_json::to_value(plan).expect("a plan is plain data");
    serde_yaml::to_string(&value).expect("a plan is plain data")
}

fn reversed(snapshot: &Snapshot) -> Snapshot {
    let mut reversed = snapshot.clone();
    reversed.tenants.reverse();
    reversed.underlays.reverse();
    reversed.pools.reverse();
    Arc::make_mut(&mut reversed.blocks).reverse();
    reversed.nodes.reverse();
    reversed.bgp_configurations.reverse();
    reversed.ipam_configs.reverse();
    reversed.peers.reverse();
    reversed.filters.reverse();
    reversed.felix_configurations.reverse();
    reversed.namespaces.reverse();
    reversed.endpoint_slices.reverse();
    reversed.service_cidrs.reverse();
    reversed
}

#[test]
fn plans_are_as_written() {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(&top).expect("golden folders").map(|f| f.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 15, "only {} folders in {}", folders.len(), top.display());
    let mut stale = Vec::new();
    for folder in folders {
        let snapshot = snapshot_of(&folder);
        let planned = plan(&snapshot);
        assert_eq!(
            plan(&reversed(&snapshot)),
            planned,
            "{}: depends on the order of its input",
            folder.display()
        );
        let file = folder.join("plan.yaml");
        let found = yaml(&planned);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &found).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if expected != found {
            eprintln!("{}", similar_asserts::SimpleDiff::from_str(&expected, &found, "plan.yaml", "planned"));
            stale.push(folder);
        }
    }
    assert!(
        stale.is_empty(),
        "not as written, see above; when it is right, run with UPDATE_GOLDEN=1: {stale:#?}"
    );
}
