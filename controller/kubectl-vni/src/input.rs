//! Where objects come from: manifests, or the cluster. Of the cluster, only lists are read.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
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
use serde_json::{Value, json};

use crate::cli::{Connection, Source};

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The objects in these files, in order; `-` is standard input. Of a folder the manifests that lie in it.
pub fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for file in manifests(paths)? {
        let name = file.display();
        let text = if file.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        } else {
            fs::read_to_string(&file).with_context(|| name.to_string())?
        };
        for document in serde_yaml::Deserializer::from_str(&text) {
            objects.push(Value::deserialize(document).with_context(|| name.to_string())?);
        }
    }
    Ok(objects)
}

/// Secrets are none of this program's business: each that is named is taken to hold a password.
pub fn without_passwords(snapshot: Snapshot) -> Snapshot {
    Snapshot { passwords: Passwords::Assumed, ..snapshot }
}

/// All that a plan depends on, of saved objects or of the cluster, and then the cluster too.
pub async fn snapshot(source: &Source) -> anyhow::Result<(Snapshot, Option<Cluster>)> {
    if !source.filename.is_empty() {
        return Ok((without_passwords(Snapshot::from_objects(files(&source.filename)?)?), None));
    }
    let cluster = Cluster::connect(&source.connection).await?;
    let (api, objects) = cluster.objects().await?;
    let mut snapshot = Snapshot::from_objects(objects)?;
    snapshot.calico_api = api;
    Ok((without_passwords(snapshot), Some(cluster)))
}

/// Folders opened, as `kubectl apply -f` opens them.
fn manifests(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut within = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| path.display().to_string())?;
        within.retain(|file| file.is_file() && is_manifest(file));
        if within.is_empty() {
            bail!("{}: there is no .yaml, .yml or .json file in it", path.display());
        }
        within.sort_unstable();
        files.extend(within);
    }
    Ok(files)
}

fn is_manifest(file: &Path) -> bool {
    file.extension().and_then(|e| e.to_str()).is_some_and(|e| ["yaml", "yml", "json"].contains(&e))
}

/// What stands with manifests laid over it, as if they had been applied: what a manifest does not name stays.
pub fn overlay(standing: Vec<Value>, manifests: Vec<Value>) -> Vec<Value> {
    let mut all = standing;
    let mut places: BTreeMap<_, usize> =
        all.iter().enumerate().filter_map(|(place, object)| Some((identity(object)?, place))).collect();
    for mut object in manifests.into_iter().flat_map(items) {
        let Some(key) = identity(&object) else {
            all.push(object);
            continue;
        };
        if let Some(&place) = places.get(&key) {
            if let Some(object) = object.as_object_mut() {
                // Whoever applies a manifest writes no status, and does not choose the group that the cluster serves.
                object.remove("status");
                object.remove("apiVersion");
            }
            merge(&mut all[place], object);
        } else {
            places.insert(key, all.len());
            all.push(object);
        }
    }
    all
}

/// The objects of a list, or the object itself.
fn items(mut object: Value) -> Vec<Value> {
    let is_list = object["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match object.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if is_list => items,
        _ => vec![object],
    }
}

/// Kind, namespace and name. Calico's kinds are named alike in both of its groups, and no kind of another group is read
/// that has the name of one of ours.
fn identity(object: &Value) -> Option<(String, String, String)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let namespace = text("/metadata/namespace").unwrap_or_default();
    Some((text("/kind")?, namespace, text("/metadata/name")?))
}

/// A merge patch (RFC 7386).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// A cluster that answers.
pub struct Cluster {
    /// Its client.
    pub client: Client,
}

impl Cluster {
    /// That of the kubeconfig.
    pub async fn connect(to: &Connection) -> anyhow::Result<Self> {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            bail!("a TLS provider is installed already");
        }
        let options = KubeConfigOptions { context: to.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &to.kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            None if options.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        };
        config.connect_timeout = Some(ANSWER);
        config.read_timeout = Some(ANSWER);
        Ok(Self { client: Client::try_from(config)? })
    }

    /// All that a plan depends on, and the group that serves Calico's; an error where a part of it cannot be read.
    pub async fn objects(&self) -> anyhow::Result<(CalicoApi, Vec<Value>)> {
        let api = self.calico().await?.context("the cluster serves no IPPools: is Calico installed?")?;
        let mut objects = Vec::new();
        for (resource, presence) in planned(api) {
            let listed = self
                .list(&resource)
                .await
                .map_err(said)
                .with_context(|| format!("list of {}", resource.plural))?;
            match (listed, presence) {
                (Some(found), _) => objects.extend(found),
                (None, Presence::MayLack) => {}
                (None, Presence::Needed) => bail!(
                    "{} are not served in {}; install their CustomResourceDefinitions",
                    resource.plural,
                    resource.api_version
                ),
            }
        }
        Ok((api, objects))
    }

    /// The group that serves Calico's pools, if one does.
    pub async fn calico(&self) -> anyhow::Result<Option<CalicoApi>> {
        for api in [CalicoApi::V3, CalicoApi::CrdV1] {
            let group_version = format!("{}/{}", api.group(), api.version());
            match self.client.list_api_group_resources(&group_version).await {
                Ok(list) if list.resources.iter().any(|r| r.name == IpPoolSpec::plural(api)) => {
                    return Ok(Some(api));
                }
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => {
                    return Err(said(error)).with_context(|| format!("discovery of {group_version}"));
                }
            }
        }
        Ok(None)
    }

    /// All objects of a kind, or `None` where it is not served.
    pub async fn list(&self, resource: &ApiResource) -> Result<Option<Vec<Value>>, kube::Error> {
        self.listed(resource, Api::all_with(self.client.clone(), resource)).await
    }

    /// The same of one namespace.
    pub async fn list_in(
        &self,
        namespace: &str,
        resource: &ApiResource,
    ) -> Result<Option<Vec<Value>>, kube::Error> {
        self.listed(resource, Api::namespaced_with(self.client.clone(), namespace, resource)).await
    }

    /// One object; `None` where there is none, or its kind is not served.
    pub async fn get(
        &self,
        namespace: Option<&str>,
        resource: &ApiResource,
        name: &str,
    ) -> Result<Option<Value>, kube::Error> {
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        match api.get(name).await {
            Ok(object) => typed(resource, object).map(Some),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Metadata of the objects with that label in one namespace, and nothing of what they hold.
    pub async fn metadata(
        &self,
        namespace: &str,
        resource: &ApiResource,
        label: &str,
    ) -> Result<Option<Vec<Value>>, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        let list = api.list_metadata(&ListParams::default().labels(label)).await?;
        let object = |metadata| json!({ "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata });
        Ok(Some(list.items.into_iter().map(|item| object(item.metadata)).collect()))
    }

    async fn listed(
        &self,
        resource: &ApiResource,
        api: Api<DynamicObject>,
    ) -> Result<Option<Vec<Value>>, kube::Error> {
        let list = match api.list(&ListParams::default()).await {
            Ok(list) => list,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        list.into_iter().map(|item| typed(resource, item)).collect::<Result<_, _>>().map(Some)
    }
}

/// An object that says what it is: the items of a list need not.
fn typed(resource: &ApiResource, object: DynamicObject) -> Result<Value, kube::Error> {
    let mut object = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    object["apiVersion"] = resource.api_version.clone().into();
    object["kind"] = resource.kind.clone().into();
    Ok(object)
}

/// Whether a cluster may do without a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Without it there is no plan.
    Needed,
    /// Later releases alone serve it, or whoever needs it makes it; absent, it is at its defaults.
    MayLack,
}

/// The kinds that a plan depends on.
pub fn planned(api: CalicoApi) -> Vec<(ApiResource, Presence)> {
    use Presence::{MayLack, Needed};
    vec![
        (ApiResource::erase::<Tenant>(&()), Needed),
        (ApiResource::erase::<Underlay>(&()), Needed),
        (ApiResource::erase::<Node>(&()), Needed),
        (ApiResource::erase::<Namespace>(&()), Needed),
        (ApiResource::erase::<EndpointSlice>(&()), Needed),
        (calico::<IpPoolSpec>(api), Needed),
        (calico::<BlockAffinitySpec>(api), Needed),
        (calico::<BgpConfigurationSpec>(api), Needed),
        (calico::<BgpPeerSpec>(api), Needed),
        (calico::<BgpFilterSpec>(api), Needed),
        (calico::<IpamConfigSpec>(api), MayLack),
        (calico::<FelixConfigurationSpec>(api), MayLack),
        (ApiResource::erase::<ServiceCIDR>(&()), MayLack),
    ]
}

fn calico<S: CalicoSpec>(api: CalicoApi) -> ApiResource {
    ApiResource::erase::<calico_vni_crds::calico::Calico<S>>(&api)
}

/// What the API server says, without how it says it.
pub fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::Error::msg(status.message),
        other => other.into(),
    }
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_lie_over_what_stands() {
        let standing = json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": { "name": "red", "uid": "1" },
            "spec": { "cidr": "10.200.0.0/16", "natOutgoing": true }, "status": { "a": 1 } });
        let manifest = json!({ "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": { "name": "red", "annotations": { "k": "v" } },
            "spec": { "natOutgoing": false }, "status": {} });
        let new = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "red" } });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [manifest, new] });
        let laid = overlay(vec![standing], vec![list]);
        assert_eq!(
            laid,
            [
                json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
                    "metadata": { "name": "red", "uid": "1", "annotations": { "k": "v" } },
                    "spec": { "cidr": "10.200.0.0/16", "natOutgoing": false }, "status": { "a": 1 } }),
                new,
            ]
        );
    }
}
