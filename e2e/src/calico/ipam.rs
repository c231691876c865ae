//! What Calico's IPAM and its node agent would write to the API server: pools, Nodes' addresses, blocks; and the
//! choice of pods' addresses.
//!
//! strictAffinity is assumed: a node takes addresses from its own blocks alone. One [`Ipam`] at a time may hand out
//! addresses of a cluster; which addresses are in use, it keeps to itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use calico_vni_crds::calico::{BlockAffinity, BlockAffinitySpec, CalicoApi, IpPool, IpPoolSpec};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::Mutex;

use super::{
    Family,
    cluster::CONFIRMED,
    state::{NODE_IPV4, NODE_IPV6},
};

/// Field manager of all that is written here.
const MANAGER: &str = "calico";

/// Why there is no address or no block.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The API server.
    #[error("{what}: {source}")]
    Api {
        /// What was to be done.
        what: String,
        /// Its answer.
        source: kube::Error,
    },
    /// The pool's spec.
    #[error("IPPool {pool}: {why}")]
    Pool {
        /// Name of the pool.
        pool: String,
        /// What is wrong with it.
        why: String,
    },
    /// No block is left.
    #[error("IPPool {pool} has no free block for node {node}")]
    Exhausted {
        /// Name of the pool.
        pool: String,
        /// Node that asked.
        node: String,
    },
}

/// Blocks and addresses of one cluster.
pub struct Ipam {
    client: Client,
    api: CalicoApi,
    used: Mutex<BTreeSet<IpAddr>>,
}

impl Ipam {
    /// Over an API server, with the addresses that pods have already.
    pub fn new(client: Client, api: CalicoApi, used: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { client, api, used: Mutex::new(used.into_iter().collect()) }
    }

    /// Creates an IPPool or brings it to this spec and these annotations.
    pub async fn put_pool(
        &self,
        name: &str,
        spec: IpPoolSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<IpPool, IpamError> {
        let mut pool = IpPool::new(self.api, name, spec);
        pool.metadata.annotations = Some(annotations);
        let pools = Api::<IpPool>::all_with(self.client.clone(), &self.api);
        let put = pools.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&pool)).await;
        put.map_err(api_error(|| format!("IPPool {name}")))
    }

    /// Creates a Node or gives it these addresses and labels.
    pub async fn put_node(&self, node: &Node) -> Result<Node, IpamError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let put = Api::<Node>::all(self.client.clone())
            .patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(node))
            .await;
        put.map_err(api_error(|| format!("Node {name}")))
    }

    /// Gives a node the lowest free block of a pool.
    pub async fn assign_block(&self, pool: &IpPool, node: &str) -> Result<IpNet, IpamError> {
        let _one_at_a_time = self.used.lock().await;
        self.claim(pool, node).await
    }

    /// Takes a block from its node.
    pub async fn release_block(&self, node: &str, block: IpNet) -> Result<(), IpamError> {
        let name = affinity_name(node, block);
        let deleted = self.affinities().delete(&name, &DeleteParams::default()).await;
        deleted.map(drop).map_err(api_error(|| format!("BlockAffinity {name}")))
    }

    /// The lowest free address of the node's blocks in a pool; the node gets another block if they are full.
    pub async fn assign_address(&self, pool: &IpPool, node: &str) -> Result<IpAddr, IpamError> {
        let (cidr, _) = shape(pool)?;
        let mut used = self.used.lock().await;
        let mut blocks: Vec<IpNet> =
            self.held().await?.into_iter().filter(|(of, _)| of == node).map(|(_, b)| b).collect();
        blocks.retain(|block| cidr.contains(block));
        blocks.sort_unstable();
        let free = blocks.iter().find_map(|block| lowest_free_address(*block, &used));
        let address = match free {
            Some(address) => address,
            None => self.claim(pool, node).await?.network(),
        };
        used.insert(address);
        Ok(address)
    }

    /// Gives an address back.
    pub async fn release_address(&self, address: IpAddr) {
        self.used.lock().await.remove(&address);
    }

    async fn claim(&self, pool: &IpPool, node: &str) -> Result<IpNet, IpamError> {
        let (cidr, size) = shape(pool)?;
        let taken: BTreeSet<IpNet> = self.held().await?.into_iter().map(|(_, block)| block).collect();
        let block = lowest_free_block(cidr, size, &taken)
            .ok_or_else(|| IpamError::Exhausted { pool: pool.name().to_owned(), node: node.to_owned() })?;
        let affinity = affinity(self.api, node, block);
        let created = self.affinities().create(&PostParams::default(), &affinity).await;
        created.map_err(api_error(|| format!("BlockAffinity {}", affinity.name())))?;
        Ok(block)
    }

    /// All blocks with their nodes.
    async fn held(&self) -> Result<Vec<(String, IpNet)>, IpamError> {
        let list = self.affinities().list(&ListParams::default()).await;
        let list = list.map_err(api_error(|| "list of BlockAffinities".to_owned()))?;
        let read =
            |affinity: BlockAffinity| Some((affinity.spec.node.clone(), affinity.spec.cidr.parse().ok()?));
        Ok(list.items.into_iter().filter(|affinity| !affinity.spec.is_deleted()).filter_map(read).collect())
    }

    fn affinities(&self) -> Api<BlockAffinity> {
        Api::all_with(self.client.clone(), &self.api)
    }
}

/// A Node as calico-node leaves it. The networks carry the node's own address, as in `172.18.0.11/24`.
pub fn node(
    name: &str,
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
    labels: BTreeMap<String, String>,
) -> Node {
    let annotations = [(NODE_IPV4, ipv4.map(IpNet::from)), (NODE_IPV6, ipv6.map(IpNet::from))];
    let annotations =
        annotations.into_iter().filter_map(|(key, net)| Some((key.to_owned(), net?.to_string())));
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some(annotations.collect()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

/// The object that says that a node holds a block.
pub fn affinity(api: CalicoApi, node: &str, block: IpNet) -> BlockAffinity {
    let deleted = match api {
        CalicoApi::V3 => json!(false),
        CalicoApi::CrdV1 => json!("false"),
    };
    let spec = BlockAffinitySpec {
        node: node.to_owned(),
        cidr: block.to_string(),
        state: Some(CONFIRMED.to_owned()),
        kind: Some("host".to_owned()),
        deleted: Some(deleted),
    };
    BlockAffinity::new(api, &affinity_name(node, block), spec)
}

/// `n1` and `10.200.40.128/26` make `n1-10-200-40-128-26`.
pub fn affinity_name(node: &str, block: IpNet) -> String {
    format!("{node}-{}", block.to_string().replace(['.', ':', '/'], "-"))
}

/// The lowest block of `size` in `pool` that meets none of `taken`.
pub fn lowest_free_block(pool: IpNet, size: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let meets = |block: &IpNet| taken.iter().any(|other| other.contains(block) || block.contains(other));
    pool.subnets(size).ok()?.find(|block| !meets(block))
}

/// The lowest address of a block that is not used. Calico hands out a block's first and last address too.
pub fn lowest_free_address(block: IpNet, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let next = |address: IpAddr| match address {
        IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from_bits(ip.to_bits().saturating_add(1))),
        IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits().saturating_add(1))),
    };
    let mut candidate = block.network();
    for taken in used.range(block.network()..=block.broadcast()) {
        if *taken != candidate {
            return Some(candidate);
        }
        candidate = next(candidate);
    }
    // A block at the very end of the address space: the next of its last address is that address again.
    (block.contains(&candidate) && !used.contains(&candidate)).then_some(candidate)
}

/// A pool's prefix and the prefix length of its blocks.
fn shape(pool: &IpPool) -> Result<(IpNet, u8), IpamError> {
    let fault = |why: String| IpamError::Pool { pool: pool.name().to_owned(), why };
    let cidr: IpNet =
        pool.spec.cidr.parse().map_err(|error| fault(format!("cidr {:?}: {error}", pool.spec.cidr)))?;
    let size = pool.spec.block_size.unwrap_or(match Family::of(cidr.addr()) {
        Family::V4 => 26,
        Family::V6 => 122,
    });
    if size < cidr.prefix_len() || size > cidr.max_prefix_len() {
        return Err(fault(format!("blockSize {size} does not fit cidr {cidr}")));
    }
    Ok((cidr, size))
}

fn api_error(what: impl FnOnce() -> String) -> impl FnOnce(kube::Error) -> IpamError {
    |source| IpamError::Api { what: what(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_taken_from_the_lowest_and_never_overlap() {
        let free = |taken: &[&str]| {
            lowest_free_block(net("10.200.0.0/24"), 26, &taken.iter().map(|t| net(t)).collect())
        };
        assert_eq!(free(&[]), Some(net("10.200.0.0/26")));
        assert_eq!(free(&["10.200.0.0/26", "10.200.0.128/26"]), Some(net("10.200.0.64/26")));
        assert_eq!(
            free(&["10.200.0.0/25"]),
            Some(net("10.200.0.128/26")),
            "blocks of another size count too"
        );
        assert_eq!(free(&["10.200.0.1/32"]), Some(net("10.200.0.64/26")));
        assert_eq!(free(&["10.200.0.0/24"]), None);
        let six = lowest_free_block(net("fd00::/120"), 122, &[net("fd00::/122")].into());
        assert_eq!(six, Some(net("fd00::40/122")));
    }

    #[test]
    fn addresses_are_taken_from_the_lowest_to_the_last() {
        let free = |block: &str, used: &[&str]| {
            lowest_free_address(net(block), &used.iter().map(|u| ip(u)).collect())
        };
        assert_eq!(free("10.0.0.4/30", &[]), Some(ip("10.0.0.4")));
        assert_eq!(free("10.0.0.4/30", &["10.0.0.3", "10.0.0.4", "10.0.0.6"]), Some(ip("10.0.0.5")));
        assert_eq!(free("10.0.0.4/30", &["10.0.0.4", "10.0.0.5", "10.0.0.6"]), Some(ip("10.0.0.7")));
        assert_eq!(free("10.0.0.4/30", &["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"]), None);
        assert_eq!(free("255.255.255.255/32", &["255.255.255.255"]), None);
        assert_eq!(free("fd00::/127", &["fd00::"]), Some(ip("fd00::1")));
    }

    #[test]
    fn an_affinity_has_calicos_name_and_the_groups_type_of_deleted() {
        let v1 = affinity(CalicoApi::CrdV1, "n1", net("10.200.40.128/26"));
        assert_eq!(v1.name(), "n1-10-200-40-128-26");
        assert_eq!(
            serde_json::to_value(&v1.spec).unwrap(),
            json!({"node": "n1", "cidr": "10.200.40.128/26", "state": "confirmed", "type": "host", "deleted": "false"})
        );
        let v3 = affinity(CalicoApi::V3, "n1", net("fd00::40/122"));
        assert_eq!(v3.name(), "n1-fd00--40-122");
        assert_eq!(v3.spec.deleted, Some(json!(false)));
    }

    #[test]
    fn a_pool_that_has_no_blocks_says_why() {
        let spec =
            |cidr: &str, size| IpPoolSpec { cidr: cidr.into(), block_size: size, ..IpPoolSpec::default() };
        let shape = |cidr: &str, size| shape(&IpPool::new(CalicoApi::V3, "red", spec(cidr, size)));
        assert_eq!(shape("10.0.0.0/16", None).unwrap(), (net("10.0.0.0/16"), 26));
        assert_eq!(shape("fd00::/64", None).unwrap(), (net("fd00::/64"), 122));
        let error = shape("10.0.0.0/28", Some(26)).unwrap_err().to_string();
        assert_eq!(error, "IPPool red: blockSize 26 does not fit cidr 10.0.0.0/28");
    }
}
