//! A stand-in for Calico: what its confd and its IPAM do to the API server and to BIRD.
//!
//! One straight way: [`state`] (what the API server holds) → [`cluster`] (read once, as Calico reads it) → [`render`]
//! (one node's BIRD configuration, with [`peers`], [`filter`], [`selector`]) → [`confd`] (follows the API server and
//! hands over what changed). [`ipam`] writes what Calico's IPAM and node agent would write. [`real`] runs the real
//! confd instead. Behaviour is that of Calico v3.32, traps included; what is not modelled is listed in `docs/confd.md`.

use std::{fmt, net::IpAddr};

pub mod cluster;
pub mod confd;
pub mod filter;
pub mod ipam;
pub mod peers;
pub mod real;
pub mod render;
pub mod selector;
pub mod state;

/// Address family; BIRD 1.6 has a daemon for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, by `bird`.
    V4,
    /// IPv6, by `bird6`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of a host's prefix.
    pub const fn max_len(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Name of the daemon, and of its configuration file without `.cfg`.
    pub const fn daemon(self) -> &'static str {
        match self {
            Self::V4 => "bird",
            Self::V6 => "bird6",
        }
    }

    const fn upper(self) -> &'static str {
        match self {
            Self::V4 => "V4",
            Self::V6 => "V6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
