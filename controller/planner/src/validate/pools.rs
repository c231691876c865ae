//! Pools: the tenant that each names, and whether its pods can live there.

use std::{borrow::Cow, collections::BTreeMap};

use calico_vni_crds::{
    calico::{Encapsulation, IpPool, IpPoolSpec},
    keys,
};
use calico_vni_proto::names::VNI_MAX;
use ipnet::IpNet;

use super::{Age, ServicePrefix, Tenant, Underlay, Verdict, age};
use crate::{
    prefix::{self, Span},
    reason,
    snapshot::{Block, Snapshot},
};

/// An IPPool.
#[derive(Debug)]
pub struct Pool<'a> {
    /// As it stands, or of one that is gone, what is known of it.
    pub object: Cow<'a, IpPool>,
    /// Its name.
    pub name: &'a str,
    /// Its prefix, truncated to its length; `None` where it cannot be read.
    pub cidr: Option<IpNet>,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Whom it belongs to.
    pub claim: Claim,
    /// VNI that its annotation asks for, where that is one.
    pub annotated_vni: Option<u32>,
    /// Why its pods are quarantined; of a plain one, what has to be told.
    pub verdict: Option<Verdict>,
    /// What has to be told of an accepted one all the same.
    pub told: Option<Verdict>,
    /// Whether it belongs to its tenant only because blocks of it are live: its annotation is gone, or it is itself.
    pub leaving: bool,
    annotated_tenant: Option<String>,
}

/// Whom a pool belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// To no tenant: it has no annotation of ours.
    Plain,
    /// To this tenant, whether or not it is accepted there.
    Tenant(usize),
    /// To one that there cannot be.
    Nobody,
}

impl Pool<'_> {
    /// The tenant in which its pods live.
    pub fn accepted(&self) -> Option<usize> {
        match self.claim {
            Claim::Tenant(t) if self.verdict.is_none() => Some(t),
            _ => None,
        }
    }
}

impl Pool<'_> {
    /// Whether its annotations name this tenant.
    fn names(&self, tenant: &Tenant<'_>) -> bool {
        match &self.annotated_tenant {
            Some(name) => *name == tenant.name,
            None => self.annotated_vni.is_some() && self.annotated_vni == tenant.vni,
        }
    }

    /// A pool that is gone was there before all others.
    fn age(&self) -> Age<'_> {
        match &self.object {
            Cow::Borrowed(object) => age(&object.metadata),
            Cow::Owned(_) => (false, None, self.name),
        }
    }
}

/// All pools, by name, with what their annotations say.
pub(super) fn parse(snapshot: &Snapshot) -> Vec<Pool<'_>> {
    let mut pools: Vec<Pool<'_>> = snapshot.pools.iter().map(pool).collect();
    pools.sort_by_key(|p| p.name);
    pools
}

fn pool(object: &IpPool) -> Pool<'_> {
    let mut annotations = object.annotations();
    let vni = annotations.remove(keys::VNI);
    let annotated_tenant = annotations.remove(keys::TENANT);
    let cidr = object.spec.cidr.parse::<IpNet>().ok().map(|net| net.trunc());
    let mut pool = Pool {
        object: Cow::Borrowed(object),
        name: object.name(),
        cidr,
        block_size: object.spec.block_size.unwrap_or(match cidr {
            Some(IpNet::V6(_)) => 122,
            _ => 26,
        }),
        claim: if vni.is_none() && annotated_tenant.is_none() { Claim::Plain } else { Claim::Nobody },
        annotated_vni: None,
        verdict: None,
        told: None,
        leaving: false,
        annotated_tenant,
    };
    match vni.as_deref().map(parse_vni) {
        Some(Some(vni)) => pool.annotated_vni = Some(vni),
        Some(None) => {
            pool.verdict = Some(Verdict::new(
                reason::INVALID_VNI,
                format!(
                    "annotation {}: `{}` is no VNI; write a number from 1 to {VNI_MAX}",
                    keys::VNI,
                    vni.unwrap_or_default()
                ),
            ));
        }
        None => {}
    }
    pool
}

/// A plain decimal number, as `kubectl get` shows it: no sign, no space, no leading zero.
fn parse_vni(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|vni| plain && (1..=VNI_MAX).contains(vni))
}

/// Finds the tenant that each pool names, and adds those that are to be made for a VNI that nobody has.
pub(super) fn name_tenants(pools: &mut [Pool<'_>], tenants: &mut Vec<Tenant<'_>>) {
    let mut by_name: BTreeMap<String, usize> =
        tenants.iter().enumerate().map(|(t, tenant)| (tenant.name.clone(), t)).collect();
    let mut by_vni: BTreeMap<u32, usize> =
        tenants.iter().enumerate().filter_map(|(t, tenant)| Some((tenant.vni?, t))).collect();
    // In the order of VNIs, so that the tenants to be made have an order too.
    let mut order: Vec<usize> = (0..pools.len()).collect();
    order.sort_by_key(|&p| (pools[p].annotated_vni, pools[p].name));
    for pool in order {
        let pool = &mut pools[pool];
        let found = match (&pool.annotated_tenant, pool.annotated_vni) {
            (Some(name), vni) => by_name_and_vni(name, vni, &by_name, tenants),
            (None, Some(vni)) => match by_vni.get(&vni) {
                Some(&t) => Ok((t, None)),
                None => Ok(to_be_made(vni, &mut by_name, &mut by_vni, tenants)),
            },
            (None, None) => continue,
        };
        match found {
            Ok((t, mismatch)) => {
                tenants[t].named = true;
                pool.claim = Claim::Tenant(t);
                pool.verdict = pool.verdict.take().or(mismatch);
            }
            Err(verdict) => pool.verdict = pool.verdict.take().or(Some(verdict)),
        }
    }
}

fn by_name_and_vni(
    name: &str,
    vni: Option<u32>,
    by_name: &BTreeMap<String, usize>,
    tenants: &[Tenant<'_>],
) -> Result<(usize, Option<Verdict>), Verdict> {
    let missing = || {
        Verdict::new(
            reason::TENANT_NOT_FOUND,
            format!("annotation {}: there is no Tenant `{name}`; make it, or name another", keys::TENANT),
        )
    };
    // Tenants to be made are no Tenants yet.
    let &t = by_name.get(name).filter(|&&t| tenants[t].object.is_some()).ok_or_else(missing)?;
    let tenant = &tenants[t];
    let has = tenant.vni.or(tenant.given_vni());
    let mismatch = vni.filter(|vni| has != Some(*vni)).map(|vni| {
        let has = has.map_or_else(|| "none yet".to_owned(), |has| has.to_string());
        Verdict::new(
            reason::TENANT_MISMATCH,
            format!("annotations {} `{name}` and {} `{vni}` disagree: the VNI of Tenant `{name}` is {has}; remove one of the two", keys::TENANT, keys::VNI),
        )
    });
    Ok((t, mismatch))
}

fn to_be_made(
    vni: u32,
    by_name: &mut BTreeMap<String, usize>,
    by_vni: &mut BTreeMap<u32, usize>,
    tenants: &mut Vec<Tenant<'_>>,
) -> (usize, Option<Verdict>) {
    let name = keys::annotated_tenant(vni);
    if let Some(&t) = by_name.get(&name) {
        let has = tenants[t].vni.map_or_else(|| "none".to_owned(), |has| has.to_string());
        let verdict = Verdict::new(
            reason::TENANT_MISMATCH,
            format!(
                "annotation {}: `{vni}` would make Tenant `{name}`, but there is one of that name whose VNI is {has}; name a Tenant by {} instead",
                keys::VNI,
                keys::TENANT
            ),
        );
        return (t, Some(verdict));
    }
    let t = tenants.len();
    tenants.push(Tenant::to_be_made(vni));
    by_name.insert(name, t);
    by_vni.insert(vni, t);
    (t, None)
}

/// Gives back to its tenant each pool that was accepted there and names it no more, while blocks of it are live: its
/// pods would fall to the flat network in the middle of their lives. The tenant's own status is what remembers it.
pub(super) fn remember<'a>(snapshot: &'a Snapshot, pools: &mut Vec<Pool<'a>>, tenants: &mut [Tenant<'a>]) {
    let by_name: BTreeMap<&str, usize> = pools.iter().enumerate().map(|(p, pool)| (pool.name, p)).collect();
    let mut blocks: Option<Vec<(Span, u8)>> = None;
    let mut gone: Vec<Pool<'a>> = Vec::new();
    for (t, tenant) in tenants.iter_mut().enumerate() {
        let Some(status) = tenant.object.and_then(|object| object.status.as_ref()) else { continue };
        for before in &status.pools {
            // One that was refused never had its pods in the VRF; but a tenant that is being deleted refuses all.
            if !before.accepted && before.reason.as_deref() != Some(reason::TENANT_TERMINATING) {
                continue;
            }
            let standing = by_name.get(before.name.as_str()).copied();
            if standing.is_some_and(|p| pools[p].claim != Claim::Plain) {
                continue;
            }
            let Ok(net) = before.cidr.parse::<IpNet>().map(|net| net.trunc()) else { continue };
            let blocks = blocks.get_or_insert_with(|| live(snapshot));
            let Some(block_size) = largest(blocks, &net) else { continue };
            let overlaps = |cidr: Option<IpNet>| cidr.is_some_and(|cidr| prefix::overlap(&cidr, &net));
            match standing {
                Some(p) if pools[p].cidr == Some(net) => {
                    pools[p].claim = Claim::Tenant(t);
                    pools[p].leaving = true;
                }
                // It was made again under another name; or another tenant remembers the same.
                _ if pools.iter().any(|p| overlaps(p.cidr) && p.names(tenant))
                    || gone.iter().any(|p| overlaps(p.cidr)) =>
                {
                    continue;
                }
                _ => {
                    let spec = IpPoolSpec {
                        cidr: before.cidr.clone(),
                        block_size: Some(block_size),
                        ..IpPoolSpec::default()
                    };
                    gone.push(Pool {
                        object: Cow::Owned(IpPool::new(snapshot.calico_api, &before.name, spec)),
                        name: &before.name,
                        cidr: Some(net),
                        block_size,
                        claim: Claim::Tenant(t),
                        annotated_vni: None,
                        verdict: None,
                        told: None,
                        leaving: true,
                        annotated_tenant: None,
                    });
                }
            }
            tenant.named = true;
        }
    }
    if !gone.is_empty() {
        pools.extend(gone);
        pools.sort_by_key(|p| (p.name, p.cidr));
    }
}

/// Live blocks in the order of their addresses, with their prefix lengths.
fn live(snapshot: &Snapshot) -> Vec<(Span, u8)> {
    let sized = |block: &Block| (prefix::span(&block.net), block.net.prefix_len());
    let mut blocks: Vec<_> = snapshot.blocks.iter().map(sized).collect();
    blocks.sort_unstable();
    blocks
}

/// Longest prefix of the blocks in a pool; `None` where there is none.
fn largest(blocks: &[(Span, u8)], pool: &IpNet) -> Option<u8> {
    let (v6, first, last) = prefix::span(pool);
    let from = blocks.partition_point(|((w6, start, _), _)| (*w6, *start) < (v6, first));
    let within = blocks[from..].iter().take_while(|((w6, start, _), _)| (*w6, *start) <= (v6, last));
    within.map(|(_, size)| *size).max()
}

/// Judges each pool that names a tenant, and gives the accepted ones to their tenants.
pub(super) fn judge(
    pools: &mut [Pool<'_>],
    tenants: &mut [Tenant<'_>],
    underlays: &[Underlay<'_>],
    services: &[ServicePrefix<'_>],
) {
    let (mut overlaps, covered) = overlaps(pools, underlays, services);
    let mut surrounded = Vec::new();
    for (p, pool) in pools.iter_mut().enumerate() {
        if pool.claim == Claim::Plain {
            surrounded.extend(overlaps.remove(&p).and_then(|(other, _)| Some((p, other?))));
            continue;
        }
        let tenant = match pool.claim {
            Claim::Tenant(t) => Some(&tenants[t]),
            _ => None,
        };
        let terminating = tenant.filter(|t| t.deleting).map(|t| {
            Verdict::new(
                reason::TENANT_TERMINATING,
                format!(
                    "Tenant `{}` is being deleted; name another, or make it again when it is gone",
                    t.name
                ),
            )
        });
        let wrong = terminating
            .or_else(|| pool.verdict.take())
            .or_else(|| wrong(pool))
            .or_else(|| overlaps.remove(&p).map(|(_, verdict)| verdict))
            .or_else(|| tenant.and_then(|t| shared(pool, t)))
            .or_else(|| {
                let (t, verdict) = tenant.and_then(|t| Some((t, t.verdict.as_ref()?)))?;
                let message = format!("Tenant `{}` is not accepted: {}", t.name, verdict.message);
                Some(Verdict::new(reason::TENANT_NOT_ACCEPTED, message))
            });
        pool.verdict = wrong;
        if let Some(t) = pool.accepted() {
            tenants[t].pools.push(p);
        }
    }
    for (p, other) in surrounded {
        let (Some(t), Some(net), Some(cidr)) = (pools[other].accepted(), pools[other].cidr, pools[p].cidr)
        else {
            continue;
        };
        let message = format!(
            "spec.cidr: {cidr} overlaps {net} of IPPool `{}`, which is older and Tenant `{}`'s: pods with those addresses are taken for that tenant's; make this pool again with another prefix",
            pools[other].name, tenants[t].name
        );
        pools[p].verdict = Some(Verdict::new(reason::POOL_OVERLAP, message));
    }
    for (p, service) in covered {
        let (Some(_), Some(cidr)) = (pools[p].accepted(), pools[p].cidr) else { continue };
        let ServicePrefix { net, from, .. } = &services[service];
        let message = format!(
            "spec.cidr: {cidr} overlaps {net} ({from}), which is newer: a Service and a pod may come to have one address; take that prefix away again, or move the pods to another pool"
        );
        pools[p].told = Some(Verdict::new(reason::SERVICES_OVERLAP, message));
    }
    for tenant in tenants {
        tenant.pools.sort_by_key(|&p| pools[p].cidr);
    }
}

/// What is wrong with the pool itself.
fn wrong(pool: &Pool<'_>) -> Option<Verdict> {
    let spec = &pool.object.spec;
    let verdict = |reason, message| Some(Verdict::new(reason, message));
    let net = match prefix::parse(&spec.cidr) {
        Ok(net) => net,
        Err(error) => return verdict(reason::INVALID_CIDR, format!("spec.cidr: `{}` {error}", spec.cidr)),
    };
    // Calico's own limits, but that a block of one address is refused: its route looks like a pod's, and policy routing
    // could not tell a block of another node from a pod of this one.
    let (min, max) = if matches!(net, IpNet::V4(_)) { (20, 31) } else { (116, 127) };
    if !(min..=max).contains(&pool.block_size) || pool.block_size < net.prefix_len() {
        let size = match pool.block_size {
            u8::MAX => "a number that is no prefix length".to_owned(),
            size => size.to_string(),
        };
        return verdict(
            reason::INVALID_BLOCK_SIZE,
            format!(
                "spec.blockSize: {size} has to be {min} to {max} and not below the prefix length of {net}; make the pool again with another"
            ),
        );
    }
    for (field, mode) in [("vxlanMode", spec.vxlan_mode), ("ipipMode", spec.ipip_mode)] {
        if let Some(mode @ (Encapsulation::Always | Encapsulation::CrossSubnet)) = mode {
            return verdict(
                reason::ENCAPSULATED,
                format!("spec.{field}: {mode:?}, but a tenant's packets go by its VRF; set it to Never"),
            );
        }
        if mode == Some(Encapsulation::Other) {
            return verdict(
                reason::ENCAPSULATED,
                format!(
                    "spec.{field}: is none of Calico's modes, so what Calico makes of it is not known; set it to Never"
                ),
            );
        }
    }
    if spec.nat_outgoing == Some(true) {
        return verdict(
            reason::NAT_OUTGOING,
            "spec.natOutgoing: true would hide the pods behind the link's address in the VRF; set it to false".into(),
        );
    }
    None
}

fn shared(pool: &Pool<'_>, tenant: &Tenant<'_>) -> Option<Verdict> {
    let net = pool.cidr?;
    let hit = tenant.settings.shared.iter().find(|s| prefix::overlap(s, &net))?;
    Some(Verdict::new(
        reason::POOL_OVERLAP,
        format!(
            "spec.cidr: {net} overlaps {hit} of spec.sharedServices.cidrs of Tenant `{}`, which goes past its VRF; narrow that",
            tenant.name
        ),
    ))
}

/// Who gives way in an overlap: the later in this order, whether a tenant's or not, so that no new pool, nor a new
/// prefix for Services, takes addresses from an old one. An older pool counts even when it is refused itself, for its pods may hold the addresses in question.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank<'a> {
    Underlay(&'a str, &'static str, usize),
    Object(Age<'a>, Whose),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Service(usize),
    Pool(usize),
}

/// Of each pool that gives way: the pool that it gives way to, where it is one, and why.
type GivesWay = BTreeMap<usize, (Option<usize>, Verdict)>;

/// Which pools give way; and each pool to which a prefix of Services does, with that prefix.
fn overlaps(
    pools: &[Pool<'_>],
    underlays: &[Underlay<'_>],
    services: &[ServicePrefix<'_>],
) -> (GivesWay, Vec<(usize, usize)>) {
    let mut items: Vec<(IpNet, Rank<'_>)> = Vec::with_capacity(pools.len());
    let mut owners = Vec::with_capacity(pools.len());
    for (p, pool) in pools.iter().enumerate() {
        let Some(net) = pool.cidr else { continue };
        items.push((net, Rank::Object(pool.age(), Whose::Pool(p))));
        owners.push(p);
    }
    for underlay in underlays {
        let Some(settings) = underlay.accepted() else { continue };
        for (i, (field, net)) in settings.prefixes().enumerate() {
            items.push((net, Rank::Underlay(underlay.name, field, i)));
        }
    }
    let first_service = items.len();
    for (s, service) in services.iter().enumerate() {
        items.push((service.net, Rank::Object(service.age, Whose::Service(s))));
    }
    let strongest = prefix::strongest_overlaps(&items);
    let found = owners.iter().enumerate().filter_map(|(i, &p)| {
        let (net, rank) = &items[strongest[i]?];
        let (pool, other) = match rank {
            Rank::Underlay(name, field, _) => (None, format!("spec.{field} of Underlay `{name}`")),
            Rank::Object(_, Whose::Service(s)) => (None, services[*s].from.clone()),
            Rank::Object((_, _, name), Whose::Pool(q)) if pools[*q].claim == Claim::Plain => {
                (Some(*q), format!("IPPool `{name}`, which is older and no tenant's"))
            }
            Rank::Object((_, _, name), Whose::Pool(q)) if matches!(pools[*q].object, Cow::Owned(_)) => {
                (Some(*q), format!("IPPool `{name}`, which is gone but has live blocks"))
            }
            Rank::Object((_, _, name), Whose::Pool(q)) => (Some(*q), format!("IPPool `{name}`, which is older")),
        };
        let cidr = items[i].0;
        let message = format!("spec.cidr: {cidr} overlaps {net} of {other}; a tenant's pods need addresses of their own, so make this pool again with another prefix");
        Some((p, (pool, Verdict::new(reason::POOL_OVERLAP, message))))
    });
    let found = found.collect();
    let covered = (0..services.len()).filter_map(|s| match items[strongest[first_service + s]?].1 {
        Rank::Object(_, Whose::Pool(p)) => Some((p, s)),
        _ => None,
    });
    (found, covered.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_is_a_plain_number() {
        assert_eq!(parse_vni("1"), Some(1));
        assert_eq!(parse_vni("16777215"), Some(16_777_215));
        for bad in ["", "0", "01", "-1", "+1", " 1", "1.0", "0x1", "abc", "16777216", "99999999999", "١"] {
            assert_eq!(parse_vni(bad), None, "{bad}");
        }
    }
}
