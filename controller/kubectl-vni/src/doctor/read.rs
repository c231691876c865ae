//! The facts of a cluster. The one place of the doctor that reads; what may not be read is noted and gone past.

use std::time::Duration;

use calico_vni_crds::{calico::CalicoApi, keys};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    jiff::Timestamp,
};
use kube::api::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::{
    facts::{Facts, Unread},
    installed::DEFINITIONS,
};
use crate::input::{Cluster, Presence, planned, said};

/// Pause before a second look: the controller does in much less what it has to do.
pub const SECOND_LOOK: Duration = Duration::from_secs(4);

/// Namespace of kube-proxy's settings and, where a manifest installs it, of Calico's.
const SYSTEM: &str = "kube-system";

/// What was read so far.
struct Reading<'c> {
    cluster: &'c Cluster,
    objects: Vec<Value>,
    read: Vec<String>,
    unread: Vec<Unread>,
}

impl Reading<'_> {
    /// Takes what was found, or notes why it was not. A kind that is not served has no objects.
    fn take(&mut self, kind: &str, what: String, found: Result<Option<Vec<Value>>, kube::Error>) -> bool {
        match found {
            Ok(found) => {
                let served = found.is_some();
                self.objects.extend(found.unwrap_or_default());
                self.read.push(kind.to_owned());
                served
            }
            Err(error) => {
                self.unread.push(Unread { what, why: format!("{:#}", said(error)) });
                true
            }
        }
    }

    async fn all(&mut self, resource: &ApiResource) -> bool {
        let found = self.cluster.list(resource).await;
        self.take(&resource.kind, resource.plural.clone(), found)
    }

    async fn within(&mut self, namespace: &str, resource: &ApiResource) {
        let found = self.cluster.list_in(namespace, resource).await;
        self.take(&resource.kind, format!("{} of namespace {namespace}", resource.plural), found);
    }

    async fn one(&mut self, namespace: Option<&str>, resource: &ApiResource, name: &str) {
        let found = self.cluster.get(namespace, resource, name).await;
        let found = found.map(|object| Some(object.into_iter().collect()));
        self.take(&resource.kind, format!("{} {name}", resource.kind), found);
    }
}

/// Reads everything that may be read. An error only where the cluster does not answer at all.
pub async fn facts(cluster: &Cluster, namespace: &str) -> anyhow::Result<Facts> {
    let calico = cluster.calico().await?;
    let api = calico.unwrap_or(CalicoApi::V3);
    let mut reading = Reading { cluster, objects: Vec::new(), read: Vec::new(), unread: Vec::new() };
    for name in DEFINITIONS {
        reading.one(None, &ApiResource::erase::<CustomResourceDefinition>(&()), name).await;
    }
    for (resource, presence) in planned(api) {
        let served = reading.all(&resource).await;
        if !served
            && presence == Presence::Needed
            && calico.is_some()
            && resource.group.contains("projectcalico")
        {
            let why = format!("it is not served in {}", resource.api_version);
            reading.unread.push(Unread { what: resource.plural.clone(), why });
        }
    }
    reading.all(&ApiResource::erase::<ValidatingAdmissionPolicy>(&())).await;
    reading.all(&ApiResource::erase::<ValidatingAdmissionPolicyBinding>(&())).await;
    reading.within(namespace, &ApiResource::erase::<Lease>(&())).await;
    reading.within(namespace, &ApiResource::erase::<Deployment>(&())).await;
    reading.within(namespace, &ApiResource::erase::<DaemonSet>(&())).await;
    let pods = ApiResource::erase::<Pod>(&());
    reading.within(namespace, &pods).await;
    let named = |object: &Value| {
        let neighbors = object.pointer("/spec/neighbors").and_then(Value::as_array).into_iter().flatten();
        neighbors.into_iter().any(|neighbor| !neighbor["passwordSecretRef"].is_null())
    };
    if reading.objects.iter().any(named) {
        let secrets = ApiResource::erase::<Secret>(&());
        let label = format!("{}={}", keys::BGP_PASSWORD, keys::BGP_PASSWORD_YES);
        let found = cluster.metadata(namespace, &secrets, &label).await;
        reading.take(&secrets.kind, format!("{} of namespace {namespace}", secrets.plural), found);
    }
    for name in ["kube-proxy", "calico-config"] {
        reading.one(Some(SYSTEM), &ApiResource::erase::<ConfigMap>(&()), name).await;
    }
    let installation = GroupVersionKind::gvk("operator.tigera.io", "v1", "Installation");
    reading.one(None, &ApiResource::from_gvk_with_plural(&installation, "installations"), "default").await;
    // Of others' namespaces only those whose pods are a tenant's.
    let assigned = |object: &&Value| {
        object["kind"] == "Namespace"
            && object.pointer("/metadata/annotations").is_some_and(|all| !all[keys::ASSIGNED].is_null())
    };
    let name = |object: &Value| Some(object.pointer("/metadata/name")?.as_str()?.to_owned());
    let namespaces: Vec<String> = reading.objects.iter().filter(assigned).filter_map(name).collect();
    for of_tenant in namespaces.iter().filter(|of_tenant| *of_tenant != namespace) {
        reading.within(of_tenant, &pods).await;
    }
    let mut facts = Facts::from_objects(reading.objects, namespace, Timestamp::now())?;
    facts.snapshot.calico_api = api;
    facts.without_calico = calico.is_none();
    facts.read = reading.read.into_iter().collect();
    facts.unread = reading.unread;
    Ok(facts)
}
