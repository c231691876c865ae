//! The pools of one family laid out in one bank, so that a packet meets few rules however many pools there are. Pure.
//!
//! Up to [`PLAIN`] pools are a plain list, and then the way out. More of them are halved until lists are left: a prefix
//! that holds between a third and two thirds of the pools has a `goto` to its own part, and whatever is not in it goes on
//! with the others right behind. Such a prefix there always is, also where pools lie nested like a staircase and their
//! common bits alone would halve nothing. In front of all stand up to [`GATES`] prefixes that hold all pools between
//! them: what is in none, such as the packets of the node itself, leaves there.
//!
//! A part of five or more never leaves a list of one, so that there are at most half as many lists as pools but for one
//! behind each gate; each list has a way out, and each but the first a `goto`: [`most`]. Every rule has a preference of its
//! own: with two of one preference it would depend on history which comes first and which of them is the target of a `goto`.

use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Bank, Pool, given};
use crate::state::{Action, Rule};

/// Most pools of a plain list.
pub const PLAIN: usize = 4;
/// Most prefixes that are looked at before a packet that is in none leaves.
pub const GATES: usize = 4;

/// Most rules that so many pools take beside those of the pools themselves.
pub const fn most(pools: usize) -> usize {
    pools + GATES + 1
}

/// Which of a packet's addresses is looked for in the pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The one that it comes from.
    Source,
    /// The one that it goes to.
    Destination,
}

/// Writes rules from a bank's first preference on.
#[derive(Debug)]
pub struct Writer {
    by: By,
    v6: bool,
    bank: Bank,
    rules: Vec<Rule>,
}

impl Writer {
    /// For an empty bank.
    pub fn new(by: By, v6: bool, bank: Bank) -> Self {
        Self { by, v6, bank, rules: Vec::new() }
    }

    /// What was written, in the order of preferences.
    pub fn finish(self) -> Vec<Rule> {
        self.rules
    }

    /// The rule that comes next, for every packet of the family.
    pub fn push(&mut self, action: Action) -> &mut Rule {
        let rule = Rule::all(self.next(), self.v6, action);
        self.rules.push(rule);
        self.rules.last_mut().expect("there is one now")
    }

    /// A `goto` for what is in this prefix, to be aimed later.
    pub fn goto(&mut self, prefix: IpNet) -> usize {
        let goto = self.goto_for_all();
        let rule = &mut self.rules[goto];
        match self.by {
            By::Source => rule.from = given(prefix),
            By::Destination => rule.to = given(prefix),
        }
        goto
    }

    /// A `goto` for everything, to be aimed later.
    pub fn goto_for_all(&mut self) -> usize {
        self.out();
        self.rules.len() - 1
    }

    /// Lets a `goto` lead to what comes next.
    pub fn aim(&mut self, at: usize) {
        self.rules[at].action = Action::Goto(self.next());
    }

    /// The way out of the bank.
    pub fn out(&mut self) -> &mut Rule {
        self.push(Action::Goto(self.bank.end))
    }

    /// The trie of these pools, sorted and disjoint; `leaf` writes the rules of one pool.
    pub fn pools(&mut self, pools: &[Pool], leaf: &mut dyn FnMut(&mut Self, Pool)) {
        match pools.len() {
            0 => {}
            1..=PLAIN => self.list(pools, leaf),
            _ => {
                let parts = gates(pools);
                let gates: Vec<usize> =
                    parts.iter().map(|part| self.goto(cover(&pools[part.clone()]))).collect();
                self.out();
                for (gate, part) in gates.into_iter().zip(parts) {
                    self.aim(gate);
                    self.part(&pools[part], leaf);
                }
            }
        }
    }

    fn next(&self) -> u32 {
        self.bank.first + u32::try_from(self.rules.len()).expect("a bank is far smaller than 2^32")
    }

    fn list(&mut self, pools: &[Pool], leaf: &mut dyn FnMut(&mut Self, Pool)) {
        for pool in pools {
            leaf(self, *pool);
        }
        self.out();
    }

    fn part(&mut self, pools: &[Pool], leaf: &mut dyn FnMut(&mut Self, Pool)) {
        if pools.len() <= PLAIN {
            return self.list(pools, leaf);
        }
        let inside = halving(pools);
        let gate = self.goto(cover(&pools[inside.clone()]));
        let outside: Vec<Pool> = [&pools[..inside.start], &pools[inside.end..]].concat();
        self.part(&outside, leaf);
        self.aim(gate);
        self.part(&pools[inside], leaf);
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
