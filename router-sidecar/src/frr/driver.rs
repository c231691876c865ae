//! Reads FRR's configuration and state from its daemons, and writes operations to them.
//!
//! Touches the sockets in the state directory, and the daemons' configuration files in the same place, which hold
//! after each change what was accepted, so that a daemon that dies starts again with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use calico_vni_proto::names;
use ipnet::IpNet;
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    batch::{self, OpError, Part, Refusal},
    config::Config,
    diff::{self, Delta, Op, TenantRef},
    observed::Observed,
    parse::parse,
    routes::{self, RouteState},
    sessions::{self, L3Vni, SessionState},
    version::{Daemon, Version, VersionError},
    vty::{Vty, VtyError},
};

/// How long bgpd and zebra may take to forget the routes of an L3VNI that was taken out, and how often zebra is asked.
const FORGOTTEN: Duration = Duration::from_secs(5);
const ASK: Duration = Duration::from_millis(50);

/// Octets of the longest table of routes that is read, which are some twenty thousand routes. What goes beyond them has no
/// limit: a fabric may announce as many as it likes.
const LONGEST_TABLE: usize = 8 << 20;

/// Why FRR as a whole could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A daemon does not answer.
    #[error("FRR's {daemon} does not answer: {source}")]
    Vty {
        /// The daemon.
        daemon: Daemon,
        /// Why.
        source: VtyError,
    },
    /// Its release is not to be told.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// An answer that is not what this release of FRR is known to say.
    #[error("FRR's {daemon} answered `{command}` with something else than the JSON expected: {source}")]
    Json {
        /// The daemon.
        daemon: Daemon,
        /// What was asked.
        command: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A configuration file.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpResult {
    /// Whom it was for; none is the fabric.
    pub tenant: Option<TenantRef>,
    /// The first thing that went wrong.
    pub outcome: Result<(), OpError>,
}

/// The way to FRR's daemons.
#[derive(Clone, Debug)]
pub struct Driver {
    state_dir: PathBuf,
}

impl Driver {
    /// `state_dir` holds the sockets `zebra.vty`, `bgpd.vty` and, from FRR 10 on, `mgmtd.vty`.
    pub fn new(state_dir: PathBuf) -> Self {
        Self { state_dir }
    }

    /// Where a daemon listens.
    pub fn socket(&self, daemon: Daemon) -> PathBuf {
        self.state_dir.join(format!("{daemon}.vty"))
    }

    /// Where a daemon reads its configuration at start.
    pub fn file(state_dir: &Path, daemon: Daemon) -> PathBuf {
        state_dir.join(format!("{daemon}.conf"))
    }

    async fn open(&self, daemon: Daemon) -> Result<Vty, Error> {
        Vty::connect(&self.socket(daemon)).await.map_err(|source| Error::Vty { daemon, source })
    }

    /// Which release runs.
    pub async fn version(&self) -> Result<Version, Error> {
        let mut zebra = self.open(Daemon::Zebra).await?;
        Ok(ask(&mut zebra, Daemon::Zebra, "show version").await?.parse()?)
    }

    /// What FRR has. Fails when one of its daemons does not answer: half a picture would be taken for the whole.
    pub async fn observe(&self) -> Result<Observed, Error> {
        let mut zebra = self.open(Daemon::Zebra).await?;
        let version: Version = ask(&mut zebra, Daemon::Zebra, "show version").await?.parse()?;
        let vrfs = ask(&mut zebra, Daemon::Zebra, "show vrf").await?;
        let l3vnis = l3vnis(&mut zebra).await?;
        let mut running = String::new();
        for daemon in [version.vrf_owner(), Daemon::Bgpd] {
            let mut vty = self.open(daemon).await?;
            running.push_str(&ask(&mut vty, daemon, "show running-config").await?);
        }
        let mut observed = Observed { config: parse(&running), ..Observed::nothing(version) };
        observed.active = active(&vrfs);
        observed.take_zebras_word(&l3vnis);
        Ok(observed)
    }

    /// Runs the operations, removals first, and says for each what became of it, in their order.
    ///
    /// Afterwards the daemons' files are written anew from what FRR then has. Whether they are is for
    /// [`Driver::is_saved`] to find out.
    pub async fn apply(&self, ops: &[Op]) -> Result<Vec<OpResult>, Error> {
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let version = self.version().await?;
        let mut run = Run { driver: self, version, ops, outcomes: BTreeMap::new(), lost: BTreeMap::new() };
        run.removals().await?;
        run.sets().await?;
        let outcomes = run.outcomes;
        if let Err(error) = self.save().await {
            // What was written stands all the same; the next look finds the files as they were.
            warn!(%error, "FRR would start again with its configuration of before");
        }
        let result = |(index, op): (usize, &Op)| OpResult {
            tenant: op.tenant().cloned(),
            outcome: outcomes.get(&index).map_or(Ok(()), |error| Err(error.clone())),
        };
        Ok(ops.iter().enumerate().map(result).collect())
    }

    /// Writes the files with which the daemons start again, from what FRR has now.
    pub async fn save(&self) -> Result<(), Error> {
        let Observed { version, config, .. } = self.observe().await?;
        for daemon in [Daemon::Zebra, Daemon::Bgpd] {
            let path = Self::file(&self.state_dir, daemon);
            let text = config.to_file(daemon, version);
            write_whole(&path, &text).await.map_err(|source| Error::File { what: "write", path, source })?;
        }
        Ok(())
    }

    /// Whether the daemons would start again with what was observed.
    pub async fn is_saved(&self, observed: &Observed) -> Result<bool, Error> {
        for daemon in [Daemon::Zebra, Daemon::Bgpd] {
            let path = Self::file(&self.state_dir, daemon);
            let there = match tokio::fs::read_to_string(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                there => there.map_err(|source| Error::File { what: "read", path, source })?,
            };
            // A file that was never written says nothing, and so does one of a router with nothing to do.
            let nothing = observed.config == Config::default() && parse(&there) == Config::default();
            if !nothing && there != observed.config.to_file(daemon, observed.version) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes L3VNIs of ours out of their VRFs and puts them in again, so that zebra looks for their devices and tells the kernel
    /// of the routers behind them once more. The configuration is afterwards as it was.
    pub async fn rejoin(&self, vnis: &[u32]) -> Result<(), Error> {
        let version = self.version().await?;
        let daemon = version.vrf_owner();
        let mut vty = self.open(daemon).await?;
        for verb in ["no vni", "vni"] {
            let block = |vni: &u32| {
                vec![format!("vrf {}", names::vrf(*vni)), format!("{verb} {vni}"), "exit-vrf".to_owned()]
            };
            let blocks: Vec<Vec<String>> = vnis.iter().map(block).collect();
            let parts: Vec<Part> =
                blocks.iter().enumerate().map(|(op, lines)| Part { op, lines: lines.as_slice() }).collect();
            let refusals = batch::transaction(&mut vty, daemon, version, &parts).await;
            for (op, error) in refusals.map_err(|source| Error::Vty { daemon, source })? {
                warn!(vni = vnis[op], %error, "FRR refused a line");
            }
            if verb == "no vni" {
                self.forgotten(vnis).await?;
            }
        }
        Ok(())
    }

    /// Waits until no route of these VRFs leads into their tunnels. What bgpd still holds when the VNI comes back it does not
    /// tell zebra again, and zebra then knows of no router behind it.
    async fn forgotten(&self, vnis: &[u32]) -> Result<(), Error> {
        let deadline = Instant::now() + FORGOTTEN;
        let mut zebra = self.open(Daemon::Zebra).await?;
        for vni in vnis {
            let (vrf, tunnel) = (names::vrf(*vni), names::bridge(*vni));
            while Instant::now() < deadline {
                let mut routes = String::new();
                for family in ["ip", "ipv6"] {
                    let command = format!("show {family} route vrf {vrf}");
                    routes.push_str(&ask(&mut zebra, Daemon::Zebra, &command).await?);
                }
                if !routes.contains(&format!(", {tunnel} ")) && !routes.contains(&format!(", {tunnel},")) {
                    break;
                }
                sleep(ASK).await;
            }
        }
        Ok(())
    }

    /// Gives a management daemon that has just started what zebra's file says of VRFs.
    pub async fn load_vrfs(&self) -> Result<(), Error> {
        let daemon = Daemon::Mgmtd;
        let path = Self::file(&self.state_dir, Daemon::Zebra);
        let text = tokio::fs::read_to_string(&path).await;
        let text = text.map_err(|source| Error::File { what: "read", path, source })?;
        let lines: Vec<String> = parse(&text).tenants.iter().flat_map(diff::vrf_lines).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let mut vty = self.open(daemon).await?;
        let version: Version = ask(&mut vty, daemon, "show version").await?.parse()?;
        let refusals = batch::transaction(&mut vty, daemon, version, &[Part { op: 0, lines: &lines }]).await;
        let refusals = refusals.map_err(|source| Error::Vty { daemon, source })?;
        for (_, error) in refusals {
            warn!(%error, "a restarted daemon takes no longer what FRR had");
        }
        Ok(())
    }

    /// Every BGP session, of the fabric and of the tenants.
    pub async fn sessions(&self) -> Result<Vec<SessionState>, Error> {
        let command = "show bgp vrf all summary json";
        let mut bgpd = self.open(Daemon::Bgpd).await?;
        let json = ask(&mut bgpd, Daemon::Bgpd, command).await?;
        sessions::sessions(&json).map_err(|source| Error::Json { daemon: Daemon::Bgpd, command, source })
    }

    /// The routes of a VRF, IPv4 first.
    pub async fn routes(&self, vrf: &str) -> Result<Vec<RouteState>, Error> {
        let daemon = Daemon::Bgpd;
        let mut bgpd = self.open(daemon).await?.at_most(LONGEST_TABLE);
        let mut all = Vec::new();
        for command in ["show bgp vrf VRF ipv4 unicast json", "show bgp vrf VRF ipv6 unicast json"] {
            let json = ask(&mut bgpd, daemon, &command.replace("VRF", vrf)).await?;
            let read = routes::routes(&json);
            all.extend(read.map_err(|source| Error::Json { daemon, command, source })?);
        }
        Ok(all)
    }

    /// Every address that zebra knows of.
    pub async fn addresses(&self) -> Result<BTreeSet<IpNet>, Error> {
        let command = "show interface vrf all brief json";
        let mut zebra = self.open(Daemon::Zebra).await?;
        let json = ask(&mut zebra, Daemon::Zebra, command).await?;
        sessions::addresses(&json).map_err(|source| Error::Json { daemon: Daemon::Zebra, command, source })
    }

    /// Every L3VNI that zebra has, ours or not.
    pub async fn l3vnis(&self) -> Result<Vec<L3Vni>, Error> {
        l3vnis(&mut self.open(Daemon::Zebra).await?).await
    }
}

/// One run of operations.
struct Run<'a> {
    driver: &'a Driver,
    version: Version,
    ops: &'a [Op],
    outcomes: BTreeMap<usize, OpError>,
    /// Daemons that went away, and why. They are not waited for again in this run.
    lost: BTreeMap<Daemon, String>,
}

/// How a part of a delta is written.
#[derive(Clone, Copy)]
enum Manner {
    Plain,
    Transaction,
    Exec,
}

impl Run<'_> {
    /// The VNI leaves before the instance, which bgpd would keep otherwise, and the lists leave last, so that no
    /// instance is ever without them.
    async fn removals(&mut self) -> Result<(), Error> {
        let owner = self.version.vrf_owner();
        self.write(true, owner, Manner::Transaction, |d| &d.recall).await?;
        self.write(true, owner, Manner::Transaction, |d| &d.vrf).await?;
        self.write(true, Daemon::Bgpd, Manner::Plain, |d| &d.bgp).await?;
        self.write(true, Daemon::Bgpd, Manner::Transaction, |d| &d.policy).await
    }

    async fn sets(&mut self) -> Result<(), Error> {
        self.refuse_taken_vnis().await?;
        self.write(false, self.version.vrf_owner(), Manner::Transaction, |d| &d.vrf).await?;
        self.write(false, Daemon::Bgpd, Manner::Transaction, |d| &d.policy).await?;
        self.write(false, Daemon::Bgpd, Manner::Plain, |d| &d.bgp).await?;
        self.write(false, Daemon::Bgpd, Manner::Exec, |d| &d.refresh).await?;
        self.write(false, Daemon::Bgpd, Manner::Transaction, |d| &d.refreshed).await
    }

    async fn refuse_taken_vnis(&mut self) -> Result<(), Error> {
        let taken = self.driver.l3vnis().await?;
        for (index, op) in self.ops.iter().enumerate().filter(|(_, op)| !op.removes()) {
            let Some(tenant) = op.tenant() else { continue };
            let own = names::vrf(tenant.vni);
            let wanted: Vec<u32> =
                op.delta().vrf.iter().filter_map(|l| l.strip_prefix("vni ")?.parse().ok()).collect();
            if let Some(other) = taken.iter().find(|l| wanted.contains(&l.vni) && l.vrf != own) {
                let error = OpError::VniTaken { vni: other.vni, vrf: other.vrf.clone() };
                self.outcomes.insert(index, error);
            }
        }
        Ok(())
    }

    /// Writes one part of all operations that have not failed so far.
    async fn write(
        &mut self,
        removes: bool,
        daemon: Daemon,
        manner: Manner,
        part: impl Fn(&Delta) -> &Vec<String>,
    ) -> Result<(), Error> {
        let alive =
            |(index, op): &(usize, &Op)| op.removes() == removes && !self.outcomes.contains_key(index);
        let parts: Vec<Part> = (self.ops.iter().enumerate().filter(alive))
            .map(|(op, delta)| Part { op, lines: part(delta.delta()) })
            .filter(|part| !part.lines.is_empty())
            .collect();
        if parts.is_empty() {
            return Ok(());
        }
        let lost = |reason: &str| -> Vec<Refusal> {
            parts.iter().map(|p| (p.op, OpError::Lost { daemon, reason: reason.to_owned() })).collect()
        };
        if let Some(reason) = self.lost.get(&daemon) {
            self.note(lost(reason));
            return Ok(());
        }
        let mut vty = self.driver.open(daemon).await?;
        let refusals = match manner {
            Manner::Plain => batch::plain(&mut vty, daemon, self.version, &parts).await,
            Manner::Transaction => batch::transaction(&mut vty, daemon, self.version, &parts).await,
            Manner::Exec => batch::exec(&mut vty, daemon, &parts).await,
        };
        match refusals {
            Ok(refusals) => self.note(refusals),
            Err(error) => {
                // What was read and what was not can no longer be told apart; the next round finds out.
                let reason = error.to_string();
                self.note(lost(&reason));
                self.lost.insert(daemon, reason);
            }
        }
        Ok(())
    }

    fn note(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        for (index, error) in refusals {
            let tenant = self.ops[index].tenant();
            let (vni, name) = (tenant.map(|t| t.vni), tenant.map(|t| t.name.as_str()));
            warn!(vni, tenant = name, op = self.ops[index].name(), %error, "FRR refused a line");
            self.outcomes.entry(index).or_insert(error);
        }
    }
}

async fn ask(vty: &mut Vty, daemon: Daemon, command: &str) -> Result<String, Error> {
    let text = vty.ask(command).await.map_err(|source| Error::Vty { daemon, source })?;
    debug!(%daemon, command, octets = text.len(), "asked");
    Ok(text)
}

async fn l3vnis(zebra: &mut Vty) -> Result<Vec<L3Vni>, Error> {
    let command = "show vrf vni json";
    let json = ask(zebra, Daemon::Zebra, command).await?;
    sessions::l3vnis(&json).map_err(|source| Error::Json { daemon: Daemon::Zebra, command, source })
}

/// VNIs of the VRFs that have a device: `vrf vrf1001 id 4 table 1000001001`, against `vrf vrf1001 inactive`.
fn active(vrfs: &str) -> BTreeSet<u32> {
    let vni = |line: &str| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["vrf", name, "id", ..] => names::vni_of(name, "vrf"),
        _ => None,
    };
    vrfs.lines().filter_map(vni).collect()
}

/// The file is whole or as it was before.
async fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if tokio::fs::read_to_string(path).await.is_ok_and(|there| there == text) {
        return Ok(());
    }
    let new = path.with_extension("conf.new");
    let mut file =
        tokio::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new).await?;
    // One that was left behind may have had other rights.
    file.set_permissions(Permissions::from_mode(0o600)).await?;
    file.write_all(text.as_bytes()).await?;
    file.flush().await?;
    // It may hold passwords, and the daemons read it as another user: whose folder it is.
    let daemons = tokio::fs::metadata(path.parent().unwrap_or(Path::new("."))).await?;
    std::os::unix::fs::chown(&new, Some(daemons.uid()), Some(daemons.gid()))?;
    tokio::fs::rename(&new, path).await
}
