//! Every address takes the same way as by a plain list of rules, and meets few of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::rules::{
    MOST, STEERING, is_v6,
    kernel::{Kernel, Packet},
    trie::{GATES, PLAIN},
};

/// Pools that overlap none before them, in order.
pub fn disjoint(pools: impl IntoIterator<Item = IpNet>) -> Vec<Pool> {
    let mut kept: BTreeSet<IpNet> = BTreeSet::new();
    for pool in pools {
        let before = kept.range(..=pool).next_back();
        let after = kept.range(pool..).next();
        if !before.into_iter().chain(after).any(|other| other.contains(&pool) || pool.contains(other)) {
            kept.insert(pool);
        }
    }
    kept.into_iter().zip(1_000_000_001..).collect()
}

/// The same pools, of so many tenants.
fn shared_out(pools: Vec<Pool>, tenants: u32) -> Vec<Pool> {
    (0u32..).zip(pools).map(|(number, (pool, _))| (pool, 1_000_000_001 + number % tenants)).collect()
}

/// A prefix of any length, most often a long one among few bits, so that there are neighbours.
pub fn prefix(v6: bool) -> impl Strategy<Value = IpNet> {
    let bits = prop_oneof![any::<u128>(), any::<u16>().prop_map(|few| 10 << 120 | u128::from(few) << 104)];
    let length = prop_oneof![0u8..=128, 8u8..=26];
    (bits, length).prop_map(move |(bits, length)| {
        if v6 {
            Ipv6Net::new_assert(bits.into(), length).trunc().into()
        } else {
            let bits = u32::try_from(bits >> 96).unwrap();
            Ipv4Net::new_assert(bits.into(), length.min(32)).trunc().into()
        }
    })
}

/// Up to so many pools of one family.
pub fn pools(v6: bool, most: usize) -> impl Strategy<Value = Vec<Pool>> {
    prop::collection::vec(prefix(v6), 0..most).prop_map(disjoint)
}

/// The first and the last address of each pool, those just outside, and some others.
pub fn samples(pools: &[Pool], v6: bool) -> Vec<IpAddr> {
    let beside = |ip: IpAddr, up: bool| -> IpAddr {
        match (ip, up) {
            (IpAddr::V4(v4), true) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1)).into(),
            (IpAddr::V4(v4), false) => Ipv4Addr::from_bits(v4.to_bits().wrapping_sub(1)).into(),
            (IpAddr::V6(v6), true) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1)).into(),
            (IpAddr::V6(v6), false) => Ipv6Addr::from_bits(v6.to_bits().wrapping_sub(1)).into(),
        }
    };
    let ends = |pool: IpNet| {
        let (first, last) = (pool.network(), pool.broadcast());
        [first, last, beside(first, false), beside(last, true)]
    };
    let others: &[&str] =
        if v6 { &["::", "2001:db8::1", "fe80::1"] } else { &["0.0.0.0", "192.0.2.1", "255.255.255.255"] };
    pools.iter().flat_map(|pool| ends(pool.0)).chain(others.iter().map(|ip| ip.parse().unwrap())).collect()
}

/// The rules as a plain list, all of one preference: what a packet is to do, without the layout.
pub fn plain_list(pools: &[Pool], pref: u32) -> Vec<Rule> {
    let mut list = Vec::new();
    for (pool, table) in pools {
        let lookup = |table, suppress_prefixlength| Rule {
            from: given(*pool),
            ..Rule::all(pref, is_v6(*pool), Action::Lookup { table, suppress_prefixlength })
        };
        let own = pools.iter().filter(|(_, other)| other == table);
        let local =
            |(other, _): &Pool| Rule { to: given(*other), ..lookup(MAIN, Some(other.max_prefix_len() - 1)) };
        list.extend(own.map(local));
        list.push(lookup(*table, None));
    }
    list
}

/// What the plain list has a packet do.
pub fn plain(pools: &[Pool], from: IpAddr, to: IpAddr) -> Vec<(u32, Option<u8>)> {
    Kernel::with(plain_list(pools, 1)).ways(from, to)
}

/// Most rules that a packet may meet in a layout for these pools: gates, the halves, a list, the way out and the end, and
/// the block of the tenant with most pools.
fn bound(pools: &[Pool]) -> usize {
    let mut of_tenants: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, table) in pools {
        *of_tenants.entry(*table).or_default() += 1;
    }
    let block = of_tenants.into_values().filter(|pools| *pools > 1).max().map_or(0, |pools| pools + 2);
    let (mut left, mut halves) = (pools.len(), 0);
    while left > PLAIN {
        left = left * 2 / 3;
        halves += 1;
    }
    GATES + halves + 2 * PLAIN + 2 + block
}

fn with_end(rules: Vec<Rule>) -> Kernel {
    let end = rules.first().map(|rule| Rule::all(STEERING.end, rule.v6, Action::Nop));
    Kernel::with(rules.into_iter().chain(end))
}

fn rules_of(pools: &[Pool], bank: Bank) -> Vec<Rule> {
    layout(pools, pools.first().is_some_and(|pool| is_v6(pool.0)), bank)
}

fn holds(pools: &[Pool], bank: Bank, sample: impl Fn(usize) -> bool) -> Result<(), TestCaseError> {
    let v6 = pools.first().is_some_and(|pool| is_v6(pool.0));
    let rules = rules_of(pools, bank);
    prop_assert!(rules.iter().map(|rule| rule.pref).eq((bank.first..).take(rules.len())));
    prop_assert!(rules.last().is_none_or(|last| bank.holds(last.pref)));
    let kernel = with_end(rules);
    let samples = samples(pools, v6);
    for (number, from) in samples.iter().enumerate().filter(|(number, _)| sample(*number)) {
        for to in [*from, samples[number * 7 % samples.len()]] {
            let (way, met) = kernel.walk(Packet { from: *from, to, iif: "eth0", mark: 0 });
            prop_assert_eq!(&way, &plain(pools, *from, to), "from {} to {}", from, to);
            prop_assert!(met <= bound(pools), "{} rules met of {} pools", met, pools.len());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_takes_the_way_of_the_plain_list(
        pools in any::<bool>().prop_flat_map(|v6| pools(v6, 60)),
        tenants in prop_oneof![Just(60u32), 1u32..20],
        bank in prop_oneof![Just(STEERING.a), Just(STEERING.b)],
    ) {
        holds(&shared_out(pools, tenants), bank, |_| true)?;
    }
}

/// `count` pools of which each lies beside all that are longer: 0…, 10…, 110… and so on.
fn staircase(count: u32) -> Vec<Pool> {
    let step = |n: u32| -> IpNet {
        Ipv6Net::new_assert((!0u128 << 1 << (127 - n)).into(), u8::try_from(n + 1).unwrap()).trunc().into()
    };
    disjoint((0..count).map(step))
}

#[test]
fn few_rules_are_met_however_the_pools_lie() {
    let even = |v6: bool| {
        disjoint((0..u32::try_from(MOST).unwrap()).map(|n| -> IpNet {
            if v6 {
                Ipv6Net::new_assert((0xfd00 << 112 | u128::from(n) << 64).into(), 64).into()
            } else {
                Ipv4Net::new_assert((100 << 24 | n << 8).into(), 24).into()
            }
        }))
    };
    let skewed = staircase(127);
    assert_eq!(skewed.len(), 127);
    for (pools, every) in [(even(false), 97), (even(true), 97), (skewed, 1)] {
        holds(&pools, STEERING.a, |number| number % every == 0 || number > 4 * pools.len()).unwrap();
    }
    // Packets of nobody's, as those of the node itself: out after the gates.
    let kernel = with_end(rules_of(&even(false), STEERING.a));
    let node = "192.0.2.1".parse().unwrap();
    assert_eq!(kernel.walk(Packet { from: node, to: node, iif: "lo", mark: 0 }), (vec![], GATES + 2));
}

#[test]
fn as_many_as_a_node_carries_fit_into_a_bank() {
    // Five times two fifths and so on leave as many short lists as there can be.
    for sides in 2u32..=9 {
        let pools = disjoint((0..u32::try_from(MOST).unwrap()).map(|n| -> IpNet {
            let bits = ((n / sides) << 12) | ((n % sides) << 8);
            Ipv4Net::new_assert((10 << 24 | bits).into(), 24).into()
        }));
        assert_eq!(pools.len(), MOST);
        // Two pools a tenant take the most rules a pool.
        for tenants in [MOST, MOST / 2, MOST / 3, 1] {
            let pools = shared_out(pools.clone(), u32::try_from(tenants).unwrap());
            let rules = rules_of(&pools, STEERING.a);
            assert!(rules.len() <= 4 * MOST + 5, "{} rules", rules.len());
            assert!(STEERING.a.holds(rules.last().unwrap().pref));
        }
    }
}

#[test]
fn few_pools_are_a_plain_list() {
    let pool = |pool: &str, table| (pool.parse().unwrap(), table);
    let rules = rules_of(&[pool("10.200.0.0/16", 7), pool("10.201.0.0/16", 8)], STEERING.a);
    let text: Vec<String> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "pref 20000 from 10.200.0.0/16 to 10.200.0.0/16 lookup main suppress_prefixlength 31",
            "pref 20001 from 10.200.0.0/16 lookup 7",
            "pref 20002 from 10.201.0.0/16 to 10.201.0.0/16 lookup main suppress_prefixlength 31",
            "pref 20003 from 10.201.0.0/16 lookup 8",
            "pref 20004 from all goto 32000",
        ]
    );
}

#[test]
fn pools_of_one_tenant_share_a_block() {
    let pool = |pool: &str, table| (pool.parse().unwrap(), table);
    let pools = [pool("10.200.0.0/16", 7), pool("10.201.0.0/16", 8), pool("10.202.0.0/24", 7)];
    let text: Vec<String> = rules_of(&pools, STEERING.a).iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "pref 20000 from 10.200.0.0/16 goto 20005",
            "pref 20001 from 10.201.0.0/16 to 10.201.0.0/16 lookup main suppress_prefixlength 31",
            "pref 20002 from 10.201.0.0/16 lookup 8",
            "pref 20003 from 10.202.0.0/24 goto 20005",
            "pref 20004 from all goto 32000",
            "pref 20005 from all to 10.200.0.0/16 lookup main suppress_prefixlength 31",
            "pref 20006 from all to 10.202.0.0/24 lookup main suppress_prefixlength 31",
            "pref 20007 from all lookup 7",
            "pref 20008 from all goto 32000",
        ]
    );
}

#[test]
fn more_pools_are_a_trie() {
    let pool = |n: u8| (IpNet::from(Ipv4Net::new_assert([10, n, 0, 0].into(), 16)), u32::from(n));
    let pools: Vec<Pool> = (0..12).map(pool).collect();
    let gotos: Vec<String> = rules_of(&pools, STEERING.b)
        .iter()
        .filter(|rule| matches!(rule.action, Action::Goto(_)))
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        gotos,
        [
            "pref 26000 from 10.0.0.0/15 goto 26005",
            "pref 26001 from 10.2.0.0/15 goto 26010",
            "pref 26002 from 10.4.0.0/14 goto 26015",
            "pref 26003 from 10.8.0.0/14 goto 26024",
            "pref 26004 from all goto 32000",
            "pref 26009 from all goto 32000",
            "pref 26014 from all goto 32000",
            "pref 26023 from all goto 32000",
            "pref 26032 from all goto 32000",
        ]
    );
}
