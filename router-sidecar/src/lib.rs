//! The router sidecar: keeps a node's devices, routes, rules, guard and FRR as the controller wants them.
//!
//! One straight way: [`session`] takes what is wanted, [`desired`] turns it into state, [`node`] reads what stands,
//! [`diff`] names what is missing as [`op::Op`]s, [`executor`] runs them, and [`reconcile`] goes round and reports.

pub mod agent;
pub mod backoff;
pub mod cleanup;
pub mod desired;
pub mod dial;
pub mod diff;
pub mod executor;
pub mod files;
pub mod frr;
pub mod frr_link;
pub mod frr_port;
#[cfg(test)]
mod fuzz;
pub mod guard;
pub mod last_good;
#[cfg(test)]
mod laws;
pub mod leaving;
pub mod lock;
pub mod metrics;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod notices;
pub mod observe;
pub mod op;
pub mod patience;
pub mod questions;
pub mod reconcile;
pub mod report;
pub mod rules;
pub mod session;
pub mod show;
pub mod state;
pub mod supervisor;
pub mod sysctl;
#[cfg(test)]
mod testing;
pub mod uplink;
pub mod waiting;
