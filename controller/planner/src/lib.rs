//! Pure planning: a snapshot of the cluster in, what the cluster should hold out.
//!
//! - [`snapshot`]: what was observed, as plain objects; [`objects`] reads it from manifests.
//! - [`validate`]: the snapshot's objects parsed into types that cannot be wrong, and a verdict on each that is.
//! - [`plan()`]: the [`plan`], from valid objects alone.
//! - [`reason`]: the one word that says why something is not honoured.
//! - [`simulate`]: a plan carried out on paper.
//!
//! No client, no clock, no I/O: the same snapshot gives the same plan, whatever the order of its lists, and a plan
//! that has been carried out gives an empty one. One bad object changes nobody else's part of the plan.

pub mod objects;
pub mod plan;
mod planning;
pub mod prefix;
pub mod reason;
pub mod simulate;
pub mod snapshot;
pub mod validate;

pub use plan::Plan;
pub use planning::plan;
pub use snapshot::Snapshot;
