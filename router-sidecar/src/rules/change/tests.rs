//! At every step of a change each packet has either its old way or its new one, wherever the change begins and wherever
//! it is broken off; packets that stand in the midst of the old rules too.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::rules::{
    Pool,
    doors::tests::{doors, let_in, links, packets, reached},
    kernel::{DROPPED, Kernel, LookUp},
    steering::tests::{disjoint, plain, plain_list, pools, samples},
};

/// Without doors.
fn steering(pools: &[Pool]) -> Steering {
    Steering { pools: pools.iter().copied().collect(), ..Steering::default() }
}

fn plan(pools: &[Pool], kernel: &Kernel) -> Vec<Step> {
    plan_of(&steering(pools), kernel)
}

fn plan_of(wanted: &Steering, kernel: &Kernel) -> Vec<Step> {
    changes(wanted, &kernel.rules()).into_iter().flat_map(|change| change.steps).collect()
}

/// Goes on until nothing is left to do.
fn settle(pools: &[Pool], kernel: &mut Kernel) {
    settle_of(&steering(pools), kernel);
}

fn settle_of(wanted: &Steering, kernel: &mut Kernel) {
    for _ in 0..3 {
        for step in plan_of(wanted, kernel) {
            kernel.make(&step);
        }
    }
    assert_eq!(plan_of(wanted, kernel), [], "it is not settled: {:#?}", kernel.rules());
}

/// Makes the change, broken off somewhere and begun again: after each step everything is as before it or as after it, `ways,
/// and never again as before once it was as after.
fn step_by_step<W: PartialEq + fmt::Debug>(
    kernel: &mut Kernel,
    wanted: &Steering,
    broken_off: prop::sample::Index,
    [old, new]: &[W; 2],
    now: impl Fn(&Kernel) -> W,
) -> Result<(), TestCaseError> {
    let mut switched = false;
    let mut look = |kernel: &Kernel, step: &str| {
        let now = now(kernel);
        switched |= now == *new;
        prop_assert!(now == *if switched { new } else { old }, "after `{step}`");
        Ok(())
    };
    look(kernel, "nothing")?;
    let steps = plan_of(wanted, kernel);
    let stop = broken_off.index(steps.len() + 1);
    for step in &steps[..stop] {
        prop_assert!(kernel.make(step), "`{step}` deletes nothing");
        look(kernel, &step.to_string())?;
    }
    // A new agent finds what the old one left, and changes at most once.
    for step in plan_of(wanted, kernel) {
        prop_assert!(kernel.make(&step), "`{step}` deletes nothing");
        look(kernel, &step.to_string())?;
    }
    prop_assert_eq!(plan_of(wanted, kernel), []);
    prop_assert_eq!(&now(kernel), new);
    Ok(())
}

fn v4(count: usize) -> Vec<Pool> {
    (0..count)
        .map(|n| (format!("10.{n}.0.0/16").parse().unwrap(), 1_000_000_001 + u32::try_from(n).unwrap()))
        .collect()
}

/// Ways of packets from each address to itself and to another.
fn ways<'a>(
    of: impl Fn(IpAddr, IpAddr) -> Vec<LookUp> + 'a,
    addresses: &'a [IpAddr],
) -> impl Iterator<Item = Vec<LookUp>> + 'a {
    addresses
        .iter()
        .enumerate()
        .flat_map(move |(n, ip)| [of(*ip, *ip), of(*ip, addresses[n * 5 % addresses.len()])])
}

/// Some of the pools stay, some go into another table, some go, and some come.
fn sets() -> impl Strategy<Value = (bool, Vec<Pool>, Vec<Pool>)> {
    let what = prop::collection::vec(0u8..4, 24);
    (any::<bool>().prop_flat_map(|v6| (Just(v6), pools(v6, 24))), what).prop_map(|((v6, pools), what)| {
        let all = || pools.iter().zip(&what);
        let first = all().filter(|(_, what)| **what != 3).map(|(pool, _)| *pool).collect();
        let second = all()
            .filter(|(_, what)| **what != 2)
            .map(|(pool, what)| (pool.0, pool.1 + 5000 * u32::from(*what == 1)));
        (v6, first, second.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_meets_half_of_it((v6, first, second) in sets(), broken_off in any::<prop::sample::Index>(), rebuilt in any::<bool>()) {
        let mut kernel = Kernel::default();
        settle(&first, &mut kernel);
        if rebuilt && !first.is_empty() {
            // In the other bank.
            kernel.lose(1);
            settle(&first, &mut kernel);
        }
        let addresses = samples(&disjoint(first.iter().chain(&second).map(|pool| pool.0)), v6);
        let old: Vec<_> = ways(|from, to| plain(&first, from, to), &addresses).collect();
        let new: Vec<_> = ways(|from, to| plain(&second, from, to), &addresses).collect();
        let now = |kernel: &Kernel| -> Vec<_> { ways(|from, to| kernel.ways(from, to), &addresses).collect() };
        step_by_step(&mut kernel, &steering(&second), broken_off, &[old, new], now)?;
    }

    /// The same of the doors, where tenants share blocks and none of them is a packet's own.
    #[test]
    fn nobody_meets_half_of_the_doors(
        (v6, first, second) in sets(),
        tenants in 1u32..12,
        reached in reached(false),
        broken_off in any::<prop::sample::Index>(),
        rebuilt in any::<bool>(),
    ) {
        let of = |pools: &[Pool], sets: &[BTreeSet<IpNet>]| {
            let pools: Vec<Pool> = pools.iter().map(|(pool, table)| (*pool, 1_000_000_001 + table % tenants)).collect();
            Steering { doors: doors(&pools, sets, &reached.1), ..steering(&pools) }
        };
        let (first, second) = (of(&first, &reached.0), of(&second, &reached.0[..1]));
        let mut kernel = Kernel::default();
        settle_of(&first, &mut kernel);
        if rebuilt && !kernel.rules().is_empty() {
            // In the other bank.
            kernel.lose(1);
            settle_of(&first, &mut kernel);
        }
        let both = disjoint(first.pools.keys().chain(second.pools.keys()).copied());
        let links = links(&first.of(v6));
        let packets = packets(&samples(&both, v6), &links);
        let by_plan = |steering: &Steering| -> Vec<bool> {
            packets.iter().map(|packet| let_in(&steering.of(v6), &steering.doors, *packet)).collect()
        };
        let (old, new) = (by_plan(&first), by_plan(&second));
        let now = |kernel: &Kernel| -> Vec<_> {
            packets.iter().map(|packet| !kernel.walk(*packet).0.contains(&DROPPED)).collect()
        };
        step_by_step(&mut kernel, &second, broken_off, &[old, new], now)?;
    }

    #[test]
    fn targets_outlive_what_leads_to_them((_, first, second) in sets()) {
        let mut kernel = Kernel::default();
        settle(&first, &mut kernel);
        for step in plan(&second, &kernel) {
            let leads = |pref| kernel.rules().into_iter().find(|rule| rule.action == Action::Goto(pref));
            match &step {
                Step::Delete(rule) => prop_assert_eq!(leads(rule.pref), None, "{} goes too early", rule),
                Step::Add(Rule { pref, action: Action::Goto(target), .. }) => {
                    prop_assert!(kernel.rules().iter().any(|rule| rule.pref == *target), "{} leads nowhere", pref);
                }
                Step::Add(_) => {}
            }
            kernel.make(&step);
        }
    }

    #[test]
    fn whatever_was_done_by_hand_is_put_right(
        pools in pools(false, 24),
        deeds in prop::collection::vec((any::<prop::sample::Index>(), 0usize..7), 1..6),
    ) {
        let mut kernel = Kernel::default();
        settle(&pools, &mut kernel);
        for (index, deed) in deeds {
            let rules = kernel.rules();
            let picked = (!rules.is_empty()).then(|| rules[index.index(rules.len())].clone());
            let some = picked.clone().unwrap_or_else(|| end(&STEERING, false));
            match deed {
                0 if picked.is_some() => kernel.lose(index.index(rules.len())),
                1 => kernel.add(some),
                2 => kernel.add(Rule { from: None, to: None, ..some }),
                3 => kernel.add(Rule { from: Some("10.9.0.0/16".parse().unwrap()), to: None, ..some }),
                4 => kernel.add(Rule { action: Action::Other(7), ..some }),
                5 => kernel.add(Rule { action: Action::Lookup { table: 5, suppress_prefixlength: None }, ..some }),
                _ => kernel.add(Rule { action: Action::Goto(33_000), ..some }),
            }
        }
        settle(&pools, &mut kernel);
        let all = samples(&pools, false);
        prop_assert!(ways(|f, t| kernel.ways(f, t), &all).eq(ways(|f, t| plain(&pools, f, t), &all)));
    }
}

#[test]
fn one_rule_switches() {
    let mut kernel = Kernel::default();
    let steps = plan(&v4(2), &kernel);
    let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 8);
    assert_eq!(text[0], "rule add pref 32000 from all nop");
    assert_eq!(
        text[1..3],
        ["rule add pref 25999 from all goto 32000", "rule add pref 26004 from all goto 32000"]
    );
    assert_eq!(text[7], "rule add pref 19999 from all goto 26000");
    settle(&v4(2), &mut kernel);
    let steps = plan(&v4(3), &kernel);
    let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(text[0], "rule add pref 20006 from all goto 32000");
    assert_eq!(text[7], "rule del pref 19999 from all goto 26000");
    assert!(text[8..].iter().all(|step| step.starts_with("rule del pref 260")), "{text:#?}");
}

/// The layout before there were banks: two preferences for all pools.
#[test]
fn the_rules_of_an_older_release_are_replaced_without_a_gap() {
    let pools = v4(9);
    let older = plain_list(&pools, 20_000).into_iter();
    let older = older.map(|rule| Rule { pref: rule.pref + u32::from(rule.to.is_none()), ..rule });
    let mut kernel = Kernel::with(older);
    let all = samples(&pools, false);
    let now = |kernel: &Kernel| ways(|from, to| kernel.ways(from, to), &all).collect::<Vec<_>>();
    let before = now(&kernel);
    assert!(before.iter().any(|way| way.len() == 2), "nothing is local");
    for step in plan(&pools, &kernel) {
        assert!(kernel.make(&step), "{step}");
        assert_eq!(now(&kernel), before, "after {step}");
    }
    assert_eq!(plan(&pools, &kernel), []);
}

#[test]
fn what_stands_is_not_written_again_for_a_stray_rule() {
    let mut kernel = Kernel::default();
    settle(&v4(9), &mut kernel);
    let stray = Rule { pref: 8_000, ..end(&STEERING, false) };
    kernel.add(stray.clone());
    assert_eq!(plan(&v4(9), &kernel), [Step::Delete(stray)]);
    kernel.lose(0);
    kernel.delete(&end(&STEERING, false));
    kernel.delete(&goto(STEERING.entry, false, STEERING.b.first));
    assert_eq!(
        plan(&v4(9), &kernel),
        [Step::Add(end(&STEERING, false)), Step::Add(goto(STEERING.entry, false, STEERING.b.first))]
    );
}

#[test]
fn the_families_change_apart() {
    let mut both = steering(&v4(2));
    both.pools.insert("fd00::/64".parse().unwrap(), 1_000_000_001);
    let first = changes(&both, &[]);
    assert_eq!(
        first.iter().map(|change| (change.v6, change.pools)).collect::<Vec<_>>(),
        [(false, 2), (true, 1)]
    );
    let mut kernel = Kernel::default();
    first[0].steps.iter().for_each(|step| assert!(kernel.make(step)));
    assert_eq!(changes(&both, &kernel.rules()), [first[1].clone()]);
}
