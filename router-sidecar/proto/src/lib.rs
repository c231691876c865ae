//! The contract between the controller and the router sidecar of a node, and that between the controller and people's tools.
//!
//! - [`model`]: the typed configuration that both sides reason about; it cannot hold what makes no sense.
//! - [`names`]: everything that is derived from a VNI or a link index: device names, table ids, link addresses.
//! - [`wire`]: the generated messages and, with feature `grpc`, the services.
//! - [`codec`]: model to bytes and back, and the digest that names those bytes.
//!
//! Nothing here does I/O.

pub mod codec;
pub mod model;
pub mod names;

/// Octets of what an agent lists in one answer; what is beyond them is counted. Some two thousand routes.
pub const ANSWER_MAX: usize = 256 << 10;

/// Whose tokens open the service for people.
pub mod viewer {
    /// Service account, in the namespace of the controller. Whoever may create a token of it may look.
    pub const ACCOUNT: &str = "calico-vni-viewer";
    /// Audience that its token has to be made for: agents' tokens are not for it, and it is not for what agents open.
    pub const AUDIENCE: &str = "calico-vni-operator";
}

/// Generated from `router.proto` and `operator.proto` below `proto/calico_vni/router/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/calico_vni.router.v1.rs"));

    impl std::fmt::Debug for Password {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(crate::model::REDACTED)
        }
    }

    impl std::fmt::Debug for Payload {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let digest = crate::codec::Digest::from_wire(&self.digest);
            f.debug_struct("Payload").field("digest", &digest).field("octets", &self.body.len()).finish()
        }
    }
}
