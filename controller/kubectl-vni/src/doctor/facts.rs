//! What the doctor judges by: the planner's snapshot, and what stands around it. Pure: it parses, and reads nothing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use calico_vni_crds::keys;
use calico_vni_planner::Snapshot;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Facts {
    /// What plans are made of.
    pub snapshot: Snapshot,
    /// When it was seen.
    pub now: Timestamp,
    /// Namespace of controller and routers.
    pub namespace: String,
    /// Whether Calico's pools are served at all.
    pub without_calico: bool,
    /// Kinds of which it is known what there is, even if that is nothing.
    pub read: BTreeSet<String>,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// Of our kinds, the definitions that there are.
    pub definitions: Vec<CustomResourceDefinition>,
    /// Admission policies, of whomever.
    pub policies: Vec<ValidatingAdmissionPolicy>,
    /// Bindings of them.
    pub bindings: Vec<ValidatingAdmissionPolicyBinding>,
    /// Of our namespace.
    pub leases: Vec<Lease>,
    /// Of our namespace.
    pub deployments: Vec<Deployment>,
    /// Of our namespace.
    pub daemon_sets: Vec<DaemonSet>,
    /// Of our namespace, and of those that a Tenant selects.
    pub pods: Vec<Pod>,
    /// Names of the Secrets of our namespace that may hold a BGP password. What they hold is not read.
    pub passwords: BTreeSet<String>,
    /// Of kube-system: those of kube-proxy and of Calico.
    pub config_maps: Vec<ConfigMap>,
    /// Of Calico's operator.
    pub installations: Vec<Value>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Which kind.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Facts {
    /// From plain objects, read at that time. Kinds that occur are taken as known.
    pub fn from_objects(objects: Vec<Value>, namespace: &str, now: Timestamp) -> anyhow::Result<Self> {
        let mut facts = Self { namespace: namespace.to_owned(), now, ..Self::default() };
        for object in objects.iter().flat_map(each) {
            let Some(kind) = object["kind"].as_str() else { continue };
            facts.read.insert(kind.to_owned());
            match kind {
                "CustomResourceDefinition" => facts.definitions.push(read(object)?),
                "ValidatingAdmissionPolicy" => facts.policies.push(read(object)?),
                "ValidatingAdmissionPolicyBinding" => facts.bindings.push(read(object)?),
                "Lease" => facts.leases.push(read(object)?),
                "Deployment" => facts.deployments.push(read(object)?),
                "DaemonSet" => facts.daemon_sets.push(read(object)?),
                "Pod" => facts.pods.push(read(object)?),
                "ConfigMap" => facts.config_maps.push(read(object)?),
                "Secret" => {
                    let meta: ObjectMeta = read(&object["metadata"])?;
                    let label = meta.labels.as_ref().and_then(|labels| labels.get(keys::BGP_PASSWORD));
                    if meta.namespace.as_deref() == Some(namespace)
                        && label.is_some_and(|yes| yes == keys::BGP_PASSWORD_YES)
                    {
                        facts.passwords.extend(meta.name);
                    }
                }
                "Installation" => facts.installations.push(object.clone()),
                _ => {}
            }
        }
        let ours = |meta: &ObjectMeta| meta.namespace.as_deref() == Some(namespace);
        facts.leases.retain(|lease| ours(&lease.metadata));
        facts.deployments.retain(|deployment| ours(&deployment.metadata));
        facts.daemon_sets.retain(|set| ours(&set.metadata));
        facts.snapshot = crate::input::without_passwords(Snapshot::from_objects(objects)?);
        Ok(facts)
    }

    /// Whether it is known what there is of that kind.
    pub fn knows(&self, kind: &str) -> bool {
        self.read.contains(kind)
    }

    /// Whether Tenants and Underlays are known kinds, as far as that is known.
    pub fn definitions_stand(&self) -> bool {
        !self.knows("CustomResourceDefinition") || !self.definitions.is_empty()
    }

    /// The Deployment of the controller.
    pub fn controller(&self) -> Option<&Deployment> {
        self.deployments.iter().find(|d| Part::Controller.is(&d.metadata))
    }

    /// The DaemonSet of a part that runs on each node.
    pub fn daemon_set(&self, part: Part) -> Option<&DaemonSet> {
        self.daemon_sets.iter().find(|d| part.is(&d.metadata))
    }

    /// Pods of one of our parts.
    pub fn pods_of(&self, part: Part) -> impl Iterator<Item = &Pod> {
        let begin = format!("{}-", part.object());
        self.pods.iter().filter(move |pod| {
            let meta = &pod.metadata;
            meta.namespace.as_ref() == Some(&self.namespace)
                && (part.is(meta) || meta.name.as_ref().is_some_and(|pod| pod.starts_with(&begin)))
        })
    }
}

/// Of what is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The controller.
    Controller,
    /// The agent, on each node.
    Agent,
    /// FRR with the router's namespace, on each node.
    Frr,
}

impl Part {
    /// Its component's label.
    fn component(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Frr => "frr",
        }
    }

    /// The name that the manifests give to its Deployment or DaemonSet.
    fn object(self) -> String {
        format!("calico-vni-{}", self.component())
    }

    /// By the recommended labels, or else by the name.
    fn is(self, meta: &ObjectMeta) -> bool {
        let label = |key: &str| meta.labels.as_ref().and_then(|labels: &BTreeMap<_, _>| labels.get(key));
        let labelled = label("app.kubernetes.io/name").is_some_and(|name| name == "calico-vni")
            && label("app.kubernetes.io/component").is_some_and(|of| of == self.component());
        labelled || meta.name.as_deref() == Some(self.object().as_str())
    }
}

/// The objects of a list, or the object itself.
fn each(object: &Value) -> Vec<&Value> {
    match (object["kind"].as_str(), object["items"].as_array()) {
        (Some(kind), Some(items)) if kind.ends_with("List") => items.iter().collect(),
        _ => vec![object],
    }
}

fn read<T: DeserializeOwned>(object: &Value) -> anyhow::Result<T> {
    T::deserialize(object).with_context(|| {
        format!("{} `{}`", object["kind"], object.pointer("/metadata/name").unwrap_or(&Value::Null))
    })
}
