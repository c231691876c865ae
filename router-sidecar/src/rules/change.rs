//! From the rules that stand to those that are wanted, so that every packet meets either the old ones or the new. Pure.
//!
//! A bank that counts is never edited. If it is not as it is wanted, or somebody changed a rule of it, the other bank is
//! emptied and written whole, unless it is right already, and then one rule is added or deleted that makes it the one that counts. What is left of the
//! old one goes after that.
//!
//! Packets may still be on their way through the old rules then. Therefore rules are deleted in the order of their
//! preferences: one that is gone still leads a packet which stands at it to what it always led to, as long as the target
//! of a `goto` does not go before the `goto` itself (net/core/fib_rules.c). Rules are written in the opposite order, so
//! that the target of a `goto` is there before it.

use std::fmt;

use super::{BAR, Bank, END, ENTRY, Pool, Steering, goto, trie::layout};
use crate::state::{Action, Rule};

/// A change of the rules of one family, which is made whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// How many pools have their rules after it.
    pub pools: usize,
    /// What to do, in this order; after one that fails nothing more.
    pub steps: Vec<Step>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Comes, behind those of the same preference.
    Add(Rule),
    /// Goes.
    Delete(Rule),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(rule) => write!(f, "rule add {rule}"),
            Self::Delete(rule) => write!(f, "rule del {rule}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let added = self.steps.iter().filter(|step| matches!(step, Step::Add(_))).count();
        let deleted = self.steps.len() - added;
        write!(f, "rules of {family} for {} pools: add {added}, delete {deleted}", self.pools)?;
        self.steps.iter().try_for_each(|step| write!(f, "\n  {step}"))
    }
}

/// The changes that make our rules, `observed` in the kernel's order, as they are wanted.
pub fn changes(wanted: &Steering, observed: &[Rule]) -> Vec<Change> {
    let of = |v6| {
        let observed: Vec<Rule> = observed.iter().filter(|rule| rule.v6 == v6).cloned().collect();
        let pools = wanted.of(v6);
        let steps = steps(v6, &pools, &observed);
        (!steps.is_empty()).then_some(Change { v6, pools: pools.len(), steps })
    };
    [false, true].into_iter().filter_map(of).collect()
}

fn entry(v6: bool) -> Rule {
    goto(v6, ENTRY, None, Bank::B.first)
}

fn bar(v6: bool) -> Rule {
    goto(v6, BAR, None, END)
}

fn end(v6: bool) -> Rule {
    Rule { pref: END, v6, from: None, to: None, action: Action::Nop }
}

fn steps(v6: bool, pools: &[Pool], observed: &[Rule]) -> Vec<Step> {
    if pools.is_empty() {
        return delete(observed.to_vec());
    }
    let entry = entry(v6);
    let within = |bank: Bank| observed.iter().filter(move |rule| bank.holds(rule.pref)).cloned();
    let entries: Vec<&Rule> = observed.iter().filter(|rule| rule.pref == ENTRY).collect();
    let counts = if entries.contains(&&entry) { Bank::B } else { Bank::A };
    let lone_entry = counts == Bank::A || entries.len() == 1;

    let mut rest = observed.to_vec();
    let mut steps = Vec::new();
    if counts == Bank::A {
        // They lead nowhere as long as bank B is empty, and into the midst of it while it is written.
        rest.retain(|rule| rule.pref != ENTRY);
        steps.extend(delete(entries.into_iter().cloned().collect()));
    }
    let stays = if lone_entry && within(counts).eq(layout(pools, counts)) { counts } else { counts.other() };
    let complete = within(stays).eq(layout(pools, stays));
    if !complete {
        steps.extend(delete(within(stays).collect()));
    }
    let ends = [end(v6), bar(v6)];
    steps.extend(ends.iter().filter(|end| !observed.contains(end)).cloned().map(Step::Add));
    rest.retain(|rule| !stays.holds(rule.pref));
    let mut keep = |rule: &Rule| {
        rest.iter().position(|other| other == rule).map(|at| rest.remove(at));
    };
    ends.iter().for_each(&mut keep);
    if stays == counts {
        keep(&entry);
    } else {
        if !complete {
            steps.extend(layout(pools, stays).into_iter().rev().map(Step::Add));
        }
        if stays == Bank::B {
            steps.push(Step::Add(entry));
        }
    }
    steps.extend(delete(rest));
    steps
}

/// In the order of preferences. Of one preference the narrower come first: the kernel deletes the first rule that has
/// all that it is given, and what a request leaves out fits every rule (`rule_find` in net/core/fib_rules.c).
fn delete(mut rules: Vec<Rule>) -> Vec<Step> {
    let left_out = |rule: &Rule| {
        let suppress = matches!(rule.action, Action::Lookup { suppress_prefixlength: Some(_), .. });
        [rule.from.is_some(), rule.to.is_some(), suppress].into_iter().filter(|given| !given).count()
    };
    rules.sort_by_key(|rule| (rule.pref, left_out(rule)));
    rules.into_iter().map(Step::Delete).collect()
}

#[cfg(test)]
mod tests;
