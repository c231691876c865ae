//! The API of calico-vni, and the fields of Calico's kinds that it uses.
//!
//! - [`tenant`], [`underlay`]: `calico-vni.io/v1alpha1`.
//! - [`calico`]: IPPool, BGPPeer, BGPFilter and others, in whichever group the cluster serves them.
//! - [`checks`]: what the API server checks of one object.
//! - [`generate`]: the CustomResourceDefinitions as YAML, checked in below `crds/generated/`.
//! - [`keys`]: the annotations and labels; [`limits`]: bounds and defaults.
//! - [`reference`](mod@reference): all of it in words, `docs/api.md`.
//!
//! Types only: nothing here talks to an API server.

pub mod calico;
pub mod checks;
pub mod generate;
pub mod keys;
pub mod limits;
pub mod reference;
pub mod tenant;
pub mod underlay;

pub use tenant::{Tenant, TenantSpec, TenantStatus};
pub use underlay::{Underlay, UnderlaySpec, UnderlayStatus};
