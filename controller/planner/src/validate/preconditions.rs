//! What Calico's Felix has to be like.

use calico_vni_crds::calico::FelixConfiguration;
use calico_vni_proto::names::{self, VNI_MAX};

use super::{Underlay, Verdict};
use crate::{Snapshot, reason};

/// Felix's configuration of the cluster.
const CLUSTER: &str = "default";
/// Prefix of the name of a node's own.
const NODE: &str = "node.";

/// With the eBPF data plane in the whole cluster no Underlay is accepted: packets of pods would go past the policy rules
/// and past the guard, so nothing would be closed.
pub(super) fn refuse(snapshot: &Snapshot, underlays: &mut [Underlay<'_>]) {
    let Some(felix) = snapshot.felix_configurations.iter().find(|f| f.name() == CLUSTER && is_ebpf(f)) else {
        return;
    };
    for underlay in underlays.iter_mut().filter(|u| u.settings.is_ok()) {
        underlay.settings = Err(ebpf(felix));
    }
}

fn is_ebpf(felix: &FelixConfiguration) -> bool {
    felix.spec.bpf_enabled == Some(true)
}

fn ebpf(felix: &FelixConfiguration) -> Verdict {
    Verdict::new(
        reason::EBPF_DATA_PLANE,
        format!(
            "FelixConfiguration `{}`, spec.bpfEnabled: true, but the eBPF data plane leads packets past the policy rules and the guard; set it to false, which is Calico's iptables or nftables data plane",
            felix.name()
        ),
    )
}

/// What is wrong with Felix on one node by its own configuration.
pub(crate) fn of_node(snapshot: &Snapshot, node: &str) -> Vec<Verdict> {
    let own = |f: &&FelixConfiguration| f.name().strip_prefix(NODE) == Some(node);
    let Some(felix) = snapshot.felix_configurations.iter().find(own) else { return Vec::new() };
    is_ebpf(felix).then(|| ebpf(felix)).into_iter().chain(tables(felix)).collect()
}

/// Whether Felix takes for itself, in the whole cluster, routing tables that are tenants'.
pub(crate) fn of_cluster(snapshot: &Snapshot) -> Option<Verdict> {
    snapshot.felix_configurations.iter().find(|f| f.name() == CLUSTER).and_then(tables)
}

fn tables(felix: &FelixConfiguration) -> Option<Verdict> {
    let (first, last) = (i64::from(names::table(1)), i64::from(names::table(VNI_MAX)));
    let ranges = felix.spec.route_table_ranges.as_deref().unwrap_or_default();
    let range = ranges.iter().find(|r| r.min <= last && r.max >= first)?;
    Some(Verdict::new(
        reason::ROUTE_TABLES_OVERLAP,
        format!(
            "FelixConfiguration `{}`, spec.routeTableRanges: {} to {} overlaps {first} to {last}, the tenants' routing tables; end it below {first}",
            felix.name(),
            range.min,
            range.max
        ),
    ))
}
