//! What the API server holds of the kinds that confd follows, unread.

use std::sync::Arc;

use calico_vni_crds::calico::{BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, IpPool};
use k8s_openapi::api::core::v1::Node;

/// Annotation of a Node with its IPv4 address and the length of its network, `172.18.0.11/24`.
pub const NODE_IPV4: &str = "projectcalico.org/IPv4Address";
/// The same for IPv6.
pub const NODE_IPV6: &str = "projectcalico.org/IPv6Address";

/// One moment of the API server. The order within a kind does not matter.
#[derive(Debug, Clone, Default)]
pub struct CalicoState {
    /// Nodes of Kubernetes.
    pub nodes: Vec<Arc<Node>>,
    /// IPPools.
    pub pools: Vec<Arc<IpPool>>,
    /// BGPPeers.
    pub peers: Vec<Arc<BgpPeer>>,
    /// BGPFilters.
    pub filters: Vec<Arc<BgpFilter>>,
    /// BGPConfigurations; only `default` counts.
    pub configurations: Vec<Arc<BgpConfiguration>>,
    /// BlockAffinities.
    pub affinities: Vec<Arc<BlockAffinity>>,
}
