//! Prefixes: parsed strictly, compared for overlaps, subtracted from each other.

use std::{
    cmp::Reverse,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// Why a text cannot be taken as a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not a prefix at all.
    #[error("is no prefix: write it as 10.200.0.0/16 or fd00:200::/64")]
    Unreadable,
    /// Bits of it lie beyond its length.
    #[error("has bits beyond its length: write {0}")]
    HostBits(IpNet),
}

/// A prefix without bits beyond its length.
pub fn parse(text: &str) -> Result<IpNet, PrefixError> {
    let net: IpNet = text.parse().map_err(|_| PrefixError::Unreadable)?;
    if net.trunc() == net { Ok(net) } else { Err(PrefixError::HostBits(net.trunc())) }
}

/// Family (IPv6 or not), first and last address in host order: the order by which prefixes nest.
pub type Span = (bool, u128, u128);

/// Span of a prefix.
pub fn span(net: &IpNet) -> Span {
    match net {
        IpNet::V4(n) => (false, u32::from(n.network()).into(), u32::from(n.broadcast()).into()),
        IpNet::V6(n) => (true, n.network().into(), n.broadcast().into()),
    }
}

/// Whether two prefixes share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// For each prefix the strongest among those that overlap it and are stronger (of lower rank) than itself. Ranks have
/// to differ. Takes n log n for prefixes that do not lie many levels deep in each other.
pub fn strongest_overlaps<R: Ord>(items: &[(IpNet, R)]) -> Vec<Option<usize>> {
    let mut order: Vec<(Span, usize)> =
        items.iter().enumerate().map(|(i, (net, _))| (span(net), i)).collect();
    order.sort_by_key(|&((v6, first, last), i)| (v6, first, Reverse(last), &items[i].1));
    let mut found: Vec<Option<usize>> = vec![None; items.len()];
    // Prefixes nest or are disjoint, so all that hold the present one are on this stack.
    let mut around: Vec<(Span, usize)> = Vec::new();
    for ((v6, first, last), i) in order {
        while around.last().is_some_and(|((w6, _, end), _)| *w6 != v6 || *end < first) {
            around.pop();
        }
        for &(_, j) in &around {
            let (weak, strong) = if items[i].1 < items[j].1 { (j, i) } else { (i, j) };
            if found[weak].is_none_or(|k| items[strong].1 < items[k].1) {
                found[weak] = Some(strong);
            }
        }
        around.push(((v6, first, last), i));
    }
    found
}

/// What of the first prefixes is in none of the others, as the fewest prefixes in order.
pub fn subtract(from: &[IpNet], without: &[IpNet]) -> Vec<IpNet> {
    let without = merge(without);
    let mut left = Vec::new();
    let mut next = 0;
    for (v6, mut first, last) in merge(from) {
        while without.get(next).is_some_and(|(w6, _, end)| (*w6, *end) < (v6, first)) {
            next += 1;
        }
        let mut hole = next;
        let mut whole = true;
        while let Some(&(_, start, end)) =
            without.get(hole).filter(|(w6, start, _)| *w6 == v6 && *start <= last)
        {
            if start > first {
                left.push((v6, first, start - 1));
            }
            if end >= last {
                whole = false;
                break;
            }
            first = end + 1;
            hole += 1;
        }
        if whole {
            left.push((v6, first, last));
        }
    }
    left.into_iter().flat_map(prefixes).collect()
}

/// Disjoint spans in order, neighbours joined.
fn merge(nets: &[IpNet]) -> Vec<Span> {
    let mut spans: Vec<Span> = nets.iter().map(span).collect();
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (v6, first, last) in spans {
        match merged.last_mut() {
            Some((w6, _, end)) if *w6 == v6 && first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((v6, first, last)),
        }
    }
    merged
}

fn prefixes((v6, first, last): Span) -> Vec<IpNet> {
    if v6 {
        return Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0).map(IpNet::V6).collect();
    }
    let v4 = |n: u128| Ipv4Addr::from(u32::try_from(n).expect("spans of IPv4 prefixes lie within 32 bits"));
    Ipv4Subnets::new(v4(first), v4(last), 0).map(IpNet::V4).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_prefix_is_taken_only_as_it_should_be_written() {
        assert_eq!(parse("10.200.0.0/16"), Ok("10.200.0.0/16".parse().unwrap()));
        assert_eq!(parse("10.200.0.1/16"), Err(PrefixError::HostBits("10.200.0.0/16".parse().unwrap())));
        for bad in ["", "10.200.0.0", "10.200.0.0/33", "ten/8", "10.0.0.0/8 "] {
            assert_eq!(parse(bad), Err(PrefixError::Unreadable), "{bad}");
        }
    }

    #[test]
    fn subtraction_leaves_the_fewest_prefixes() {
        let left = subtract(
            &nets(&["10.0.0.0/24", "10.0.1.0/24", "fd00::/126"]),
            &nets(&["10.0.1.128/25", "fd00::1/128"]),
        );
        assert_eq!(left, nets(&["10.0.0.0/24", "10.0.1.0/25", "fd00::/128", "fd00::2/127"]));
        assert_eq!(subtract(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.0/8"])), nets(&[]));
        assert_eq!(subtract(&nets(&["0.0.0.0/0", "::/0"]), &[]), nets(&["0.0.0.0/0", "::/0"]));
    }

    fn small_net() -> impl Strategy<Value = IpNet> {
        (0u8..=255, 24u8..=32, any::<bool>()).prop_map(|(low, len, v6)| {
            let net: IpNet =
                if v6 { format!("fd00::{low:x}/{}", len + 96) } else { format!("10.0.0.{low}/{len}") }
                    .parse()
                    .unwrap();
            net.trunc()
        })
    }

    proptest! {
        #[test]
        fn subtraction_keeps_exactly_what_it_should(
            from in prop::collection::vec(small_net(), 0..6), without in prop::collection::vec(small_net(), 0..6),
        ) {
            let left = subtract(&from, &without);
            for low in 0..=255u128 {
                for (v6, base) in [(false, 0x0a00_0000u128), (true, 0xfd00u128 << 112)] {
                    let holds = |nets: &[IpNet]| nets.iter().map(span).any(|(w6, a, b)| w6 == v6 && (a..=b).contains(&(base + low)));
                    prop_assert_eq!(holds(&left), holds(&from) && !holds(&without));
                }
            }
        }

        #[test]
        fn the_strongest_overlap_is_found(nets in prop::collection::vec(small_net(), 0..12)) {
            let items: Vec<(IpNet, usize)> = nets.iter().copied().zip((0..nets.len()).map(|i| i * 7 % 13)).collect();
            let expected: Vec<Option<usize>> = items.iter().map(|(net, rank)| {
                (0..items.len()).filter(|&j| items[j].1 < *rank && overlap(net, &items[j].0)).min_by_key(|&j| items[j].1)
            }).collect();
            prop_assert_eq!(strongest_overlaps(&items), expected);
        }
    }
}
