//! Tells that something changed in a network namespace; what it was is found out by reading everything again.

use calico_vni_proto::names;
use futures::StreamExt as _;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, route::RouteProtocol},
};
use tokio::{runtime, sync::mpsc};

use super::NetlinkError;
use crate::netns::Netns;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Sends a word into `changed` for every message that can concern us, until the receiver is gone. A full channel
/// already says what there is to say.
pub fn follow(netns: &Netns, changed: mpsc::Sender<()>) -> Result<(), NetlinkError> {
    let runtime = runtime::Handle::current();
    let opened = netns.run(|| {
        let _inside = runtime.enter();
        new_multicast_connection(&GROUPS)
    })?;
    let (connection, _, mut messages) = opened.map_err(NetlinkError::Socket)?;
    runtime.spawn(async move {
        // The connection ends with its task, and the task with the receiver.
        tokio::pin!(connection);
        loop {
            tokio::select! {
                () = &mut connection => break,
                () = changed.closed() => break,
                message = messages.next() => match message {
                    Some((message, _)) if concerns_us(&message.payload) => drop(changed.try_send(())),
                    Some(_) => {}
                    None => break,
                },
            }
        }
    });
    Ok(())
}

/// Routes of other protocols are FRR's and Calico's business and come by the thousand; of everything else we cannot
/// tell before reading.
fn concerns_us(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => route.header.protocol == RouteProtocol::from(names::PROTOCOL),
        _ => true,
    }
}
