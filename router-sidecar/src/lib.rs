//! The router sidecar: keeps a node's devices, routes, rules, guard and FRR as the controller wants them.
//!
//! One straight way: [`session`] takes what is wanted, [`desired`] turns it into state, [`node`] reads what stands,
//! [`diff`] names what is missing as [`op::Op`]s, [`executor`] runs them, and [`reconcile`] goes round and reports.

pub mod desired;
pub mod frr;
pub mod diff;
pub mod executor;
pub mod files;
pub mod frr_port;
pub mod guard;
pub mod last_good;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod observe;
pub mod op;
pub mod rules;
pub mod state;
pub mod sysctl;
#[cfg(test)]
mod testing;
pub mod uplink;
