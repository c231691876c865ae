//! Tenant: a VRF of the fabric, and which pods live in it.
// kube's derive repeats `printcolumn`; clippy takes columns of one type for the same attribute.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks;

/// Default of `maxPrefixes`.
pub const MAX_PREFIXES: u32 = 1000;

/// What a tenant is to be.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "calico-vni.io",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    shortname = "ten",
    category = "calico-vni",
    status = "TenantStatus",
    derive = "PartialEq",
    doc = "A tenant: one VRF of the EVPN fabric, on every node that hosts its pods. IPPools join it by the annotation calico-vni.io/tenant or calico-vni.io/vni.",
    printcolumn(name = "VNI", type_ = "integer", json_path = ".status.vni"),
    printcolumn(name = "Pools", type_ = "string", json_path = ".status.acceptedPools"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.ready"),
    printcolumn(name = "Prefixes", type_ = "integer", json_path = ".status.prefixes"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "VRF", type_ = "string", json_path = ".status.vrf", priority = 1),
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
#[schemars(transform = checks::tenant_spec)]
pub struct TenantSpec {
    /// VNI of the tenant's VRF in the fabric. Where absent, one is allocated from the Underlays' `vniRange` and kept in status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: Option<u32>,

    /// Route targets, where the fabric does not go by the VNI alone.
    #[serde(default, skip_serializing_if = "RouteTargets::is_default")]
    pub route_targets: RouteTargets,

    /// Namespaces whose pods live in the tenant: they get Calico's annotations that name the tenant's pools. Absent means none;
    /// an empty selector means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = checks::selector)]
    pub namespace_selector: Option<LabelSelector>,

    /// Nodes that may carry the tenant; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = checks::selector)]
    pub node_selector: Option<LabelSelector>,

    /// Which of those nodes carry it.
    #[serde(default)]
    pub placement: Placement,

    /// What the nodes announce of the tenant's pools.
    #[serde(default)]
    pub advertise: Advertise,

    /// What the tenant's pods may reach outside their VRF, beyond the Underlay's `sharedCIDRs`.
    #[serde(default, skip_serializing_if = "SharedServices::is_default")]
    pub shared_services: SharedServices,

    /// Most routes that a node takes from its BIRD for this tenant; above it the session is closed and told.
    #[serde(default = "max_prefixes")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_prefixes: u32,
}

fn max_prefixes() -> u32 {
    MAX_PREFIXES
}

/// Route targets of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTargets {
    /// Imported into the VRF; absent means every one whose number is the VNI, whatever its ASN. Each is ASN:NUMBER, IPv4:NUMBER.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)), transform = checks::import_targets)]
    pub import: Vec<String>,
    /// Put on the VRF's routes; absent means the Underlay's ASN with the VNI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)), transform = checks::export_targets)]
    pub export: Vec<String>,
}

impl RouteTargets {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which nodes carry a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// Those where Calico gave one of its pools a block.
    #[default]
    OnDemand,
    /// All that the node selector names.
    AllNodes,
}

/// What nodes announce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Advertise {
    /// The blocks of the tenant's pools.
    #[default]
    Blocks,
    /// Every pod's own route as well; wanted where addresses are borrowed between nodes (strictAffinity is off).
    Pods,
}

/// Services that every tenant reaches unless it says otherwise: the API server and the cluster's DNS, as `namespace/name`.
pub const SERVICES: [&str; 2] = ["default/kubernetes", "kube-system/kube-dns"];

/// What a tenant may reach outside its VRF. It answers, it does not open connections into the tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedServices {
    /// Services of the cluster, as `namespace/name`; their endpoints are followed. An empty list means none.
    #[serde(default = "services")]
    #[schemars(length(max = 32), inner(length(max = 127)), transform = checks::services)]
    pub services: Vec<String>,
    /// Prefixes reached by the node's main routing table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 64)), transform = checks::shared_cidrs)]
    pub cidrs: Vec<String>,
}

fn services() -> Vec<String> {
    SERVICES.map(str::to_owned).to_vec()
}

impl Default for SharedServices {
    fn default() -> Self {
        Self { services: services(), cidrs: Vec::new() }
    }
}

impl SharedServices {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What became of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantStatus {
    /// VNI in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Number of the tenant's link between host and VRF, the same on every node; also the number in its route distinguishers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_index: Option<u32>,
    /// VRF's device on the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<String>,
    /// The pools that name this tenant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolStatus>,
    /// Accepted pools of all, as `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_pools: Option<String>,
    /// The nodes that carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Routes that the nodes' routers hold from their BIRDs, all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<u32>,
    /// Accepted, Programmed, Degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = checks::conditions)]
    pub conditions: Vec<Condition>,
}

/// A pool that names a tenant, or tries to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Name of the IPPool.
    pub name: String,
    /// Its CIDR.
    pub cidr: String,
    /// Whether its pods live in the tenant. Where not, they reach their own node and nothing else.
    pub accepted: bool,
    /// One word why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why not, and the way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How many nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that should carry it.
    pub desired: u32,
    /// Nodes whose router has said that it stands.
    pub programmed: u32,
    /// Nodes whose router has said that it does not.
    pub degraded: u32,
    /// Programmed of desired, as `12/12`.
    pub ready: String,
    /// The first few that are degraded, by name, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<NodeProblem>,
}

/// A node that does not do what it should.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeProblem {
    /// Name of the Node.
    pub node: String,
    /// What its router says.
    pub message: String,
}
