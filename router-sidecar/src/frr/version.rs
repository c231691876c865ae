//! What differs between the releases of FRR that are supported, and nothing else.
//!
//! Tried with 8.4.4 and 10.3. From 10.0 on the management daemon stands before zebra: it owns `vrf` and `vni`, holds a
//! configuration of its own, and must be given one line at a time.

use std::{fmt, str::FromStr};

/// A daemon of FRR that the router runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Daemon {
    /// Keeper of the kernel's routes and of the VNIs.
    Zebra,
    /// The management daemon, FRR 10 and later.
    Mgmtd,
    /// BGP.
    Bgpd,
}

impl Daemon {
    /// Its executable, and the stem of its socket, configuration file and pid file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zebra => "zebra",
            Self::Mgmtd => "mgmtd",
            Self::Bgpd => "bgpd",
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A release of FRR. The patch level never mattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 8 in 8.4.4.
    pub major: u16,
    /// 4 in 8.4.4.
    pub minor: u16,
}

/// Why a text is no release of FRR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no FRR release: expected something like `8.4.4` or `10.3`")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    /// Takes the bare number, the first line of `show version`, or what a daemon prints for `--version`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |word: &str| {
            let mut parts = word.split(|c: char| !c.is_ascii_digit());
            Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
        };
        let first = text.lines().next().unwrap_or_default();
        first.split_whitespace().find_map(number).ok_or_else(|| VersionError(first.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Whether the management daemon exists and owns what zebra took itself before.
    pub const fn has_mgmtd(self) -> bool {
        self.major >= 10
    }

    /// The daemons of a router, in the order in which they are started.
    pub const fn daemons(self) -> &'static [Daemon] {
        if self.has_mgmtd() {
            &[Daemon::Mgmtd, Daemon::Zebra, Daemon::Bgpd]
        } else {
            &[Daemon::Zebra, Daemon::Bgpd]
        }
    }

    /// Who takes `vrf` and `vni`.
    pub const fn vrf_owner(self) -> Daemon {
        if self.has_mgmtd() { Daemon::Mgmtd } else { Daemon::Zebra }
    }

    /// The way into configuration. mgmtd refuses to edit without the lock on its file-backed candidate.
    pub const fn enter(self, daemon: Daemon) -> &'static str {
        match daemon {
            Daemon::Mgmtd => "configure terminal file-lock",
            Daemon::Zebra | Daemon::Bgpd => "configure terminal",
        }
    }

    /// Whether lines may be written before the earlier ones are answered. mgmtd drops what it has read ahead, and the
    /// next `vni` then lands on another VRF.
    pub const fn pipelines(self, daemon: Daemon) -> bool {
        !matches!(daemon, Daemon::Mgmtd)
    }

    /// Whether an import target may be `*:NUMBER`. Before, only the automatic one is such.
    pub const fn takes_wildcard_target(self) -> bool {
        self.major > 8 || (self.major == 8 && self.minor >= 5)
    }

    /// Whether zebra, when one of several equal paths of a VRF's prefix goes, takes the router MACs of the others along, so
    /// that they forward nothing any more. Seen with 8.4.4, each time; not tried with 9.
    pub const fn loses_router_macs(self) -> bool {
        self.major < 10
    }

    /// Whether zebra hears of links and of addresses on two sockets, and forgets the address of a link of which it has
    /// not heard yet. Seen with 8.4.4 once in ten starts of a busy machine; from 9.1 on both come by one socket.
    pub const fn forgets_addresses(self) -> bool {
        self.major < 9 || (self.major == 9 && self.minor < 1)
    }

    /// Whether route selection waits for every configured EVPN neighbour, dead ones included, unless told otherwise.
    pub const fn defers_selection(self) -> bool {
        self.major > 10 || (self.major == 10 && self.minor >= 6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_daemons_print() {
        for (text, version) in [
            ("8.4.4", (8, 4)),
            ("10.3", (10, 3)),
            ("FRRouting 8.4.4 (node-1) on Linux(6.1.0).\nCopyright 1996-2005", (8, 4)),
            ("zebra version 10.3.1-rc2", (10, 3)),
            ("FRRouting 10.7-dev (3com) on Linux", (10, 7)),
        ] {
            let v: Version = text.parse().unwrap();
            assert_eq!((v.major, v.minor), version, "{text}");
        }
        for bad in ["", "FRRouting", "ten.three"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn management_daemon_owns_vrfs_from_ten_on() {
        let old = Version { major: 8, minor: 4 };
        let new = Version { major: 10, minor: 3 };
        assert_eq!((old.vrf_owner(), new.vrf_owner()), (Daemon::Zebra, Daemon::Mgmtd));
        assert!(!new.pipelines(Daemon::Mgmtd) && new.pipelines(Daemon::Bgpd) && old.pipelines(Daemon::Zebra));
        assert!(!new.defers_selection() && Version { major: 10, minor: 6 }.defers_selection());
    }
}
