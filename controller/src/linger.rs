//! How long a tenant stays on a node after its last block has left. Pure; the time is passed in.
//!
//! A plan says which pairs of Node and Tenant linger; the next snapshot says of which the while is over. The times are
//! kept here and nowhere else: a restart of the controller gives every pair its whole while again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use calico_vni_crds::keys;
use calico_vni_planner::{Plan, Snapshot};
use kube::ResourceExt;
use tokio::time::Instant;

/// The pairs that linger, each with the end of its while.
pub struct Linger {
    time: Duration,
    ends: BTreeMap<(String, String), Instant>,
}

impl Linger {
    /// Each pair stays so long.
    pub fn new(time: Duration) -> Self {
        Self { time, ends: BTreeMap::new() }
    }

    /// Says in the snapshot of which pairs the while is over.
    pub fn fill(&self, snapshot: &mut Snapshot, now: Instant) {
        let over = self.ends.iter().filter(|(_, end)| **end <= now);
        snapshot.lingered = over.map(|(pair, _)| pair.clone()).collect();
    }

    /// Follows the plan that was made of that snapshot. A pair that does not linger any more is forgotten, so that it
    /// has its whole while the next time; one whose while is over only when its label is off, or it would begin anew.
    pub fn follow(&mut self, plan: &Plan, snapshot: &Snapshot, now: Instant) {
        let end = now + self.time;
        for pair in &plan.lingering {
            self.ends.entry(pair.clone()).or_insert(end);
        }
        if self.ends.is_empty() {
            return;
        }
        let labelled: BTreeSet<(String, &str)> = snapshot
            .nodes
            .iter()
            .flat_map(|node| {
                let tenants =
                    node.labels().keys().filter_map(|key| key.strip_prefix(keys::READY_LABEL_PREFIX));
                tenants.map(move |tenant| (node.name_any(), tenant))
            })
            .collect();
        self.ends.retain(|pair, _| {
            let (node, tenant) = pair;
            let leaves = snapshot.lingered.contains(pair)
                && labelled.contains(&(node.clone(), tenant.as_str()))
                && plan.labels.get(node).is_none_or(|wanted| !wanted.contains(tenant.as_str()));
            plan.lingering.contains(pair) || leaves
        });
    }

    /// When the next while is over.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        self.ends.values().copied().filter(|end| *end >= now).min()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;

    const TIME: Duration = Duration::from_mins(10);

    fn pair() -> (String, String) {
        ("n1".to_owned(), "red".to_owned())
    }

    fn snapshot(labelled: bool) -> Snapshot {
        let mut node = Node::default();
        node.metadata.name = Some("n1".to_owned());
        if labelled {
            node.labels_mut().insert(keys::ready_label("red"), keys::READY.to_owned());
        }
        Snapshot { nodes: vec![node.into()], ..Snapshot::default() }
    }

    fn plan(lingers: bool, label: bool) -> Plan {
        let mut plan = Plan::default();
        plan.lingering.extend(lingers.then(pair));
        plan.labels.insert("n1".to_owned(), label.then(|| "red".into()).into_iter().collect());
        plan
    }

    fn over(linger: &Linger, labelled: bool, now: Instant) -> (Snapshot, bool) {
        let mut snapshot = snapshot(labelled);
        linger.fill(&mut snapshot, now);
        let over = snapshot.lingered.contains(&pair());
        (snapshot, over)
    }

    #[test]
    fn a_pair_stays_its_while_and_then_until_its_label_is_off() {
        let mut linger = Linger::new(TIME);
        let began = Instant::now();
        let (seen, _) = over(&linger, true, began);
        linger.follow(&plan(true, true), &seen, began);
        assert_eq!(linger.next_due(began), Some(began + TIME));
        let half = began + TIME / 2;
        let (seen, is_over) = over(&linger, true, half);
        assert!(!is_over);
        linger.follow(&plan(true, true), &seen, half);
        let end = began + TIME;
        let (seen, is_over) = over(&linger, true, end);
        assert!(is_over, "its while counts from the first plan");
        assert_eq!(linger.next_due(end + Duration::from_millis(1)), None);

        // The plan takes the label off; until that is seen the while stays over.
        linger.follow(&plan(false, false), &seen, end);
        let (seen, is_over) = over(&linger, true, end);
        assert!(is_over);
        linger.follow(&plan(false, false), &seen, end);
        let (seen, _) = over(&linger, false, end);
        linger.follow(&plan(false, false), &seen, end);
        assert!(!over(&linger, false, end).1, "and then it is forgotten");
    }

    #[test]
    fn a_block_that_comes_back_gives_the_next_leave_a_whole_while() {
        let mut linger = Linger::new(TIME);
        let second = Duration::from_secs(1);
        let began = Instant::now();
        let (seen, _) = over(&linger, true, began);
        linger.follow(&plan(true, true), &seen, began);
        let back = began + TIME - second;
        linger.follow(&plan(false, true), &seen, back);
        linger.follow(&plan(true, true), &seen, back);
        assert!(!over(&linger, true, back + TIME - second).1);

        // The same when the while was over already.
        let end = back + TIME;
        let (seen, is_over) = over(&linger, true, end);
        assert!(is_over);
        linger.follow(&plan(false, true), &seen, end);
        assert!(!over(&linger, true, end).1);
    }
}
