//! The rules of the doors: who is let in to a tenant's pool by main where the guard does not stand. Pure.
//!
//! Each pool has a `goto` in the trie's list, to the block of its tenant behind all lists, and that one ends in a block of
//! those who are let in, which tenants that reach the same share:
//!
//! ```text
//! fwmark guard goto end     in front of all: the guard stands, and what it has seen it will judge
//! to P goto tenant          in the trie
//! tenant:  iif cvN goto end, from P goto end, goto shared
//! shared:  iif lo goto end, from <what they reach by main> goto end, blackhole
//! ```
//!
//! The kernel's own look at the way back (`rp_filter`) comes by here too, without a mark: for what a pod sends it asks with
//! the addresses turned round, and with the interface that it leaves by. So whoever a pod may send to has to be let in.
//! Calico's look asks with `lo`.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_proto::names;
use ipnet::IpNet;

use super::{
    Bank, DOORS, Pool, given, is_v6,
    trie::{self, By, Writer},
};
use crate::state::{Action, LOOPBACK, Rule};

/// Counts what the doors of tenants take in a bank, of one family each.
#[derive(Debug, Default)]
pub struct Doors {
    pools: [usize; 2],
    blocks: [usize; 2],
    shared: [BTreeSet<Vec<IpNet>>; 2],
}

impl Doors {
    /// Takes a tenant's doors, if all of them fit.
    pub fn take(&mut self, pools: &[IpNet], by_main: &BTreeSet<IpNet>) -> bool {
        let needs = |v6: bool| {
            let shared = of_family(by_main, v6);
            let new = !self.shared[usize::from(v6)].contains(&shared);
            // One who reaches nothing else lets in the node, and ends.
            let block = pools.iter().filter(|pool| is_v6(**pool) == v6).count() + 2;
            (block, if new { shared.len() + 2 } else { 0 }, shared)
        };
        let needs = [false, true].map(needs);
        let fits = [0, 1].into_iter().all(|of| {
            let (block, shared, _) = &needs[of];
            let pools = self.pools[of] + block - 2;
            // Beside the trie: a `goto` for each pool, and the rule in front of all.
            pools + trie::most(pools) + 1 + self.blocks[of] + block + shared
                <= DOORS.a.room().min(DOORS.b.room())
        });
        if fits {
            for (of, (block, size, shared)) in needs.into_iter().enumerate() {
                self.pools[of] += block - 2;
                self.blocks[of] += block + size;
                self.shared[of].insert(shared);
            }
        }
        fits
    }
}

/// The rules for those of these pools, sorted, disjoint and of one family, whose tables have doors, in the order of their
/// preferences.
pub fn layout(pools: &[Pool], doors: &BTreeMap<u32, BTreeSet<IpNet>>, v6: bool, bank: Bank) -> Vec<Rule> {
    let pools: Vec<Pool> = pools.iter().filter(|(_, table)| doors.contains_key(table)).copied().collect();
    let mut writer = Writer::new(By::Destination, v6, bank);
    if pools.is_empty() {
        return writer.finish();
    }
    writer.out().mark = Some(names::GUARD_MARK);
    let mut tenants: BTreeMap<u32, Vec<(IpNet, usize)>> = BTreeMap::new();
    writer.pools(&pools, &mut |writer, (pool, table)| {
        tenants.entry(table).or_default().push((pool, writer.goto(pool)));
    });
    let mut shared: BTreeMap<Vec<IpNet>, Vec<usize>> = BTreeMap::new();
    for (table, of_tenant) in tenants {
        for (_, goto) in &of_tenant {
            writer.aim(*goto);
        }
        writer.out().iif = Some(names::host_link(table - names::TABLE_BASE));
        for (pool, _) in of_tenant {
            writer.out().from = given(pool);
        }
        let goto = writer.goto_for_all();
        shared.entry(of_family(&doors[&table], v6)).or_default().push(goto);
    }
    for (from, gotos) in shared {
        for goto in gotos {
            writer.aim(goto);
        }
        writer.out().iif = Some(LOOPBACK.to_owned());
        for net in from {
            writer.out().from = given(net);
        }
        writer.push(Action::Blackhole);
    }
    writer.finish()
}

fn of_family(nets: &BTreeSet<IpNet>, v6: bool) -> Vec<IpNet> {
    nets.iter().filter(|net| is_v6(**net) == v6).copied().collect()
}

#[cfg(test)]
pub mod tests;
