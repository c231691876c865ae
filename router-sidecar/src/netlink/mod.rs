//! Everything that speaks rtnetlink(7). The crates for it are used here and nowhere else.
//!
//! - [`Client`]: a socket inside one network namespace.
//! - [`observe`]: dumps turned into [`crate::state`].
//! - [`write`]: one request per change.
//! - [`announce`]: an address told again to all who listen.
//! - [`events`]: what the kernel tells by itself.
//! - [`generation`]: whether the packet filter was changed.

pub mod announce;
pub mod events;
pub mod generation;
pub mod observe;
pub mod write;

use std::sync::Arc;

use rtnetlink::{
    Handle, new_connection_with_strict_check,
    packet_core::{ErrorMessage, NlasIterator, parse_string},
    sys::AsyncSocket as _,
};
use tokio::{runtime, task::AbortHandle};

use crate::netns::{Netns, NetnsError};

/// Octets of `struct nlmsghdr`.
const NLMSGHDR: usize = 16;
/// `NLMSGERR_ATTR_MSG` in `linux/netlink.h`.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(std::io::Error),
    /// The kernel refused.
    #[error("{error}{}", words.as_ref().map(|w| format!(" ({w})")).unwrap_or_default())]
    Kernel {
        /// Its error number.
        error: std::io::Error,
        /// Its own words, where it has any.
        words: Option<String>,
    },
    /// No device of that name.
    #[error("no device `{0}` in that namespace")]
    NoDevice(String),
    /// The answer is not what was asked for.
    #[error("netlink: {0}")]
    Protocol(String),
}

impl NetlinkError {
    /// Whether the kernel says that what was to be deleted is not there.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::NoDevice(_) => true,
            // ESRCH: no such route; ENOENT: no such rule; ENODEV: no such device; EADDRNOTAVAIL: no such address.
            Self::Kernel { error, .. } => {
                use nix::errno::Errno;
                let code = error.raw_os_error().map(Errno::from_raw);
                matches!(code, Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL))
            }
            _ => false,
        }
    }
}

impl From<rtnetlink::Error> for NetlinkError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                Self::Kernel { error: message.to_io(), words: kernel_words(&message) }
            }
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// The text of an extended acknowledgement: with `NETLINK_CAP_ACK` the attributes follow the request's header.
fn kernel_words(message: &ErrorMessage) -> Option<String> {
    let attributes = message.header.get(NLMSGHDR..)?;
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|nla| parse_string(nla.value()).ok())
}

/// A netlink socket inside one network namespace.
#[derive(Debug)]
pub struct Client {
    netns: Arc<Netns>,
    handle: Handle,
    connection: AbortHandle,
}

impl Client {
    /// Opens one there.
    pub fn connect(netns: Arc<Netns>) -> Result<Self, NetlinkError> {
        let runtime = runtime::Handle::current();
        let opened = netns.run(|| {
            let _inside = runtime.enter();
            // Strict: the kernel filters dumps by protocol, so that a table full of foreign routes costs nothing.
            let (mut connection, handle, _) = new_connection_with_strict_check()?;
            let socket = connection.socket_mut().socket_mut();
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok((connection, handle))
        })?;
        let (connection, handle) = opened.map_err(NetlinkError::Socket)?;
        let connection = runtime.spawn(connection).abort_handle();
        Ok(Self { netns, handle, connection })
    }

    /// What tells whether the socket still works: its task ends with it.
    pub fn connection(&self) -> AbortHandle {
        self.connection.clone()
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
