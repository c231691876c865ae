//! FRR as the agent sees it: what it lacks, and one call to give it that.
//!
//! The changes are opaque here. Whoever implements [`Frr`] keeps those of its last plan, and applies the ones that it
//! is handed back.

use std::{fmt, future::Future};

use calico_vni_proto::{model::NodeConfig, wire};

/// A change to FRR's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The tenant that fails alone when this fails; `None`: it is for all of the node.
    pub vni: Option<u32>,
    /// What it does, in one line.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Why FRR cannot be asked or told anything at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("FRR does not answer: {0}")]
pub struct Silent(pub String);

/// FRR.
pub trait Frr: Send + Sync {
    /// What it lacks for this configuration.
    fn plan(&self, config: &NodeConfig) -> impl Future<Output = Result<Vec<Change>, Silent>> + Send;

    /// Makes these changes of the last plan, and says of each, in their order, how it went.
    fn apply(&self, changes: &[Change]) -> impl Future<Output = Vec<Result<(), String>>> + Send;

    /// Has it look again for the devices of these VNIs, which were made anew beneath a configuration that stayed.
    fn rejoin(&self, vnis: &[u32]) -> impl Future<Output = Result<(), Silent>> + Send;

    /// Its BGP sessions.
    fn sessions(
        &self,
        config: &NodeConfig,
    ) -> impl Future<Output = Result<Vec<wire::Session>, Silent>> + Send;
}
