//! Writes to a real API server. The only code that changes anything there, Events excepted.

use std::time::Duration;

use calico_vni_crds::{
    Tenant, Underlay,
    calico::{BgpFilter, BgpPeer, CalicoApi},
    keys,
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ApiResource, DynamicObject, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::with_causes;

use super::write::{Cluster, Identity, Version, Write, WriteError};

/// Longest wait for an answer to one write.
const ANSWER: Duration = Duration::from_secs(10);

/// The API server behind a client.
pub struct KubeCluster {
    tenants: Api<Tenant>,
    underlays: Api<Underlay>,
    nodes: Api<Node>,
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
            filters: Api::all_with(client.clone(), &ApiResource::erase::<BgpFilter>(&api)),
            peers: Api::all_with(client.clone(), &ApiResource::erase::<BgpPeer>(&api)),
        }
    }

    async fn carry_out(&self, write: &Write) -> kube::Result<Option<DynamicObject>> {
        let params =
            PostParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match write {
            Write::CreateTenant(tenant) => {
                self.tenants.create(&params, tenant).await?;
            }
            Write::AllocateTenant { at, allocation, .. } => {
                let body = json!({
                    "metadata": { "resourceVersion": at.resource_version },
                    "status": { "vni": allocation.vni, "linkIndex": allocation.link_index },
                });
                self.tenants.patch_status(&at.name, &merge_params(), &Patch::Merge(&body)).await?;
            }
            Write::AllocateNode { at, index } => {
                merge(&self.nodes, at, json!({ "annotations": { keys::ROUTER_INDEX: index.to_string() } }))
                    .await?;
            }
            Write::LabelNode { at, labels } => merge(&self.nodes, at, json!({ "labels": labels })).await?,
            Write::SetFinalizers { at, finalizers, .. } => {
                let body = json!({ "metadata": { "resourceVersion": at.resource_version, "finalizers": finalizers } });
                self.tenants.patch(&at.name, &merge_params(), &Patch::Merge(&body)).await?;
            }
            Write::PutFilter(filter) => return put(&self.filters, &params, filter).await,
            Write::PutPeer { peer, .. } => return put(&self.peers, &params, peer).await,
            Write::DeleteFilter(at) => delete(&self.filters, at).await?,
            Write::DeletePeer(at) => delete(&self.peers, at).await?,
            Write::DeleteTenant(at) => delete(&self.tenants, at).await?,
            Write::TenantStatus { at, status } => apply_status(&self.tenants, at, status).await?,
            Write::UnderlayStatus { at, status } => apply_status(&self.underlays, at, status).await?,
        }
        Ok(None)
    }
}

impl Cluster for KubeCluster {
    async fn write(&self, write: &Write) -> Result<Option<DynamicObject>, WriteError> {
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

/// A uid in a patch is a precondition: the API server answers 409 when the object is another one.
async fn merge<K>(api: &Api<K>, at: &Identity, mut metadata: Value) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    metadata["uid"] = at.uid.clone().into();
    api.patch(&at.name, &merge_params(), &Patch::Merge(&json!({ "metadata": metadata }))).await.map(drop)
}

async fn put(
    api: &Api<DynamicObject>,
    params: &PostParams,
    object: &DynamicObject,
) -> kube::Result<Option<DynamicObject>> {
    let stored = match object.metadata.resource_version {
        None => api.create(params, object).await?,
        Some(_) => api.replace(&object.name_any(), params, object).await?,
    };
    Ok(Some(stored))
}

async fn delete<K>(api: &Api<K>, at: &Identity) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let uid = Preconditions { uid: Some(at.uid.clone()), resource_version: None };
    api.delete(&at.name, &DeleteParams::default().preconditions(uid)).await.map(drop)
}

async fn apply_status<K>(api: &Api<K>, at: &Version, status: &impl Serialize) -> kube::Result<()>
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
        .map(drop)
}
