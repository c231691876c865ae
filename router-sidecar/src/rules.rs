//! How the policy rules of the host's namespace are laid out. Pure.
//!
//! For each pool P of a local tenant with table T there are two:
//!
//! ```text
//! 20000: from P to P lookup main suppress_prefixlength 31   pods of the tenant on this node (IPv6: 127)
//! 20001: from P lookup T                                    everything else they send
//! ```
//!
//! The first keeps the reverse path of a local pod at its own interface, which Calico checks; of the main table only
//! host routes count there, so that a block that lives on another node still goes into the VRF.

use std::collections::BTreeSet;

use calico_vni_proto::{model::Tenant, names};
use ipnet::IpNet;

use crate::state::{Action, MAIN, Rule};

/// Preference of the rules for pods of one tenant on this node.
pub const LOCAL: u32 = 20_000;
/// Preference of the rules into the tenants' tables.
pub const TENANT: u32 = 20_001;

/// All rules for these tenants.
pub fn layout(tenants: &[Tenant]) -> BTreeSet<Rule> {
    tenants
        .iter()
        .flat_map(|tenant| tenant.pools.iter().map(|pool| (tenant.vni, pool.cidr)))
        .flat_map(|(vni, pool)| [local(pool), into_table(pool, names::table(vni))])
        .collect()
}

fn local(pool: IpNet) -> Rule {
    let host_route = pool.max_prefix_len();
    Rule {
        pref: LOCAL,
        v6: matches!(pool, IpNet::V6(_)),
        from: Some(pool),
        to: Some(pool),
        action: Action::Lookup { table: MAIN, suppress_prefixlength: Some(host_route - 1) },
    }
}

fn into_table(pool: IpNet, table: u32) -> Rule {
    Rule {
        pref: TENANT,
        v6: matches!(pool, IpNet::V6(_)),
        from: Some(pool),
        to: None,
        action: Action::Lookup { table, suppress_prefixlength: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tenant;

    #[test]
    fn two_rules_a_pool_of_either_family() {
        let rules: Vec<String> = layout(&[tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"])])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            rules,
            [
                "pref 20000 from 10.200.0.0/16 to 10.200.0.0/16 lookup main suppress_prefixlength 31",
                "pref 20000 from fd00:200::/64 to fd00:200::/64 lookup main suppress_prefixlength 127",
                "pref 20001 from 10.200.0.0/16 lookup 1000001001",
                "pref 20001 from fd00:200::/64 lookup 1000001001",
            ]
        );
    }
}
