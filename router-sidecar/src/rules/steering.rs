//! The rules of the steering: from a tenant's pool into its table. Pure.
//!
//! A pool that is its tenant's only one has its two rules in the trie's list. Pools of one tenant have a `goto` there, to
//! the block of that tenant behind all lists, since a `goto` leads forward. With that, a pool takes at most three rules
//! beside those of the trie (two pools of a tenant: two `goto`, two local look-ups, the table, the way out).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    Bank, Pool, given,
    trie::{By, Writer},
};
use crate::state::{Action, MAIN, Rule};

/// What one tenant has here.
#[derive(Default)]
struct OfTenant {
    pools: Vec<IpNet>,
    /// Rules that are to lead to its block.
    gotos: Vec<usize>,
}

/// The rules for these pools, sorted, disjoint and of one family, in the order of their preferences.
pub fn layout(pools: &[Pool], v6: bool, bank: Bank) -> Vec<Rule> {
    let mut writer = Writer::new(By::Source, v6, bank);
    let mut tenants: BTreeMap<u32, OfTenant> = BTreeMap::new();
    for (pool, table) in pools {
        tenants.entry(*table).or_default().pools.push(*pool);
    }
    writer.pools(pools, &mut |writer, (pool, table)| {
        let tenant = tenants.entry(table).or_default();
        if tenant.pools.len() == 1 {
            local(writer, pool).from = given(pool);
            into_table(writer, table).from = given(pool);
        } else {
            tenant.gotos.push(writer.goto(pool));
        }
    });
    for (table, OfTenant { pools, gotos }) in tenants.into_iter().filter(|(_, of)| !of.gotos.is_empty()) {
        for goto in gotos {
            writer.aim(goto);
        }
        for pool in pools {
            local(&mut writer, pool);
        }
        into_table(&mut writer, table);
        // A route that says `throw` ends the look-up in the table, and the next block is not for this packet.
        writer.out();
    }
    writer.finish()
}

/// Pods of the tenant on this node are found in the main table.
fn local(writer: &mut Writer, to: IpNet) -> &mut Rule {
    let suppress_prefixlength = Some(to.max_prefix_len() - 1);
    let rule = writer.push(Action::Lookup { table: MAIN, suppress_prefixlength });
    rule.to = given(to);
    rule
}

/// Everything else goes into the tenant's table.
fn into_table(writer: &mut Writer, table: u32) -> &mut Rule {
    writer.push(Action::Lookup { table, suppress_prefixlength: None })
}

#[cfg(test)]
pub mod tests;
