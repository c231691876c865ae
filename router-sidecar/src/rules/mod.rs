//! The policy rules of the host's namespace: whose packets go into which table, and who is let in to a tenant's pods by
//! main. Pure.
//!
//! **Steering.** For each pool P of a local tenant with table T, and each pool Q of that tenant (P itself among them), the
//! kernel is to do, in this order:
//!
//! ```text
//! from P to Q lookup main suppress_prefixlength 31   pods of the tenant on this node (IPv6: 127)
//! from P lookup T                                    everything else they send
//! ```
//!
//! The first keeps the reverse path of a local pod at its own interface, which Calico checks; of the main table only
//! host routes count there, so that a block that lives on another node still goes into the VRF. Where a tenant has several
//! pools of a family they share one block of these rules, without `from`, and each pool has a `goto` to it ([`steering`]).
//!
//! **Doors.** The guard judges what goes to a pool of a tenant, and marks it. Where somebody took the guard away nothing is
//! marked, and rules take its place, as far as rules can ([`doors`]):
//!
//! ```text
//! fwmark guard                             the guard stands: on to the steering
//! to P iif cvN, to P from Q, to P iif lo   out of its VRF, from its pods on this node, from the node: on
//! to P from <what it reaches by main>      on
//! to P                                     blackhole
//! ```
//!
//! The kernel walks its rules one by one for every packet of the node, so both lie in tries of `goto` rules ([`trie`]),
//! and a trie that is to change is written anew beside the one that stands ([`change`]), each in a [`Span`] of its own:
//!
//! ```text
//!  9999          goto 15000   there: bank B of the doors is the one that counts; not there: bank A is
//! 10000 - 14998  bank A
//! 14999          goto 19998   bank B is never met by the way
//! 15000 - 19997  bank B
//! 19998          nop          where both banks end; the look-up goes on with the rules after it
//! 19999 - 32000  the steering, in the same way
//! ```
//!
//! All of it exists once for IPv4 and once for IPv6, each with its own bank that counts. Rules of others between 9999
//! and 32000 are left alone, but which packets meet them is not defined.

pub mod change;
mod doors;
#[cfg(test)]
pub mod kernel;
mod steering;
mod trie;

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_proto::{model::Tenant, names};
use ipnet::IpNet;

use self::doors::Doors;
use crate::state::Rule;

/// Preferences for a layout and for the one that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Preference of the rule that makes bank B the one that counts.
    ///
    /// There is none for bank A, since no second one could be told from the first: the kernel takes two `goto` rules of
    /// one preference for the same, whatever their targets (`rule_exists` in net/core/fib_rules.c).
    pub entry: u32,
    /// The bank that counts without an entry rule.
    pub a: Bank,
    /// Preference behind bank A, of a rule that leads past bank B, which may be half written.
    pub bar: u32,
    /// The bank that counts with it.
    pub b: Bank,
    /// Preference at which both banks end.
    pub end: u32,
}

/// A range of preferences that holds a whole layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Its first preference.
    pub first: u32,
    /// Its last preference.
    pub last: u32,
    /// Where packets go on that it has nothing more for.
    pub end: u32,
}

/// Where the rules of the doors lie.
pub const DOORS: Span = Span::new(9_999, 14_999, 19_998);

/// Where the rules of the steering lie.
pub const STEERING: Span = Span::new(19_999, 25_999, 32_000);

/// Pools of one family that a node can carry: more might not fit into a bank of [`STEERING`], see [`trie`].
pub const MOST: usize = 1450;

impl Span {
    const fn new(entry: u32, bar: u32, end: u32) -> Self {
        let a = Bank { first: entry + 1, last: bar - 1, end };
        Self { entry, a, bar, b: Bank { first: bar + 1, last: end - 1, end }, end }
    }

    /// Whether a preference lies in it.
    pub fn holds(&self, pref: u32) -> bool {
        (self.entry..=self.end).contains(&pref)
    }

    fn other(&self, bank: Bank) -> Bank {
        if bank == self.a { self.b } else { self.a }
    }
}

impl Bank {
    /// Whether a preference lies in it.
    pub fn holds(self, pref: u32) -> bool {
        (self.first..=self.last).contains(&pref)
    }

    /// How many rules fit.
    const fn room(self) -> usize {
        (self.last - self.first + 1) as usize
    }
}

/// A pool and the table that its pods' packets go into.
pub type Pool = (IpNet, u32);

/// Which pools go into which tables, and who is let in to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Tables by pool; no two overlap, and of one family there are at most [`MOST`].
    pub pools: BTreeMap<IpNet, u32>,
    /// By table, what the tenant reaches by main, which therefore is let in without the guard. A tenant that is not among
    /// them has the guard alone.
    pub doors: BTreeMap<u32, BTreeSet<IpNet>>,
    /// Why not all of a tenant's pools are among them, by VNI. The guard stands for those that are not.
    pub refused: BTreeMap<u32, String>,
}

impl Steering {
    /// For these tenants, each with what it reaches by main. Where there are too many, those with the highest link indices
    /// are refused: indices are given out from the lowest, so that mostly who came last goes without.
    pub fn new<'a>(tenants: impl IntoIterator<Item = (&'a Tenant, BTreeSet<IpNet>)>) -> Self {
        let mut steering = Self::default();
        let mut doors = Doors::default();
        let mut tenants: Vec<_> = tenants.into_iter().collect();
        tenants.sort_by_key(|(tenant, _)| (tenant.link_index, tenant.vni));
        for (tenant, by_main) in tenants {
            if let Err(reason) = steering.take(tenant) {
                steering.refused.insert(tenant.vni, reason);
            }
            let pools: Vec<IpNet> = tenant.pools.iter().map(|pool| pool.cidr.trunc()).collect();
            if doors.take(&pools, &by_main) {
                steering.doors.insert(names::table(tenant.vni), by_main);
            }
        }
        steering
    }

    /// Takes all pools of a tenant that can be taken.
    fn take(&mut self, tenant: &Tenant) -> Result<(), String> {
        let mut result = Ok(());
        for pool in tenant.pools.iter().map(|pool| pool.cidr.trunc()) {
            if let Some((other, table)) = self.overlapping(pool) {
                let whose = table - names::TABLE_BASE;
                result = Err(format!(
                    "pool {pool} overlaps pool {other} of VNI {whose} and gets no rules; separate them"
                ));
            } else if self.of(is_v6(pool)).len() >= MOST {
                result = Err(format!(
                    "pool {pool} gets no rules: this node carries {MOST} pools of its family, which is the most; use \
                     fewer, larger pools, or keep tenants off this node by `placement` or `nodeSelector`"
                ));
            } else {
                self.pools.insert(pool, names::table(tenant.vni));
            }
        }
        result
    }

    /// A pool that has addresses in common with this one. Those that are there overlap none, so that only its
    /// neighbours in the order of addresses can.
    fn overlapping(&self, pool: IpNet) -> Option<Pool> {
        let before = self.pools.range(..=pool).next_back();
        let after = self.pools.range(pool..).next();
        let overlaps = |(other, _): &(&IpNet, &u32)| other.contains(&pool) || pool.contains(*other);
        before.into_iter().chain(after).find(overlaps).map(|(other, table)| (*other, *table))
    }

    /// What the rules of one family are, of the steering and of the doors, if they stand in this bank.
    fn layout(&self, v6: bool, bank: Bank) -> Vec<Rule> {
        let pools = self.of(v6);
        if DOORS.holds(bank.first) {
            doors::layout(&pools, &self.doors, v6, bank)
        } else {
            steering::layout(&pools, v6, bank)
        }
    }

    /// The pools of one family, in the order of their addresses.
    pub fn of(&self, v6: bool) -> Vec<Pool> {
        self.pools
            .iter()
            .filter(|(pool, _)| is_v6(**pool) == v6)
            .map(|(pool, table)| (*pool, *table))
            .collect()
    }
}

fn is_v6(pool: IpNet) -> bool {
    matches!(pool, IpNet::V6(_))
}

/// A prefix without length is read back as none.
fn given(net: IpNet) -> Option<IpNet> {
    (net.prefix_len() > 0).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tenant;

    fn new(tenants: &[Tenant]) -> Steering {
        Steering::new(tenants.iter().map(|tenant| (tenant, BTreeSet::new())))
    }

    #[test]
    fn pools_of_either_family_go_into_their_tenants_table() {
        let steering = new(&[tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"])]);
        let pool = |pool: &str| (pool.parse().unwrap(), 1_000_001_001);
        assert_eq!(steering.of(false), [pool("10.200.0.0/16")]);
        assert_eq!(steering.of(true), [pool("fd00:200::/64")]);
        assert!(steering.refused.is_empty());
    }

    #[test]
    fn a_pool_within_anothers_is_refused_and_no_other() {
        for (first, second) in [
            ("10.0.0.0/8", "10.255.0.0/16"),
            ("10.255.0.0/16", "10.0.0.0/8"),
            ("10.0.0.0/16", "10.0.0.0/16"),
            ("10.0.0.0/16", "10.0.0.0/8"),
            ("10.0.0.0/8", "10.0.0.0/16"),
        ] {
            let steering = new(&[
                tenant("red", 1001, &[first]),
                tenant("blue", 1002, &[second, "10.0.0.0/7", "11.0.0.0/8"]),
            ]);
            assert_eq!(steering.of(false).len(), 2, "{first} {second}");
            assert_eq!(steering.refused.keys().collect::<Vec<_>>(), [&1002]);
        }
    }

    #[test]
    fn what_is_too_much_is_refused_with_the_way_out() {
        let names: Vec<String> = (0..=MOST).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let pools: Vec<&str> = names.iter().map(String::as_str).collect();
        let one_more = pools[MOST];
        let late = tenant("late", 1002, &[one_more, "fd00::/64"]);
        let steering = new(&[late, tenant("early", 1001, &pools[..MOST])]);
        assert_eq!(steering.of(false).len(), MOST);
        assert_eq!(steering.of(true).len(), 1, "the other family has its own room");
        let reason = &steering.refused[&1002];
        assert!(
            reason.starts_with(&format!("pool {one_more} gets no rules")) && reason.contains("placement"),
            "{reason}"
        );
        assert_eq!(steering.refused.len(), 1);
    }
}
