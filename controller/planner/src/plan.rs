//! The plan: what the cluster should hold.
//!
//! A plan is the whole of what is wanted, not a difference: whoever carries it out compares it with what stands. The
//! one exception is what has to be in the cluster before it may be used, [`Plan::allocations`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use calico_vni_crds::{
    Tenant, TenantStatus, UnderlayStatus,
    calico::{BgpFilter, BgpPeer},
};
use calico_vni_proto::model::{Guard, NodeConfig, Tenant as ModelTenant, Underlay};
use serde::{Serialize, Serializer};

/// What the cluster should hold. Keys are object names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Tenants to make for pools that have only the VNI annotation.
    pub tenants: BTreeMap<String, Tenant>,
    /// Tenants of that kind that no pool names any more.
    pub tenants_to_delete: BTreeSet<String>,
    /// Live tenants that have to hold the finalizer (those already having it included).
    pub finalizers: BTreeSet<String>,
    /// Deleted tenants of which nothing is left: their finalizer may go.
    pub finished_tenants: BTreeSet<String>,
    /// To be written before anything that uses them is planned.
    pub allocations: Allocations,
    /// All BGPFilters of ours.
    pub filters: BTreeMap<String, BgpFilter>,
    /// All BGPPeers of ours. Applied after the filters, deleted before them.
    pub peers: BTreeMap<String, BgpPeer>,
    /// Tenants whose ready label each node should have; every known node has an entry. Nodes share the names.
    #[serde(serialize_with = "names")]
    pub labels: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// Value of the ready labels of a node where that is not [`calico_vni_crds::keys::READY`]: there BIRD has to meet
    /// another ASN.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub label_values: BTreeMap<String, String>,
    /// What each node carries. A node without an entry is left as it is: several Underlays select it, or only ones that
    /// are not accepted; its router index is not kept yet; or no Underlay selects it and it still has a ready label.
    /// Taking everything off a node is said explicitly, by an entry without underlay.
    pub nodes: BTreeMap<String, NodePlan>,
    /// The same for every node.
    pub guard: Guard,
    /// Pools that would be a tenant's and cannot be, each with why in one word. Their pods reach their own node alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub quarantined: BTreeMap<String, &'static str>,
    /// Annotations of Namespaces: those to hold with their values, and `None` for those to take away. A Namespace
    /// without an entry is left as it is.
    pub namespaces: BTreeMap<String, BTreeMap<String, Option<String>>>,
    /// Node and Tenant that stand together though no block is left there: kept for a while, until the snapshot says in
    /// [`crate::Snapshot::lingered`] that the while is over.
    pub lingering: BTreeSet<(String, String)>,
    /// Status of each Tenant. Conditions' `lastTransitionTime` is the epoch: whoever writes it keeps the time of an
    /// equal condition and gives a changed one the present.
    pub tenant_status: BTreeMap<String, TenantStatus>,
    /// Status of each Underlay, with times as above.
    pub underlay_status: BTreeMap<String, UnderlayStatus>,
    /// What an operator has to be told, on the object that it is about.
    pub notices: BTreeSet<Notice>,
}

/// What one node carries: a [`NodeConfig`] that shares its tenants with other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// Kubernetes node name.
    pub node: String,
    /// Absent: nothing of ours is wanted on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,
    /// Ordered by VNI. Empty when there is no underlay.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "each")]
    pub tenants: Vec<Arc<ModelTenant>>,
}

impl NodePlan {
    /// As the node's agent gets it.
    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            node: self.node.clone(),
            underlay: self.underlay.clone(),
            tenants: self.tenants.iter().map(|tenant| ModelTenant::clone(tenant)).collect(),
        }
    }
}

fn names<S: Serializer>(
    labels: &BTreeMap<String, BTreeSet<Arc<str>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(node, tenants)| {
        let tenants: Vec<&str> = tenants.iter().map(Arc::as_ref).collect();
        (node, tenants)
    }))
}

fn each<S: Serializer>(tenants: &[Arc<ModelTenant>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tenants.iter().map(Arc::as_ref))
}

/// Allocations that are not in the cluster yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocations {
    /// VNI and link index of tenants, to be kept in their status.
    pub tenants: BTreeMap<String, TenantAllocation>,
    /// Router index of nodes, to be kept in their annotation.
    pub nodes: BTreeMap<String, u32>,
}

impl Allocations {
    /// Whether everything is in the cluster.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.nodes.is_empty()
    }
}

/// What is a tenant's own for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantAllocation {
    /// VNI.
    pub vni: u32,
    /// Link index, 1 and up.
    pub link_index: u32,
}

/// A warning that becomes an Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Notice {
    /// What it is about.
    pub about: About,
    /// One word, as in the condition or pool status that says the same.
    pub reason: String,
    /// A sentence with the field, the value and the way out.
    pub message: String,
}

/// An object of the snapshot, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum About {
    /// An IPPool.
    Pool(String),
    /// A Tenant.
    Tenant(String),
    /// An Underlay.
    Underlay(String),
    /// A Node.
    Node(String),
    /// A Namespace.
    Namespace(String),
}

/// Kind and name, as the API server has them.
impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Pool(name) => ("IPPool", name),
            Self::Tenant(name) => ("Tenant", name),
            Self::Underlay(name) => ("Underlay", name),
            Self::Node(name) => ("Node", name),
            Self::Namespace(name) => ("Namespace", name),
        };
        write!(f, "{kind} {name}")
    }
}
