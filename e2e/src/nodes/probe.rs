//! Probes without processes: the sockets are made inside the namespaces, and one runtime waits for all of them at once.
//!
//! ICMP goes through the kernel's ping sockets (`icmp(7)`, `net.ipv4.ping_group_range`), which match replies to requests
//! and need no header of ours beyond type, code and sequence number. Every probe has a number of its own, by which its
//! requests are known where they arrive.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};
use tokio::{
    net,
    time::{sleep, timeout},
};

use super::{
    capture::{Capture, next_id},
    netns,
    packet::Kind,
    protocol::{Probe, Probed},
};

/// Between two echo requests to one target.
const INTERVAL: Duration = Duration::from_millis(250);

/// Echo request of ICMP (RFC 792) and of ICMPv6 (RFC 4443).
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

enum Socket {
    Echo(UdpSocket),
    Tcp(TcpStream),
}

/// Numbers that are tried until one is free.
const TRIES: usize = 100;

/// Requests that arrived, by namespace and number.
type Arrived = HashMap<(String, u16), u64>;

/// Tries everything at once; the answers are in the order of the probes.
pub async fn probe(probes: Vec<Probe>) -> Result<Vec<Probed>> {
    let arrived = Arc::new(Mutex::new(Arrived::new()));
    let count = Arc::clone(&arrived);
    let namespaces = probes.iter().filter_map(|probe| probe.count_in.clone()).collect();
    let each = move |netns: &str, packet: &super::packet::Packet| {
        if matches!(packet.kind, Kind::EchoRequest | Kind::Syn) {
            let mut count = count.lock().expect("counting does not panic");
            *count.entry((netns.to_owned(), packet.id)).or_default() += 1;
        }
    };
    let capture = Capture::start(namespaces, Arc::new(each)).await?;
    let mut by_netns: BTreeMap<String, Vec<(usize, Probe)>> = BTreeMap::new();
    for (number, probe) in probes.into_iter().enumerate() {
        by_netns.entry(probe.netns.clone()).or_default().push((number, probe));
    }
    let groups = join_all(by_netns.into_iter().map(|(netns, probes)| group(netns, probes))).await;
    let mut all = Vec::new();
    for group in groups {
        all.extend(group?);
    }
    capture.catch_up();
    let mut arrived = std::mem::take(&mut *arrived.lock().expect("counting does not panic"));
    all.sort_by_key(|(number, ..)| *number);
    let counted = all.into_iter().map(|(_, count_in, id, probed)| Probed {
        arrived: count_in.map(|netns| arrived.remove(&(netns, id)).unwrap_or(0)),
        ..probed
    });
    Ok(counted.collect())
}

/// Number of a probe, where it is counted, its number in packets (0 without a socket), what came of it.
type Tried = (usize, Option<String>, u16, Probed);

async fn group(netns: String, probes: Vec<(usize, Probe)>) -> Result<Vec<Tried>> {
    let opened = netns::within(Some(&netns), move || {
        // Ping sockets are for the groups in this range; a namespace starts with an empty one.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").context("allow ping sockets")?;
        Ok(probes.into_iter().map(|(number, probe)| (number, open(&probe), probe)).collect::<Vec<_>>())
    })
    .await?;
    let tries = opened.into_iter().map(|(number, opened, probe)| async move {
        let (id, socket) = match opened {
            Ok((id, socket)) => (id, Ok(socket)),
            Err(error) => (0, Err(error)),
        };
        let limit = Duration::from_millis(probe.timeout_ms);
        let attempt = async {
            match socket? {
                Socket::Echo(socket) => echo(socket, &probe).await,
                Socket::Tcp(socket) => connect(socket, &probe).await,
            }
        };
        let result = match timeout(limit, attempt).await {
            Ok(Ok(time)) => Probed {
                answered_us: Some(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                ..Probed::default()
            },
            Ok(Err(error)) => Probed { error: format!("{error:#}"), ..Probed::default() },
            Err(_) => Probed::default(),
        };
        (number, probe.count_in, id, result)
    });
    Ok(join_all(tries).await)
}

/// Makes the socket in the namespace of the current thread, and says by which number its packets are known.
fn open(probe: &Probe) -> Result<(u16, Socket)> {
    let family = if probe.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    if probe.port.is_some() {
        let fd = socket(family, SockType::Stream, flags, None).context("a TCP socket")?;
        // Connections of earlier probes may linger in TIME-WAIT; their other ends were elsewhere.
        setsockopt(&fd, sockopt::ReuseAddr, &true).context("share a port")?;
        let id = bind_number(&fd, probe)?;
        return Ok((id, Socket::Tcp(TcpStream::from(fd))));
    }
    let protocol = if probe.target.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = socket(family, SockType::Datagram, flags, protocol).context("a ping socket")?;
    let id = bind_number(&fd, probe)?;
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::new(probe.target, 0)).context("connect")?;
    Ok((id, Socket::Echo(socket)))
}

/// Binds to the probe's source, or to none, and to a number that nobody has.
fn bind_number(socket: &OwnedFd, probe: &Probe) -> Result<u16> {
    let any: IpAddr =
        if probe.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    for _ in 0..TRIES {
        let id = next_id();
        let source: SockaddrStorage = SocketAddr::new(probe.source.unwrap_or(any), id).into();
        match bind(socket.as_raw_fd(), &source) {
            Err(Errno::EADDRINUSE) => {}
            bound => return bound.map(|()| id).context("bind to the source"),
        }
    }
    anyhow::bail!("bind to the source: {TRIES} numbers in a row were in use")
}

async fn echo(socket: UdpSocket, probe: &Probe) -> Result<Duration> {
    let socket = net::UdpSocket::from_std(socket).context("a ping socket for the runtime")?;
    let kind = if probe.target.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
    let started = Instant::now();
    let mut refused = None;
    for sequence in 1..=probe.count {
        let [high, low] = sequence.to_be_bytes();
        // Type, code, checksum (the kernel's work), identifier (the kernel's choice), sequence number.
        match socket.send(&[kind, 0, 0, 0, 0, 0, high, low]).await {
            Ok(_) => refused = None,
            Err(error) => refused = Some(error),
        }
        let mut reply = [0; 64];
        // The last request gets what is left of the probe's own time.
        let pause = if sequence < probe.count { INTERVAL } else { Duration::MAX };
        match timeout(pause.min(Duration::from_millis(probe.timeout_ms)), socket.recv(&mut reply)).await {
            Ok(Ok(_)) => return Ok(started.elapsed()),
            Ok(Err(error)) => {
                refused = Some(error);
                sleep(INTERVAL).await;
            }
            Err(_) => {}
        }
    }
    match refused {
        Some(error) => Err(error).context("send or receive"),
        None => std::future::pending().await,
    }
}

async fn connect(socket: TcpStream, probe: &Probe) -> Result<Duration> {
    let started = Instant::now();
    let socket = net::TcpSocket::from_std_stream(socket);
    let target = SocketAddr::new(probe.target, probe.port.unwrap_or_default());
    let stream = socket.connect(target).await.context("connect")?;
    // What cannot carry an octet is no connection: the greeting of the other side is the answer.
    let mut octet = [0];
    loop {
        stream.readable().await.context("read")?;
        match stream.try_read(&mut octet) {
            Ok(1) => return Ok(started.elapsed()),
            Ok(_) => anyhow::bail!("closed without an answer"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("read"),
        }
    }
}
