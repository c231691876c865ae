//! Underlay: how the routers of a set of nodes join the fabric.
// kube's derive repeats `printcolumn`; clippy takes columns of one type for the same attribute.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    checks,
    limits::{HOST_LINK_CIDR, HOST_LINK_CIDR_V6},
    tenant::{NodeCounts, PoolStatus},
};

/// Default of a neighbour's `holdTimeSeconds`.
pub const HOLD_TIME: u16 = 9;

/// Default of `rollout.maxUnavailablePercent`.
pub const MAX_UNAVAILABLE_PERCENT: u8 = 25;

/// How the routers of a set of nodes join the fabric.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "calico-vni.io",
    version = "v1alpha1",
    kind = "Underlay",
    plural = "underlays",
    shortname = "ul",
    category = "calico-vni",
    status = "UnderlayStatus",
    derive = "PartialEq",
    doc = "How the routers of a set of nodes join the fabric: ASN, neighbours, tunnel end points, interfaces. Each node is selected by one Underlay.",
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.asn"),
    printcolumn(name = "VTEPs", type_ = "string", json_path = ".spec.vtepCIDR"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.ready"),
    printcolumn(name = "Sessions", type_ = "string", json_path = ".status.sessions.ready"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = checks::underlay_spec)]
pub struct UnderlaySpec {
    /// Nodes of this underlay; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = checks::selector)]
    pub node_selector: Option<LabelSelector>,

    /// ASN of the routers. Not Calico's own, since BIRD and the router speak eBGP; and at most 2147483647, since Calico's BGPPeer holds no more.
    #[schemars(range(min = 1, max = 2_147_483_647), transform = checks::asn)]
    pub asn: u32,

    /// BGP neighbours in the fabric: the top-of-rack switches or route servers.
    #[schemars(length(min = 1, max = 16), transform = checks::neighbors)]
    pub neighbors: Vec<Neighbor>,

    /// Each router's tunnel end point (VTEP) is one address of this IPv4 prefix, counted from its first by the Node's
    /// `calico-vni.io/router-index`.
    #[serde(rename = "vtepCIDR")]
    #[schemars(length(max = 64), transform = checks::vtep_cidr)]
    pub vtep_cidr: String,

    /// Interfaces of the node that lead to the fabric.
    #[schemars(length(min = 1, max = 8), transform = checks::interfaces)]
    pub interfaces: Vec<Interface>,

    /// Link addresses between host and VRF, two for each tenant and the same on every node.
    #[serde(rename = "hostLinkCIDR", default = "host_link_cidr")]
    #[schemars(length(max = 64), transform = checks::host_link_cidr)]
    pub host_link_cidr: String,

    /// The same for IPv6.
    #[serde(rename = "hostLinkCIDRv6", default = "host_link_cidr_v6")]
    #[schemars(length(max = 64), transform = checks::host_link_cidr_v6)]
    pub host_link_cidr_v6: String,

    /// Where the VNIs of Tenants without one come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni_range: Option<VniRange>,

    /// MTU of the underlay in octets; absent means that of its interfaces. Tenants get 50 less, and IPv6 needs 1280 of those
    /// (RFC 8200, section 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1330, max = 65_535))]
    pub mtu: Option<u32>,

    /// Prefixes that the pods of every tenant reach by the node's main routing table.
    #[serde(rename = "sharedCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 64)), transform = checks::shared_cidrs)]
    pub shared_cidrs: Vec<String>,

    /// Keep forwarding while a router's BGP restarts.
    #[serde(default = "yes")]
    pub graceful_restart: bool,

    /// How a change of this Underlay, or of a Tenant, reaches the nodes that have it already.
    #[serde(default)]
    pub rollout: Rollout,
}

/// How a change reaches the nodes. One node gets it first; the next ones do when that one has applied it and does well.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// How many nodes, in percent of those that have what changes, may be on their way at a time; one at least. With 100 all
    /// nodes get each change at once.
    #[serde(default = "max_unavailable_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable_percent: u8,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { max_unavailable_percent: MAX_UNAVAILABLE_PERCENT }
    }
}

fn max_unavailable_percent() -> u8 {
    MAX_UNAVAILABLE_PERCENT
}

fn host_link_cidr() -> String {
    HOST_LINK_CIDR.to_owned()
}

fn host_link_cidr_v6() -> String {
    HOST_LINK_CIDR_V6.to_owned()
}

fn yes() -> bool {
    true
}

/// A BGP neighbour in the fabric.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbor {
    /// Its address, on a link of one of the interfaces.
    #[schemars(length(max = 45), transform = checks::neighbor_address)]
    pub address: String,
    /// Its ASN.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub asn: u32,
    /// BGP hold time in seconds; a keepalive goes every third of it.
    #[serde(default = "hold_time")]
    #[schemars(range(min = 3, max = 65_535))]
    pub hold_time_seconds: u16,
    /// The password of the session (TCP MD5, RFC 2385), the same as at the neighbour; absent means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<PasswordSecretRef>,
}

/// Where a password is kept.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordSecretRef {
    /// A Secret in the controller's namespace with the label `calico-vni.io/bgp-password: "true"`. Its key `password` holds one
    /// to 80 printable characters of ASCII, no space and no `|`.
    #[schemars(length(min = 1, max = 253), transform = checks::secret_name)]
    pub name: String,
}

fn hold_time() -> u16 {
    HOLD_TIME
}

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name, the same on all nodes of this underlay.
    #[schemars(length(min = 1, max = 15), transform = checks::interface_name)]
    pub name: String,
    /// How the router gets it.
    #[serde(default)]
    pub mode: InterfaceMode,
}

/// How a router gets an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InterfaceMode {
    /// The interface itself moves into the router's namespace and keeps its addresses.
    #[default]
    Move,
}

/// A range of VNIs, both ends included.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(transform = checks::vni_range)]
pub struct VniRange {
    /// Smallest.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub min: u32,
    /// Largest.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub max: u32,
}

/// What became of an underlay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UnderlayStatus {
    /// Its nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// BGP sessions with the fabric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionCounts>,
    /// Pools of the cluster whose annotation names no tenant that there could be. They belong to no Tenant, so they are told here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quarantined_pools: Vec<PoolStatus>,
    /// Accepted, Programmed, PoolsAccepted, StrictAffinity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = checks::conditions)]
    pub conditions: Vec<Condition>,
}

/// How many sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionCounts {
    /// Established.
    pub established: u32,
    /// Configured, on all nodes together.
    pub configured: u32,
    /// Established of configured, as `24/24`.
    pub ready: String,
}
