//! The kernel's policy rules of one family, as far as ours need them: how rules come and go, and the way of a packet
//! through them (net/core/fib_rules.c). The test of this crate with the real kernel holds the two against each other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::change::Step;
use crate::state::{Action, Rule};

/// Our rules in the order in which they are walked.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Each with the number that its `goto` leads to.
    rules: Vec<Standing>,
    made: u64,
}

#[derive(Clone, Debug)]
struct Standing {
    number: u64,
    rule: Rule,
    target: Option<u64>,
}

/// A look-up that a packet came to: table, and the prefix length that does not count.
pub type LookUp = (u32, Option<u8>);

/// Stands among look-ups for the end of a packet that was dropped: no table has this number.
pub const DROPPED: LookUp = (0, None);

/// As much of a packet as rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Interface that it came in by.
    pub iif: &'a str,
    /// Its mark.
    pub mark: u32,
}

impl Kernel {
    /// With these rules, added in this order.
    pub fn with(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut kernel = Self::default();
        rules.into_iter().for_each(|rule| kernel.add(rule));
        kernel
    }

    /// All rules in order.
    pub fn rules(&self) -> Vec<Rule> {
        self.rules.iter().map(|standing| standing.rule.clone()).collect()
    }

    /// A change as the agent makes it; false where there is nothing to delete.
    pub fn make(&mut self, step: &Step) -> bool {
        match step {
            Step::Add(rule) => {
                self.add(rule.clone());
                true
            }
            Step::Delete(rule) => self.delete(rule),
        }
    }

    /// Adds a rule behind those of its preference.
    pub fn add(&mut self, rule: Rule) {
        self.made += 1;
        let number = self.made;
        let target = match rule.action {
            Action::Goto(pref) => {
                assert!(pref > rule.pref, "the kernel refuses `{rule}`: backward goto");
                self.rules.iter().find(|other| other.rule.pref == pref).map(|other| other.number)
            }
            _ => None,
        };
        for other in &mut self.rules {
            if other.target.is_none() && other.rule.action == Action::Goto(rule.pref) {
                other.target = Some(number);
            }
        }
        let at = self.rules.partition_point(|other| other.rule.pref <= rule.pref);
        self.rules.insert(at, Standing { number, rule, target });
    }

    /// Deletes the first rule that has all that is given; targets of `goto` rules are not looked at.
    pub fn delete(&mut self, rule: &Rule) -> bool {
        let fits = |other: &Rule| {
            let action = match (&rule.action, &other.action) {
                (Action::Goto(_), Action::Goto(_)) => true,
                (
                    Action::Lookup { table, suppress_prefixlength: None },
                    Action::Lookup { table: other, .. },
                ) => table == other,
                (wanted, other) => wanted == other,
            };
            let given = |wanted: &Option<_>, other: &Option<_>| wanted.is_none() || wanted == other;
            other.pref == rule.pref
                && action
                && given(&rule.from, &other.from)
                && given(&rule.to, &other.to)
                && (rule.iif.is_none() || rule.iif == other.iif)
                && (rule.mark.is_none() || rule.mark == other.mark)
        };
        let Some(at) = self.rules.iter().position(|other| fits(&other.rule)) else { return false };
        let gone = self.rules.remove(at);
        let heir = self.rules.get(at).filter(|next| next.rule.pref == gone.rule.pref).map(|next| next.number);
        for other in &mut self.rules {
            if other.target == Some(gone.number) {
                other.target = heir;
            }
        }
        true
    }

    /// Deletes the rule at this place in the order, and nothing else.
    pub fn lose(&mut self, at: usize) {
        let gone = self.rules.remove(at);
        self.rules
            .iter_mut()
            .filter(|rule| rule.target == Some(gone.number))
            .for_each(|rule| rule.target = None);
    }

    /// The look-ups that a packet comes to, and how many rules it meets.
    pub fn walk(&self, packet: Packet<'_>) -> (Vec<LookUp>, usize) {
        let (mut look_ups, mut met, mut at) = (Vec::new(), 0, 0);
        while let Some(Standing { rule, target, .. }) = self.rules.get(at) {
            met += 1;
            at += 1;
            let within = |net: &Option<IpNet>, ip| net.is_none_or(|net| net.contains(&ip));
            let fits = within(&rule.from, packet.from)
                && within(&rule.to, packet.to)
                && rule.iif.as_ref().is_none_or(|iif| iif == packet.iif)
                && rule.mark.is_none_or(|mark| packet.mark & mark == mark);
            if !fits {
                continue;
            }
            match &rule.action {
                Action::Lookup { table, suppress_prefixlength } => {
                    look_ups.push((*table, *suppress_prefixlength));
                }
                Action::Goto(_) => {
                    if let Some(target) = target {
                        at = self.rules.iter().position(|other| other.number == *target).expect("it stands");
                    }
                }
                Action::Blackhole => {
                    look_ups.push(DROPPED);
                    break;
                }
                Action::Nop | Action::Other(_) => {}
            }
        }
        (look_ups, met)
    }

    /// The look-ups of a packet that came in somewhere, without a mark.
    pub fn ways(&self, from: IpAddr, to: IpAddr) -> Vec<LookUp> {
        self.walk(Packet { from, to, iif: "eth0", mark: 0 }).0
    }
}
