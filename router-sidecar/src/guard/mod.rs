//! The guard: which prefix belongs to whom, and what may be forwarded to and from it. Pure.
//!
//! [`render`] turns a [`Ruleset`] into the text that `nft` takes, [`nft`] loads and lists it.

pub mod nft;
mod render;

use std::{collections::BTreeMap, fmt};

use calico_vni_proto::model::{Guard, NodeConfig};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

pub use render::{COUNTER_QUARANTINED, TABLE, counter_of, render};

/// Who owns a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Tenant(u32),
    Quarantined,
}

/// A tenant as the guard treats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Tenant's name.
    pub name: String,
    /// Disjoint prefixes of both families, in order.
    pub pools: Vec<IpNet>,
    /// Whether it is on this node, and if so what it may reach outside its VRF.
    pub local: Option<Vec<IpNet>>,
}

/// The guard of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By VNI. A tenant whose prefixes are all quarantined is there without any.
    pub tenants: BTreeMap<u32, Guarded>,
    /// Disjoint prefixes from and to which nothing is forwarded.
    pub quarantined: Vec<IpNet>,
}

impl Ruleset {
    /// The guard for all pools of the cluster, on a node that carries `config`.
    ///
    /// The two come in messages of their own, so one can be newer than the other: a pool that either of them names is
    /// guarded, and one that they give to different tenants is quarantined until they agree.
    pub fn new(guard: &Guard, config: &NodeConfig) -> Self {
        let mut tenants: BTreeMap<u32, Guarded> = BTreeMap::new();
        let mut claims: Vec<(IpNet, Owner)> =
            guard.quarantined.iter().map(|net| (net.trunc(), Owner::Quarantined)).collect();
        for tenant in &guard.tenants {
            tenants.insert(tenant.vni, Guarded { name: tenant.name.clone(), pools: vec![], local: None });
            claims.extend(tenant.pools.iter().map(|net| (net.trunc(), Owner::Tenant(tenant.vni))));
        }
        let shared_by_all = config.underlay.iter().flat_map(|underlay| &underlay.shared);
        for tenant in &config.tenants {
            let shared = disjoint(shared_by_all.clone().chain(&tenant.shared).map(IpNet::trunc).collect());
            let guarded = Guarded { name: tenant.name.clone(), pools: vec![], local: Some(shared) };
            tenants.insert(tenant.vni, guarded);
            claims.extend(tenant.pools.iter().map(|pool| (pool.cidr.trunc(), Owner::Tenant(tenant.vni))));
        }

        let mut ruleset = Self { tenants, quarantined: vec![] };
        for (net, owner) in settle(claims) {
            match owner {
                Owner::Quarantined => ruleset.quarantined.push(net),
                Owner::Tenant(vni) => {
                    if let Some(tenant) = ruleset.tenants.get_mut(&vni) {
                        tenant.pools.push(net);
                    }
                }
            }
        }
        ruleset
    }

    /// SHA-256 of the rendering, in hexadecimal: it names the ruleset inside the table.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(render(self, "", &BTreeMap::new())))
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.tenants.values().filter(|tenant| tenant.local.is_some()).count();
        let pools: usize = self.tenants.values().map(|tenant| tenant.pools.len()).sum();
        write!(f, "{} tenants, {local} of them here, {pools} pools, ", self.tenants.len())?;
        write!(f, "{} quarantined, digest {}", self.quarantined.len(), &self.digest()[..12])
    }
}

/// Disjoint claims: of two that overlap the wider one stays, quarantined if they are not of one owner.
fn settle(mut claims: Vec<(IpNet, Owner)>) -> Vec<(IpNet, Owner)> {
    // Prefixes nest or are disjoint; in this order one comes right before all that it contains.
    claims.sort_by_key(|(net, _)| (matches!(net, IpNet::V6(_)), net.network(), net.prefix_len()));
    let mut settled: Vec<(IpNet, Owner)> = Vec::with_capacity(claims.len());
    for (net, owner) in claims {
        match settled.last_mut() {
            Some((wider, other)) if wider.contains(&net) => {
                if *other != owner {
                    *other = Owner::Quarantined;
                }
            }
            _ => settled.push((net, owner)),
        }
    }
    settled
}

/// The same addresses as disjoint prefixes.
fn disjoint(nets: Vec<IpNet>) -> Vec<IpNet> {
    let claims = nets.into_iter().map(|net| (net, Owner::Quarantined)).collect();
    settle(claims).into_iter().map(|(net, _)| net).collect()
}

#[cfg(test)]
mod tests {
    use calico_vni_proto::model::GuardTenant;

    use super::*;
    use crate::testing::{config, tenant};

    fn guard(tenants: &[(&str, u32, &[&str])], quarantined: &[&str]) -> Guard {
        Guard {
            tenants: tenants
                .iter()
                .map(|(name, vni, pools)| GuardTenant {
                    name: (*name).into(),
                    vni: *vni,
                    pools: pools.iter().map(|p| p.parse().unwrap()).collect(),
                })
                .collect(),
            quarantined: quarantined.iter().map(|p| p.parse().unwrap()).collect(),
            services: vec![],
        }
    }

    fn nets(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pool_that_only_the_node_knows_is_guarded() {
        let ruleset = Ruleset::new(&guard(&[], &[]), &config(vec![tenant("red", 1001, &["10.200.0.0/16"])]));
        assert_eq!(nets(&ruleset.tenants[&1001].pools), ["10.200.0.0/16"]);
        assert_eq!(nets(ruleset.tenants[&1001].local.as_ref().unwrap()), ["10.96.0.1/32"]);
    }

    #[test]
    fn a_disputed_pool_is_quarantined() {
        let ruleset = Ruleset::new(
            &guard(&[("blue", 1002, &["10.200.128.0/17", "10.202.0.0/16"])], &[]),
            &config(vec![tenant("red", 1001, &["10.200.0.0/16"])]),
        );
        assert_eq!(nets(&ruleset.quarantined), ["10.200.0.0/16"]);
        assert!(ruleset.tenants[&1001].pools.is_empty());
        assert_eq!(nets(&ruleset.tenants[&1002].pools), ["10.202.0.0/16"]);
    }

    #[test]
    fn quarantine_wins_over_a_tenant() {
        let ruleset =
            Ruleset::new(&guard(&[("red", 1001, &["10.200.0.0/16"])], &["10.200.1.0/24"]), &config(vec![]));
        assert_eq!(nets(&ruleset.quarantined), ["10.200.0.0/16"]);
    }

    #[test]
    fn the_digest_follows_the_content() {
        let one = Ruleset::new(&guard(&[("red", 1001, &["10.200.0.0/16"])], &[]), &config(vec![]));
        let two = Ruleset::new(&guard(&[("red", 1001, &["10.201.0.0/16"])], &[]), &config(vec![]));
        assert_eq!(one.digest(), one.clone().digest());
        assert_ne!(one.digest(), two.digest());
    }
}
