//! The writes that the controller does to the API server, as values. Pure, but for what implements [`Cluster`].
//!
//! Three ways of writing, each for a reason:
//! - What is wholly ours (BGPFilter, BGPPeer) is created, or replaced at the version that was compared. Server-side
//!   apply would leave in place what another manager added (a `password`, a rule for the other family), and would
//!   take over an object that a user made a moment ago.
//! - On what is a user's (Node, Tenant) a merge patch names exactly our keys, bound to the object's uid or version.
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
        Self { name: object.name_any(), uid: object.uid().unwrap_or_default() }
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

/// Carries out writes. The one door to the API server for all of [`super`].
pub trait Cluster: Send + Sync {
    /// Carries out one write. A filter or a peer is returned as the API server holds it now.
    fn write(&self, write: &Write) -> impl Future<Output = Result<Option<DynamicObject>, WriteError>> + Send;
}
