//! Pools, blocks and their annotations, as a person and Calico's IPAM change them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use calico_vni_crds::calico::{BlockAffinity, Encapsulation, IpPool, IpPoolSpec};
use ipnet::IpNet;
use kube::{Api, api::ListParams};

use super::World;

impl World {
    /// Makes an IPPool that a tenant can have, without any annotation.
    pub async fn put_pool(&self, name: &str, cidr: &str) -> Result<IpPool> {
        let spec = IpPoolSpec {
            cidr: cidr.to_owned(),
            vxlan_mode: Some(Encapsulation::Never),
            ipip_mode: Some(Encapsulation::Never),
            nat_outgoing: Some(false),
            assignment_mode: Some("Manual".into()),
            allowed_uses: Some(vec!["Workload".into()]),
            ..IpPoolSpec::default()
        };
        self.ipam.put_pool(name, spec, [].into()).await.with_context(|| format!("pool {name}"))
    }

    /// An IPPool.
    pub async fn pool(&self, name: &str) -> Result<IpPool> {
        let pools = Api::<IpPool>::all_with(self.client.clone(), &self.calico);
        pools.get(name).await.with_context(|| format!("pool {name}"))
    }

    /// Sets an annotation of pools, as a person would; returns what kubectl prints.
    pub async fn annotate_pools(&self, pools: &[&str], key: &str, value: &str) -> Result<String> {
        let change = format!("{key}={value}");
        let kind = self.resource("ippools");
        self.kubectl(&[&["annotate", "--overwrite", &kind], pools, &[change.as_str()]].concat()).await
    }

    /// Blocks of a pool with their nodes.
    pub async fn blocks(&self, pool: &str) -> Result<BTreeSet<(String, IpNet)>> {
        let cidr: IpNet = self.pool(pool).await?.spec.cidr.parse().context("CIDR of a pool")?;
        let affinities = Api::<BlockAffinity>::all_with(self.client.clone(), &self.calico);
        let blocks =
            affinities.list(&ListParams::default()).await.context("list of blocks")?.items.into_iter();
        let read = |b: BlockAffinity| Some((b.spec.node.clone(), b.spec.cidr.parse().ok()?));
        Ok(blocks.filter_map(read).filter(|(_, block): &(String, IpNet)| cidr.contains(block)).collect())
    }
}
