//! Pure planning: a snapshot of the cluster in, what the cluster should hold out.
//!
//! - [`snapshot`]: what was observed, as plain objects.
//! - [`plan`]: the plan, from valid objects alone.
//!
//! No client, no clock, no I/O: the same snapshot gives the same plan, whatever the order of its lists, and a plan
//! that has been carried out gives an empty one. One bad object changes nobody else's part of the plan.

pub mod plan;
mod planning;
pub mod snapshot;

pub use plan::Plan;
pub use planning::plan;
pub use snapshot::Snapshot;
