//! Who speaks on the stream between controller and agents.
//!
//! The controller proves itself by a certificate of an authority that it keeps in a Secret ([`authority`], [`keep`]), or
//! by files that somebody else renews; [`serving`] offers it, and takes a new one without a restart. An agent proves its
//! node by its service account's token ([`token`]). [`upkeep`] sees to it that the certificate never grows old.

pub mod authority;
pub mod keep;
pub mod serving;
pub mod token;
pub mod upkeep;

/// Name that the certificates of the controller's own authority are for, and that agents ask for by default, by
/// whatever address they reach it.
pub const SERVER_NAME: &str = "calico-vni-controller";
