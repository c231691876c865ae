//! Packets with anybody's source address, also inside of VXLAN, sent once and counted where they may arrive or must not.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use tokio::time::{Instant, sleep};

use super::{
    capture::{Capture, next_id},
    netns,
    packet::{self, Kind, Packet},
    protocol::{Landed, Shot, Tunnel},
};

/// How long those that have to arrive may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// How long the others may still arrive when these have. All are sent before any is waited for.
const GRACE: Duration = Duration::from_millis(500);

/// UDP port of VXLAN (RFC 7348 section 4.1).
const VXLAN_PORT: u16 = 4789;

/// First octet of VXLAN's header: the VNI is valid (RFC 7348 section 5).
const VNI_VALID: u8 = 0x08;

/// Hardware address of the sender inside of the tunnel: one that is nobody's, locally administered.
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

/// Sends all, in their order, and tells what arrived of each.
pub async fn shoot(shots: Vec<Shot>) -> Result<Vec<Landed>> {
    let ids: Vec<u16> = shots.iter().map(|_| next_id()).collect();
    let counts = Arc::new(Mutex::new(HashMap::<(String, u16), u64>::new()));
    let told = Arc::clone(&counts);
    let each = move |netns: &str, packet: &Packet| {
        if matches!(packet.kind, Kind::EchoRequest | Kind::Syn) {
            *lock(&told).entry((netns.to_owned(), packet.id)).or_default() += 1;
        }
    };
    let capture =
        Capture::start(shots.iter().map(|shot| shot.count_in.clone()).collect(), Arc::new(each)).await?;
    let mut landed = Vec::new();
    for (shot, id) in shots.iter().zip(&ids) {
        let (shot, id) = (shot.clone(), *id);
        landed.push(netns::within(Some(&shot.netns.clone()), move || send(&shot, id)).await?);
    }
    let arrived =
        |shot: &Shot, id: u16| lock(&counts).get(&(shot.count_in.clone(), id)).copied().unwrap_or(0);
    let deadline = Instant::now() + LIMIT;
    loop {
        capture.catch_up();
        let waits = |(shot, id): (&Shot, &u16)| shot.reach && arrived(shot, *id) < u64::from(shot.count);
        if Instant::now() > deadline || !shots.iter().zip(&ids).any(waits) {
            break;
        }
        sleep(crate::wait::PAUSE).await;
    }
    sleep(GRACE).await;
    capture.catch_up();
    for ((shot, id), landed) in shots.iter().zip(&ids).zip(&mut landed) {
        landed.arrived = arrived(shot, *id);
    }
    Ok(landed)
}

fn lock(counts: &Mutex<HashMap<(String, u16), u64>>) -> MutexGuard<'_, HashMap<(String, u16), u64>> {
    counts.lock().expect("counting does not panic")
}

/// Sends one packet.
type Send = dyn Fn(&Packet) -> std::io::Result<usize>;

/// Sends a shot in the namespace of the current thread.
fn send(shot: &Shot, id: u16) -> Result<Landed> {
    let kind = if shot.port.is_some() { Kind::Syn } else { Kind::EchoRequest };
    let packet = |number| Packet {
        kind,
        source: shot.source,
        target: shot.target,
        id,
        port: shot.port.unwrap_or(0),
        number,
    };
    let by: Box<Send> = if let Some(tunnel) = shot.tunnel.clone() {
        let socket =
            UdpSocket::bind((tunnel.from, 0)).with_context(|| format!("speak as {}", tunnel.from))?;
        Box::new(move |packet| socket.send_to(&encapsulated(packet, &tunnel), (tunnel.to, VXLAN_PORT)))
    } else {
        let family = if shot.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
            .context("a raw socket")?;
        let to: SockaddrStorage = SocketAddr::new(shot.target, 0).into();
        Box::new(move |packet| Ok(sendto(raw.as_raw_fd(), &packet::build(packet), &to, MsgFlags::empty())?))
    };
    let mut landed = Landed::default();
    for number in 0..u32::from(shot.count) {
        match by(&packet(number)) {
            Ok(_) => landed.sent += 1,
            Err(error) => landed.error = error.to_string(),
        }
    }
    Ok(landed)
}

/// VXLAN's header, Ethernet's, and the packet.
fn encapsulated(packet: &Packet, tunnel: &Tunnel) -> Vec<u8> {
    let mut inner = packet::build(packet);
    let ethertype: [u8; 2] = if packet.target.is_ipv4() {
        // Nobody writes the checksum of an IPv4 header that is not at the front.
        let sum = packet::checksum(&inner[..20]);
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    let vni = tunnel.vni.to_be_bytes();
    let mut octets = vec![VNI_VALID, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    octets.extend(tunnel.router_mac);
    octets.extend(SENDER);
    octets.extend(ethertype);
    octets.extend(inner);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_packet_holds_the_vni_the_mac_and_a_whole_packet() {
        let tunnel = Tunnel {
            from: [192, 0, 2, 1].into(),
            to: [192, 0, 2, 2].into(),
            vni: 0x01_02_03,
            router_mac: [2, 0, 0, 0, 0, 1],
        };
        for (source, target, ethertype) in
            [("203.0.113.17", "10.200.0.1", [8, 0]), ("2001:db8::1", "fd00:200::1", [0x86, 0xdd])]
        {
            let packet = Packet {
                kind: Kind::Syn,
                source: source.parse().unwrap(),
                target: target.parse().unwrap(),
                id: 1,
                port: 8080,
                number: 2,
            };
            let octets = encapsulated(&packet, &tunnel);
            assert_eq!(octets[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
            assert_eq!((&octets[8..14], &octets[20..22]), (&tunnel.router_mac[..], &ethertype[..]));
            assert_eq!(packet::read(&octets[22..]), Some(packet));
            if packet.target.is_ipv4() {
                assert_eq!(packet::checksum(&octets[22..42]), 0);
            }
        }
    }
}
