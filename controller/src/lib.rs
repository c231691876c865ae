//! The controller: observe → plan → apply → publish → report.
//!
//! - [`detect`]: which group serves Calico's kinds.
//! - [`observe`]: reflectors, and the snapshot taken from them.
//! - [`apply`]: the difference between plan and cluster as typed writes, and what carries them out.
//! - [`agents`], [`publish`], [`grpc`]: what connected routers said, what each is offered, the service between them.
//! - [`rollout`]: which nodes may have a change now.
//! - [`linger`]: how long tenants stay where their last block has left.
//! - [`status`], [`events`]: what users are told.
//! - [`leader`]: which of several controllers leads, and that no other writes.
//! - [`metrics`]: what is measured of all this, and whether it is ready.
//! - [`runtime`]: the one loop; [`replica`]: the wiring around it.
//!
//! Planning itself is the `calico-vni-planner` crate; nothing here decides what a tenant gets.

pub mod agents;
pub mod apply;
pub mod detect;
pub mod events;
pub mod grpc;
pub mod leader;
pub mod linger;
pub mod metrics;
pub mod observe;
pub mod planning;
pub mod publish;
pub mod replica;
pub mod rollout;
pub mod runtime;
pub mod served;
pub mod status;

/// A plan is made of some hundred thousand small pieces that are dropped again. With glibc's allocator one for 5,000 nodes took
/// twice as long (137 ms, not 70, in `make bench-fanout`), and the process had a seventh less memory (376 MB, not 435).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An error with its causes on one line: the outermost of kube's says little.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some repeat their cause in their own words.
        if !text.contains(&said) {
            text += ": ";
            text += &said;
        }
        cause = error.source();
    }
    text
}
