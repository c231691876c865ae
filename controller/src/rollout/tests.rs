//! Scripts, and properties against nodes that do as they like.

use std::sync::Arc;

use calico_vni_proto::{
    model::{Neighbor, Pool, Tenant, Underlay},
    names,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

const FABRIC: &str = "fabric";
const TENANTS: [&str; 3] = ["amber", "blue", "coral"];

fn tenant(name: &str, max_prefixes: u32, pools: &[u8]) -> Tenant {
    let number = 1 + u32::try_from(TENANTS.iter().position(|t| *t == name).unwrap()).unwrap();
    let pool = |i: &u8| Pool { cidr: format!("10.{number}.{i}.0/24").parse().unwrap(), block_size: 26 };
    Tenant {
        name: name.to_owned(),
        vni: 1000 + number,
        link_index: number,
        host_v4: names::host_v4("169.254.192.0/18".parse().unwrap(), number),
        host_v6: names::host_v6("fd00::/112".parse().unwrap(), number),
        pools: pools.iter().map(pool).collect(),
        import_rts: vec![],
        export_rts: vec![],
        shared: pools.iter().map(|i| format!("192.0.{i}.0/24").parse().unwrap()).collect(),
        max_prefixes,
        advertise_pods: false,
        services: vec![],
    }
}

fn underlay(node: usize, hold_time: u16, calico_asn: u32) -> Underlay {
    let vtep = std::net::Ipv4Addr::new(10, 255, 0, 1 + u8::try_from(node).unwrap());
    let neighbor = |last| Neighbor {
        address: std::net::Ipv4Addr::new(192, 0, 2, last).into(),
        asn: 65100,
        hold_time,
        password: None,
    };
    Underlay {
        name: FABRIC.to_owned(),
        asn: 65000,
        vtep: vtep.into(),
        router_id: vtep,
        neighbors: vec![neighbor(1), neighbor(3)],
        interfaces: vec!["eth1".to_owned()],
        mtu: None,
        shared: vec![],
        graceful_restart: true,
        calico_asn,
    }
}

/// A node that is told things.
#[derive(Clone, Debug)]
struct Node {
    connected: bool,
    holds: Option<NodePlan>,
    health: bool,
    refused: Option<NodePlan>,
    sessions: usize,
    frr: bool,
}

/// What is wanted of all nodes, and what they do.
struct World {
    rollouts: Rollouts,
    hold_time: u16,
    calico_asn: u32,
    /// Of each tenant: what it is like, and where it is wanted.
    tenants: BTreeMap<&'static str, (Tenant, BTreeSet<usize>)>,
    nodes: Vec<Node>,
    offers: BTreeMap<String, NodePlan>,
    /// Hold times and limits that nodes refuse.
    bad: BTreeSet<u32>,
    share: u8,
    now: Instant,
}

fn name(node: usize) -> String {
    format!("n{node:02}")
}

impl World {
    fn new(nodes: usize, share: u8) -> Self {
        let node =
            Node { connected: true, holds: None, health: false, refused: None, sessions: 2, frr: true };
        let mut world = Self {
            rollouts: Rollouts::default(),
            hold_time: 9,
            calico_asn: 64512,
            tenants: BTreeMap::new(),
            nodes: vec![node; nodes],
            offers: BTreeMap::new(),
            bad: BTreeSet::new(),
            share,
            now: Instant::now(),
        };
        world.advance();
        world
    }

    fn wanted(&self) -> BTreeMap<String, NodePlan> {
        let plan = |node: usize| NodePlan {
            node: name(node),
            underlay: Some(underlay(node, self.hold_time, self.calico_asn)),
            tenants: (self.tenants.values())
                .filter(|(_, on)| on.contains(&node))
                .map(|(tenant, _)| Arc::new(tenant.clone()))
                .collect(),
        };
        (0..self.nodes.len()).map(|node| (name(node), plan(node))).collect()
    }

    fn heard(&self) -> BTreeMap<String, Heard> {
        let connected = self.nodes.iter().enumerate().filter(|(_, node)| node.connected);
        let heard = connected.map(|(index, node)| {
            let offer = self.offers.get(&name(index));
            let heard = Heard {
                holds: node.holds.as_ref().map(digest),
                in_step: node.holds.is_some() && node.holds.as_ref() == offer,
                health: node.health,
                refused: (offer.is_some() && node.refused.as_ref() == offer).then(|| "bad".to_owned()),
                failed: BTreeMap::new(),
                frr_running: node.frr,
                sessions: node.sessions,
            };
            (name(index), heard)
        });
        heard.collect()
    }

    fn advance(&mut self) {
        let (wanted, heard) = (self.wanted(), self.heard());
        let shares = [(FABRIC.to_owned(), self.share)].into();
        let input = Input { wanted: &wanted, heard: &heard, shares: &shares };
        let offers = self.rollouts.advance(&input, self.now);
        self.offers = offers.into_iter().map(|(node, config)| (node, NodePlan::clone(&config))).collect();
    }

    fn refuses(&self, config: &NodePlan) -> bool {
        let limits = config.tenants.iter().map(|tenant| tenant.max_prefixes);
        let holds = config.underlay.iter().map(|underlay| underlay.neighbors[0].hold_time.into());
        limits.chain(holds).any(|number| self.bad.contains(&number))
    }

    /// One node takes one step: an answer to what it is offered, or a word on how it does since.
    fn act(&mut self, index: usize) {
        let Some(offer) = self.offers.get(&name(index)).filter(|_| self.nodes[index].connected).cloned()
        else {
            return;
        };
        let refuses = self.refuses(&offer);
        let node = &mut self.nodes[index];
        if node.holds.as_ref() == Some(&offer) {
            node.health = true;
        } else if refuses {
            node.refused = Some(offer);
        } else {
            (node.holds, node.health) = (Some(offer), false);
        }
    }

    /// Until nothing moves any more.
    fn rest(&mut self) {
        let state = |world: &Self| (world.offers.clone(), world.heard());
        let mut before = state(self);
        for _ in 0..8 * self.nodes.len() + 8 {
            for node in 0..self.nodes.len() {
                self.act(node);
            }
            self.advance();
            let now = state(self);
            if now == before {
                return;
            }
            before = now;
        }
        panic!("it never rests: {:?}", self.rollouts.told());
    }

    fn place(&mut self, tenant: Tenant, on: impl IntoIterator<Item = usize>) {
        let name = TENANTS.into_iter().find(|name| *name == tenant.name).unwrap();
        self.tenants.insert(name, (tenant, on.into_iter().collect()));
        self.advance();
    }

    /// Nodes whose offer has that hold time.
    fn with_hold_time(&self, hold_time: u16) -> Vec<usize> {
        let has = |node: &usize| {
            let config = self.offers.get(&name(*node));
            config.is_some_and(|c| c.underlay.as_ref().unwrap().neighbors[0].hold_time == hold_time)
        };
        (0..self.nodes.len()).filter(has).collect()
    }

    /// Nodes that are offered the tenant with that limit.
    fn with_limit(&self, tenant: &str, limit: u32) -> Vec<usize> {
        let has = |node: &usize| {
            let tenants = self.offers.get(&name(*node)).map(|config| &config.tenants);
            tenants.is_some_and(|t| t.iter().any(|t| t.name == tenant && t.max_prefixes == limit))
        };
        (0..self.nodes.len()).filter(has).collect()
    }

    fn changes_hold_time(&mut self, hold_time: u16) {
        self.hold_time = hold_time;
        self.advance();
    }

    fn message(&self) -> &str {
        &self.rollouts.told()[0].message
    }
}

#[test]
fn one_node_first_then_a_share_then_all() {
    let mut world = World::new(12, 25);
    world.rest();
    assert_eq!(world.rollouts.told(), []);
    world.changes_hold_time(30);
    assert_eq!(world.with_hold_time(30), [0]);
    assert!(world.message().contains("0 of 12 nodes have it; n00 gets it now"), "{}", world.message());
    // Its answer alone is not enough: it has to say how it does since.
    world.act(0);
    world.advance();
    assert_eq!(world.with_hold_time(30), [0]);
    assert!(world.message().contains("n00 has not said how it does since"), "{}", world.message());
    world.act(0);
    world.advance();
    assert_eq!(world.with_hold_time(30), [0, 1, 2, 3], "a quarter of 12 at a time");
    for _ in 0..2 {
        world.act(2);
        world.advance();
    }
    assert_eq!(world.with_hold_time(30), [0, 1, 2, 3, 4], "one has made room for one");
    world.rest();
    assert_eq!(world.with_hold_time(30).len(), 12);
    assert_eq!(world.rollouts.told(), []);
}

#[test]
fn a_hundred_percent_is_all_at_once_and_a_few_nodes_are_one_after_the_other() {
    for (share, after_change, after_proof) in [(100, 3, 3), (25, 1, 2)] {
        let mut world = World::new(3, share);
        world.rest();
        world.changes_hold_time(30);
        assert_eq!(world.with_hold_time(30).len(), after_change);
        for _ in 0..2 {
            world.act(0);
            world.advance();
        }
        assert_eq!(world.with_hold_time(30).len(), after_proof);
    }
}

#[test]
fn what_a_node_refuses_goes_no_further_until_it_is_changed() {
    let mut world = World::new(8, 25);
    world.rest();
    world.bad.insert(30);
    world.changes_hold_time(30);
    world.rest();
    assert_eq!(world.with_hold_time(30), [0]);
    let told = &world.rollouts.told()[0];
    assert!(told.stopped && told.message.contains("n00: bad") && told.message.contains("undo"), "{told:?}");
    assert_eq!(told.unit, Unit { underlay: FABRIC.to_owned(), part: Part::Underlay });

    // Another change goes to the one that refused first; it is not held against it.
    world.changes_hold_time(60);
    assert_eq!(world.with_hold_time(60), [0]);
    world.rest();
    assert_eq!((world.with_hold_time(60).len(), world.rollouts.told()), (8, &[][..]));

    // Undone: nobody else has it, so there is nothing to wait for.
    world.changes_hold_time(30);
    world.rest();
    world.changes_hold_time(60);
    assert_eq!(world.with_hold_time(60).len(), 8);
    world.rest();
    assert_eq!(world.rollouts.told(), []);
}

#[test]
fn a_node_that_loses_its_sessions_by_a_change_is_waited_for() {
    let mut world = World::new(8, 25);
    world.rest();
    world.changes_hold_time(30);
    world.nodes[0].sessions = 1;
    world.rest();
    assert_eq!(world.with_hold_time(30), [0]);
    assert!(world.message().contains("n00: 1 of 2 sessions with the fabric are up"), "{}", world.message());
    assert!(!world.rollouts.told()[0].stopped);
    world.nodes[0].sessions = 2;
    world.rest();
    assert_eq!(world.with_hold_time(30).len(), 8);

    // One that had lost it before does not count, and one without FRR has nothing to lose.
    world.nodes[0].sessions = 1;
    world.nodes[5].frr = false;
    world.changes_hold_time(60);
    assert_eq!(world.with_hold_time(60), [0, 5]);
    world.rest();
    assert_eq!(world.with_hold_time(60).len(), 8);
}

#[test]
fn who_is_away_holds_up_nobody_and_gets_it_in_its_turn() {
    let mut world = World::new(8, 25);
    world.rest();
    world.nodes[0].connected = false;
    world.nodes[4].connected = false;
    world.changes_hold_time(30);
    assert_eq!(world.with_hold_time(30), [1], "the first that is there");
    world.rest();
    assert_eq!(world.with_hold_time(30), [1, 2, 3, 5, 6, 7]);
    assert_eq!(world.rollouts.told(), []);
    // They come again, hold what they held, and are offered no more before their turn.
    world.nodes[0].connected = true;
    world.nodes[4].connected = true;
    world.advance();
    assert_eq!(world.with_hold_time(30), [0, 1, 2, 3, 5, 6, 7]);
    world.rest();
    assert_eq!(world.with_hold_time(30).len(), 8);
}

#[test]
fn who_goes_away_with_a_change_is_waited_for_a_while_and_no_more_are_lost_than_may_be() {
    let mut world = World::new(8, 25);
    world.rest();
    world.changes_hold_time(30);
    let mut lost = 0;
    // A change that takes the nodes off the net.
    for _ in 0..20 {
        for node in world.with_hold_time(30) {
            lost += usize::from(std::mem::replace(&mut world.nodes[node].connected, false));
        }
        world.advance();
        let at_once = world.with_hold_time(30).len();
        assert_eq!(at_once, lost, "nobody gets it while one that is away may come again");
        assert!(!world.rollouts.told().is_empty());
        if let Some(due) = world.rollouts.next_due() {
            world.now = due;
        }
        world.advance();
    }
    assert_eq!(lost, 3, "2 of 8 may be unavailable, and with the third it stops");
    assert!(world.rollouts.told()[0].stopped && world.message().contains("went away with it"));

    // They were on a machine that was restarted, and come again.
    for node in &mut world.nodes {
        node.connected = true;
    }
    world.rest();
    assert_eq!((world.with_hold_time(30).len(), world.rollouts.told()), (8, &[][..]));
}

#[test]
fn a_change_that_is_stuck_holds_up_no_other_tenant_and_no_arrival() {
    let mut world = World::new(8, 25);
    world.place(tenant("amber", 1, &[0]), 0..8);
    world.place(tenant("blue", 1, &[0]), 0..8);
    world.rest();
    world.bad.extend([30, 7]);
    world.changes_hold_time(30);
    world.place(tenant("amber", 7, &[0]), 0..8);
    world.rest();
    let stuck: Vec<_> = world.rollouts.told().iter().map(|told| (&told.unit.part, told.stopped)).collect();
    assert_eq!(stuck, [(&Part::Underlay, true), (&Part::Tenant("amber".to_owned()), true)]);

    // Everywhere but where it is refused as a whole: that node takes nothing.
    let fine: Vec<usize> = (0..8)
        .filter(|n| !world.with_hold_time(30).contains(n) && !world.with_limit("amber", 7).contains(n))
        .collect();
    assert!(fine.len() >= 6, "{fine:?}");
    world.place(tenant("coral", 1, &[0]), 0..8);
    assert_eq!(world.with_limit("coral", 1).len(), 8, "at once");
    world.tenants.remove("coral");
    world.advance();
    assert!(world.with_limit("coral", 1).is_empty(), "and so it goes");
    world.place(tenant("blue", 2, &[0]), fine.iter().copied());
    world.rest();
    assert_eq!(world.with_limit("blue", 2), fine);
}

#[test]
fn what_closes_is_nowhere_held_back_and_numbers_are_everywhere_the_same() {
    let mut world = World::new(8, 25);
    world.place(tenant("amber", 1, &[0, 1]), 0..8);
    world.rest();
    // One pool less, one more, and a new limit.
    world.place(tenant("amber", 2, &[1, 2]), 0..8);
    let pools = |node: usize| -> Vec<String> {
        world.offers[&name(node)].tenants[0].pools.iter().map(|pool| pool.cidr.to_string()).collect()
    };
    assert_eq!(pools(0), ["10.1.1.0/24", "10.1.2.0/24"]);
    for node in 1..8 {
        assert_eq!(pools(node), ["10.1.1.0/24"], "without the one that is closed, not yet with the new one");
        assert_eq!(world.offers[&name(node)].tenants[0].shared, ["192.0.1.0/24".parse().unwrap()]);
    }
    // BIRD meets one address on all nodes.
    let mut moved = tenant("amber", 3, &[1, 2]);
    moved.link_index = 77;
    world.place(moved, 0..8);
    assert_eq!(world.with_limit("amber", 3).len(), 8);
    world.rest();
    // BIRD has another ASN now, whatever becomes of the other change.
    world.calico_asn = 64513;
    world.changes_hold_time(30);
    assert_eq!(world.with_hold_time(30), [0]);
    let asn = |config: &NodePlan| config.underlay.as_ref().unwrap().calico_asn;
    assert!(world.offers.values().all(|config| asn(config) == 64513));
}

#[test]
fn a_controller_that_begins_anew_changes_nodes_one_after_the_other_too() {
    let mut world = World::new(8, 25);
    world.rest();
    // It was stopped when the first node had it.
    world.bad.insert(30);
    world.changes_hold_time(30);
    world.rest();
    world.rollouts = Rollouts::default();
    world.offers.clear();
    for node in &mut world.nodes {
        (node.health, node.refused) = (true, None);
    }
    world.nodes[3].connected = false;
    world.rest();
    let offered: Vec<&String> = world.offers.keys().collect();
    assert_eq!(offered, ["n00"], "all others are offered nothing and keep what they have");
    assert!(world.rollouts.told()[0].stopped);
    assert_eq!(world.rollouts.told()[0].unit.part, Part::Whole);

    // What nodes hold already is no change.
    world.bad.clear();
    world.changes_hold_time(9);
    assert_eq!(world.offers.len(), 7);
    world.rest();
    assert_eq!(world.rollouts.told(), []);
    world.nodes[3].connected = true;
    world.rest();
    assert_eq!(world.offers.len(), 8);
}

#[derive(Clone, Debug)]
enum Step {
    HoldTime(u16),
    Tenant(Index, u32, Vec<u8>, Vec<bool>),
    Act(Index),
    Away(Index, bool),
    Session(Index, usize),
    Later,
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<Index>;
    prop_oneof![
        1 => (10u16..14).prop_map(Step::HoldTime),
        2 => (any(), 1u32..5, vec(0u8..3, 0..3), vec(prop::bool::weighted(0.8), 12))
            .prop_map(|(tenant, limit, pools, on)| Step::Tenant(tenant, limit, pools, on)),
        12 => any().prop_map(Step::Act),
        2 => (any(), prop::bool::weighted(0.3)).prop_map(|(node, away)| Step::Away(node, away)),
        1 => (any(), 1usize..3).prop_map(|(node, sessions)| Step::Session(node, sessions)),
        1 => Just(Step::Later),
    ]
}

impl World {
    fn take(&mut self, step: &Step) {
        let count = self.nodes.len();
        match step {
            Step::HoldTime(hold_time) => self.hold_time = *hold_time,
            Step::Tenant(which, limit, pools, on) => {
                let name = TENANTS[which.index(TENANTS.len())];
                let pools: BTreeSet<u8> = pools.iter().copied().collect();
                let tenant = tenant(name, *limit, &pools.into_iter().collect::<Vec<_>>());
                let on = (0..count).filter(|node| on[*node]).collect();
                self.tenants.insert(name, (tenant, on));
            }
            Step::Act(node) => self.act(node.index(count)),
            Step::Away(node, away) => self.nodes[node.index(count)].connected = !away,
            Step::Session(node, sessions) => self.nodes[node.index(count)].sessions = *sessions,
            Step::Later => self.now += LOST / 2,
        }
        self.advance();
    }

    /// What holds between two passes, whatever nodes do.
    fn check(
        &self,
        before: &BTreeMap<String, NodePlan>,
        heard: &BTreeMap<String, Heard>,
    ) -> Result<(), TestCaseError> {
        let wanted = self.wanted();
        let mut new: BTreeMap<Part, Vec<&String>> = BTreeMap::new();
        for (node, offer) in &self.offers {
            let want = &wanted[node];
            // It carries exactly the tenants that are wanted, with their numbers; nothing that is to be closed is open.
            let names = |plan: &NodePlan| {
                plan.tenants.iter().map(|t| (t.name.clone(), t.vni, t.link_index)).collect::<Vec<_>>()
            };
            prop_assert_eq!(names(offer), names(want));
            for (got, wants) in offer.tenants.iter().zip(&want.tenants) {
                prop_assert!(got.pools.iter().all(|pool| wants.pools.contains(pool)));
                prop_assert!(got.shared.iter().all(|net| wants.shared.contains(net)));
                let had = before.get(node).and_then(|b| b.tenants.iter().find(|t| t.name == got.name));
                match had {
                    // Its first arrival waits for nothing.
                    None => prop_assert_eq!(got, wants),
                    Some(had) if got == wants && had.max_prefixes != wants.max_prefixes => {
                        new.entry(Part::Tenant(got.name.clone())).or_default().push(node);
                    }
                    Some(_) => {}
                }
            }
            let (got, wants) = (offer.underlay.as_ref().unwrap(), want.underlay.as_ref().unwrap());
            prop_assert_eq!(got.vtep, wants.vtep);
            if got == wants && before.get(node).is_some_and(|b| b.underlay.as_ref() != Some(got)) {
                new.entry(Part::Underlay).or_default().push(node);
            }
        }
        for (part, nodes) in new {
            // Nobody who is away is let have it, and no more at a time than may be.
            prop_assert!(nodes.iter().all(|node| heard.contains_key(*node)));
            let carry = wanted.values().filter(|plan| match &part {
                Part::Tenant(name) => plan.tenants.iter().any(|t| t.name == *name),
                _ => true,
            });
            let limit = (carry.count() * usize::from(self.share) / 100).max(1);
            prop_assert!(nodes.len() <= limit, "{part:?}: {nodes:?}, at most {limit}");
            let unit = Unit { underlay: FABRIC.to_owned(), part: part.clone() };
            if let Some(progress) = self.rollouts.units.get(&unit) {
                let away = |node: &&String| !heard.contains_key(*node);
                let there = progress.flights.keys().filter(|node| !away(node)).count();
                prop_assert!(there <= limit, "{part:?}: {:?} are on their way", progress.flights.keys());
                prop_assert!(
                    progress.proven || there <= 1,
                    "{part:?}: {:?} before one did well",
                    progress.flights.keys()
                );
                let refuses = |node: &String| heard.get(node).is_some_and(|h| h.refused.is_some());
                prop_assert!(
                    !progress.flights.keys().any(|node| refuses(node) && !nodes.contains(&node)),
                    "{part:?}: it goes on to {nodes:?} though it is refused"
                );
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn whatever_happens_it_goes_by_a_few_and_ends(
        count in 1usize..12,
        share in prop_oneof![Just(10u8), Just(25), Just(60)],
        bad in vec(prop_oneof![10u32..14, 2u32..5], 0..2),
        steps in vec(step(), 1..80),
    ) {
        let mut world = World::new(count, share);
        world.rest();
        world.bad = bad.into_iter().collect();
        for step in &steps {
            let before = world.offers.clone();
            // What is heard in that pass: the step comes before it.
            let mut after = World { rollouts: std::mem::take(&mut world.rollouts), ..world };
            after.take(step);
            let heard = {
                let offers = std::mem::replace(&mut after.offers, before.clone());
                let heard = after.heard();
                after.offers = offers;
                heard
            };
            after.check(&before, &heard)?;
            world = after;
        }
        // When nobody refuses anything any more and all are there and well, all have what is wanted.
        world.bad.clear();
        for node in &mut world.nodes {
            (node.connected, node.sessions, node.refused) = (true, 2, None);
        }
        world.advance();
        world.rest();
        prop_assert_eq!(&world.offers, &world.wanted());
        prop_assert_eq!(world.rollouts.told(), &[][..]);
        for (index, node) in world.nodes.iter().enumerate() {
            prop_assert_eq!(node.holds.as_ref(), world.offers.get(&name(index)));
        }
    }
}
