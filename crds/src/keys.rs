//! Annotations, labels and names on objects of Kubernetes and Calico.

/// A key of ours on objects of others, for the reference.
pub struct Key {
    /// The key, or what it begins with.
    pub key: &'static str,
    /// On what, and as what.
    pub on: &'static str,
    /// Who writes it.
    pub by: &'static str,
    /// What it says.
    pub doc: &'static str,
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $on:literal, by $by:literal;)*) => {
        $($(#[doc = $doc])+ pub const $name: &str = $value;)*

        /// All of them.
        pub const ALL: &[Key] = &[$(Key { key: $name, on: $on, by: $by, doc: concat!($($doc),+) }),*];
    };
}

keys! {
    /// The VNI of the tenant that the pool belongs to. Where no Tenant has that VNI, one named vni-VNI is made, and deleted
    /// with the last pool that asks for it.
    VNI = "calico-vni.io/vni", "annotation of an IPPool", by "users";
    /// The name of the tenant that the pool belongs to.
    TENANT = "calico-vni.io/tenant", "annotation of an IPPool", by "users";
    /// The node's number within its Underlay's `vtepCIDR`, written before it is used.
    ROUTER_INDEX = "calico-vni.io/router-index", "annotation of a Node", by "the controller";
    /// Which of Calico's annotations there we wrote, and with which value, so that a person's own are told from them.
    ASSIGNED = "calico-vni.io/assigned-pools", "annotation of a Namespace", by "the controller";
    /// Followed by a tenant's name: admits the tenant's BGPPeer to the node. Its value is `ready`.
    READY_LABEL_PREFIX = "tenant.calico-vni.io/", "label of a Node", by "the controller";
    /// `pool-annotation` on a Tenant that stands for annotated pools and goes with the last of them; `tenant` on a BGPPeer
    /// or BGPFilter that follows from a Tenant.
    MANAGED_BY = "calico-vni.io/managed-by", "label of a Tenant, BGPPeer or BGPFilter", by "the controller";
    /// The tenant that it follows from.
    OWNER = "calico-vni.io/tenant", "label of a BGPPeer or BGPFilter", by "the controller";
    /// `true` on a Secret that an Underlay's `passwordSecretRef` may name: the controller reads no other.
    BGP_PASSWORD = "calico-vni.io/bgp-password", "label of a Secret", by "users";
    /// Keeps a deleted Tenant until no node carries it.
    FINALIZER = "calico-vni.io/teardown", "finalizer of a Tenant", by "the controller";
}

/// A Tenant that stands for annotated pools and goes with the last of them.
pub const MANAGED_BY_ANNOTATION: &str = "pool-annotation";
/// A BGPPeer or BGPFilter that follows from a tenant.
pub const MANAGED_BY_TENANT: &str = "tenant";
/// Value of the label of a Secret with a BGP password.
pub const BGP_PASSWORD_YES: &str = "true";
/// Key of a Secret that holds a BGP password.
pub const BGP_PASSWORD_KEY: &str = "password";
/// Value of the Node labels.
pub const READY: &str = "ready";
/// Field manager of all that the controller applies.
pub const FIELD_MANAGER: &str = "calico-vni";

/// Calico's annotation of a Node with the ASN of its BIRD, where that is not the cluster's.
pub const CALICO_NODE_ASN: &str = "projectcalico.org/ASNumber";
/// Calico's annotation of a Namespace (or pod) with the IPv4 pools of its pods, a JSON list of names or prefixes.
pub const CALICO_POOLS_V4: &str = "cni.projectcalico.org/ipv4pools";
/// The same for IPv6.
pub const CALICO_POOLS_V6: &str = "cni.projectcalico.org/ipv6pools";
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
