//! Bounds and defaults that a type and its checks both name.

/// Longest name of a Tenant: it is part of a Node label's name and of BIRD's symbols, which are shorter than Kubernetes' names.
pub const NAME_MAX: usize = 40;

/// Default of `hostLinkCIDR`: 8191 tenants.
pub const HOST_LINK_CIDR: &str = "169.254.192.0/18";
/// Default of `hostLinkCIDRv6`, a unique local prefix (RFC 4193).
pub const HOST_LINK_CIDR_V6: &str = "fd9c:76e1:1::/112";
