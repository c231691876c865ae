//! What the API server holds of the kinds that confd follows, unread.

use std::sync::Arc;

use calico_vni_crds::calico::{BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, IpPool};
use k8s_openapi::api::core::v1::Node;

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
