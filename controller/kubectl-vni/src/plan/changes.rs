//! What a plan changes of what stands, object by object, as a diff. Pure.
//!
//! Both sides are snapshots read by the same eyes, so that nothing shows but what really differs: the numbers that
//! Tenants keep, the BGPPeers and BGPFilters, our labels and annotations of Nodes, Calico's annotations of Namespaces.

use std::{collections::BTreeMap, fmt::Write};

use calico_vni_crds::{
    calico::{Calico, CalicoSpec},
    keys,
};
use calico_vni_planner::Snapshot;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::{Map, Value, json};
use similar::{ChangeTag, TextDiff};

/// Lines around a change that are shown with it.
const CONTEXT: usize = 3;

/// An object of which something changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its kind and name.
    pub object: String,
    /// Of what we write, that which stands; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The same as it comes to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What is different in the second.
pub fn between(now: &Snapshot, rest: &Snapshot) -> Vec<Change> {
    let (mut before, mut after) = (written(now), written(rest));
    let mut objects: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    objects.sort_unstable();
    objects.dedup();
    let change = |object: String| {
        let (before, after) = (before.remove(&object), after.remove(&object));
        (before != after).then_some(Change { object, before, after })
    };
    objects.into_iter().filter_map(change).collect()
}

/// All that the controller writes, by the object that it is written to.
fn written(snapshot: &Snapshot) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut hold = |kind: &str, meta: &ObjectMeta, value: Map<String, Value>| {
        all.insert(format!("{kind} {}", meta.name.as_deref().unwrap_or_default()), Value::from(value));
    };
    for tenant in snapshot.tenants.iter().filter(|t| t.metadata.deletion_timestamp.is_none()) {
        let mut value = Map::new();
        if let Some(status) = &tenant.status {
            value.extend(status.vni.map(|vni| ("vni".to_owned(), vni.into())));
            value.extend(status.link_index.map(|link| ("linkIndex".to_owned(), link.into())));
            let pools = status.pools.iter().map(|pool| {
                let told =
                    if pool.accepted { "accepted" } else { pool.reason.as_deref().unwrap_or("refused") };
                (pool.name.clone(), told.into())
            });
            let pools: Map<String, Value> = pools.collect();
            if !pools.is_empty() {
                value.insert("pools".to_owned(), pools.into());
            }
        }
        hold("Tenant", &tenant.metadata, value);
    }
    for node in &snapshot.nodes {
        let ours = |key: &str| key.starts_with(keys::READY_LABEL_PREFIX);
        let mut value = picked("labels", node.metadata.labels.as_ref(), ours);
        value.extend(picked("annotations", node.metadata.annotations.as_ref(), |key| {
            key == keys::ROUTER_INDEX
        }));
        hold("Node", &node.metadata, value);
    }
    for namespace in &snapshot.namespaces {
        let ours = [keys::CALICO_POOLS_V4, keys::CALICO_POOLS_V6, keys::ASSIGNED];
        let value = picked("annotations", namespace.metadata.annotations.as_ref(), |key| ours.contains(&key));
        hold("Namespace", &namespace.metadata, value);
    }
    for peer in &snapshot.peers {
        hold("BGPPeer", &peer.metadata, spec(peer));
    }
    for filter in &snapshot.filters {
        hold("BGPFilter", &filter.metadata, spec(filter));
    }
    all
}

fn picked(
    field: &str,
    map: Option<&BTreeMap<String, String>>,
    which: impl Fn(&str) -> bool,
) -> Map<String, Value> {
    let found: BTreeMap<&String, &String> = map.into_iter().flatten().filter(|(key, _)| which(key)).collect();
    if found.is_empty() { Map::new() } else { [(field.to_owned(), json!(found))].into_iter().collect() }
}

fn spec<S: CalicoSpec + Serialize>(object: &Calico<S>) -> Map<String, Value> {
    match serde_json::to_value(&object.spec) {
        Ok(Value::Object(spec)) => spec,
        _ => Map::new(),
    }
}

/// As a diff, indented by two.
pub fn text(changes: &[Change]) -> String {
    let mut out = String::new();
    for Change { object, before, after } in changes {
        let what = match (before, after) {
            (None, _) => " (comes)",
            (_, None) => " (goes)",
            _ => "",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {object}{what}");
        let [before, after] = [before, after].map(|value| value.as_ref().map_or_else(String::new, lines));
        let diff = TextDiff::from_lines(&before, &after);
        for (group, ops) in diff.grouped_ops(CONTEXT).iter().enumerate() {
            if group > 0 {
                out.push_str("    ...\n");
            }
            for change in ops.iter().flat_map(|op| diff.iter_changes(op)) {
                let sign = match change.tag() {
                    ChangeTag::Delete => '-',
                    ChangeTag::Insert => '+',
                    ChangeTag::Equal => ' ',
                };
                let _ = writeln!(out, "  {sign} {}", change.value().trim_end());
            }
        }
    }
    out
}

fn lines(value: &Value) -> String {
    if value.as_object().is_some_and(Map::is_empty) {
        return String::new();
    }
    serde_yaml::to_string(value).unwrap_or_else(|_| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(objects: Value) -> Snapshot {
        let Value::Array(objects) = objects else { panic!("a list") };
        Snapshot::from_objects(objects).unwrap()
    }

    #[test]
    fn only_what_differs_shows_and_only_what_is_ours() {
        let node = |labels: Value| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "labels": labels } });
        let now = snapshot(json!([node(json!({ "rack": "a", "tenant.calico-vni.io/blue": "ready" }))]));
        let rest = snapshot(json!([node(json!({
            "rack": "b", "tenant.calico-vni.io/blue": "ready", "tenant.calico-vni.io/red": "ready" }))]));
        let changes = between(&now, &rest);
        assert_eq!(
            text(&changes),
            "  Node n1\n    labels:\n      tenant.calico-vni.io/blue: ready\n  +   tenant.calico-vni.io/red: ready\n"
        );
        assert_eq!(between(&rest, &rest), []);
    }

    #[test]
    fn what_comes_and_what_goes_is_said() {
        let peer = |name: &str| json!({ "apiVersion": "projectcalico.org/v3", "kind": "BGPPeer", "metadata": { "name": name }, "spec": { "asNumber": 65001 } });
        let changes =
            between(&snapshot(json!([peer("calico-vni-a")])), &snapshot(json!([peer("calico-vni-b")])));
        assert_eq!(
            text(&changes),
            "  BGPPeer calico-vni-a (goes)\n  - asNumber: 65001\n  BGPPeer calico-vni-b (comes)\n  + asNumber: 65001\n"
        );
    }
}
