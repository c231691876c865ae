//! Staged roll-out: a change that touches many nodes goes to one first, then to a share of them at a time, and no further
//! than to nodes that do well with it. Pure; the time is passed in.
//!
//! What is staged is a change of what a node has already: of its Underlay's settings, or of a Tenant that it carries. Each
//! is a [`Unit`] of its own, so that one that is stuck holds up no other. What is never staged:
//! - the guard, which is not here at all;
//! - a tenant's arrival on a node and its departure, and a node's first configuration and its last;
//! - numbers of a tenant or a router, which change when nothing runs with them;
//! - what closes something: of a held tenant the pools, prefixes and services that it is no more to reach are gone at once.
//!
//! The state is in memory. A controller that begins anew knows of a node only the digest of what it holds; where that is
//! not what is wanted, the node is let have it in its turn, and until then is offered nothing and keeps what it has.

mod parts;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use calico_vni_planner::plan::NodePlan;
use calico_vni_proto::codec::{Codec as _, Digest};
use tokio::time::Instant;

use self::parts::{Target, held, is_staged, targets};

/// A node that was let have a change and has been away for so long since is lost: others go on without it, as long as no
/// more nodes are lost than may be unavailable.
pub const LOST: Duration = Duration::from_mins(1);
/// How many nodes a message names.
const NAMED: usize = 3;

/// What changes as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// The Underlay of the nodes.
    pub underlay: String,
    /// What of theirs.
    pub part: Part,
}

/// What of a node's configuration changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Of the node something that is not known: it holds another configuration than is wanted since before this
    /// controller began.
    Whole,
    /// The Underlay's settings.
    Underlay,
    /// A tenant, by name.
    Tenant(String),
}

/// What is known of a node whose agent is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The configuration that it holds; `None`: none.
    pub holds: Option<Digest>,
    /// Whether its last result is of the configuration that it is offered.
    pub in_step: bool,
    /// Whether its health was told after that result.
    pub health: bool,
    /// Why it refused what it is offered, if it did.
    pub refused: Option<String>,
    /// Tenants that do not stand there, and why.
    pub failed: BTreeMap<String, String>,
    /// Whether FRR answers.
    pub frr_running: bool,
    /// Sessions with the fabric that are up.
    pub sessions: usize,
}

/// What is wanted and known.
pub struct Input<'a> {
    /// What each node is to carry.
    pub wanted: &'a BTreeMap<String, NodePlan>,
    /// Of the nodes whose agents are connected.
    pub heard: &'a BTreeMap<String, Heard>,
    /// Percentage of an Underlay's nodes that may be unavailable for a change; 100: no stages.
    pub shares: &'a BTreeMap<String, u8>,
}

/// How a unit's roll-out stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub unit: Unit,
    /// Whether nodes refuse it, so that it goes no further.
    pub stopped: bool,
    /// Connected nodes that keep what they have, for it is not their turn.
    pub held: usize,
    /// Nodes that were let have it and have not done well with it so far.
    pub trying: usize,
    /// How far it is and whom it waits for, with the way out where it is stopped.
    pub message: String,
}

/// What a node was let have last, beside what is wanted for it. Looked up once: of thousands of nodes it is most of the work.
#[derive(Debug)]
enum Way {
    /// It is not known what the node has.
    Unknown,
    /// It has what is wanted.
    There(Arc<NodePlan>),
    /// Parts of it differ that change in stages.
    Staged(Arc<NodePlan>),
    /// It is so different that it changes at once.
    Direct,
}

/// All roll-outs.
#[derive(Debug, Default)]
pub struct Rollouts {
    /// What each node was let have last; absent where that is not known.
    released: BTreeMap<String, Arc<NodePlan>>,
    units: BTreeMap<Unit, Progress>,
    told: Vec<Told>,
    due: Option<Instant>,
}

/// A change on its way.
#[derive(Debug)]
struct Progress {
    target: Target,
    /// Whether some node has done well with it.
    proven: bool,
    /// Nodes that were let have it and have not done well with it so far.
    flights: BTreeMap<String, Flight>,
}

/// How a node was before it was let have a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Flight {
    failed: BTreeSet<String>,
    sessions: usize,
    away_since: Option<Instant>,
}

/// How a node does with what it was let have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Well,
    Waiting(&'static str),
    Unwell(String),
    Refuses(String),
    Away,
}

impl Flight {
    fn of(heard: &Heard) -> Self {
        Self { failed: heard.failed.keys().cloned().collect(), sessions: heard.sessions, away_since: None }
    }

    /// What was wrong before does not count against the change. `neighbors`: so many sessions there are to be.
    fn state(&self, part: &Part, heard: Option<&Heard>, neighbors: usize) -> State {
        let Some(heard) = heard else { return State::Away };
        if let Some(why) = &heard.refused {
            return State::Refuses(why.clone());
        }
        if !heard.in_step {
            return State::Waiting("has not answered yet");
        }
        let concerned = |tenant: &String| match part {
            Part::Tenant(name) => name == tenant,
            Part::Whole | Part::Underlay => !self.failed.contains(tenant),
        };
        if let Some((tenant, why)) = heard.failed.iter().find(|(tenant, _)| concerned(tenant)) {
            return State::Refuses(format!("Tenant `{tenant}`: {why}"));
        }
        if !heard.health {
            return State::Waiting("has not said how it does since");
        }
        if !heard.frr_running {
            return State::Unwell("FRR does not answer".to_owned());
        }
        let before = self.sessions.min(neighbors);
        if heard.sessions < before {
            return State::Unwell(format!("{} of {before} sessions with the fabric are up", heard.sessions));
        }
        State::Well
    }
}

impl Way {
    /// The staged changes on it.
    fn changes(&self, want: &NodePlan, heard: Option<&Heard>) -> Vec<(Unit, Target)> {
        let Some(underlay) = &want.underlay else { return Vec::new() };
        let unit = |part| Unit { underlay: underlay.name.clone(), part };
        match self {
            Self::There(_) | Self::Direct => Vec::new(),
            Self::Staged(have) => {
                targets(have, want).into_iter().map(|(part, target)| (unit(part), target)).collect()
            }
            Self::Unknown => match heard.and_then(|heard| heard.holds) {
                Some(holds) if holds != digest(want) => vec![(unit(Part::Whole), Target::Whole)],
                _ => Vec::new(),
            },
        }
    }

    /// What the node is let have, given the changes whose turn it is there.
    fn config(self, want: &NodePlan, heard: Option<&Heard>, go: &BTreeSet<Unit>) -> Option<Arc<NodePlan>> {
        match self {
            Self::There(have) => Some(have),
            Self::Staged(have) => {
                let go = |part: &Part| go.iter().any(|unit| unit.part == *part);
                let config = held(&have, want, go);
                Some(if *have == config { have } else { Arc::new(config) })
            }
            Self::Direct => Some(Arc::new(want.clone())),
            // Of one that is away and not known nothing can be told before it comes.
            Self::Unknown => {
                let heard = heard?;
                let as_wanted = heard.holds.is_none_or(|holds| holds == digest(want));
                let turn = go.iter().any(|unit| unit.part == Part::Whole);
                (as_wanted || turn || want.underlay.is_none()).then(|| Arc::new(want.clone()))
            }
        }
    }
}

impl Rollouts {
    /// What each node is let have now; as long as it stays the same it is the same object. A node without an entry is offered
    /// nothing.
    pub fn advance(&mut self, input: &Input<'_>, now: Instant) -> BTreeMap<String, Arc<NodePlan>> {
        self.due = None;
        self.told.clear();
        let Input { wanted, heard, .. } = input;
        self.released.retain(|node, _| wanted.contains_key(node) || heard.contains_key(node));

        // Who waits for which change, and who carries what it is a change of.
        let mut waiting: BTreeMap<Unit, BTreeSet<&str>> = BTreeMap::new();
        let mut wants: BTreeMap<Unit, Target> = BTreeMap::new();
        let ways: Vec<Way> = wanted.iter().map(|(node, want)| self.way(node, want)).collect();
        for ((node, want), way) in wanted.iter().zip(&ways) {
            for (unit, target) in way.changes(want, heard.get(node)) {
                waiting.entry(unit.clone()).or_default().insert(node);
                wants.insert(unit, target);
            }
        }
        let mut units = std::mem::take(&mut self.units);
        for (unit, target) in wants {
            match units.get_mut(&unit) {
                Some(progress) if progress.target == target => {}
                // It was changed again: what is to be learnt of the former change is of no use any more.
                _ => {
                    let progress = Progress { target, proven: false, flights: BTreeMap::new() };
                    units.insert(unit, progress);
                }
            }
        }
        let mut go: BTreeMap<&str, BTreeSet<Unit>> = BTreeMap::new();
        for (unit, mut progress) in units {
            let waiting = waiting.remove(&unit).unwrap_or_default();
            for node in self.release(&unit, &mut progress, &waiting, input, now) {
                go.entry(node).or_default().insert(unit.clone());
            }
            // Nodes that are away find it when they come again.
            let rest = waiting.iter().any(|node| heard.contains_key(*node));
            if rest || !progress.flights.is_empty() {
                self.units.insert(unit, progress);
            }
        }

        let mut offers = BTreeMap::new();
        let none = BTreeSet::new();
        for ((node, want), way) in wanted.iter().zip(ways) {
            let go = go.get(node.as_str()).unwrap_or(&none);
            if let Some(config) = way.config(want, heard.get(node), go) {
                offers.insert(node.clone(), config);
            }
        }
        self.released.extend(offers.iter().map(|(node, config)| (node.clone(), Arc::clone(config))));
        offers
    }

    /// The roll-outs that are under way or stopped.
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// When to look again though nothing was told.
    pub fn next_due(&self) -> Option<Instant> {
        self.due
    }

    fn way(&self, node: &str, want: &NodePlan) -> Way {
        match self.released.get(node) {
            None => Way::Unknown,
            Some(have) if **have == *want => Way::There(Arc::clone(have)),
            Some(have) if is_staged(have, want) => Way::Staged(Arc::clone(have)),
            Some(_) => Way::Direct,
        }
    }

    /// Looks at the nodes that were let have the change, and says which may have it next.
    fn release<'n>(
        &mut self,
        unit: &Unit,
        progress: &mut Progress,
        waiting: &BTreeSet<&'n str>,
        input: &Input<'_>,
        now: Instant,
    ) -> Vec<&'n str> {
        let Input { wanted, heard, shares } = input;
        let carries = |node: &&NodePlan| {
            node.underlay.as_ref().is_some_and(|underlay| underlay.name == unit.underlay)
                && match &unit.part {
                    Part::Whole | Part::Underlay => true,
                    Part::Tenant(name) => node.tenants.iter().any(|tenant| tenant.name == *name),
                }
        };
        let all = wanted.values().filter(carries).count();
        let share = usize::from(shares.get(&unit.underlay).copied().unwrap_or(0));
        let limit = if share >= 100 { all } else { (all * share / 100).max(1) };

        let (mut troubles, mut waits, mut lost, mut flying) = (Vec::new(), Vec::new(), 0, 0);
        let mut well = Vec::new();
        progress.flights.retain(|node, _| wanted.get(node).is_some_and(|plan| carries(&plan)));
        for (node, flight) in &mut progress.flights {
            let neighbors =
                wanted.get(node).and_then(|plan| plan.underlay.as_ref()).map_or(0, |u| u.neighbors.len());
            let state = flight.state(&unit.part, heard.get(node), neighbors);
            let since = flight.away_since.take().unwrap_or(now);
            match state {
                State::Well => well.push(node.clone()),
                State::Waiting(why) => {
                    flying += 1;
                    waits.push(format!("{node} {why}"));
                }
                State::Unwell(why) => {
                    flying += 1;
                    waits.push(format!("{node}: {why}"));
                }
                State::Refuses(why) => troubles.push(format!("{node}: {why}")),
                State::Away => {
                    flight.away_since = Some(since);
                    let end = since + LOST;
                    if end <= now {
                        lost += 1;
                        waits.push(format!("{node} went away with it"));
                    } else {
                        flying += 1;
                        waits.push(format!("{node} is away"));
                        self.due = Some(self.due.map_or(end, |due| due.min(end)));
                    }
                }
            }
        }
        for node in well {
            progress.flights.remove(&node);
            progress.proven = true;
        }

        let stopped = !troubles.is_empty() || lost > limit;
        let room = match (stopped, progress.proven) {
            _ if share >= 100 => all,
            (true, _) => 0,
            // Those that are lost take room, but not all of it.
            (false, true) => limit.saturating_sub(flying + lost.min(limit - 1)),
            (false, false) => usize::from(flying == 0),
        };
        // Where it does not stand already it cannot be made worse, and nothing is learnt from it.
        let (ill, mut next): (Vec<&str>, Vec<&str>) = (waiting.iter().copied())
            .filter(|node| heard.contains_key(*node))
            .partition(|node| heard.get(*node).is_some_and(|heard| is_ill(&unit.part, heard)));
        // Who refuses what it is offered needs another offer most.
        next.sort_by_key(|node| (heard.get(*node).is_none_or(|heard| heard.refused.is_none()), *node));
        let left = next.len().saturating_sub(room);
        next.truncate(room);
        for node in &next {
            progress.flights.insert((*node).to_owned(), heard.get(*node).map(Flight::of).unwrap_or_default());
        }
        if left > 0 || !progress.flights.is_empty() {
            let done = all.saturating_sub(left + progress.flights.len());
            waits.extend(next.iter().map(|node| format!("{node} gets it now")));
            let message = if stopped {
                if lost > limit {
                    troubles.push(some_of(&waits));
                }
                format!(
                    "stopped with {done} of {all} nodes done: {}; all others keep what they have: undo the change, or repair these nodes",
                    some_of(&troubles)
                )
            } else {
                format!("{done} of {all} nodes have it; {}", some_of(&waits))
            };
            let trying = progress.flights.len();
            self.told.push(Told { unit: unit.clone(), stopped, held: left, trying, message });
        }
        next.extend(ill);
        next
    }
}

/// Whether what the unit is about does not stand on that node.
fn is_ill(part: &Part, heard: &Heard) -> bool {
    let failed = match part {
        Part::Whole | Part::Underlay => false,
        Part::Tenant(name) => heard.failed.contains_key(name),
    };
    failed || !heard.frr_running
}

fn digest(want: &NodePlan) -> Digest {
    Digest::of(&want.config().encode())
}

fn some_of(words: &[String]) -> String {
    let named = words[..NAMED.min(words.len())].join("; ");
    match words.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}
