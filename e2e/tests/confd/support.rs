//! Objects from YAML, and BIRD's own word on a configuration.

use std::{fs, process::Command, sync::Arc};

use calico_vni_e2e::calico::{
    Family,
    cluster::Cluster,
    render::{BirdConfig, render},
    state::CalicoState,
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

/// The objects of a manifest.
pub fn state(yaml: &str) -> CalicoState {
    fn read<K: DeserializeOwned>(object: Value) -> Arc<K> {
        let text = object.to_string();
        Arc::new(serde_json::from_value(object).unwrap_or_else(|e| panic!("{e} in {text}")))
    }
    let mut state = CalicoState::default();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        match object["kind"].as_str().unwrap() {
            "Node" => state.nodes.push(read(object)),
            "IPPool" => state.pools.push(read(object)),
            "BGPPeer" => state.peers.push(read(object)),
            "BGPFilter" => state.filters.push(read(object)),
            "BGPConfiguration" => state.configurations.push(read(object)),
            "BlockAffinity" => state.affinities.push(read(object)),
            other => panic!("kind {other}"),
        }
    }
    state
}

/// The same, read.
pub fn cluster(yaml: &str) -> Cluster {
    Cluster::new(&state(yaml))
}

/// A node's configuration.
pub fn config(cluster: &Cluster, node: &str, family: Family) -> BirdConfig {
    render(cluster, node, family).unwrap_or_else(|| panic!("no node {node}"))
}

/// What BIRD has against a configuration; the test fails where BIRD is not installed.
pub fn bird_refuses(family: Family, text: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bird.cfg");
    fs::write(&file, text).unwrap();
    let run = Command::new(family.daemon()).arg("-p").arg("-c").arg(&file).output();
    let run = run.unwrap_or_else(|e| panic!("{} (Debian's package bird): {e}", family.daemon()));
    (!run.status.success()).then(|| String::from_utf8_lossy(&run.stderr).into_owned())
}
