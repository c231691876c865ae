//! The controller against a real etcd and kube-apiserver, with the rights of `deploy/rbac.yaml` and nothing more, and
//! with agents that program nothing but speak the real contract. Each case has a cluster of its own, one after the
//! other.
//!
//! - [`api_server`]: an annotated pool from beginning to end, repairs, bad objects, a restart, both groups of Calico.
//! - [`burst`]: a thousand tenants at once, and every write counted.
//! - [`chaos`]: random steps, with the controller killed in between, against a plan from scratch.
//! - [`groups`]: Calico moves from one group to the other.
//! - [`identity`]: tokens, the rotation of the authority, and which of several controllers leads.
//! - [`metrics`]: metrics and probes over HTTP.
//! - [`passwords`]: BGP passwords, from Secrets to agents.
//! - [`rights`]: the role holds what is used, and nothing that is not.
//! - [`rollout`]: a change goes to one node first, and not on where that refuses it.
//! - [`stop`]: SIGTERM in the midst of much to write.
//!
//! Needs the binaries that `make kube` builds, or `KUBEBUILDER_ASSETS`; without them these tests fail.

mod api_server;
mod burst;
mod chaos;
mod groups;
mod identity;
mod metrics;
mod passwords;
mod rights;
mod rollout;
mod stop;
#[path = "../support/mod.rs"]
mod support;
