//! The one word that says why an object is not honoured, as it stands in conditions, pool statuses and Events.

/// A pool's annotation, or a Tenant's spec, holds no VNI.
pub const INVALID_VNI: &str = "InvalidVNI";
/// A pool names a Tenant that there is not.
pub const TENANT_NOT_FOUND: &str = "TenantNotFound";
/// A pool's two annotations disagree, or the name its VNI would get belongs to a Tenant with another one.
pub const TENANT_MISMATCH: &str = "TenantMismatch";
/// A pool's Tenant is being deleted.
pub const TENANT_TERMINATING: &str = "TenantTerminating";
/// A pool's Tenant is not accepted.
pub const TENANT_NOT_ACCEPTED: &str = "TenantNotAccepted";
/// A prefix that is none, or not one that can be used there.
pub const INVALID_CIDR: &str = "InvalidCIDR";
/// A pool's block size does not fit its prefix, or Calico's limits.
pub const INVALID_BLOCK_SIZE: &str = "InvalidBlockSize";
/// A tenant's pool must not be encapsulated by Calico.
pub const ENCAPSULATED: &str = "Encapsulated";
/// A tenant's pool must not be masqueraded.
pub const NAT_OUTGOING: &str = "NatOutgoing";
/// A pool overlaps what was there before.
pub const POOL_OVERLAP: &str = "PoolOverlap";
/// Services were given addresses of a tenant's pool that was there before.
pub const SERVICES_OVERLAP: &str = "ServicesOverlap";

/// A pool's annotation, or the pool itself, was taken away while pods live in it: it keeps its VRF until they are gone.
pub const LEAVING: &str = "Leaving";

/// A name that cannot be a tenant's.
pub const INVALID_NAME: &str = "InvalidName";
/// Another Tenant has the VNI.
pub const VNI_CONFLICT: &str = "VNIConflict";
/// A route target that is none.
pub const INVALID_ROUTE_TARGET: &str = "InvalidRouteTarget";
/// A label selector that is none.
pub const INVALID_SELECTOR: &str = "InvalidSelector";
/// A prefix of the shared services that is none.
pub const INVALID_SHARED_CIDR: &str = "InvalidSharedCIDR";
/// A shared service's name that is none.
pub const INVALID_SERVICE: &str = "InvalidService";
/// A limit of zero.
pub const INVALID_MAX_PREFIXES: &str = "InvalidMaxPrefixes";
/// No VNI is given, and none could be allocated.
pub const NO_VNI: &str = "NoVNI";
/// All link addresses are in use.
pub const NO_LINK: &str = "NoLink";

/// An Underlay's ASN is Calico's own, or the nodes'.
pub const ASN_CONFLICT: &str = "ASNConflict";
/// An ASN that is none, or that Calico's BGPPeer cannot hold.
pub const INVALID_ASN: &str = "InvalidASN";
/// Prefixes of an Underlay overlap each other, or another Underlay's.
pub const OVERLAPPING_CIDRS: &str = "OverlappingCIDRs";
/// An Underlay's host link prefixes differ from those of the first one.
pub const DIFFERENT_HOST_LINKS: &str = "DifferentHostLinks";
/// Tunnel end points of IPv6 are not supported yet.
pub const IPV6_VTEP: &str = "IPv6VTEP";
/// A neighbour that cannot be peered with.
pub const INVALID_NEIGHBOR: &str = "InvalidNeighbor";
/// There is no Secret of a neighbour's password, or it has no key `password`.
pub const PASSWORD_NOT_FOUND: &str = "PasswordNotFound";
/// A password that FRR or the kernel cannot take.
pub const INVALID_PASSWORD: &str = "InvalidPassword";
/// An interface that there cannot be.
pub const INVALID_INTERFACE: &str = "InvalidInterface";
/// An MTU that is out of bounds.
pub const INVALID_MTU: &str = "InvalidMTU";
/// A range of VNIs that is empty or out of bounds.
pub const INVALID_VNI_RANGE: &str = "InvalidVNIRange";

/// Calico's eBPF data plane is on: packets would go past the policy rules and the guard.
pub const EBPF_DATA_PLANE: &str = "EBPFDataPlane";
/// Felix takes routing tables for itself that are tenants'.
pub const ROUTE_TABLES_OVERLAP: &str = "RouteTablesOverlap";
/// Felix keeps to its own routing tables.
pub const ROUTE_TABLES_FREE: &str = "RouteTablesFree";
/// The data plane is one of those that this works with.
pub const SUPPORTED: &str = "Supported";
/// Routers tell of something on their nodes.
pub const NODE_NOTICES: &str = "NodeNotices";

/// Several Underlays select a Node.
pub const UNDERLAY_AMBIGUOUS: &str = "UnderlayAmbiguous";
/// All router indexes of an Underlay are in use.
pub const NO_ROUTER_INDEX: &str = "NoRouterIndex";

/// Namespaces get their pods' addresses from the tenant's pools by Calico's annotations.
pub const ANNOTATED: &str = "Annotated";
/// Calico chooses the tenant's pools by their own `spec.namespaceSelector`.
pub const CHOSEN_BY_CALICO: &str = "ChosenByCalico";
/// No Namespace is selected.
pub const NO_NAMESPACES: &str = "NoNamespaces";
/// A Namespace's annotation of Calico's is somebody else's.
pub const NAMESPACE_CONFLICT: &str = "NamespaceConflict";
/// An older Tenant selects the Namespace too.
pub const NAMESPACE_TAKEN: &str = "NamespaceTaken";
/// The tenant has pools of one family, and the cluster gives pods addresses of both.
pub const FAMILY_CLOSED: &str = "FamilyClosed";

/// All shared services have endpoints.
pub const REACHABLE: &str = "Reachable";
/// A shared service has no endpoint.
pub const NO_ENDPOINTS: &str = "NoEndpoints";
/// A shared service has endpoints in some tenant's pool.
pub const ENDPOINT_IN_TENANT: &str = "EndpointInTenant";

/// A change is on its way to the nodes, a few at a time.
pub const ROLLING_OUT: &str = "RollingOut";
/// Nodes refuse a change, so it goes to no others.
pub const ROLL_OUT_STOPPED: &str = "RollOutStopped";
/// All nodes that can be reached have what is wanted.
pub const ROLLED_OUT: &str = "RolledOut";

/// Agents are of another version than the controller.
pub const VERSION_SKEW: &str = "VersionSkew";
/// All agents that are connected are of the controller's version.
pub const VERSIONS_AGREE: &str = "VersionsAgree";

/// A condition that holds.
pub const ACCEPTED: &str = "Accepted";
/// Everything wanted stands.
pub const PROGRAMMED: &str = "Programmed";
/// It is on the way.
pub const PENDING: &str = "Pending";
/// The object itself is not accepted.
pub const NOT_ACCEPTED: &str = "NotAccepted";
/// The object is being deleted.
pub const TERMINATING: &str = "Terminating";
/// No Underlay is accepted.
pub const NO_UNDERLAY: &str = "NoUnderlay";
/// No pool of the tenant is accepted.
pub const NO_POOLS: &str = "NoPools";
/// No node is to carry it.
pub const NO_NODES: &str = "NoNodes";
/// Nothing is wrong.
pub const HEALTHY: &str = "Healthy";
/// Some node does not do what it should.
pub const NODES_DEGRADED: &str = "NodesDegraded";
/// Some pool is not accepted.
pub const POOLS_NOT_ACCEPTED: &str = "PoolsNotAccepted";
/// Calico's IPAM gives nodes addresses of their own blocks alone.
pub const STRICT: &str = "Strict";
/// Calico's IPAM lets nodes borrow addresses.
pub const NOT_STRICT: &str = "NotStrict";
