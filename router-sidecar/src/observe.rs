//! What stands on the node, as it was read. The reading itself is [`crate::node`]'s.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    frr_port::Change,
    state::{NetState, Uplink},
};

/// The guard as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSeen {
    /// Whether there is a table of our name.
    pub present: bool,
    /// Digest of the ruleset that it holds; `None` if there is none or it was changed since it was loaded.
    pub digest: Option<String>,
}

/// What stands on the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The guard.
    pub guard: GuardSeen,
    /// The host's namespace.
    pub host: NetState,
    /// The router's namespace.
    pub router: NetState,
    /// Interfaces that were taken from the host's namespace and not yet given back.
    pub recorded: BTreeSet<String>,
    /// What FRR lacks for what is wanted.
    pub frr: Vec<Change>,
    /// Why FRR could not be asked.
    pub frr_error: Option<String>,
}

/// How the uplinks are, or were before they were moved.
pub type Uplinks = BTreeMap<String, Uplink>;
