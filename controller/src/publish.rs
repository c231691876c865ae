//! Plan to offers: encodes what changed since the last plan, and nothing else. Writes to the agents' table alone.

use std::{collections::BTreeMap, sync::Arc};

use calico_vni_planner::{Plan, plan::NodePlan};
use calico_vni_proto::{codec::Codec as _, model::Guard, wire::from_controller::Message};

use crate::agents::{Agents, Offer, Offered};

/// Remembers what was encoded, so that an unchanged node costs a comparison.
#[derive(Default)]
pub struct Publisher {
    guard: Option<(Guard, Offered)>,
    nodes: BTreeMap<String, (Arc<NodePlan>, Offered)>,
}

impl Publisher {
    /// Offers the agents the plan's guard, all of them, and these configurations.
    pub fn publish(&mut self, plan: &Plan, configs: &BTreeMap<String, Arc<NodePlan>>, agents: &Agents) {
        let guard = match self.guard.take() {
            Some((encoded, offered)) if encoded == plan.guard => (encoded, offered),
            _ => (plan.guard.clone(), Offered::new(plan.guard.encode(), Message::Guard)),
        };
        let mut nodes = BTreeMap::new();
        let mut offers = BTreeMap::new();
        for node in plan.labels.keys() {
            let offer = Offer { guard: guard.1.clone(), config: None, asn: None };
            offers.insert(node.clone(), offer);
        }
        for (node, config) in configs {
            let entry = match self.nodes.remove(node) {
                Some(entry) if entry.0 == *config => entry,
                _ => (Arc::clone(config), Offered::new(config.config().encode(), Message::Config)),
            };
            let asn = config.underlay.as_ref().map(|underlay| underlay.asn);
            let offer = Offer { guard: guard.1.clone(), config: Some(entry.1.clone()), asn };
            offers.insert(node.clone(), offer);
            nodes.insert(node.clone(), entry);
        }
        self.guard = Some(guard);
        self.nodes = nodes;
        agents.offer(offers);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use calico_vni_proto::model::GuardTenant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn the_guard_reaches_nodes_whose_configuration_has_to_wait() {
        let agents = Agents::new(Arc::default(), CancellationToken::new(), Arc::default());
        let mut sessions = ["n1", "n2"].map(|node| agents.join(node, "1", None));
        let mut plan = Plan::default();
        let config = |node: &str| NodePlan { node: node.to_owned(), underlay: None, tenants: vec![] };
        for node in ["n1", "n2"] {
            plan.labels.insert(node.to_owned(), BTreeSet::new());
            plan.nodes.insert(node.to_owned(), config(node));
        }
        let turn = [("n1".to_owned(), config("n1").into())].into();
        let mut publisher = Publisher::default();
        publisher.publish(&plan, &turn, &agents);
        let offered = sessions.each_mut().map(|session| session.offers.borrow_and_update().clone().unwrap());
        assert_eq!(offered.each_ref().map(|offer| offer.config.is_some()), [true, false]);
        assert_eq!(offered[0].guard, offered[1].guard);

        plan.guard.tenants.push(GuardTenant { name: "red".into(), vni: 1001, pools: vec![] });
        publisher.publish(&plan, &turn, &agents);
        let again = sessions.each_mut().map(|session| session.offers.borrow_and_update().clone().unwrap());
        assert!(again[1].guard != offered[1].guard && again[0].config == offered[0].config);
    }
}
