//! FRR as the router of the node: what its configuration has to be, what it is, and the way from one to the other.
//!
//! Everything but [`Driver`] is pure. The driver speaks to FRR's daemons over their vty sockets and writes the files
//! with which they start again; it touches nothing else.
//!
//! ```text
//! NodeConfig ─ render ─► Config ─┐
//!                                ├─ diff ─► Vec<Op> ─ Driver::apply ─► Vec<OpResult>
//! Driver::observe ──► Observed ──┘
//! ```

mod batch;
mod config;
mod diff;
mod driver;
mod instance;
mod observed;
mod parse;
mod render;
mod routes;
mod sessions;
mod version;
mod vty;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use batch::OpError;
pub use config::{Block, Config, Family, Global, Instance, PREFIX, Section, split};
pub use diff::{Delta, Op, TenantRef, diff};
pub use driver::{Driver, Error, OpResult};
pub use observed::Observed;
pub use parse::parse;
pub use render::render;
pub use routes::RouteState;
pub use sessions::{L3Vni, SessionState};
pub use version::{Daemon, Version, VersionError};
pub use vty::{Reply, Status, Vty, VtyError};
