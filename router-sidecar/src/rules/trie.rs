//! The pools of one family laid out in one bank, so that a packet meets few rules however many pools there are. Pure.
//!
//! Up to [`PLAIN`] pools are a plain list, and then the way out. More of them are halved until lists are left: a prefix
//! that holds between a third and two thirds of the pools has a `goto` to its own part, and whatever is not in it goes on
//! with the others right behind. Such a prefix there always is, also where pools lie nested like a staircase and their
//! common bits alone would halve nothing. In front of all stand up to [`GATES`] prefixes that hold all pools between
//! them: what is in none, such as the packets of the node itself, leaves there.
//!
//! A part of five or more never leaves a list of one, so that there are at most half as many lists as pools but for one
//! behind each gate: with two rules a pool, a way out of each list and a `goto` to each but the first, [`super::MOST`]
//! pools fit into a bank. Every rule has a preference of its own: with two of one preference it would depend on history
//! which comes first and which of them is the target of a `goto`.

use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Bank, END, Pool, goto, rules_of};
use crate::state::{Action, Rule};

/// Most pools of a plain list.
pub const PLAIN: usize = 4;
/// Most prefixes that are looked at before a packet that is in none leaves.
pub const GATES: usize = 4;

/// The rules for these pools, sorted, disjoint and of one family, in the order of their preferences.
pub fn layout(pools: &[Pool], bank: Bank) -> Vec<Rule> {
    let mut writer = Writer { bank, rules: Vec::new() };
    if pools.is_empty() {
        return writer.rules;
    }
    if pools.len() <= PLAIN {
        writer.list(pools);
        return writer.rules;
    }
    let parts = gates(pools);
    let gates: Vec<usize> = parts.iter().map(|part| writer.goto(&pools[part.clone()])).collect();
    writer.out(pools[0].0);
    for (gate, part) in gates.into_iter().zip(parts) {
        writer.aim(gate);
        writer.part(&pools[part]);
    }
    writer.rules
}

struct Writer {
    bank: Bank,
    rules: Vec<Rule>,
}

impl Writer {
    fn next(&self) -> u32 {
        self.bank.first + u32::try_from(self.rules.len()).expect("a bank is far smaller than 2^32")
    }

    /// A `goto` for the prefix of these pools, to be aimed later.
    fn goto(&mut self, pools: &[Pool]) -> usize {
        let cover = cover(pools);
        let from = (cover.prefix_len() > 0).then_some(cover);
        self.rules.push(goto(super::is_v6(cover), self.next(), from, END));
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
        for pool in pools {
            self.rules.extend(rules_of(*pool, self.next()));
        }
        self.out(pools[0].0);
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
