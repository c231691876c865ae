//! The node side of the lab and the client that drives it.
//!
//! One server process works where the nodes' network namespaces are: on this machine, or in the virtual machine. All
//! that the lab does to a node goes through it, so both ways share every line of code.

pub mod capture;
pub mod client;
pub mod control;
pub mod dump;
pub mod forward;
pub mod netns;
pub mod packet;
pub mod probe;
pub mod process;
pub mod protocol;
pub mod server;
pub mod shot;
pub mod steady;

/// Where the node side keeps its files, on a file system that holds Unix sockets.
pub const RUN_DIR: &str = "/run/lab";

/// Where the node side's processes write their logs.
pub const LOG_DIR: &str = "/run/lab/log";
