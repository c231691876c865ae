//! `kubectl vni sessions`: the BGP sessions, as far as statuses tell them.

use std::process::ExitCode;

use calico_vni_crds::calico::BgpPeer;
use calico_vni_crds::{Tenant, Underlay, keys};
use calico_vni_planner::Snapshot;
use serde::Serialize;

use crate::{
    WRONG,
    cli::SessionsArguments,
    conditions, input,
    output::{self, Table},
};

/// The answer.
#[derive(Debug, Serialize)]
struct Sessions {
    /// Where it is from.
    source: &'static str,
    fabric: Vec<Fabric>,
    tenants: Vec<Router>,
}

/// Sessions of an Underlay's routers with the fabric.
#[derive(Debug, Serialize)]
struct Fabric {
    underlay: String,
    neighbors: Vec<String>,
    /// Routers that answer, of those that there should be.
    routers: String,
    established: u32,
    configured: u32,
}

/// Sessions of the nodes' BIRDs with their routers for one BGPPeer of a tenant.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Router {
    tenant: String,
    peer: String,
    address: String,
    asn: i32,
    /// Nodes whose BIRD has the session, by their label.
    admitted: Vec<String>,
    /// Routes that all routers together hold for the tenant, of both families.
    tenant_prefixes: Option<u32>,
}

/// Where the answer is from.
const SOURCE: &str = "the statuses of Tenants and Underlays and the labels of Nodes; no router was asked";

/// Answers.
pub async fn run(arguments: &SessionsArguments) -> anyhow::Result<ExitCode> {
    let sessions = Sessions::of(&input::snapshot(&arguments.source).await?);
    output::print(&output::render(&sessions, arguments.output, || sessions.text())?)?;
    Ok(if sessions.are_well() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

impl Sessions {
    fn of(snapshot: &Snapshot) -> Self {
        let mut fabric: Vec<Fabric> = snapshot.underlays.iter().map(Fabric::of).collect();
        fabric.sort_by(|a, b| a.underlay.cmp(&b.underlay));
        let mut tenants: Vec<Router> =
            snapshot.peers.iter().filter_map(|peer| Router::of(snapshot, peer)).collect();
        tenants.sort_by(|a, b| a.peer.cmp(&b.peer));
        Self { source: SOURCE, fabric, tenants }
    }

    fn are_well(&self) -> bool {
        let silent = |router: &Router| !router.admitted.is_empty() && router.tenant_prefixes == Some(0);
        self.fabric.iter().all(|fabric| fabric.established >= fabric.configured)
            && !self.tenants.iter().any(silent)
    }

    fn text(&self) -> String {
        let mut fabric = Table::new(["UNDERLAY", "NEIGHBORS", "ROUTERS", "ESTABLISHED"]);
        for underlay in &self.fabric {
            fabric.row([
                underlay.underlay.clone(),
                underlay.neighbors.join(", "),
                underlay.routers.clone(),
                format!("{}/{}", underlay.established, underlay.configured),
            ]);
        }
        let mut tenants =
            Table::new(["TENANT", "BGPPEER", "ROUTER", "AS", "ADMITTED TO", "PREFIXES OF TENANT"]);
        for router in &self.tenants {
            tenants.row([
                router.tenant.clone(),
                router.peer.clone(),
                router.address.clone(),
                router.asn.to_string(),
                router.admitted.join(","),
                router.tenant_prefixes.map_or_else(String::new, |prefixes| prefixes.to_string()),
            ]);
        }
        format!("WITH THE FABRIC\n{fabric}\nBIRD WITH ITS NODE'S ROUTER\n{tenants}\nBy {SOURCE}.\n")
    }
}

impl Fabric {
    fn of(underlay: &Underlay) -> Self {
        let status = underlay.status.clone().unwrap_or_default();
        let neighbors = underlay.spec.neighbors.iter();
        let sessions = status.sessions.unwrap_or_default();
        Self {
            underlay: underlay.metadata.name.clone().unwrap_or_default(),
            neighbors: neighbors.map(|n| format!("{} (AS {})", n.address, n.asn)).collect(),
            routers: status.nodes.unwrap_or_default().ready,
            established: sessions.established,
            configured: sessions.configured,
        }
    }
}

impl Router {
    /// `None` for a BGPPeer that is not ours.
    fn of(snapshot: &Snapshot, peer: &BgpPeer) -> Option<Self> {
        let tenant = peer.labels().remove(keys::OWNER)?;
        let named = |t: &&Tenant| t.metadata.name.as_ref() == Some(&tenant);
        let status = snapshot.tenants.iter().find(named).and_then(|t| t.status.as_ref());
        Some(Self {
            peer: peer.name().to_owned(),
            address: peer.spec.peer_ip.clone().unwrap_or_default(),
            asn: peer.spec.as_number.unwrap_or_default(),
            admitted: conditions::admitted(snapshot, &tenant),
            tenant_prefixes: status.and_then(|status| status.prefixes),
            tenant,
        })
    }
}
