//! What of ours, and of its kinds whatever, an API server holds: for whoever takes all of it away. Asks by kubectl, and
//! changes nothing.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Kinds of objects that we make, beside what goes with our namespace and our definitions.
const KINDS: [&str; 6] = [
    "namespaces",
    "customresourcedefinitions",
    "clusterroles",
    "clusterrolebindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];
/// Calico's kinds that we make objects of, or that we could leave finalizers on.
const CALICO: [&str; 3] = ["bgppeers", "bgpfilters", "ippools"];

/// Our labels and annotations, all objects of these kinds by their names, and our finalizers on them. `calico` is the group of
/// Calico's kinds.
pub async fn in_api(
    kubectl: impl AsyncFn(&[&str]) -> Result<String>,
    calico: &str,
) -> Result<BTreeSet<String>> {
    let objects = async |kind: &str| -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&kubectl(&["get", kind, "-o", "json"]).await?)?;
        Ok(list["items"].as_array().context("a list without items")?.clone())
    };
    let mut remains = BTreeSet::new();
    for kind in ["nodes", "namespaces"] {
        for object in objects(kind).await? {
            let metadata = &object["metadata"];
            for (place, keys) in [("label", &metadata["labels"]), ("annotation", &metadata["annotations"])] {
                let keys = keys.as_object().into_iter().flatten().map(|(key, _)| key);
                let ours = keys.filter(|key| key.contains("calico-vni.io"));
                remains.extend(ours.map(|key| format!("{kind} {}: {place} {key}", metadata["name"])));
            }
        }
    }
    let calico = CALICO.iter().map(|plural| format!("{plural}.{calico}"));
    for kind in KINDS.iter().map(|kind| (*kind).to_owned()).chain(calico) {
        for object in objects(&kind).await? {
            let metadata = &object["metadata"];
            remains.insert(format!("{kind} {}", metadata["name"]));
            let held = metadata["finalizers"].as_array().into_iter().flatten();
            let held = held.filter(|name| name.as_str().is_some_and(|name| name.contains("calico-vni")));
            remains.extend(held.map(|name| format!("{kind} {}: finalizer {name}", metadata["name"])));
        }
    }
    Ok(remains)
}
