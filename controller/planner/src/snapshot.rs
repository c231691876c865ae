//! What was observed of the cluster: the input of planning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use calico_vni_crds::{
    Tenant, Underlay,
    calico::{
        BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, CalicoApi, FelixConfiguration, IpPool,
        IpamConfig,
    },
    keys,
};
use calico_vni_proto::model::REDACTED;
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Secret},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

/// Everything that a plan depends on. Lists may be in any order. Of what a large cluster has most, the objects are shared
/// with whoever observed them: no plan copies them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Group in which Calico's kinds are served, and in which the plan's objects are written.
    pub calico_api: CalicoApi,
    /// All Tenants, also those being deleted.
    pub tenants: Vec<Tenant>,
    /// All Underlays.
    pub underlays: Vec<Underlay>,
    /// All IPPools, of tenants or not.
    pub pools: Vec<IpPool>,
    /// All live blocks.
    pub blocks: Arc<Vec<Block>>,
    /// Nodes; labels, annotations and name are used.
    pub nodes: Vec<Arc<Node>>,
    /// Calico's BGP settings; the one named `default` counts.
    pub bgp_configurations: Vec<BgpConfiguration>,
    /// Calico's IPAM settings; the one named `default` counts.
    pub ipam_configs: Vec<IpamConfig>,
    /// Felix's settings; the one named `default` counts for the cluster, `node.<name>` for a node.
    pub felix_configurations: Vec<FelixConfiguration>,
    /// All Namespaces; name, labels, annotations and deletion are used.
    pub namespaces: Vec<Namespace>,
    /// Prefixes of the addresses of Services, where the cluster serves that kind.
    pub service_cidrs: Vec<ServiceCIDR>,
    /// EndpointSlices of Services that some Tenant names, or all.
    pub endpoint_slices: Vec<EndpointSlice>,
    /// BGPPeers whose name begins with `calico-vni-`, as they stand.
    pub peers: Vec<BgpPeer>,
    /// BGPFilters whose name begins with `calico-vni-`, as they stand.
    pub filters: Vec<BgpFilter>,
    /// BGP passwords.
    pub passwords: Passwords,
    /// What the connected agents have said, by node. A node without an entry is not connected: nothing is known of it,
    /// and what stands for it stays.
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// Of [`crate::Plan::lingering`], the pairs whose time is over: Node and Tenant.
    pub lingered: BTreeSet<(String, String)>,
}

/// A live block: of its BlockAffinity what plans need. A large cluster has hundreds of thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Node that holds it.
    pub node: String,
    /// Its addresses.
    pub net: IpNet,
    /// When its BlockAffinity was made.
    pub created: Option<Timestamp>,
}

impl Block {
    /// That BlockAffinity's; `None` where Calico is done with it, or its prefix cannot be read.
    pub fn of(affinity: BlockAffinity) -> Option<Self> {
        let net = affinity.spec.cidr.parse().ok().filter(|_| !affinity.spec.is_deleted())?;
        let created = affinity.metadata.creation_timestamp.map(|time| time.0);
        Some(Self { node: affinity.spec.node, net, created })
    }
}

/// The Secrets with BGP passwords.
#[derive(Clone, Debug)]
pub enum Passwords {
    /// These, by name.
    Read(BTreeMap<String, PasswordSecret>),
    /// Nobody has looked: each Secret that is named is taken to hold one. For whoever only shows a plan.
    Assumed,
}

impl Default for Passwords {
    fn default() -> Self {
        Self::Read(BTreeMap::new())
    }
}

/// A Secret with a BGP password, as far as it is read.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordSecret {
    /// As the API server gave it: a random number that whoever may not read the Secret does not know.
    pub uid: String,
    /// What its key [`keys::BGP_PASSWORD_KEY`] holds.
    pub password: Option<Vec<u8>>,
}

impl PasswordSecret {
    /// That Secret, where it has the label [`keys::BGP_PASSWORD`].
    pub fn of(secret: &Secret) -> Option<Self> {
        let labels = secret.metadata.labels.as_ref()?;
        (labels.get(keys::BGP_PASSWORD)? == keys::BGP_PASSWORD_YES).then_some(())?;
        let data =
            secret.data.as_ref().and_then(|data| data.get(keys::BGP_PASSWORD_KEY)).map(|data| data.0.clone());
        let written =
            || secret.string_data.as_ref()?.get(keys::BGP_PASSWORD_KEY).map(|text| text.clone().into_bytes());
        Some(Self { uid: secret.metadata.uid.clone().unwrap_or_default(), password: data.or_else(written) })
    }
}

impl fmt::Debug for PasswordSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// What the agent of a node has said last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Agent {
    /// It has not said yet what stands, only what it refuses: what stands for the node stays.
    pub awaited: bool,
    /// Tenants that stand on the node, programmed and verified: name and VNI.
    pub programmed: BTreeSet<(String, u32)>,
    /// Tenants that do not, and why.
    pub failed: BTreeMap<String, String>,
    /// Why the whole configuration was refused.
    pub rejected: Option<String>,
    /// Whether FRR answers.
    pub frr_running: bool,
    /// ASN of the router by the configuration that it said last that it holds; `None` where that is not known.
    pub asn: Option<u32>,
    /// BGP sessions of the node's router.
    pub sessions: Vec<Session>,
    /// What the node's operator has to be told.
    pub notices: BTreeSet<AgentNotice>,
}

/// Something that is wrong with a node, found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AgentNotice {
    /// Tenant that it concerns; `None`: the whole node.
    pub tenant: Option<String>,
    /// One word.
    pub reason: String,
    /// A sentence with the way out.
    pub message: String,
}

/// A BGP session of a router.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Session {
    /// Tenant; `None` for a session with the fabric.
    pub tenant: Option<String>,
    /// The peer's address.
    pub peer: String,
    /// Whether it is up.
    pub established: bool,
    /// Routes taken from the peer.
    pub prefixes_received: u32,
}
