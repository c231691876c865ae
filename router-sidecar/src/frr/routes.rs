//! Reads the JSON in which bgpd shows the routes of a VRF. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;

/// A path to a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteState {
    /// Where to.
    pub prefix: IpNet,
    /// Where it leads. Of a route from the fabric, the VTEP of the other router.
    pub next_hop: Option<IpAddr>,
    /// From whom it was learned, in this VRF or, if it was imported, in the fabric; none is the router itself.
    pub peer: Option<IpAddr>,
    /// Whether it is the one that is used, or one of them.
    pub best: bool,
    /// ASNs on the way, the nearest first.
    pub path: String,
}

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    routes: BTreeMap<IpNet, Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    bestpath: bool,
    #[serde(default)]
    multipath: bool,
    #[serde(default)]
    peer_id: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    nexthops: Vec<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    ip: Option<IpAddr>,
    #[serde(default)]
    used: bool,
}

/// `show bgp vrf NAME ipv4 unicast json` of bgpd, or of IPv6, in the order of prefixes.
pub fn routes(json: &str) -> serde_json::Result<Vec<RouteState>> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let table: Table = serde_json::from_str(json)?;
    let of_prefix = |(prefix, entries): (IpNet, Vec<Entry>)| {
        entries.into_iter().map(move |entry| RouteState {
            prefix,
            // An IPv6 route from an IPv4 VTEP has it as ::ffff:10.255.0.2.
            next_hop: entry
                .nexthops
                .iter()
                .find(|hop| hop.used)
                .and_then(|hop| hop.ip)
                .map(|ip| ip.to_canonical()),
            peer: entry.peer_id.parse().ok(),
            best: entry.bestpath || entry.multipath,
            path: entry.path,
        })
    };
    Ok(table.routes.into_iter().flat_map(of_prefix).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As FRR 8.4.4 printed it, but for what is not read.
    const IPV4: &str = r#"{ "vrfId": 2, "vrfName": "vrf1001", "routerId": "10.255.0.1", "localAS": 65001,
        "routes": { "10.200.0.0/26": [{"valid":true,"bestpath":true,"pathFrom":"external","peerId":"169.254.192.2",
            "path":"64512","origin":"IGP","nexthops":[{"ip":"169.254.192.2","afi":"ipv4","used":true}]}]
        ,"10.200.0.64/26": [{"valid":true,"peerId":"192.0.2.3","path":"65100 65101 65001 64512","nexthops":[{"ip":"10.255.0.2","used":true}]},
            {"valid":true,"bestpath":true,"peerId":"192.0.2.1","path":"65100 65001 64512","origin":"IGP",
            "announceNexthopSelf":true,"nexthops":[{"ip":"10.255.0.2","hostname":"leaf","afi":"ipv4","used":true}]}]
        } }"#;
    const IPV6: &str = r#"{ "routes": { "fd00:200::40/122": [{"bestpath":true,"peerId":"192.0.2.1","path":"65100 65001 64512",
        "nexthops":[{"ip":"::ffff:aff:2","afi":"ipv6","scope":"global","used":true}]}]
        ,"fd00:200::80/122": [{"peerId":"(unspec)","path":"","nexthops":[]}] } }"#;

    #[test]
    fn paths_are_told_with_whom_they_are_from() {
        let brief = |json| -> Vec<String> {
            let address = |ip: Option<IpAddr>| ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
            let line = |r: RouteState| {
                let (hop, peer) = (address(r.next_hop), address(r.peer));
                format!("{}{} via {hop} of {peer} [{}]", if r.best { "*" } else { "" }, r.prefix, r.path)
            };
            routes(json).unwrap().into_iter().map(line).collect()
        };
        assert_eq!(
            brief(IPV4),
            [
                "*10.200.0.0/26 via 169.254.192.2 of 169.254.192.2 [64512]",
                "10.200.0.64/26 via 10.255.0.2 of 192.0.2.3 [65100 65101 65001 64512]",
                "*10.200.0.64/26 via 10.255.0.2 of 192.0.2.1 [65100 65001 64512]",
            ]
        );
        assert_eq!(
            brief(IPV6),
            [
                "*fd00:200::40/122 via 10.255.0.2 of 192.0.2.1 [65100 65001 64512]",
                "fd00:200::80/122 via - of - []",
            ]
        );
        assert!(brief("\n").is_empty());
        assert!(brief(r#"{"warning":"View/Vrf is unknown"}"#).is_empty());
    }
}
