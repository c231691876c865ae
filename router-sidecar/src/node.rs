//! The node itself behind one trait: reading all that concerns us, and making one change.
//!
//! [`Node`] is the real one: netlink in both namespaces, switches, uplinks, and the guard. FRR is behind
//! [`crate::frr_port`].

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use calico_vni_proto::names;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, task::AbortHandle};
use tracing::{debug, warn};

use crate::{
    desired::{Desired, GuardWanted},
    files,
    guard::nft::{self, Listing, NftError},
    netlink::{Client, NetlinkError, generation::Generation, observe, write},
    netns::{Netns, NetnsError},
    observe::{GuardSeen, Observed, Uplinks},
    op::Op,
    rules::change::Step,
    state::{NetState, Space, Uplink},
    sysctl::{self, SysctlError},
    uplink::{RecordError, Records, before_the_move},
};

/// Why the node could not be read, or a change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A rule.
    #[error("{step}: {source}")]
    Rule {
        /// What was to be done.
        step: Box<Step>,
        /// Why it was not.
        source: NetlinkError,
    },
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A switch.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The guard.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The record of an uplink.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An uplink that is nowhere.
    #[error(
        "interface `{0}` of the underlay is in neither namespace; `ip link` in the host names those there are"
    )]
    NoUplink(String),
    /// An uplink whose record is gone.
    #[error("interface `{0}` has no record of how it was in the host's namespace")]
    NoRecord(String),
    /// A change that is not for the node.
    #[error("`{0}` is for FRR")]
    NotForNode(String),
    /// Something that only a test makes happen.
    #[cfg(test)]
    #[error("{0}")]
    Made(String),
}

/// What is read and changed.
pub trait Platform: Send + Sync {
    /// How the uplinks are, or were before they were moved.
    fn uplinks(&self, names: &[String]) -> impl Future<Output = Result<Uplinks, NodeError>> + Send;

    /// All that stands, as far as it concerns what is wanted. FRR's part is left empty.
    fn observe(&self, desired: &Desired) -> impl Future<Output = Result<Observed, NodeError>> + Send;

    /// Whether anybody has changed packet filters, the guard or others', since the guard was last looked at.
    fn filters_changed(&self) -> impl Future<Output = bool> + Send;

    /// Whether the guard is the one that is wanted.
    fn guard_stands(&self, desired: &Desired) -> impl Future<Output = Result<bool, NodeError>> + Send;

    /// Makes one change; not one of FRR's.
    fn apply(&self, op: &Op) -> impl Future<Output = Result<(), NodeError>> + Send;
}

/// The listings that a ruleset had in both namespaces right after it was loaded, kept over restarts of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Loaded {
    ruleset: String,
    listed: [String; 2],
}

/// The file in the state directory that keeps [`Loaded`].
pub const LOADED_FILE: &str = "guard.loaded";

fn loaded(listings: [&Listing; 2]) -> Loaded {
    Loaded { ruleset: listings[0].ruleset.clone(), listed: listings.map(|listing| listing.listed.clone()) }
}

/// The node that this process runs on.
#[derive(Debug)]
pub struct Node {
    host: Client,
    router: Client,
    records: Records,
    loaded_file: PathBuf,
    loaded: Mutex<Loaded>,
    /// Absent where the kernel does not tell; then the guard is listed every time.
    generations: Option<[Generation; 2]>,
    /// The generations in which the guard was last listed, and what was seen.
    listed_in: Mutex<Option<([u32; 2], GuardSeen)>>,
}

impl Node {
    /// Opens both namespaces.
    pub fn open(host: Arc<Netns>, router: Arc<Netns>, state_dir: &Path) -> Result<Self, NodeError> {
        let loaded_file = state_dir.join(LOADED_FILE);
        // No file, or one that is not understood: the guard is loaded once more, which harms nothing.
        let loaded = fs::read(&loaded_file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let open = |netns: &Netns| {
            let generation = Generation::open(netns)?;
            Ok::<_, NetnsError>(generation.inspect_err(|error| debug!(%error, "no generations")).ok())
        };
        let generations = open(&host)?.zip(open(&router)?).map(<[Generation; 2]>::from);
        Ok(Self {
            host: Client::connect(host)?,
            router: Client::connect(router)?,
            records: Records::new(state_dir),
            loaded_file,
            loaded: Mutex::new(loaded.unwrap_or_default()),
            generations,
            listed_in: Mutex::default(),
        })
    }

    /// The tasks of its netlink sockets. When one has ended, nothing can be read or changed any more.
    pub fn connections(&self) -> [AbortHandle; 2] {
        [self.host.connection(), self.router.connection()]
    }

    fn client(&self, space: Space) -> &Client {
        match space {
            Space::Host => &self.host,
            Space::Router => &self.router,
        }
    }

    /// Numbers that the kernel counts up with each change of packet filters.
    fn generation(&self) -> Option<[u32; 2]> {
        let [host, router] = self.generations.as_ref()?;
        Some([host.now().ok()?, router.now().ok()?])
    }

    async fn guard_seen(&self) -> Result<GuardSeen, NftError> {
        let mut listed_in = self.listed_in.lock().await;
        // Taken before the listing: a change while it is listed makes it stale, not fresh.
        let now = self.generation();
        if let (Some((then, seen)), Some(now)) = (listed_in.as_ref(), now)
            && *then == now
        {
            return Ok(seen.clone());
        }
        let tables = [nft::list(self.host.netns()).await?, nft::list(self.router.netns()).await?];
        let present = tables.iter().any(Option::is_some);
        let digest = match tables {
            [Some(host), Some(router)] => {
                let found = loaded([&host, &router]);
                (*self.loaded.lock().await == found).then_some(found.ruleset)
            }
            _ => None,
        };
        let seen = GuardSeen { present, digest };
        *listed_in = now.map(|generations| (generations, seen.clone()));
        Ok(seen)
    }

    async fn remember_loaded(&self, listings: &[Listing; 2]) {
        let loaded = loaded([&listings[0], &listings[1]]);
        match serde_json::to_vec(&loaded) {
            Ok(text) => {
                if let Err(error) = files::replace(&self.loaded_file, &text) {
                    warn!(%error, path = %self.loaded_file.display(), "the guard will be loaded anew after a restart");
                }
            }
            Err(error) => warn!(%error, "the guard will be loaded anew after a restart"),
        }
        *self.loaded.lock().await = loaded;
        *self.listed_in.lock().await = None;
    }

    async fn uplink_take(&self, name: &str) -> Result<(), NodeError> {
        let seen = observe::uplink(&self.host, name).await?;
        let seen = seen.ok_or_else(|| NodeError::NoUplink(name.to_owned()))?;
        let uplink = before_the_move(seen, self.records.of(name)?.as_ref());
        self.records.write(&uplink)?;
        Ok(write::link_move(&self.host, name, self.router.netns()).await?)
    }

    async fn uplink_return(&self, name: &str) -> Result<(), NodeError> {
        let uplink = self.records.of(name)?.ok_or_else(|| NodeError::NoRecord(name.to_owned()))?;
        if observe::uplink(&self.router, name).await?.is_some() {
            write::link_move(&self.router, name, self.host.netns()).await?;
        }
        if let Some(there) = observe::uplink(&self.host, name).await? {
            self.restore(&uplink, &there).await?;
        } else {
            warn!(uplink = name, "the interface is in neither namespace; its record is dropped");
        }
        Ok(self.records.remove(name)?)
    }

    /// Gives an interface that is back in the host's namespace what its record has and it has not.
    async fn restore(&self, uplink: &Uplink, there: &Uplink) -> Result<(), NetlinkError> {
        let change = crate::state::LinkChange {
            mtu: (uplink.mtu != there.mtu).then_some(uplink.mtu),
            up: (uplink.up != there.up).then_some(uplink.up),
            ..Default::default()
        };
        write::link_set(&self.host, &uplink.name, &change).await?;
        for address in uplink.addresses.iter().filter(|address| !there.addresses.contains(address)) {
            write::address_add(&self.host, address, false).await?;
        }
        // Routes to a link before those by a gateway on it.
        let mut routes: Vec<_> = uplink.routes.iter().filter(|route| !there.routes.contains(route)).collect();
        routes.sort_by_key(|route| route.gateway.is_some());
        for route in routes {
            if let Err(error) = write::uplink_route_add(&self.host, &uplink.name, route).await {
                warn!(uplink = uplink.name, to = %route.to, %error, "a route could not be given back");
            }
        }
        Ok(())
    }
}

impl Platform for Node {
    async fn uplinks(&self, names: &[String]) -> Result<Uplinks, NodeError> {
        let mut uplinks = Uplinks::new();
        for name in names {
            // A record that cannot be read is told when the interface is given back; until then the interface is
            // what it is now.
            let recorded =
                self.records.of(name).inspect_err(|error| debug!(%error, "no record")).ok().flatten();
            let uplink = match (observe::uplink(&self.router, name).await?, recorded) {
                // The MTU is as it is now: the tenants' follow it.
                (Some(there), Some(recorded)) => Some(Uplink { mtu: there.mtu, ..recorded }),
                // It was made in the router's namespace, and nobody has to get it back.
                (Some(there), None) => Some(there),
                (None, recorded) => {
                    let seen = observe::uplink(&self.host, name).await?;
                    seen.map(|seen| before_the_move(seen, recorded.as_ref()))
                }
            };
            uplinks.extend(uplink.map(|uplink| (name.clone(), uplink)));
        }
        Ok(uplinks)
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, NodeError> {
        let mut host = observe::dump(&self.host, Space::Host).await?;
        let mut router = observe::dump(&self.router, Space::Router).await?;
        observe::pair(&mut host, &mut router);
        let with_sysctls = |mut state: NetState, client: &Client, wanted: &BTreeMap<String, String>| {
            state.sysctls = sysctl::read(client.netns(), wanted)?;
            Ok::<_, NodeError>(state)
        };
        Ok(Observed {
            guard: self.guard_seen().await?,
            host: with_sysctls(host.state, &self.host, &desired.host.sysctls)?,
            router: with_sysctls(router.state, &self.router, &desired.router.sysctls)?,
            recorded: self.records.names()?,
            frr: Vec::new(),
            frr_error: None,
        })
    }

    async fn filters_changed(&self) -> bool {
        let listed_in = self.listed_in.lock().await;
        // Where the kernel does not tell, the slower look finds it.
        listed_in.as_ref().zip(self.generation()).is_some_and(|((then, _), now)| *then != now)
    }

    async fn guard_stands(&self, desired: &Desired) -> Result<bool, NodeError> {
        let seen = self.guard_seen().await?;
        Ok(match &desired.guard {
            GuardWanted::AsItIs => true,
            GuardWanted::Absent => !seen.present,
            GuardWanted::Is(ruleset) => seen.digest == Some(ruleset.digest()),
        })
    }

    async fn apply(&self, op: &Op) -> Result<(), NodeError> {
        match op {
            Op::GuardLoad(ruleset) => {
                let listings = nft::load(self.host.netns(), self.router.netns(), ruleset).await?;
                self.remember_loaded(&listings).await;
            }
            Op::GuardDelete => {
                nft::delete(self.host.netns()).await?;
                nft::delete(self.router.netns()).await?;
            }
            Op::Rules(change) => {
                for step in &change.steps {
                    let made = match step {
                        Step::Add(rule) => write::rule_add(&self.host, rule).await,
                        Step::Delete(rule) => write::rule_delete(&self.host, rule).await,
                    };
                    made.map_err(|source| NodeError::Rule { step: Box::new(step.clone()), source })?;
                }
            }
            Op::RouteAdd(space, route) => write::route_add(self.client(*space), route).await?,
            Op::RouteDelete(space, route) => write::route_delete(self.client(*space), route).await?,
            Op::AddressAdd(space, address) => write::address_add(self.client(*space), address, true).await?,
            Op::AddressDelete(space, address) => write::address_delete(self.client(*space), address).await?,
            Op::LinkAdd(name, link) => write::link_add(&self.router, name, link).await?,
            Op::VethAdd { vni, mtu } => {
                let (router, host) = (names::router_link(*vni), names::host_link(*vni));
                write::veth_add(&self.router, &router, (self.host.netns(), &host), *mtu).await?;
            }
            Op::LinkSet(space, name, change) => write::link_set(self.client(*space), name, change).await?,
            Op::LinkDelete(space, name) => write::link_delete(self.client(*space), name).await?,
            Op::Sysctl(space, path, value) => sysctl::write(self.client(*space).netns(), path, value)?,
            Op::UplinkTake(name) => self.uplink_take(name).await?,
            Op::UplinkReturn(name) => self.uplink_return(name).await?,
            Op::Frr(change) => return Err(NodeError::NotForNode(change.to_string())),
        }
        Ok(())
    }
}
