//! Calico's kinds, with the fields that calico-vni reads or writes.
//!
//! A cluster serves them as `projectcalico.org/v3` (the aggregated API server, or native CRDs) or only as
//! `crd.projectcalico.org/v1`, the storage group. The specs are the same; [`CalicoApi`] says which group is meant.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ClusterResourceScope, Resource, TypeMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::keys::CALICO_METADATA;

/// The group that serves Calico's kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CalicoApi {
    /// `projectcalico.org/v3`: to be used whenever it is served.
    #[default]
    V3,
    /// `crd.projectcalico.org/v1`.
    CrdV1,
}

impl CalicoApi {
    /// API group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::V3 => "projectcalico.org",
            Self::CrdV1 => "crd.projectcalico.org",
        }
    }

    /// Version within the group.
    pub const fn version(self) -> &'static str {
        match self {
            Self::V3 => "v3",
            Self::CrdV1 => "v1",
        }
    }
}

/// The spec of one of Calico's kinds.
pub trait CalicoSpec: Clone + Send + Sync + 'static {
    /// Kind in that group.
    fn kind(api: CalicoApi) -> &'static str;
    /// Resource name in that group.
    fn plural(api: CalicoApi) -> &'static str;
}

/// An object of one of Calico's kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calico<S> {
    /// `apiVersion` and `kind`.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub types: Option<TypeMeta>,
    /// Metadata as stored; see [`Calico::annotations`] for what Calico makes of it.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: S,
}

impl<S: CalicoSpec> Calico<S> {
    /// An object of that name.
    pub fn new(api: CalicoApi, name: &str, spec: S) -> Self {
        Self {
            types: Some(TypeMeta {
                api_version: format!("{}/{}", api.group(), api.version()),
                kind: S::kind(api).to_owned(),
            }),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec,
        }
    }

    /// Name; empty only for an object that never was in a cluster.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Annotations as Calico reads them: those in the JSON of `projectcalico.org/metadata` (where its own API server
    /// and calicoctl keep them on the storage group) win over those on the object itself.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.merged(|m| m.annotations.clone())
    }

    /// Labels as Calico reads them, merged the same way.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.merged(|m| m.labels.clone())
    }

    fn merged(
        &self,
        part: impl Fn(&ObjectMeta) -> Option<BTreeMap<String, String>>,
    ) -> BTreeMap<String, String> {
        let mut merged = part(&self.metadata).unwrap_or_default();
        let hidden = self.metadata.annotations.as_ref().and_then(|a| a.get(CALICO_METADATA));
        if let Some(meta) = hidden.and_then(|json| serde_json::from_str::<ObjectMeta>(json).ok()) {
            merged.extend(part(&meta).unwrap_or_default());
        }
        merged.remove(CALICO_METADATA);
        merged
    }
}

impl<S: CalicoSpec> Resource for Calico<S> {
    type DynamicType = CalicoApi;
    type Scope = ClusterResourceScope;

    fn kind(api: &CalicoApi) -> Cow<'_, str> {
        S::kind(*api).into()
    }

    fn group(api: &CalicoApi) -> Cow<'_, str> {
        api.group().into()
    }

    fn version(api: &CalicoApi) -> Cow<'_, str> {
        api.version().into()
    }

    fn plural(api: &CalicoApi) -> Cow<'_, str> {
        S::plural(*api).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $spec:ident, $kind:literal, $plural:literal;)*) => {$(
        $(#[$doc])*
        pub type $name = Calico<$spec>;
        impl CalicoSpec for $spec {
            fn kind(_: CalicoApi) -> &'static str { $kind }
            fn plural(_: CalicoApi) -> &'static str { $plural }
        }
    )*};
}

kinds! {
    /// A pool of pod addresses.
    IpPool = IpPoolSpec, "IPPool", "ippools";
    /// A BGP peer of BIRD.
    BgpPeer = BgpPeerSpec, "BGPPeer", "bgppeers";
    /// What BIRD imports from and exports to a peer.
    BgpFilter = BgpFilterSpec, "BGPFilter", "bgpfilters";
    /// Which node holds which block of a pool.
    BlockAffinity = BlockAffinitySpec, "BlockAffinity", "blockaffinities";
    /// BGP settings of the cluster.
    BgpConfiguration = BgpConfigurationSpec, "BGPConfiguration", "bgpconfigurations";
    /// Settings of Felix.
    FelixConfiguration = FelixConfigurationSpec, "FelixConfiguration", "felixconfigurations";
}

/// Settings of Calico's IPAM.
pub type IpamConfig = Calico<IpamConfigSpec>;

impl CalicoSpec for IpamConfigSpec {
    fn kind(api: CalicoApi) -> &'static str {
        match api {
            CalicoApi::V3 => "IPAMConfiguration",
            CalicoApi::CrdV1 => "IPAMConfig",
        }
    }

    fn plural(api: CalicoApi) -> &'static str {
        match api {
            CalicoApi::V3 => "ipamconfigurations",
            CalicoApi::CrdV1 => "ipamconfigs",
        }
    }
}

/// Whether traffic of a pool is encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encapsulation {
    /// Not.
    #[default]
    Never,
    /// Always.
    Always,
    /// Between subnets.
    CrossSubnet,
    /// A word that is none of these. The storage group of older releases of Calico takes any.
    #[serde(skip)]
    Other,
}

/// Never fails on a word: a pool that could not be read would be taken for no tenant's.
fn encapsulation<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Encapsulation>, D::Error> {
    let word = Option::<String>::deserialize(input)?;
    Ok(word.map(|word| match word.as_str() {
        "" | "Never" => Encapsulation::Never,
        "Always" => Encapsulation::Always,
        "CrossSubnet" => Encapsulation::CrossSubnet,
        _ => Encapsulation::Other,
    }))
}

/// Never fails on a number, for the same reason: one that is no prefix length at all is held as 255.
fn block_size<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u8>, D::Error> {
    let number = Option::<i64>::deserialize(input)?;
    Ok(number.map(|number| u8::try_from(number).unwrap_or(u8::MAX)))
}

/// Spec of an IPPool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// The pool.
    #[schemars(length(max = 48))]
    pub cidr: String,
    /// VXLAN by Felix.
    #[serde(default, deserialize_with = "encapsulation", skip_serializing_if = "Option::is_none")]
    pub vxlan_mode: Option<Encapsulation>,
    /// IP in IP by BIRD.
    #[serde(default, deserialize_with = "encapsulation", skip_serializing_if = "Option::is_none")]
    pub ipip_mode: Option<Encapsulation>,
    /// Masquerade what leaves the pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_outgoing: Option<bool>,
    /// No new addresses from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Neither to the mesh nor to peers, but where a BGPFilter accepts it.
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "Option::is_none")]
    pub disable_bgp_export: Option<bool>,
    /// Prefix length of its blocks; absent means 26 or, for IPv6, 122.
    #[serde(default, deserialize_with = "block_size", skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Nodes that get blocks of it, in Calico's selector language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// What its addresses are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_uses: Option<Vec<String>>,
    /// Automatic, or only for who names the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_mode: Option<String>,
    /// Namespaces whose pods get addresses of it, in Calico's selector language (3.31 and later).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<String>,
}

/// Spec of a FelixConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FelixConfigurationSpec {
    /// The eBPF data plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bpf_enabled: Option<bool>,
    /// Routing tables that Felix takes for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_table_ranges: Option<Vec<RouteTableRange>>,
}

/// A range of routing tables, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteTableRange {
    /// Smallest.
    pub min: i64,
    /// Largest.
    pub max: i64,
}

/// Spec of a BGPPeer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerSpec {
    /// One node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Nodes, in Calico's selector language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// The peer's address.
    #[serde(default, rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub peer_ip: Option<String>,
    /// The peer's ASN; Calico holds it in 32 bits with a sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<i32>,
    /// `UseNodeIP` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<String>,
    /// Names of BGPFilters, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<String>>,
}

/// Spec of a BGPFilter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterSpec {
    /// To the peer, IPv4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_v4: Vec<BgpFilterRule>,
    /// From the peer, IPv4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub import_v4: Vec<BgpFilterRule>,
    /// To the peer, IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_v6: Vec<BgpFilterRule>,
    /// From the peer, IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub import_v6: Vec<BgpFilterRule>,
}

/// A rule of a BGPFilter; the first that matches decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterRule {
    /// What to do.
    pub action: FilterAction,
    /// Prefix to compare with; needs `matchOperator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// How to compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_operator: Option<MatchOperator>,
    /// Lengths of the route's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<PrefixLength>,
    /// `RemotePeers`: only what came by BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Pattern of the outgoing interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// What a rule of a BGPFilter does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterAction {
    /// Let through.
    Accept,
    /// Do not.
    #[default]
    Reject,
}

/// How a route's prefix compares with a rule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MatchOperator {
    /// It is that prefix.
    Equal,
    /// It is not that prefix.
    NotEqual,
    /// It lies within.
    In,
    /// It does not lie within.
    NotIn,
}

/// Lengths of prefixes, both ends included. A `min` above `max`, or a `max` below the rule's own prefix, stops BIRD's
/// configuration on every node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixLength {
    /// Shortest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u8>,
    /// Longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u8>,
}

/// Spec of a BlockAffinity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockAffinitySpec {
    /// Node that holds the block.
    pub node: String,
    /// The block.
    pub cidr: String,
    /// `confirmed`, `pending`, `pendingDeletion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// `host` or `virtual`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A string in `crd.projectcalico.org/v1`, a bool in `projectcalico.org/v3`; see [`BlockAffinitySpec::is_deleted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub deleted: Option<serde_json::Value>,
}

fn any_value(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

impl BlockAffinitySpec {
    /// Whether Calico is done with it.
    pub fn is_deleted(&self) -> bool {
        match &self.deleted {
            Some(serde_json::Value::Bool(deleted)) => *deleted,
            Some(serde_json::Value::String(deleted)) => deleted == "true",
            _ => false,
        }
    }
}

/// Spec of a BGPConfiguration; the one named `default` counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpConfigurationSpec {
    /// Whether all nodes peer with each other; absent means yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// ASN of the nodes; absent means 64512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<i64>,
    /// Prefixes of Services' cluster addresses that BIRD announces.
    #[serde(default, rename = "serviceClusterIPs", skip_serializing_if = "Option::is_none")]
    pub service_cluster_ips: Option<Vec<ServiceBlock>>,
}

/// A prefix of the addresses of Services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceBlock {
    /// The prefix.
    #[serde(default)]
    pub cidr: String,
}

/// ASN of Calico's nodes where nothing says otherwise.
pub const DEFAULT_ASN: u32 = 64512;

/// Spec of an IPAMConfig; the one named `default` counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpamConfigSpec {
    /// Whether a node takes addresses from its own blocks alone.
    #[serde(default)]
    pub strict_affinity: bool,
}
