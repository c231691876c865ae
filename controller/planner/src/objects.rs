//! A snapshot from Kubernetes objects as they stand in manifests or come from an API server.

use std::{collections::BTreeSet, sync::Arc};

use calico_vni_crds::calico::CalicoApi;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Snapshot,
    snapshot::{Block, PasswordSecret, Passwords},
};

/// Why objects make no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It has no `apiVersion`, no `kind`, or no name.
    #[error("document {0}: apiVersion, kind and metadata.name are needed")]
    Nameless(usize),
    /// It is not what its kind says.
    #[error("{kind} `{name}`: {source}")]
    Malformed {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the reader says.
        source: serde_json::Error,
    },
    /// It is there twice.
    #[error("{kind} `{name}` is there twice; remove one")]
    Twice {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl Snapshot {
    /// A snapshot of these objects. Lists are taken apart, and kinds that a plan does not depend on are passed over.
    /// Calico's group is that of its objects; `projectcalico.org/v3` where both or none occur.
    pub fn from_objects(objects: impl IntoIterator<Item = Value>) -> Result<Self, ObjectError> {
        let mut snapshot = Self::default();
        let mut blocks = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut v1, mut v3) = (false, false);
        for (document, object) in objects.into_iter().enumerate() {
            for object in items(object) {
                let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
                let (Some(api), Some(kind), Some(name)) =
                    (text("/apiVersion"), text("/kind"), text("/metadata/name"))
                else {
                    return Err(ObjectError::Nameless(document + 1));
                };
                let group = api.split('/').next().unwrap_or_default();
                v1 |= group == CalicoApi::CrdV1.group();
                v3 |= group == CalicoApi::V3.group();
                // Of the kinds looked at only EndpointSlices have a namespace of their own.
                let namespace = text("/metadata/namespace").unwrap_or_default();
                if snapshot.add(group, &kind, &name, object, &mut blocks)?
                    && !seen.insert((kind.clone(), namespace, name.clone()))
                {
                    return Err(ObjectError::Twice { kind, name });
                }
            }
        }
        snapshot.blocks = blocks.into();
        snapshot.calico_api = if v1 && !v3 { CalicoApi::CrdV1 } else { CalicoApi::V3 };
        Ok(snapshot)
    }

    /// Whether it is of a kind that is looked at.
    fn add(
        &mut self,
        group: &str,
        kind: &str,
        name: &str,
        object: Value,
        blocks: &mut Vec<Block>,
    ) -> Result<bool, ObjectError> {
        // The objects that the controller itself makes begin so; others' peers and filters are none of its business.
        let ours = name.starts_with("calico-vni-");
        match (group, kind) {
            ("calico-vni.io", "Tenant") => self.tenants.push(read(kind, name, object)?),
            ("calico-vni.io", "Underlay") => self.underlays.push(read(kind, name, object)?),
            ("v1", "Node") => self.nodes.push(Arc::new(read(kind, name, object)?)),
            ("v1", "Secret") => {
                let Some(secret) = PasswordSecret::of(&read(kind, name, object)?) else { return Ok(false) };
                if let Passwords::Read(passwords) = &mut self.passwords {
                    passwords.insert(name.to_owned(), secret);
                }
            }
            ("v1", "Namespace") => self.namespaces.push(read(kind, name, object)?),
            ("networking.k8s.io", "ServiceCIDR") => self.service_cidrs.push(read(kind, name, object)?),
            ("discovery.k8s.io", "EndpointSlice") => self.endpoint_slices.push(read(kind, name, object)?),
            ("projectcalico.org" | "crd.projectcalico.org", kind) => match kind {
                "IPPool" => self.pools.push(read(kind, name, object)?),
                "BlockAffinity" => blocks.extend(Block::of(read(kind, name, object)?)),
                "BGPConfiguration" => self.bgp_configurations.push(read(kind, name, object)?),
                "IPAMConfig" | "IPAMConfiguration" => self.ipam_configs.push(read(kind, name, object)?),
                "FelixConfiguration" => self.felix_configurations.push(read(kind, name, object)?),
                "BGPPeer" if ours => self.peers.push(read(kind, name, object)?),
                "BGPFilter" if ours => self.filters.push(read(kind, name, object)?),
                _ => return Ok(false),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn read<T: DeserializeOwned>(kind: &str, name: &str, object: Value) -> Result<T, ObjectError> {
    serde_json::from_value(object).map_err(|source| ObjectError::Malformed {
        kind: kind.to_owned(),
        name: name.to_owned(),
        source,
    })
}

/// The items of a list, as `kubectl get -o yaml` prints it; else the object itself. An empty document is nothing.
fn items(mut object: Value) -> Vec<Value> {
    if object.is_null() {
        return Vec::new();
    }
    match object.get("kind").and_then(Value::as_str) {
        Some(kind) if kind.ends_with("List") => match object.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => vec![object],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_taken_apart_and_others_passed_over() {
        let pool = json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": { "name": "p" }, "spec": { "cidr": "10.0.0.0/16" } });
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" } });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pool, secret] });
        let snapshot = Snapshot::from_objects([Value::Null, list]).unwrap();
        assert_eq!(
            (snapshot.pools.len(), snapshot.nodes.len(), snapshot.calico_api),
            (1, 0, CalicoApi::CrdV1)
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let nameless = Snapshot::from_objects([json!({ "kind": "Node" })]).unwrap_err().to_string();
        assert!(nameless.starts_with("document 1:"), "{nameless}");
        let tenant = |vni: Value| json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": "red" }, "spec": { "vni": vni } });
        let malformed = Snapshot::from_objects([tenant(json!("abc"))]).unwrap_err().to_string();
        assert!(malformed.starts_with("Tenant `red`: ") && malformed.contains("abc"), "{malformed}");
        let twice = Snapshot::from_objects([tenant(json!(1)), tenant(json!(2))]).unwrap_err().to_string();
        assert_eq!(twice, "Tenant `red` is there twice; remove one");
    }
}
