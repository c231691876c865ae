//! Plan to offers: encodes what changed since the last plan, and nothing else. Writes to the agents' table alone.

use std::{collections::BTreeMap, sync::Arc};

use calico_vni_planner::{Plan, plan::NodePlan};
use calico_vni_proto::{
    codec::{Codec, Digest},
    model::Guard,
};

use crate::agents::{Agents, Offer, Offered};

/// Remembers what was encoded, so that an unchanged node costs a comparison.
#[derive(Default)]
pub struct Publisher {
    guard: Option<(Guard, Offered)>,
    nodes: BTreeMap<String, (NodePlan, Offered)>,
}

impl Publisher {
    /// Offers the plan's guard and configurations to the agents.
    pub fn publish(&mut self, plan: &Plan, agents: &Agents) {
        let guard = match self.guard.take() {
            Some((encoded, offered)) if encoded == plan.guard => (encoded, offered),
            _ => (plan.guard.clone(), encode(&plan.guard)),
        };
        let mut nodes = BTreeMap::new();
        let mut offers = BTreeMap::new();
        for (node, config) in &plan.nodes {
            let entry = match self.nodes.remove(node) {
                Some(entry) if entry.0 == *config => entry,
                _ => (config.clone(), encode(&config.config())),
            };
            let asn = config.underlay.as_ref().map(|underlay| underlay.asn);
            offers.insert(node.clone(), Offer { guard: guard.1.clone(), config: entry.1.clone(), asn });
            nodes.insert(node.clone(), entry);
        }
        self.guard = Some(guard);
        self.nodes = nodes;
        agents.offer(offers);
    }
}

fn encode(message: &impl Codec) -> Offered {
    let payload = message.to_payload();
    Offered { digest: Digest::of(&payload.body), payload: Arc::new(payload) }
}
