//! Prefixes of the cluster's Services. No pod, tunnel end point or link may have an address there: Calico's and the
//! cluster's own rules catch such packets before they are routed.

use ipnet::IpNet;

use super::{Age, age};
use crate::Snapshot;

/// A prefix that Services get their addresses of.
#[derive(Debug)]
pub struct ServicePrefix<'a> {
    /// The prefix, truncated to its length.
    pub net: IpNet,
    /// The field and the object that it is from, in words.
    pub from: String,
    /// Age of that object.
    pub age: Age<'a>,
}

/// All of them, in order: of ServiceCIDRs, and those that Calico announces. Text that is no prefix is passed over; who
/// serves the object refuses it.
pub(super) fn parse(snapshot: &Snapshot) -> Vec<ServicePrefix<'_>> {
    let mut prefixes = Vec::new();
    let mut add = |text: &str, from: String, age| {
        if let Ok(net) = text.parse::<IpNet>() {
            prefixes.push(ServicePrefix { net: net.trunc(), from, age });
        }
    };
    for object in &snapshot.service_cidrs {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        for text in object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
            add(text, format!("spec.cidrs of ServiceCIDR `{name}`"), age(&object.metadata));
        }
    }
    for object in snapshot.bgp_configurations.iter().filter(|c| c.name() == "default") {
        for block in object.spec.service_cluster_ips.iter().flatten() {
            let from = "spec.serviceClusterIPs of BGPConfiguration `default`".to_owned();
            add(&block.cidr, from, age(&object.metadata));
        }
    }
    prefixes.sort_by(|a, b| (a.net, &a.from).cmp(&(b.net, &b.from)));
    prefixes.dedup_by(|a, b| a.net == b.net && a.from == b.from);
    prefixes
}
