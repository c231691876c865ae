//! Counts what arrives: packet sockets inside of namespaces see every packet that comes in by any interface, before any
//! rule of the kernel can drop it. So nothing that is counted nowhere can have arrived.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use tokio::{io::Interest, net, task::JoinSet};

use super::{
    netns,
    packet::{self, Packet},
};

/// Octets that a socket may hold back: thousands of packets, for a machine that is too busy to read for a while.
const BUFFER: usize = 8 * 1024 * 1024;

/// `PACKET_OUTGOING` of `packet(7)`: a copy of what the namespace itself sends.
const OUTGOING: u8 = 4;

/// Octets of a packet that are read: an IPv4 header with options and a TCP header.
const READ: usize = 128;

/// What is done with each packet of a namespace.
type Each = dyn Fn(&str, &Packet) + Send + Sync;

struct Place {
    netns: String,
    /// A packet socket. The runtime has no type for it; that of UDP waits for it just as well.
    socket: net::UdpSocket,
    /// Held while packets are taken and told, so that whoever has it next knows that all were told.
    telling: Mutex<()>,
}

/// A running capture. It ends when it is dropped.
pub struct Capture {
    places: Vec<Arc<Place>>,
    each: Arc<Each>,
    _tasks: JoinSet<()>,
}

impl Capture {
    /// Captures in these namespaces and tells `each` of every request and answer that comes in.
    pub async fn start(namespaces: BTreeSet<String>, each: Arc<Each>) -> Result<Self> {
        let places = try_join_all(namespaces.into_iter().map(open)).await?;
        let mut tasks = JoinSet::new();
        for place in &places {
            tasks.spawn(follow(Arc::clone(place), Arc::clone(&each)));
        }
        Ok(Self { places, each, _tasks: tasks })
    }

    /// Tells of all that has come in until now.
    pub fn catch_up(&self) {
        for place in &self.places {
            place.take(&*self.each, || place.receive());
        }
    }
}

async fn open(netns: String) -> Result<Arc<Place>> {
    let fd = netns::within(Some(&netns), || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
            .context("a packet socket")?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).context("room for packets")?;
        Ok(std::net::UdpSocket::from(fd))
    })
    .await?;
    let socket = net::UdpSocket::from_std(fd).context("a packet socket for the runtime")?;
    Ok(Arc::new(Place { netns, socket, telling: Mutex::default() }))
}

async fn follow(place: Arc<Place>, each: Arc<Each>) {
    while place.socket.readable().await.is_ok() {
        place.take(&*each, || place.socket.try_io(Interest::READABLE, || place.receive()));
    }
}

impl Place {
    /// Tells of all packets until `receive` has none.
    fn take(&self, each: &Each, receive: impl Fn() -> io::Result<Option<Packet>>) {
        let _telling = self.telling.lock().expect("telling of packets does not panic");
        while let Ok(packet) = receive() {
            if let Some(packet) = packet {
                each(&self.netns, &packet);
            }
        }
    }

    /// The next packet; `None` for one that does not count.
    fn receive(&self) -> io::Result<Option<Packet>> {
        let mut octets = [0; READ];
        let (length, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut octets)?;
        let sent = from.is_some_and(|from| from.pkttype() == OUTGOING);
        Ok(if sent { None } else { packet::read(&octets[..length.min(READ)]) })
    }
}

/// The next number by which a request is told from all others, whatever its source address became on its way: ICMP's
/// identifier or the client's port. Below the ports that the kernel chooses itself.
pub fn next_id() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Other processes of this machine may count too: they begin elsewhere.
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or(0);
    FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT
}
