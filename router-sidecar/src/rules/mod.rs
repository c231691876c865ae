//! The policy rules of the host's namespace: whose packets go into which table. Pure.
//!
//! For each pool P of a local tenant with table T, and each pool Q of that tenant (P itself among them), the kernel is to
//! do, in this order:
//!
//! ```text
//! from P to Q lookup main suppress_prefixlength 31   pods of the tenant on this node (IPv6: 127)
//! from P lookup T                                    everything else they send
//! ```
//!
//! The first keeps the reverse path of a local pod at its own interface, which Calico checks; of the main table only
//! host routes count there, so that a block that lives on another node still goes into the VRF. Where a tenant has several
//! pools of a family they share one block of these rules, without `from`, and each pool has a `goto` to it.
//!
//! The kernel walks its rules one by one for every packet of the node, so these lie in a trie of `goto` rules
//! ([`trie`]), and a trie that is to change is written anew beside the one that stands ([`change`]):
//!
//! ```text
//! 19999          goto 26000   there: bank B is the one that counts; not there: bank A is
//! 20000 - 25998  bank A
//! 25999          goto 32000   bank B is never met by the way
//! 26000 - 31999  bank B
//! 32000          nop          where both banks end; the look-up goes on with the rules after it
//! ```
//!
//! All of it exists once for IPv4 and once for IPv6, each with its own bank that counts. Rules of others between 19999
//! and 32000 are left alone, but which packets meet them is not defined.

pub mod change;
#[cfg(test)]
pub mod kernel;
pub mod trie;

use std::collections::BTreeMap;

use calico_vni_proto::{model::Tenant, names};
use ipnet::IpNet;

use crate::state::{Action, MAIN, Rule};

/// Preference of the rule that makes bank B the one that counts.
///
/// There is none for bank A, since no second one could be told from the first: the kernel takes two `goto` rules of one
/// preference for the same, whatever their targets (`rule_exists` in net/core/fib_rules.c).
pub const ENTRY: u32 = 19_999;

/// Preference behind bank A, of a rule that leads past bank B, which may be half written.
pub const BAR: u32 = 25_999;

/// Preference at which both banks end.
pub const END: u32 = 32_000;

/// Pools of one family that a node can carry: more might not fit into a bank, see [`trie`].
pub const MOST: usize = 1450;

/// A range of preferences that holds a whole layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Its first preference.
    pub first: u32,
    /// Its last preference.
    pub last: u32,
}

impl Bank {
    /// The one that counts without an entry rule.
    pub const A: Self = Self { first: 20_000, last: 25_998 };
    /// The one that counts with it.
    pub const B: Self = Self { first: 26_000, last: 31_999 };

    /// Whether a preference lies in it.
    pub fn holds(self, pref: u32) -> bool {
        (self.first..=self.last).contains(&pref)
    }

    fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }
}

/// A pool and the table that its pods' packets go into.
pub type Pool = (IpNet, u32);

/// Which pools go into which tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Tables by pool; no two overlap, and of one family there are at most [`MOST`].
    pub pools: BTreeMap<IpNet, u32>,
    /// Why not all of a tenant's pools are among them, by VNI. The guard stands for those that are not.
    pub refused: BTreeMap<u32, String>,
}

impl Steering {
    /// For these tenants. Where there are too many, those with the highest link indices are refused: indices are given
    /// out from the lowest, so that mostly who came last goes without.
    pub fn new(tenants: &[Tenant]) -> Self {
        let mut steering = Self::default();
        let mut tenants: Vec<&Tenant> = tenants.iter().collect();
        tenants.sort_by_key(|tenant| (tenant.link_index, tenant.vni));
        for tenant in tenants {
            if let Err(reason) = steering.take(tenant) {
                steering.refused.insert(tenant.vni, reason);
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

/// Pods of the tenant on this node are found in the main table: `from` one of its pools `to` one of its pools.
fn local(pref: u32, from: Option<IpNet>, to: IpNet) -> Rule {
    let action = Action::Lookup { table: MAIN, suppress_prefixlength: Some(to.max_prefix_len() - 1) };
    Rule { pref, v6: is_v6(to), from: from.and_then(given), to: given(to), action }
}

/// Everything else goes into the tenant's table.
fn into_table(pref: u32, v6: bool, from: Option<IpNet>, table: u32) -> Rule {
    let action = Action::Lookup { table, suppress_prefixlength: None };
    Rule { pref, v6, from: from.and_then(given), to: None, action }
}

/// A prefix without length is read back as none.
fn given(net: IpNet) -> Option<IpNet> {
    (net.prefix_len() > 0).then_some(net)
}

fn goto(v6: bool, pref: u32, from: Option<IpNet>, target: u32) -> Rule {
    Rule { pref, v6, from, to: None, action: Action::Goto(target) }
}

/// The rules as a plain list, all of one preference: what a packet is to do, without the layout.
#[cfg(test)]
pub fn plain_list(pools: &[Pool], pref: u32) -> Vec<Rule> {
    let mut list = Vec::new();
    for (pool, table) in pools {
        let own = pools.iter().filter(|(_, other)| other == table);
        list.extend(own.map(|(other, _)| local(pref, Some(*pool), *other)));
        list.push(into_table(pref, is_v6(*pool), Some(*pool), *table));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tenant;

    #[test]
    fn pools_of_either_family_go_into_their_tenants_table() {
        let steering = Steering::new(&[tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"])]);
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
            let steering = Steering::new(&[
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
        let steering = Steering::new(&[late, tenant("early", 1001, &pools[..MOST])]);
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
