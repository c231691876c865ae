//! From the rules that stand to those that are wanted, so that every packet meets either the old ones or the new. Pure.
//!
//! A bank that counts is never edited. If it is not as it is wanted, or somebody changed a rule of it, the other bank is
//! emptied and written whole, unless it is right already, and then one rule is added or deleted that makes it the one that counts. What is left of the
//! old one goes after that.
//!
//! Packets may still be on their way through the old rules then. Therefore rules are deleted in the order of their
//! preferences: one that is gone still leads a packet which stands at it to what it always led to, as long as the target
//! of a `goto` does not go before the `goto` itself (net/core/fib_rules.c). Rules are written in the opposite order, so
//! that the target of a `goto` is there before it. Where nothing is to remain, a bank of one rule that leads out counts
//! first: a bank that goes rule by rule would catch packets that are not its own.

use std::fmt;

use super::{Bank, DOORS, STEERING, Span, Steering};
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
        let observed = observed.iter().filter(|rule| rule.v6 == v6).cloned();
        // What lies in neither span goes with the steering.
        let (doors, steering) = observed.partition(|rule| DOORS.holds(rule.pref));
        let steps: Vec<Step> = [(DOORS, doors), (STEERING, steering)]
            .into_iter()
            .flat_map(|(span, observed)| steps(&span, v6, &|bank| wanted.layout(v6, bank), observed))
            .collect();
        (!steps.is_empty()).then(|| Change { v6, pools: wanted.of(v6).len(), steps })
    };
    [false, true].into_iter().filter_map(of).collect()
}

fn goto(pref: u32, v6: bool, target: u32) -> Rule {
    Rule::all(pref, v6, Action::Goto(target))
}

fn end(span: &Span, v6: bool) -> Rule {
    Rule::all(span.end, v6, Action::Nop)
}

/// The steps in one span.
fn steps(span: &Span, v6: bool, layout: &dyn Fn(Bank) -> Vec<Rule>, observed: Vec<Rule>) -> Vec<Step> {
    if !layout(span.a).is_empty() {
        return switch(span, v6, layout, &observed).0;
    }
    if observed.iter().all(|rule| matches!(rule.action, Action::Goto(_) | Action::Nop)) {
        // Packets go through them as if there were none.
        return delete(observed);
    }
    let way_out = |bank: Bank| vec![goto(bank.first, v6, bank.end)];
    let (mut steps, left) = switch(span, v6, &way_out, &observed);
    steps.extend(delete(left));
    steps
}

/// The steps that let this layout count, and the rules that stand then.
fn switch(
    span: &Span,
    v6: bool,
    layout: &dyn Fn(Bank) -> Vec<Rule>,
    observed: &[Rule],
) -> (Vec<Step>, Vec<Rule>) {
    let entry = goto(span.entry, v6, span.b.first);
    let within = |bank: Bank| observed.iter().filter(move |rule| bank.holds(rule.pref)).cloned();
    let entries: Vec<&Rule> = observed.iter().filter(|rule| rule.pref == span.entry).collect();
    let counts = if entries.contains(&&entry) { span.b } else { span.a };
    let lone_entry = counts == span.a || entries.len() == 1;

    let mut rest = observed.to_vec();
    let mut steps = Vec::new();
    if counts == span.a {
        // They lead nowhere as long as bank B is empty, and into the midst of it while it is written.
        rest.retain(|rule| rule.pref != span.entry);
        steps.extend(delete(entries.into_iter().cloned().collect()));
    }
    let (mut stays, mut wanted) = (counts, layout(counts));
    if !lone_entry || !within(counts).eq(wanted.iter().cloned()) {
        stays = span.other(counts);
        wanted = layout(stays);
    }
    let complete = within(stays).eq(wanted.iter().cloned());
    if !complete {
        steps.extend(delete(within(stays).collect()));
    }
    let ends = [end(span, v6), goto(span.bar, v6, span.end)];
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
            steps.extend(wanted.iter().rev().cloned().map(Step::Add));
        }
        if stays == span.b {
            steps.push(Step::Add(entry.clone()));
        }
    }
    steps.extend(delete(rest));
    let stand = wanted.into_iter().chain(ends).chain((stays == span.b).then_some(entry));
    (steps, stand.collect())
}

/// In the order of preferences. Of one preference the narrower come first: the kernel deletes the first rule that has
/// all that it is given, and what a request leaves out fits every rule (`rule_find` in net/core/fib_rules.c).
fn delete(mut rules: Vec<Rule>) -> Vec<Step> {
    rules.sort_by_key(|rule| (rule.pref, rule.leaves_out()));
    rules.into_iter().map(Step::Delete).collect()
}

#[cfg(test)]
mod tests;
