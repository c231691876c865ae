//! The pools of one family laid out in one bank, so that a packet meets few rules however many pools there are. Pure.
//!
//! Up to [`PLAIN`] pools are a plain list, and then the way out. More of them are halved until lists are left: a prefix
//! that holds between a third and two thirds of the pools has a `goto` to its own part, and whatever is not in it goes on
//! with the others right behind. Such a prefix there always is, also where pools lie nested like a staircase and their
//! common bits alone would halve nothing. In front of all stand up to [`GATES`] prefixes that hold all pools between
//! them: what is in none, such as the packets of the node itself, leaves there.
//!
//! A pool that is its tenant's only one has its two rules in its list. Pools of one tenant have a `goto` there, to the block
//! of that tenant behind all lists, since a `goto` leads forward.
//!
//! A part of five or more never leaves a list of one, so that there are at most half as many lists as pools but for one
//! behind each gate: with at most three rules a pool (two pools of a tenant: two `goto`, two local look-ups, the table, the
//! way out), a way out of each list and a `goto` to each but the first, [`super::MOST`] pools fit into a bank. Every rule has a preference of its own: with two of one preference it would depend on history
//! which comes first and which of them is the target of a `goto`.

use std::{collections::BTreeMap, ops::Range};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Bank, END, Pool, goto, into_table, local};
use crate::state::{Action, Rule};

/// Most pools of a plain list.
pub const PLAIN: usize = 4;
/// Most prefixes that are looked at before a packet that is in none leaves.
pub const GATES: usize = 4;

/// The rules for these pools, sorted, disjoint and of one family, in the order of their preferences.
pub fn layout(pools: &[Pool], bank: Bank) -> Vec<Rule> {
    let mut writer = Writer { bank, rules: Vec::new(), tenants: BTreeMap::new() };
    for (pool, table) in pools {
        writer.tenants.entry(*table).or_default().pools.push(*pool);
    }
    match pools.len() {
        0 => {}
        1..=PLAIN => writer.list(pools),
        _ => writer.gated(pools),
    }
    writer.blocks();
    writer.rules
}

struct Writer {
    bank: Bank,
    rules: Vec<Rule>,
    /// By table.
    tenants: BTreeMap<u32, OfTenant>,
}

/// What one tenant has here.
#[derive(Default)]
struct OfTenant {
    pools: Vec<IpNet>,
    /// Rules that are to lead to its block.
    gotos: Vec<usize>,
}

impl Writer {
    fn gated(&mut self, pools: &[Pool]) {
        let writer = self;
        let parts = gates(pools);
        let gates: Vec<usize> = parts.iter().map(|part| writer.goto(&pools[part.clone()])).collect();
        writer.out(pools[0].0);
        for (gate, part) in gates.into_iter().zip(parts) {
            writer.aim(gate);
            writer.part(&pools[part]);
        }
    }

    fn next(&self) -> u32 {
        self.bank.first + u32::try_from(self.rules.len()).expect("a bank is far smaller than 2^32")
    }

    /// A `goto` for the prefix of these pools, to be aimed later.
    fn goto(&mut self, pools: &[Pool]) -> usize {
        self.goto_from(cover(pools))
    }

    fn goto_from(&mut self, prefix: IpNet) -> usize {
        self.rules.push(goto(super::is_v6(prefix), self.next(), super::given(prefix), END));
        self.rules.len() - 1
    }

    /// Lets a `goto` lead to what comes next.
    fn aim(&mut self, at: usize) {
        self.rules[at].action = Action::Goto(self.next());
    }

    fn out(&mut self, family: IpNet) {
        self.rules.push(goto(super::is_v6(family), self.next(), None, END));
    }

    fn list(&mut self, pools: &[Pool]) {
        for (pool, table) in pools {
            if self.tenants[table].pools.len() == 1 {
                self.rules.push(local(self.next(), Some(*pool), *pool));
                self.rules.push(into_table(self.next(), super::is_v6(*pool), Some(*pool), *table));
            } else {
                let goto = self.goto_from(*pool);
                self.tenants.entry(*table).or_default().gotos.push(goto);
            }
        }
        self.out(pools[0].0);
    }

    /// The blocks of tenants with several pools.
    fn blocks(&mut self) {
        for (table, OfTenant { pools, gotos }) in std::mem::take(&mut self.tenants) {
            if gotos.is_empty() {
                continue;
            }
            for goto in gotos {
                self.aim(goto);
            }
            for pool in &pools {
                self.rules.push(local(self.next(), None, *pool));
            }
            self.rules.push(into_table(self.next(), super::is_v6(pools[0]), None, table));
            // A route that says `throw` ends the look-up in the table, and the next block is not for this packet.
            self.out(pools[0]);
        }
    }

    fn part(&mut self, pools: &[Pool]) {
        if pools.len() <= PLAIN {
            return self.list(pools);
        }
        let inside = halving(pools);
        let gate = self.goto(&pools[inside.clone()]);
        let outside: Vec<Pool> = [&pools[..inside.start], &pools[inside.end..]].concat();
        self.part(&outside);
        self.aim(gate);
        self.part(&pools[inside]);
    }
}

/// The longest prefix that holds all of these.
fn cover(pools: &[Pool]) -> IpNet {
    let (first, last) = (pools[0].0, pools[pools.len() - 1].0);
    let shortest = first.prefix_len().min(last.prefix_len());
    match (first, last) {
        (IpNet::V4(first), IpNet::V4(last)) => {
            let common = (first.network().to_bits() ^ last.network().to_bits()).leading_zeros();
            Ipv4Net::new_assert(first.network(), shortest.min(length(common))).trunc().into()
        }
        (IpNet::V6(first), IpNet::V6(last)) => {
            let common = (first.network().to_bits() ^ last.network().to_bits()).leading_zeros();
            Ipv6Net::new_assert(first.network(), shortest.min(length(common))).trunc().into()
        }
        _ => unreachable!("pools of a layout are of one family"),
    }
}

fn length(bits: u32) -> u8 {
    u8::try_from(bits).expect("an address has at most 128 bits")
}

/// Where the pools of a part go apart at the first bit after those that all of them share. There are two or more.
fn apart(pools: &[Pool]) -> usize {
    let cover = cover(pools);
    let mut halves =
        cover.subnets(cover.prefix_len() + 1).expect("a pool is longer than what it shares with others");
    let lower = halves.next().expect("a prefix has two halves");
    pools.partition_point(|(pool, _)| lower.contains(pool))
}

/// The pools of the prefix that comes nearest to holding one half of them. It lies on the way down that always takes the
/// fuller side.
fn halving(pools: &[Pool]) -> Range<usize> {
    let larger_side = |part: &Range<usize>| part.len().max(pools.len() - part.len());
    let mut best = 0..pools.len();
    let mut part = best.clone();
    while part.len() > 1 {
        let middle = part.start + apart(&pools[part.clone()]);
        let (lower, upper) = (part.start..middle, middle..part.end);
        part = if lower.len() >= upper.len() { lower } else { upper };
        if larger_side(&part) < larger_side(&best) {
            best = part.clone();
        }
    }
    best
}

/// Parts whose prefixes hold all pools between them and as few other addresses as may be: again and again the shortest
/// prefix is replaced by the two below it.
fn gates(pools: &[Pool]) -> Vec<Range<usize>> {
    let mut parts = Vec::from([Range { start: 0, end: pools.len() }]);
    while parts.len() < GATES {
        let shortest = |part: &Range<usize>| cover(&pools[part.clone()]).prefix_len();
        let widest =
            (0..parts.len()).filter(|at| parts[*at].len() > 1).min_by_key(|at| shortest(&parts[*at]));
        let Some(at) = widest else { break };
        let part = parts[at].clone();
        let middle = part.start + apart(&pools[part.clone()]);
        parts.splice(at..=at, [part.start..middle, middle..part.end]);
    }
    parts
}

#[cfg(test)]
pub mod tests;
