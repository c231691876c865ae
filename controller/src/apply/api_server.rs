//! Writes to a real API server. The only code that changes anything there, Events excepted.

use std::time::Duration;

use calico_vni_crds::{
    Tenant, Underlay,
    calico::{BgpFilter, BgpPeer, CalicoApi},
    keys,
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ApiResource, DynamicObject, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::with_causes;

use super::write::{Cluster, Identity, Stored, Version, Write, WriteError};

/// Longest wait for an answer to one write.
const ANSWER: Duration = Duration::from_secs(10);

/// The API server behind a client.
pub struct KubeCluster {
    tenants: Api<Tenant>,
    underlays: Api<Underlay>,
    nodes: Api<Node>,
    namespaces: Api<Namespace>,
    filters: Api<DynamicObject>,
    peers: Api<DynamicObject>,
}

impl KubeCluster {
    /// Writes Calico's kinds in that group.
    pub fn new(client: &Client, api: CalicoApi) -> Self {
        Self {
            tenants: Api::all(client.clone()),
            underlays: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            namespaces: Api::all(client.clone()),
            filters: Api::all_with(client.clone(), &ApiResource::erase::<BgpFilter>(&api)),
            peers: Api::all_with(client.clone(), &ApiResource::erase::<BgpPeer>(&api)),
        }
    }

    async fn carry_out(&self, write: &Write) -> kube::Result<Stored> {
        let params =
            PostParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match write {
            Write::CreateTenant(tenant) => self.tenants.create(&params, tenant).await.map(stored),
            Write::AllocateTenant { at, allocation, .. } => {
                let body = json!({
                    "metadata": { "resourceVersion": at.resource_version },
                    "status": { "vni": allocation.vni, "linkIndex": allocation.link_index },
                });
                self.tenants.patch_status(&at.name, &merge_params(), &Patch::Merge(&body)).await.map(stored)
            }
            Write::AllocateNode { at, index, .. } => {
                let annotations = json!({ keys::ROUTER_INDEX: index.to_string() });
                merge(&self.nodes, &at.name, json!({ "uid": at.uid, "annotations": annotations })).await
            }
            Write::LabelNode { at, labels } => {
                merge(&self.nodes, &at.name, json!({ "uid": at.uid, "labels": labels })).await
            }
            Write::AnnotateNamespace { at, annotations } => {
                let metadata =
                    json!({ "uid": at.uid, "resourceVersion": at.seen, "annotations": annotations });
                merge(&self.namespaces, &at.name, metadata).await
            }
            Write::SetFinalizers { at, finalizers, .. } => {
                let metadata = json!({ "resourceVersion": at.resource_version, "finalizers": finalizers });
                merge(&self.tenants, &at.name, metadata).await
            }
            Write::PutFilter(filter) => put(&self.filters, &params, filter).await,
            Write::PutPeer { peer, .. } => put(&self.peers, &params, peer).await,
            Write::DeleteFilter(at) => delete(&self.filters, at).await,
            Write::DeletePeer(at) => delete(&self.peers, at).await,
            Write::DeleteTenant(at) => delete(&self.tenants, at).await,
            Write::TenantStatus { at, status } => apply_status(&self.tenants, at, status).await,
            Write::UnderlayStatus { at, status } => apply_status(&self.underlays, at, status).await,
        }
    }
}

impl Cluster for KubeCluster {
    async fn write(&self, write: &Write) -> Result<Stored, WriteError> {
        match tokio::time::timeout(ANSWER, self.carry_out(write)).await {
            Ok(result) => result.map_err(|error| classify(&error)),
            Err(_) => Err(WriteError::Unclear(format!("none within {} s", ANSWER.as_secs()))),
        }
    }
}

fn classify(error: &kube::Error) -> WriteError {
    match error {
        kube::Error::Api(status) => match status.code {
            409 => WriteError::Conflict,
            404 => WriteError::Gone,
            code if code < 500 => WriteError::Refused(said(status)),
            _ => WriteError::Unclear(said(status)),
        },
        error => WriteError::Unclear(with_causes(error)),
    }
}

fn said(status: &Status) -> String {
    format!("{} ({})", status.message, status.code)
}

fn merge_params() -> PatchParams {
    PatchParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn stored(mut object: impl ResourceExt) -> Stored {
    Stored { version: object.meta_mut().resource_version.take(), object: None }
}

/// A uid or a version in a patch is a precondition: the API server answers 409 when the object is another one.
async fn merge<K>(api: &Api<K>, name: &str, metadata: Value) -> kube::Result<Stored>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &merge_params(), &Patch::Merge(&json!({ "metadata": metadata }))).await.map(stored)
}

async fn put(api: &Api<DynamicObject>, params: &PostParams, object: &DynamicObject) -> kube::Result<Stored> {
    let held = match object.metadata.resource_version {
        None => api.create(params, object).await?,
        Some(_) => api.replace(&object.name_any(), params, object).await?,
    };
    Ok(Stored { version: held.resource_version(), object: Some(held) })
}

async fn delete<K>(api: &Api<K>, at: &Identity) -> kube::Result<Stored>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let uid = Preconditions { uid: Some(at.uid.clone()), resource_version: None };
    api.delete(&at.name, &DeleteParams::default().preconditions(uid)).await.map(|_| Stored::default())
}

async fn apply_status<K>(api: &Api<K>, at: &Version, status: &impl Serialize) -> kube::Result<Stored>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": at.name, "resourceVersion": at.resource_version },
        "status": status,
    });
    api.patch_status(&at.name, &PatchParams::apply(keys::FIELD_MANAGER).force(), &Patch::Apply(&body))
        .await
        .map(stored)
}
