//! The writes that the controller does to the API server, as values. Pure, but for what implements [`Cluster`].
//!
//! Three ways of writing, each for a reason:
//! - What is wholly ours (BGPFilter, BGPPeer) is created, or replaced at the version that was compared. Server-side
//!   apply would leave in place what another manager added (a `password`, a rule for the other family), and would
//!   take over an object that a user made a moment ago.
//! - On what is a user's (Node, Namespace, Tenant) a merge patch names exactly our keys, bound to the object's uid or version.
//!   Server-side apply would make a new, empty Node where one was deleted a moment ago; it cannot remove a label that
//!   somebody else set; and with one manager for annotation and labels, labels planned before the annotation was seen
//!   would remove it.
//! - A status is ours and complete each time: server-side apply, which removes what is no longer said. An allocation
//!   is written before by a merge patch, as another manager in the API server's eyes: a status that forgot it could
//!   not remove it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use calico_vni_crds::{Tenant, TenantStatus, UnderlayStatus};
use calico_vni_planner::plan::TenantAllocation;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{ResourceExt, core::DynamicObject};

/// What is written, in the order of [`super::diff`].
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A Tenant for annotated pools; where it stands already nothing happens to it.
    CreateTenant(Box<Tenant>),
    /// VNI and link index into a Tenant's status.
    AllocateTenant {
        /// Tenant.
        at: Version,
        /// Its uid, to know it again.
        uid: String,
        /// What it gets.
        allocation: TenantAllocation,
    },
    /// Router index into a Node's annotation.
    AllocateNode {
        /// Node.
        at: Identity,
        /// What it gets.
        index: u32,
        /// What the annotation was when that was planned.
        before: Option<String>,
    },
    /// All finalizers of a Tenant.
    SetFinalizers {
        /// Tenant.
        at: Version,
        /// The whole list.
        finalizers: Vec<String>,
        /// Whether ours is added or removed, for the log.
        held: bool,
    },
    /// Ready labels of a Node.
    LabelNode {
        /// Node.
        at: Identity,
        /// Label keys with their values; `None` removes.
        labels: BTreeMap<String, Option<String>>,
    },
    /// Annotations of a Namespace, bound to the version that was read: what a person writes meanwhile wins.
    AnnotateNamespace {
        /// Namespace.
        at: Identity,
        /// Keys with their values; `None` removes.
        annotations: BTreeMap<String, Option<String>>,
    },
    /// A BGPFilter: created, or replaced when it has a version.
    PutFilter(Box<DynamicObject>),
    /// A BGPPeer, in the same way.
    PutPeer {
        /// The peer.
        peer: Box<DynamicObject>,
        /// The filters that have to stand before.
        filters: BTreeSet<String>,
    },
    /// A BGPFilter that nothing wants any more.
    DeleteFilter(Identity),
    /// A BGPPeer that nothing wants any more.
    DeletePeer(Identity),
    /// A Tenant that no pool names any more.
    DeleteTenant(Identity),
    /// A Tenant's status.
    TenantStatus {
        /// Tenant.
        at: Version,
        /// The whole status.
        status: Box<TenantStatus>,
    },
    /// An Underlay's status.
    UnderlayStatus {
        /// Underlay.
        at: Version,
        /// The whole status.
        status: Box<UnderlayStatus>,
    },
}

/// An object, and no other of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// As the API server gave it.
    pub uid: String,
    /// Version in which it was read. It may have changed since.
    pub seen: String,
}

/// An object as it was read; whoever changes it first wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Name.
    pub name: String,
    /// As the API server gave it.
    pub resource_version: String,
}

impl Identity {
    /// Of that object.
    pub fn of(object: &impl ResourceExt) -> Self {
        Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            seen: object.resource_version().unwrap_or_default(),
        }
    }
}

impl Version {
    /// Of that object.
    pub fn of(object: &impl ResourceExt) -> Self {
        Self { name: object.name_any(), resource_version: object.resource_version().unwrap_or_default() }
    }
}

/// What a write is about: one write of each op an object is under way at a time, and its failures count together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What is done to it.
    pub op: &'static str,
}

impl Write {
    /// What it is about.
    pub fn key(&self) -> Key {
        let (kind, op, name) = match self {
            Self::CreateTenant(tenant) => ("Tenant", "create", tenant.name_any()),
            Self::AllocateTenant { at, .. } => ("Tenant", "allocate", at.name.clone()),
            Self::AllocateNode { at, .. } => ("Node", "allocate", at.name.clone()),
            Self::SetFinalizers { at, held: true, .. } => ("Tenant", "hold", at.name.clone()),
            Self::SetFinalizers { at, held: false, .. } => ("Tenant", "release", at.name.clone()),
            Self::LabelNode { at, .. } => ("Node", "label", at.name.clone()),
            Self::AnnotateNamespace { at, .. } => ("Namespace", "annotate", at.name.clone()),
            Self::PutFilter(filter) => ("BGPFilter", "put", filter.name_any()),
            Self::PutPeer { peer, .. } => ("BGPPeer", "put", peer.name_any()),
            Self::DeleteFilter(at) => ("BGPFilter", "delete", at.name.clone()),
            Self::DeletePeer(at) => ("BGPPeer", "delete", at.name.clone()),
            Self::DeleteTenant(at) => ("Tenant", "delete", at.name.clone()),
            Self::TenantStatus { at, .. } => ("Tenant", "status", at.name.clone()),
            Self::UnderlayStatus { at, .. } => ("Underlay", "status", at.name.clone()),
        };
        Key { kind, name, op }
    }

    /// Version of the object that the write follows from; `None` where there was no object.
    pub fn seen(&self) -> Option<&str> {
        match self {
            Self::CreateTenant(_) => None,
            Self::AllocateTenant { at, .. }
            | Self::SetFinalizers { at, .. }
            | Self::TenantStatus { at, .. }
            | Self::UnderlayStatus { at, .. } => Some(&at.resource_version),
            Self::AllocateNode { at, .. }
            | Self::LabelNode { at, .. }
            | Self::AnnotateNamespace { at, .. }
            | Self::DeleteFilter(at)
            | Self::DeletePeer(at)
            | Self::DeleteTenant(at) => Some(&at.seen),
            Self::PutFilter(object) | Self::PutPeer { peer: object, .. } => {
                object.metadata.resource_version.as_deref()
            }
        }
    }

    /// The same as another write but for the versions that both follow from: what one of them did, the other does again.
    #[must_use]
    pub fn content(&self) -> Self {
        let mut write = self.clone();
        match &mut write {
            Self::AllocateTenant { at, .. } | Self::SetFinalizers { at, .. } => at.resource_version.clear(),
            Self::AllocateNode { at, .. }
            | Self::LabelNode { at, .. }
            | Self::AnnotateNamespace { at, .. }
            | Self::DeleteFilter(at)
            | Self::DeletePeer(at)
            | Self::DeleteTenant(at) => at.seen.clear(),
            Self::TenantStatus { at, status } => {
                at.resource_version.clear();
                undate(&mut status.conditions);
            }
            Self::UnderlayStatus { at, status } => {
                at.resource_version.clear();
                undate(&mut status.conditions);
            }
            Self::PutFilter(object) | Self::PutPeer { peer: object, .. } => {
                object.metadata.resource_version = None;
                object.metadata.uid = None;
                object.metadata.creation_timestamp = None;
                object.metadata.generation = None;
            }
            Self::CreateTenant(_) => {}
        }
        write
    }
}

fn undate(conditions: &mut [Condition]) {
    for condition in conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
}

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Somebody changed or made the object since it was read. What they did will be observed.
    #[error("the object changed since it was read")]
    Conflict,
    /// It is gone. That will be observed too.
    #[error("the object is gone")]
    Gone,
    /// The API server refuses.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer: it may have happened or not.
    #[error("no answer: {0}")]
    Unclear(String),
}

/// What the API server holds after a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Version of the object; `None` after it was deleted.
    pub version: Option<String>,
    /// The object; of filters and peers alone.
    pub object: Option<DynamicObject>,
}

/// Carries out writes. The one door to the API server for all of [`super`].
pub trait Cluster: Send + Sync {
    /// Carries out one write.
    fn write(&self, write: &Write) -> impl Future<Output = Result<Stored, WriteError>> + Send;
}
