//! The guard: which prefix belongs to whom, and what may be forwarded to and from it. Pure.
//!
//! [`render`] turns a [`Ruleset`] into a [`Table`], [`nft`] loads and lists it.

pub mod nft;
mod render;
mod router;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use calico_vni_proto::model::{Endpoint, Guard, NodeConfig, Tenant};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

pub use render::{COUNTER_NO_TENANT, COUNTER_QUARANTINED, counter_of, render};
pub use router::{COUNTER_ROUTER, COUNTER_TUNNEL, Router};
pub use text::{Counts, Standing, TABLE, Table};

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
    /// What is known of it where it is on this node.
    pub local: Option<Local>,
}

/// A tenant on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Disjoint prefixes that it may reach outside its VRF, on any port.
    pub shared: Vec<IpNet>,
    /// Endpoints of the services that it may reach outside its VRF.
    pub services: BTreeSet<Endpoint>,
    /// Router's end of its IPv4 link.
    pub router_v4: Ipv4Addr,
    /// Router's end of its IPv6 link.
    pub router_v6: Ipv6Addr,
}

/// The guard of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By VNI. A tenant whose prefixes are all quarantined is there without any.
    pub tenants: BTreeMap<u32, Guarded>,
    /// Disjoint prefixes from and to which nothing is forwarded.
    pub quarantined: Vec<IpNet>,
    /// Disjoint prefixes that every tenant may reach, on whichever node it is.
    pub shared: Vec<IpNet>,
    /// Endpoints that some tenant may reach, on whichever node it is.
    pub services: BTreeSet<Endpoint>,
    /// Endpoints that nobody reaches, since their address is in a tenant's or a quarantined pool: service, address.
    pub refused: BTreeSet<(String, IpAddr)>,
    /// The router's namespace.
    pub router: Router,
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
            let shared = disjoint(shared_by_all.clone().chain(&tenant.shared));
            let local = Local {
                shared,
                services: BTreeSet::new(),
                router_v4: tenant.router_v4(),
                router_v6: tenant.router_v6(),
            };
            let guarded = Guarded { name: tenant.name.clone(), pools: vec![], local: Some(local) };
            tenants.insert(tenant.vni, guarded);
            claims.extend(tenant.pools.iter().map(|pool| (pool.cidr.trunc(), Owner::Tenant(tenant.vni))));
        }

        let settled = settle(claims);
        let mut ruleset = Self { tenants, shared: disjoint(shared_by_all), ..Self::default() };
        ruleset.open(guard, &config.tenants, &settled);
        for (net, owner) in settled {
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

    /// Opens the services for those who may reach them. An endpoint inside a pool would open that pool: it is refused.
    fn open(&mut self, guard: &Guard, local: &[Tenant], settled: &[(IpNet, Owner)]) {
        let mut by_name: BTreeMap<&str, BTreeSet<Endpoint>> = BTreeMap::new();
        for service in &guard.services {
            let endpoints = by_name.entry(&service.name).or_default();
            for endpoint in &service.endpoints {
                if within(settled, endpoint.address) {
                    self.refused.insert((service.name.clone(), endpoint.address));
                } else {
                    endpoints.insert(*endpoint);
                }
            }
        }
        self.services = by_name.values().flatten().copied().collect();
        for tenant in local {
            let reached = tenant.services.iter().filter_map(|name| by_name.get(name.as_str()));
            if let Some(Guarded { local: Some(local), .. }) = self.tenants.get_mut(&tenant.vni) {
                local.services = reached.flatten().copied().collect();
            }
        }
    }

    /// The tenants on this node.
    pub(crate) fn local(&self) -> impl Iterator<Item = (u32, &Guarded, &Local)> {
        self.tenants.iter().filter_map(|(vni, tenant)| Some((*vni, tenant, tenant.local.as_ref()?)))
    }

    /// SHA-256 of the rendering, in hexadecimal: it names the ruleset inside the table.
    pub fn digest(&self) -> String {
        let [host, router] = self.tables("").map(|table| table.replacing(&BTreeMap::new()));
        hex::encode(Sha256::digest(host + &router))
    }

    /// The tables of the host's and of the router's namespace, which hold this digest.
    pub fn tables(&self, digest: &str) -> [Table; 2] {
        [render(self, digest), router::render(&self.router, digest)]
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
    // Prefixes nest or are disjoint; in this order, IPv4 first, one comes right before all that it contains.
    claims.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
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

/// Whether an address is in one of these, which [`settle`] has put into order.
fn within(settled: &[(IpNet, Owner)], address: IpAddr) -> bool {
    let after = settled.partition_point(|(net, _)| net.network() <= address);
    after.checked_sub(1).is_some_and(|last| settled[last].0.contains(&address))
}

/// The same addresses as disjoint prefixes.
fn disjoint<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    let claims = nets.map(|net| (net.trunc(), Owner::Quarantined)).collect();
    settle(claims).into_iter().map(|(net, _)| net).collect()
}

#[cfg(test)]
mod tests {
    use calico_vni_proto::model::{GuardTenant, SharedService};

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
        assert_eq!(nets(&ruleset.tenants[&1001].local.as_ref().unwrap().shared), ["10.96.0.1/32"]);
    }

    #[test]
    fn a_service_opens_for_those_who_name_it_and_never_inside_a_pool() {
        let endpoint = |address: &str| Endpoint {
            address: address.parse().unwrap(),
            protocol: calico_vni_proto::model::Protocol::Udp,
            port: 53,
        };
        let service = |name: &str, addresses: &[&str]| SharedService {
            name: name.into(),
            endpoints: addresses.iter().map(|address| endpoint(address)).collect(),
        };
        let mut guard = guard(&[("blue", 1002, &["10.201.0.0/16", "fd00:201::/64"])], &["10.9.0.0/16"]);
        guard.services = vec![
            service("kube-system/dns", &["10.244.0.5", "10.201.3.4", "fd00:201::7", "fd00:244::5"]),
            service("ops/log", &["10.9.255.255", "10.10.0.0"]),
        ];
        let mut red = tenant("red", 1001, &["10.200.0.0/16"]);
        red.services = vec!["kube-system/dns".into(), "not/there".into()];
        let ruleset = Ruleset::new(&guard, &config(vec![red, tenant("green", 1003, &["10.203.0.0/16"])]));
        let local = |vni| &ruleset.tenants[&vni].local.as_ref().unwrap().services;
        assert_eq!(*local(1001), BTreeSet::from([endpoint("10.244.0.5"), endpoint("fd00:244::5")]));
        assert!(local(1003).is_empty());
        assert_eq!(ruleset.services.len(), 3);
        let refused: Vec<String> = ruleset.refused.iter().map(|(_, address)| address.to_string()).collect();
        assert_eq!(refused, ["10.201.3.4", "fd00:201::7", "10.9.255.255"]);
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
