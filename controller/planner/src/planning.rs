//! From a snapshot to its plan, step by step.

use calico_vni_proto::model::NodeConfig;
use kube::ResourceExt;

use crate::{Plan, Snapshot};

/// What the cluster should hold, given what was observed of it.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    for node in &snapshot.nodes {
        let name = node.name_any();
        plan.labels.entry(name.clone()).or_default();
        plan.nodes.insert(name.clone(), NodeConfig { node: name, underlay: None, tenants: Vec::new() });
    }
    plan
}
