//! The stand-in against a real API server, in both of Calico's groups: what IPAM writes is what confd reads.

use std::{collections::BTreeMap, convert::Infallible, env, time::Duration};

use anyhow::{Result, bail, ensure};
use calico_vni_crds::calico::{
    BgpFilter, BgpFilterRule, BgpFilterSpec, BgpPeer, BgpPeerSpec, CalicoApi, IpPoolSpec,
};
use calico_vni_e2e::{
    api::{ApiSide, User},
    calico::{
        Family,
        confd::{BirdSink, Confd},
        ipam::{Ipam, IpamError, node},
    },
    paths, wait,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

/// Keeps the latest file of each node and family.
struct Shelf(watch::Sender<BTreeMap<(String, Family), String>>);

impl BirdSink for Shelf {
    type Error = Infallible;

    async fn configure(&self, node: &str, family: Family, text: &str) -> Result<(), Infallible> {
        self.0.send_modify(|shelf| drop(shelf.insert((node.to_owned(), family), text.to_owned())));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ipam_writes_confd_renders_in_both_groups() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir()?;
    let programs =
        env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube"), |dir| Ok(dir.into()))?;
    let server = ApiSide::start(dir.path(), &programs).await?;
    for group in ["v1", "v3"] {
        let folder = paths::checkout().join("e2e/calico-crds").join(group);
        server.kubectl(&["apply", "-f", &folder.display().to_string()]).await?;
    }
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await?;
    let client = server.client(User::Admin).await?;
    for api in [CalicoApi::V3, CalicoApi::CrdV1] {
        follow(&client, api).await.map_err(|e| e.context(format!("{api:?}")))?;
    }
    Ok(())
}

async fn follow(client: &Client, api: CalicoApi) -> Result<()> {
    let (shelf, files) = watch::channel(BTreeMap::new());
    let stop = CancellationToken::new();
    let task = tokio::spawn(Confd::new(client.clone(), api, Shelf(shelf)).run(stop.clone()));
    let text = async |node: &str, holds: &str, wanted: bool| {
        wait::until(&format!("{holds} of {node} to be {wanted}"), LIMIT, async || {
            let files = files.borrow();
            let Some(text) = files.get(&(node.to_owned(), Family::V4)) else { bail!("no file") };
            ensure!(text.contains(holds) == wanted, "{text}");
            Ok(())
        })
        .await
    };

    let ipam = Ipam::new(client.clone(), api, []);
    for (name, address) in [("n1", "172.18.0.11/24"), ("n2", "172.18.0.12/24")] {
        ipam.put_node(&node(name, Some(address.parse()?), None, BTreeMap::new())).await?;
    }
    text("n1", "protocol bgp Mesh_172_18_0_12", true).await?;

    let spec = IpPoolSpec { cidr: "10.200.0.0/25".into(), block_size: Some(26), ..IpPoolSpec::default() };
    let pool = ipam.put_pool("red", spec, BTreeMap::new()).await?;
    assert_eq!(ipam.assign_address(&pool, "n1").await?.to_string(), "10.200.0.0");
    assert_eq!(ipam.assign_address(&pool, "n2").await?.to_string(), "10.200.0.64");
    assert_eq!(ipam.assign_address(&pool, "n1").await?.to_string(), "10.200.0.1");
    let error = ipam.assign_block(&pool, "n2").await.unwrap_err();
    assert!(matches!(error, IpamError::Exhausted { .. }), "{error}");
    text("n1", "route 10.200.0.0/26 blackhole;", true).await?;
    text("n2", "route 10.200.0.64/26 blackhole;", true).await?;

    ipam.release_block("n2", "10.200.0.64/26".parse()?).await?;
    text("n2", "10.200.0.64/26", false).await?;
    assert_eq!(ipam.assign_block(&pool, "n1").await?.to_string(), "10.200.0.64/26");

    // The filter before the peer, and the peer by the node's label.
    let rules = vec![BgpFilterRule::default()];
    let filter = BgpFilter::new(api, "red", BgpFilterSpec { import_v4: rules, ..BgpFilterSpec::default() });
    Api::all_with(client.clone(), &api).create(&PostParams::default(), &filter).await?;
    let spec = BgpPeerSpec {
        node_selector: Some("tenant.calico-vni.io/red == 'ready'".into()),
        peer_ip: Some("169.254.192.1".into()),
        as_number: Some(65001),
        source_address: Some("None".into()),
        filters: Some(vec!["red".into()]),
        ..BgpPeerSpec::default()
    };
    let peers = Api::all_with(client.clone(), &api);
    peers.create(&PostParams::default(), &BgpPeer::new(api, "red", spec)).await?;
    let ready = [("tenant.calico-vni.io/red".to_owned(), "ready".to_owned())].into();
    ipam.put_node(&node("n1", Some("172.18.0.11/24".parse()?), None, ready)).await?;
    text("n1", "    'bgp_red_importFilterV4'();", true).await?;
    text("n2", "Node_169_254_192_1", false).await?;
    peers.delete("red", &DeleteParams::default()).await?;
    text("n1", "Node_169_254_192_1", false).await?;

    stop.cancel();
    task.await?;
    Ok(())
}
