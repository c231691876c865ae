//! Reads the JSON of FRR's shows: BGP sessions, L3VNIs and addresses. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;

/// A BGP session of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// The VRF; none is the fabric.
    pub vrf: Option<String>,
    /// The neighbour.
    pub peer: IpAddr,
    /// Its ASN.
    pub remote_asn: u32,
    /// Whether routes are exchanged.
    pub established: bool,
    /// FRR's word for the state, such as `Established`, `Active` or `Idle (PfxCt)`.
    pub state: String,
    /// Since it was established; zero when it is not.
    pub uptime: Duration,
    /// Prefixes accepted, all families together.
    pub prefixes_received: u32,
    /// Prefixes announced, all families together.
    pub prefixes_sent: u32,
    /// How often it was established since the daemon started.
    pub established_count: u32,
}

/// An L3VNI as zebra has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct L3Vni {
    /// The VRF that carries it.
    pub vrf: String,
    /// 1 to 16777215.
    pub vni: u32,
    /// `Up` when VXLAN device, bridge and VRF are there and up, else `Down`.
    pub state: String,
    /// MAC of the bridge, or `None`.
    #[serde(rename = "routerMac")]
    pub router_mac: String,
}

#[derive(Deserialize)]
struct L3Vnis {
    vrfs: Vec<L3Vni>,
}

#[derive(Deserialize)]
struct Summary {
    peers: BTreeMap<IpAddr, Peer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    remote_as: u32,
    state: String,
    #[serde(default, rename = "peerUptimeMsec")]
    uptime_msec: u64,
    #[serde(default)]
    pfx_rcd: u32,
    #[serde(default)]
    pfx_snt: u32,
    #[serde(default)]
    connections_established: u32,
}

/// `show vrf vni json` of zebra. With no VNI at all FRR prints nothing.
pub fn l3vnis(json: &str) -> serde_json::Result<Vec<L3Vni>> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_str::<L3Vnis>(json)?.vrfs)
}

/// `show interface vrf all brief json` of zebra: every address that it knows of, without those of a link alone.
pub fn addresses(json: &str) -> serde_json::Result<BTreeSet<IpNet>> {
    #[derive(Deserialize)]
    struct Interface {
        addresses: Vec<IpNet>,
    }
    let interfaces: BTreeMap<String, Interface> = serde_json::from_str(json)?;
    Ok(interfaces.into_values().flat_map(|interface| interface.addresses).collect())
}

/// `show bgp vrf all summary json` of bgpd, a session that carries several families once.
pub fn sessions(json: &str) -> serde_json::Result<Vec<SessionState>> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    // VRF to family to summary. FRR puts remarks beside the families, which are no objects with peers.
    let vrfs: BTreeMap<String, BTreeMap<String, serde_json::Value>> = serde_json::from_str(json)?;
    let mut found: BTreeMap<(Option<String>, IpAddr), SessionState> = BTreeMap::new();
    for (name, families) in vrfs {
        let vrf = (name != "default").then_some(name);
        for summary in families.into_values().filter(|f| f.get("peers").is_some()) {
            for (address, peer) in serde_json::from_value::<Summary>(summary)?.peers {
                let established = peer.state == "Established";
                let session = found.entry((vrf.clone(), address)).or_insert_with(|| SessionState {
                    vrf: vrf.clone(),
                    peer: address,
                    remote_asn: peer.remote_as,
                    established,
                    uptime: Duration::from_millis(if established { peer.uptime_msec } else { 0 }),
                    state: peer.state,
                    prefixes_received: 0,
                    prefixes_sent: 0,
                    established_count: peer.connections_established,
                });
                session.prefixes_received += peer.pfx_rcd;
                session.prefixes_sent += peer.pfx_snt;
            }
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_two_families_is_one() {
        let json = r#"{
            "default": {
                "ipv4Unicast": {"peers": {"192.0.2.1": {"remoteAs": 65100, "state": "Established",
                    "peerUptimeMsec": 61000, "pfxRcd": 3, "connectionsEstablished": 2}}},
                "l2VpnEvpn": {"peers": {"192.0.2.1": {"remoteAs": 65100, "state": "Established",
                    "peerUptimeMsec": 61000, "pfxRcd": 4, "connectionsEstablished": 2}}}
            },
            "vrf1001": {
                "ipv4Unicast": {"peers": {"169.254.192.2": {"remoteAs": 64512, "state": "Idle (PfxCt)",
                    "peerUptimeMsec": 5000, "pfxRcd": 0}}}
            },
            "vrf1002": {"warning": "no neighbour"}
        }"#;
        let sessions = sessions(json).unwrap();
        let brief: Vec<_> =
            sessions.iter().map(|s| (s.vrf.as_deref(), s.established, s.prefixes_received)).collect();
        assert_eq!(brief, [(None, true, 7), (Some("vrf1001"), false, 0)]);
        assert_eq!(sessions[0].uptime, Duration::from_secs(61));
        assert_eq!(sessions[1].uptime, Duration::ZERO);
        assert!(super::sessions("\n").unwrap().is_empty());
    }

    #[test]
    fn addresses_are_those_of_all_interfaces() {
        let json = r#"{"lo": {"status": "up", "vrfName": "default", "addresses": ["10.255.0.1/32"]},
            "h1001": {"status": "up", "vrfName": "vrf1001", "addresses": ["169.254.192.3/31", "fd00::3/127"]},
            "up0": {"status": "up", "vrfName": "default", "addresses": []}}"#;
        let addresses = addresses(json).unwrap();
        let brief: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(brief, ["10.255.0.1/32", "169.254.192.3/31", "fd00::3/127"]);
    }

    #[test]
    fn l3vnis_are_read_up_or_down() {
        let json = r#"{"vrfs": [{"vrf": "vrf1001", "vni": 1001, "vxlanIntf": "None", "sviIntf": "None",
            "state": "Down", "routerMac": "None"}]}"#;
        let l3vnis = l3vnis(json).unwrap();
        assert_eq!(
            (l3vnis[0].vni, l3vnis[0].vrf.as_str(), l3vnis[0].state.as_str()),
            (1001, "vrf1001", "Down")
        );
    }
}
