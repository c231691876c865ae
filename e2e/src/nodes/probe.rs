//! Probes without processes: the sockets are made inside the namespaces, and one runtime waits for all of them at once.
//!
//! ICMP goes through the kernel's ping sockets (`icmp(7)`, `net.ipv4.ping_group_range`), which match replies to requests
//! and need no header of ours beyond type, code and sequence number.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket};
use tokio::{
    net,
    time::{sleep, timeout},
};

use super::{
    netns,
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

/// Tries everything at once; the answers are in the order of the probes.
pub async fn probe(probes: Vec<Probe>) -> Result<Vec<Probed>> {
    let mut by_netns: BTreeMap<String, Vec<(usize, Probe)>> = BTreeMap::new();
    for (number, probe) in probes.into_iter().enumerate() {
        by_netns.entry(probe.netns.clone()).or_default().push((number, probe));
    }
    let groups = join_all(by_netns.into_iter().map(|(netns, probes)| group(netns, probes))).await;
    let mut all = Vec::new();
    for group in groups {
        all.extend(group?);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, probed)| probed).collect())
}

async fn group(netns: String, probes: Vec<(usize, Probe)>) -> Result<Vec<(usize, Probed)>> {
    let opened = netns::within(Some(&netns), move || {
        // Ping sockets are for the groups in this range; a namespace starts with an empty one.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").context("allow ping sockets")?;
        Ok(probes.into_iter().map(|(number, probe)| (number, open(&probe), probe)).collect::<Vec<_>>())
    })
    .await?;
    let tries = opened.into_iter().map(|(number, socket, probe)| async move {
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
                error: String::new(),
            },
            Ok(Err(error)) => Probed { answered_us: None, error: format!("{error:#}") },
            Err(_) => Probed { answered_us: None, error: String::new() },
        };
        (number, result)
    });
    Ok(join_all(tries).await)
}

/// Makes the socket in the namespace of the current thread.
fn open(probe: &Probe) -> Result<Socket> {
    let family = if probe.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    if probe.port.is_some() {
        let fd = socket(family, SockType::Stream, flags, None).context("a TCP socket")?;
        return Ok(Socket::Tcp(TcpStream::from(fd)));
    }
    let protocol = if probe.target.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = socket(family, SockType::Datagram, flags, protocol).context("a ping socket")?;
    let socket = UdpSocket::from(fd);
    if let Some(source) = probe.source {
        let source: SockaddrStorage = SocketAddr::new(source, 0).into();
        bind(socket.as_raw_fd(), &source).context("bind to the source")?;
    }
    socket.connect(SocketAddr::new(probe.target, 0)).context("connect")?;
    Ok(Socket::Echo(socket))
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
    if let Some(source) = probe.source {
        socket.bind(SocketAddr::new(source, 0)).context("bind to the source")?;
    }
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
