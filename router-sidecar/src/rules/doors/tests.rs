//! Who is let in is as a plain sentence says it, few rules are met, and what was taken fits.

use std::net::IpAddr;

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::rules::{
    Steering,
    kernel::{DROPPED, Kernel, Packet},
    steering::tests::{pools, prefix, samples},
    trie::{GATES, PLAIN},
};
use crate::{state::Action, testing::tenant};

/// What the doors are to do.
pub fn let_in(pools: &[Pool], doors: &BTreeMap<u32, BTreeSet<IpNet>>, packet: Packet<'_>) -> bool {
    let into = pools.iter().find(|(pool, table)| pool.contains(&packet.to) && doors.contains_key(table));
    let Some((_, table)) = into else { return true };
    packet.mark & names::GUARD_MARK != 0
        || packet.iif == LOOPBACK
        || packet.iif == names::host_link(table - names::TABLE_BASE)
        || doors[table].iter().any(|net| net.contains(&packet.from))
        || pools.iter().any(|(pool, other)| other == table && pool.contains(&packet.from))
}

/// The links of these pools' tenants.
pub fn links(pools: &[Pool]) -> Vec<String> {
    let mut links: Vec<String> =
        pools.iter().map(|(_, table)| names::host_link(table - names::TABLE_BASE)).collect();
    links.push("cali1".to_owned());
    links
}

/// Packets from each address to some others, by whatever interface, with a mark and without.
pub fn packets<'a>(addresses: &[IpAddr], links: &'a [String]) -> Vec<Packet<'a>> {
    let mut packets = Vec::new();
    for (n, from) in addresses.iter().enumerate() {
        for to in [n, n * 5 + 1, n * 3 + 2] {
            let to = addresses[to % addresses.len()];
            let packet = |iif, mark| Packet { from: *from, to, iif, mark };
            packets.extend([
                packet("eth0", 0),
                packet("cali1", names::GUARD_MARK | 0x10000),
                packet(LOOPBACK, 0x10000),
                packet(&links[n % links.len()], 0),
            ]);
        }
    }
    packets
}

/// Some prefixes that a tenant reaches by main, one of few sets, and whether it has doors at all.
pub fn doors(
    pools: &[Pool],
    sets: &[BTreeSet<IpNet>],
    picks: &[Option<Index>],
) -> BTreeMap<u32, BTreeSet<IpNet>> {
    let picked = |((_, table), pick): (&Pool, &Option<Index>)| {
        Some((*table, sets[(*pick)?.index(sets.len())].clone()))
    };
    pools.iter().zip(picks.iter().cycle()).filter_map(picked).collect()
}

/// Sets of prefixes and which of them each tenant reaches.
pub fn reached(v6: bool) -> impl Strategy<Value = (Vec<BTreeSet<IpNet>>, Vec<Option<Index>>)> {
    let set = prop::collection::btree_set(
        prefix(v6).prop_filter("not everything", |net| net.prefix_len() > 4),
        0..4,
    );
    (
        prop::collection::vec(set, 1..4),
        prop::collection::vec(prop::option::weighted(0.9, any::<Index>()), 1..9),
    )
}

fn with_end(rules: Vec<Rule>) -> Kernel {
    let end = rules.first().map(|rule| Rule::all(DOORS.end, rule.v6, Action::Nop));
    Kernel::with(rules.into_iter().chain(end))
}

fn holds(
    pools: &[Pool],
    doors: &BTreeMap<u32, BTreeSet<IpNet>>,
    v6: bool,
    bank: Bank,
) -> Result<(), TestCaseError> {
    let rules = layout(pools, doors, v6, bank);
    prop_assert!(rules.iter().map(|rule| rule.pref).eq((bank.first..).take(rules.len())));
    let shared = doors.values().map(BTreeSet::len).max().unwrap_or(0);
    let (mut left, mut halves) = (pools.len(), 0);
    while left > PLAIN {
        left = left * 2 / 3;
        halves += 1;
    }
    let bound = 1 + GATES + 1 + halves + PLAIN + 2 + pools.len() + shared + 3;
    let kernel = with_end(rules);
    let links = links(pools);
    for packet in packets(&samples(pools, v6), &links) {
        let (way, met) = kernel.walk(packet);
        prop_assert_eq!(way != [DROPPED], let_in(pools, doors, packet), "{:?}", packet);
        prop_assert!(way.is_empty() || way == [DROPPED]);
        prop_assert!(met <= bound, "{} rules met of {} pools", met, pools.len());
    }
    Ok(())
}

fn shared_out(pools: Vec<Pool>, tenants: u32) -> Vec<Pool> {
    (0u32..).zip(pools).map(|(number, (pool, _))| (pool, 1_000_000_001 + number % tenants)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn who_is_let_in_is_who_should_be(
        (v6, pools, (sets, picks)) in any::<bool>().prop_flat_map(|v6| (Just(v6), pools(v6, 40), reached(v6))),
        tenants in prop_oneof![Just(60u32), 1u32..20],
        bank in prop_oneof![Just(DOORS.a), Just(DOORS.b)],
    ) {
        let pools = shared_out(pools, tenants);
        holds(&pools, &doors(&pools, &sets, &picks), v6, bank)?;
    }
}

/// Tenants of so many pools each, and what each reaches.
fn crowd(tenants: u32, pools: u32, reaches: impl Fn(u32) -> u32) -> Steering {
    let of = |t: u32| {
        let names: Vec<String> =
            (t * pools..(t + 1) * pools).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        tenant(&format!("t{t}"), 1001 + t, &names)
    };
    let all: Vec<_> = (0..tenants).map(of).collect();
    let by_main = |t: u32| {
        (0..reaches(t)).map(move |n| format!("192.{}.{}.{}/32", t / 256, t % 256, n % 256).parse().unwrap())
    };
    Steering::new(all.iter().zip(0..).map(|(tenant, t)| (tenant, by_main(t).collect())))
}

#[test]
fn what_was_taken_fits_and_what_does_not_has_the_guard_alone() {
    for (tenants, pools, reaches) in
        [(110, 1, 20), (400, 3, 0), (1400, 1, 0), (1, 1400, 200), (700, 2, 3), (30, 1, 250)]
    {
        let steering = crowd(tenants, pools, |_| reaches);
        assert!(steering.refused.is_empty());
        for bank in [DOORS.a, DOORS.b] {
            let rules = steering.layout(false, bank);
            assert!(bank.holds(rules.last().unwrap().pref), "{} rules", rules.len());
        }
        let taken = steering.doors.len();
        assert!(taken > 0);
        // The first that have none would not have fitted.
        if taken < tenants as usize {
            assert!(steering.layout(false, DOORS.a).len() > DOORS.a.room() * 3 / 4, "{taken} of {tenants}");
        }
    }
    assert_eq!(
        crowd(110, 1, |_| 20).doors.len(),
        110,
        "as many as a node has pods, each with services of its own"
    );
}

#[test]
fn a_layout_in_words() {
    let steering = Steering::new([
        (&tenant("red", 1001, &["10.200.0.0/16", "10.202.0.0/24"]), ["10.96.0.1/32".parse().unwrap()].into()),
        (
            &tenant("blue", 1002, &["10.201.0.0/16", "fd00:201::/64"]),
            ["10.96.0.1/32".parse().unwrap()].into(),
        ),
    ]);
    let text = |v6| steering.layout(v6, DOORS.a).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        text(false),
        [
            "pref 10000 from all fwmark 0x800/0x800 goto 19998",
            "pref 10001 from all to 10.200.0.0/16 goto 10005",
            "pref 10002 from all to 10.201.0.0/16 goto 10009",
            "pref 10003 from all to 10.202.0.0/24 goto 10005",
            "pref 10004 from all goto 19998",
            "pref 10005 from all iif cv1001 goto 19998",
            "pref 10006 from 10.200.0.0/16 goto 19998",
            "pref 10007 from 10.202.0.0/24 goto 19998",
            "pref 10008 from all goto 10012",
            "pref 10009 from all iif cv1002 goto 19998",
            "pref 10010 from 10.201.0.0/16 goto 19998",
            "pref 10011 from all goto 10012",
            "pref 10012 from all iif lo goto 19998",
            "pref 10013 from 10.96.0.1/32 goto 19998",
            "pref 10014 from all blackhole",
        ]
    );
    assert_eq!(text(true).last().unwrap(), "pref 10007 from all (IPv6) blackhole");
}
