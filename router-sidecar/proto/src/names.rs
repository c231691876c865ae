//! What follows from a VNI or a link index alone, so that nobody has to allocate or remember it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Largest VNI: 24 bits, and zero is not used (RFC 7348 section 5).
pub const VNI_MAX: u32 = 16_777_215;

/// Added to a VNI to make a routing table id. Above every table that a distribution, Calico (`RouteTableRanges`,
/// 1-250) or the kernel (253-255) uses, and below 2^32.
pub const TABLE_BASE: u32 = 1_000_000_000;

/// Routing protocol and rule protocol number that marks what is ours (`rtm_protocol`, unassigned in
/// `/etc/iproute2/rt_protos`).
pub const PROTOCOL: u8 = 118;

/// Bit of a packet's mark by which the guard tells the host's policy rules that it stands and will judge the packet. Calico
/// uses the upper 16 bits (`IptablesMarkMask`), kube-proxy 0x4000 and 0x8000, the CNI plugin portmap 0x2000.
pub const GUARD_MARK: u32 = 0x0800;

/// UDP port of VXLAN (RFC 7348 section 5).
pub const VXLAN_PORT: u16 = 4789;

/// Routing table of a tenant: of the policy rules in the host, and of the VRF in the router.
pub const fn table(vni: u32) -> u32 {
    TABLE_BASE + vni
}

/// VRF device in the router's namespace.
pub fn vrf(vni: u32) -> String {
    format!("vrf{vni}")
}

/// Bridge that joins VRF and VXLAN device (the L3VNI's SVI).
pub fn bridge(vni: u32) -> String {
    format!("br{vni}")
}

/// VXLAN device.
pub fn vxlan(vni: u32) -> String {
    format!("vx{vni}")
}

/// Router's end of the link between host and VRF.
pub fn router_link(vni: u32) -> String {
    format!("h{vni}")
}

/// Host's end of that link. Not `cali*`, which Calico would take for a pod's.
pub fn host_link(vni: u32) -> String {
    format!("cv{vni}")
}

/// Whether the kernel takes it for a device's name (`dev_valid_name`) and it is one word in a path and in a ruleset.
pub fn is_device(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"/:\"\\".contains(c);
    // IFNAMSIZ is 16 with the terminating zero.
    (1..16).contains(&name.len()) && name != "." && name != ".." && name.chars().all(plain)
}

/// The VNI in a name made by one of the functions above, with the prefix that was asked for.
pub fn vni_of(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let vni = digits.parse().ok()?;
    (!digits.starts_with('0') && (1..=VNI_MAX).contains(&vni)).then_some(vni)
}

/// How many links fit: two addresses each, and index 0 is not used (a route distinguisher's number is 1 and up).
pub fn link_capacity_v4(cidr: Ipv4Net) -> u32 {
    let links = (1u64 << (32 - cidr.prefix_len())) / 2;
    u32::try_from(links - 1).unwrap_or(u32::MAX)
}

/// Host's address on the IPv4 /31 of a link (RFC 3021); the router's is the next one.
pub fn host_v4(cidr: Ipv4Net, index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 2 * index)
}

/// Host's address on the IPv6 /127 of a link (RFC 6164); the router's is the next one.
pub fn host_v6(cidr: Ipv6Net, index: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(cidr.network()) + 2 * u128::from(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_read_back() {
        // IFNAMSIZ is 16 with the terminating zero.
        for (name, prefix) in [
            (vrf(VNI_MAX), "vrf"),
            (bridge(VNI_MAX), "br"),
            (vxlan(VNI_MAX), "vx"),
            (host_link(VNI_MAX), "cv"),
            (router_link(VNI_MAX), "h"),
        ] {
            assert!(name.len() < 16, "{name}");
            assert_eq!(vni_of(&name, prefix), Some(VNI_MAX));
        }
        for foreign in ["vrf", "vrf0", "vrf01", "vrfred", "vrf16777216", "xvrf1"] {
            assert_eq!(vni_of(foreign, "vrf"), None, "{foreign}");
        }
    }

    #[test]
    fn links_are_pairs_and_stay_inside() {
        let cidr: Ipv4Net = "169.254.192.0/18".parse().unwrap();
        assert_eq!(link_capacity_v4(cidr), 8191);
        assert_eq!(host_v4(cidr, 1), Ipv4Addr::new(169, 254, 192, 2));
        assert!(cidr.contains(&Ipv4Addr::from(u32::from(host_v4(cidr, 8191)) + 1)));
        assert_eq!(host_v6("fd00::/112".parse().unwrap(), 3), "fd00::6".parse::<Ipv6Addr>().unwrap());
    }
}
