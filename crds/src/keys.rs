//! Annotations, labels and names on objects of Kubernetes and Calico.

/// On an IPPool: the VNI of the tenant that the pool belongs to.
pub const VNI: &str = "calico-vni.io/vni";
/// On an IPPool: the name of the tenant that the pool belongs to.
pub const TENANT: &str = "calico-vni.io/tenant";
/// On a Node: its number within its underlay's `vtepCIDR`, written before it is used.
pub const ROUTER_INDEX: &str = "calico-vni.io/router-index";
/// On what the controller made: by which of its ways ([`MANAGED_BY_ANNOTATION`] or [`MANAGED_BY_TENANT`]).
pub const MANAGED_BY: &str = "calico-vni.io/managed-by";
/// A Tenant that stands for annotated pools and goes with the last of them.
pub const MANAGED_BY_ANNOTATION: &str = "pool-annotation";
/// A BGPPeer or BGPFilter that follows from a tenant.
pub const MANAGED_BY_TENANT: &str = "tenant";
/// On a BGPPeer or BGPFilter: the tenant that it follows from.
pub const OWNER: &str = "calico-vni.io/tenant";
/// Keeps a deleted Tenant until no node carries it.
pub const FINALIZER: &str = "calico-vni.io/teardown";
/// Prefix of the Node labels that admit a tenant's BGPPeer to the node.
pub const READY_LABEL_PREFIX: &str = "tenant.calico-vni.io/";
/// Value of those labels.
pub const READY: &str = "ready";
/// Field manager of all that the controller applies.
pub const FIELD_MANAGER: &str = "calico-vni";

/// Calico's annotation of a Node with the ASN of its BIRD, where that is not the cluster's.
pub const CALICO_NODE_ASN: &str = "projectcalico.org/ASNumber";
/// Calico's annotation that hides an object's labels and annotations in JSON (on `crd.projectcalico.org/v1`).
pub const CALICO_METADATA: &str = "projectcalico.org/metadata";

/// The Node label of a tenant.
pub fn ready_label(tenant: &str) -> String {
    format!("{READY_LABEL_PREFIX}{tenant}")
}

/// Name of the Tenant made for a pool that has only the VNI annotation.
pub fn annotated_tenant(vni: u32) -> String {
    format!("vni-{vni}")
}
