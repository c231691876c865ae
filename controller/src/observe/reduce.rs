//! What of an object is kept: large objects cut down to what plans need, others left out. Pure.

use calico_vni_crds::keys;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Secret},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{ResourceExt, core::DynamicObject};

use super::NAME_PREFIX;

/// Label of an EndpointSlice with the name of its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn has_prefix(object: &mut DynamicObject) -> bool {
    object.name_any().starts_with(NAME_PREFIX)
}

/// A Node's status changes every few seconds and is large; what a plan needs is its labels and few annotations.
pub(super) fn node(node: &mut Node) -> bool {
    node.spec = None;
    node.status = None;
    keep_known_annotations(node);
    true
}

/// Of a Namespace its labels, and the annotations that Calico or we go by.
pub(super) fn namespace(namespace: &mut Namespace) -> bool {
    namespace.spec = None;
    namespace.status = None;
    keep_known_annotations(namespace);
    true
}

/// Of an EndpointSlice the Service that it belongs to, its ports, and its addresses with their state.
pub(super) fn endpoint_slice(slice: &mut EndpointSlice) -> bool {
    slice.metadata.annotations = None;
    slice.metadata.owner_references = None;
    slice.labels_mut().retain(|key, _| key == SERVICE_NAME);
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.deprecated_topology = None;
        endpoint.hints = None;
        endpoint.hostname = None;
        endpoint.target_ref = None;
        endpoint.zone = None;
    }
    true
}

/// Of a Secret the one password, and the label that lets us have it.
pub(super) fn secret(secret: &mut Secret) -> bool {
    secret.metadata.annotations = None;
    secret.data.get_or_insert_default().retain(|key, _| key == keys::BGP_PASSWORD_KEY);
    true
}

fn keep_known_annotations(object: &mut impl ResourceExt) {
    object
        .annotations_mut()
        .retain(|key, _| key.contains("calico-vni.io/") || key.contains("projectcalico.org/"));
}

/// Of what is known about an object's writers, the last one besides `ours`: who it is that undoes what we write.
pub(super) fn last_other(
    entries: Option<Vec<ManagedFieldsEntry>>,
    ours: &str,
) -> Option<Vec<ManagedFieldsEntry>> {
    // Status is written by everybody's heartbeats; who writes nothing else is of interest only when nobody does.
    let rank =
        |entry: &ManagedFieldsEntry| (entry.subresource.is_none(), entry.time.as_ref().map(|time| time.0));
    let other =
        entries?.into_iter().filter(|entry| entry.manager.as_deref() != Some(ours)).max_by_key(rank)?;
    Some(vec![ManagedFieldsEntry {
        manager: other.manager,
        operation: other.operation,
        time: other.time,
        ..ManagedFieldsEntry::default()
    }])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_node_only_what_plans_need_is_kept() {
        let mut object: Node = serde_json::from_value(json!({
            "metadata": {
                "name": "n1", "labels": { "zone": "a" },
                "annotations": { "calico-vni.io/router-index": "4", "projectcalico.org/ASNumber": "64513", "csi/x": "y" },
            },
            "spec": { "podCIDR": "10.0.0.0/24" }, "status": { "phase": "Running" },
        }))
        .unwrap();
        assert!(node(&mut object));
        assert!(object.spec.is_none() && object.status.is_none());
        assert_eq!(
            object.annotations().keys().collect::<Vec<_>>(),
            ["calico-vni.io/router-index", "projectcalico.org/ASNumber"]
        );
        assert_eq!(object.labels()["zone"], "a");
    }

    #[test]
    fn of_a_secret_only_the_password_is_kept() {
        let mut object: Secret = serde_json::from_value(json!({
            "metadata": { "name": "tor", "labels": { keys::BGP_PASSWORD: "true" }, "annotations": { "old": "x" } },
            "data": { "password": "c2VjcmV0", "other": "eA==" },
        }))
        .unwrap();
        assert!(secret(&mut object));
        assert_eq!(object.data.unwrap().into_keys().collect::<Vec<_>>(), ["password"]);
        assert_eq!((object.metadata.annotations, object.metadata.labels.unwrap().len()), (None, 1));
    }

    #[test]
    fn of_a_slice_addresses_and_ports_are_kept() {
        let mut slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "dns-1", "labels": { SERVICE_NAME: "kube-dns", "x": "y" }, "annotations": { "a": "b" } },
            "addressType": "IPv4", "ports": [{ "port": 53, "protocol": "UDP" }],
            "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "targetRef": { "name": "p" }, "zone": "a" }],
        }))
        .unwrap();
        assert!(endpoint_slice(&mut slice));
        assert_eq!(slice.labels().keys().collect::<Vec<_>>(), [SERVICE_NAME]);
        let endpoint = &slice.endpoints.as_ref().unwrap()[0];
        assert_eq!((&endpoint.addresses[..], &endpoint.target_ref), (&["10.0.0.1".to_owned()][..], &None));
        assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));
        assert_eq!(slice.ports.unwrap()[0].port, Some(53));
    }

    #[test]
    fn the_last_writer_besides_us_is_known() {
        let entries = serde_json::from_value(json!([
            { "manager": "kubelet", "time": "2026-01-03T00:00:00Z", "subresource": "status" },
            { "manager": "old", "time": "2026-01-01T00:00:00Z" },
            { "manager": "argocd", "operation": "Apply", "time": "2026-01-02T00:00:00Z", "fieldsV1": { "f:spec": {} } },
            { "manager": "ours", "time": "2026-01-04T00:00:00Z" },
        ]))
        .unwrap();
        let last = last_other(Some(entries), "ours").unwrap();
        assert_eq!((last.len(), last[0].manager.as_deref(), &last[0].fields_v1), (1, Some("argocd"), &None));
        assert_eq!(last_other(None, "ours"), None);
    }
}
