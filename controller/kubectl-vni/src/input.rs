//! Where the snapshot comes from: manifests, or the cluster. Only lists are read.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use calico_vni_crds::{
    Tenant, Underlay,
    calico::{
        BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, CalicoApi, CalicoSpec,
        FelixConfigurationSpec, IpPoolSpec, IpamConfigSpec,
    },
};
use calico_vni_planner::{Snapshot, snapshot::Passwords};
use k8s_openapi::api::{
    core::v1::{Namespace, Node},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use serde_json::Value;

/// Of these files; `-` is standard input.
pub fn from_files(files: &[PathBuf]) -> anyhow::Result<Snapshot> {
    let mut objects = Vec::new();
    for file in files {
        let name = file.display();
        let text = if file.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        } else {
            fs::read_to_string(file).with_context(|| name.to_string())?
        };
        for document in serde_yaml::Deserializer::from_str(&text) {
            objects.push(Value::deserialize(document).with_context(|| name.to_string())?);
        }
    }
    Ok(without_passwords(Snapshot::from_objects(objects)?))
}

/// Secrets are none of this program's business: each that is named is taken to hold a password.
fn without_passwords(snapshot: Snapshot) -> Snapshot {
    Snapshot { passwords: Passwords::Assumed, ..snapshot }
}

/// Of the cluster that the kubeconfig names.
pub fn from_cluster(kubeconfig: Option<&Path>, context: Option<String>) -> anyhow::Result<Snapshot> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("a TLS provider is installed already");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?.block_on(async {
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            None if options.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        };
        read(&Client::try_from(config)?).await
    })
}

async fn read(client: &Client) -> anyhow::Result<Snapshot> {
    let api = served(client).await?;
    let mut objects = Vec::new();
    for resource in [
        ApiResource::erase::<Tenant>(&()),
        ApiResource::erase::<Underlay>(&()),
        ApiResource::erase::<Node>(&()),
        ApiResource::erase::<Namespace>(&()),
        ApiResource::erase::<EndpointSlice>(&()),
        calico::<IpPoolSpec>(api),
        calico::<BlockAffinitySpec>(api),
        calico::<BgpConfigurationSpec>(api),
        calico::<BgpPeerSpec>(api),
        calico::<BgpFilterSpec>(api),
    ] {
        objects.extend(list(client, &resource).await?.with_context(|| {
            format!(
                "{} are not served in {}; install their CustomResourceDefinitions",
                resource.plural, resource.api_version
            )
        })?);
    }
    // Calico serves the settings of its IPAM only from a later release on, and makes Felix's itself; absent, they are at
    // their defaults.
    objects.extend(list(client, &calico::<IpamConfigSpec>(api)).await?.unwrap_or_default());
    objects.extend(list(client, &calico::<FelixConfigurationSpec>(api)).await?.unwrap_or_default());
    // Kubernetes serves these only from a later release on too.
    let service_cidrs = ApiResource::erase::<ServiceCIDR>(&());
    objects.extend(list(client, &service_cidrs).await?.unwrap_or_default());
    let mut snapshot = Snapshot::from_objects(objects)?;
    snapshot.calico_api = api;
    Ok(without_passwords(snapshot))
}

/// The group that serves Calico's pools.
async fn served(client: &Client) -> anyhow::Result<CalicoApi> {
    for api in [CalicoApi::V3, CalicoApi::CrdV1] {
        let group_version = format!("{}/{}", api.group(), api.version());
        match client.list_api_group_resources(&group_version).await {
            Ok(list) if list.resources.iter().any(|r| r.name == IpPoolSpec::plural(api)) => return Ok(api),
            Ok(_) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("discovery of {group_version}")),
        }
    }
    bail!("the cluster serves no IPPools: is Calico installed?")
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn calico<S: CalicoSpec>(api: CalicoApi) -> ApiResource {
    ApiResource::erase::<calico_vni_crds::calico::Calico<S>>(&api)
}

/// All objects of a kind, or `None` where it is not served.
async fn list(client: &Client, resource: &ApiResource) -> anyhow::Result<Option<Vec<Value>>> {
    let listed = Api::<DynamicObject>::all_with(client.clone(), resource).list(&ListParams::default()).await;
    let list = match listed {
        Ok(list) => list,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("list of {}", resource.plural)),
    };
    let mut objects = Vec::with_capacity(list.items.len());
    for item in list {
        let mut object = serde_json::to_value(item).with_context(|| resource.kind.clone())?;
        // The items of a list need not say what they are.
        object["apiVersion"] = resource.api_version.clone().into();
        object["kind"] = resource.kind.clone().into();
        objects.push(object);
    }
    Ok(Some(objects))
}
