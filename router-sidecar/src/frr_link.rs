//! [`crate::frr`] behind [`crate::frr_port`].

use std::{path::PathBuf, time::Duration};

use calico_vni_proto::{model::NodeConfig, names, wire};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    frr::{self, Driver, SessionState},
    frr_port::{Change, Frr, Silent},
};

/// How long a plan may take. Guard and rules wait for it: a daemon that hangs is left out of the round instead. What
/// is written may take longer.
const PLAN: Duration = Duration::from_secs(10);

/// FRR's daemons of this node.
#[derive(Debug)]
pub struct FrrLink {
    driver: Driver,
    planned: Mutex<Vec<frr::Op>>,
}

impl FrrLink {
    /// The daemons whose sockets are in this directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { driver: Driver::new(dir), planned: Mutex::default() }
    }
}

fn change(op: &frr::Op) -> Change {
    Change { vni: op.tenant().map(|tenant| tenant.vni), what: op.to_string() }
}

impl Frr for FrrLink {
    async fn plan(&self, config: &NodeConfig) -> Result<Vec<Change>, Silent> {
        let observed = timeout(PLAN, self.driver.observe()).await;
        let observed = observed
            .map_err(|_| Silent(format!("its configuration was not read within {} s", PLAN.as_secs())))?
            .map_err(|e| Silent(e.to_string()))?;
        let ops = frr::diff(&frr::render(config, observed.version), &observed);
        let changes = ops.iter().map(change).collect();
        *self.planned.lock().await = ops;
        Ok(changes)
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), String>> {
        let planned = self.planned.lock().await;
        let ops: Vec<frr::Op> = planned.iter().filter(|op| changes.contains(&change(op))).cloned().collect();
        if ops.len() != changes.len() {
            let stale = "FRR was looked at in between; it is planned anew".to_owned();
            return changes.iter().map(|_| Err(stale.clone())).collect();
        }
        match self.driver.apply(&ops).await {
            Ok(results) => {
                results.into_iter().map(|result| result.outcome.map_err(|e| e.to_string())).collect()
            }
            Err(error) => changes.iter().map(|_| Err(error.to_string())).collect(),
        }
    }

    async fn sessions(&self, config: &NodeConfig) -> Result<Vec<wire::Session>, Silent> {
        let sessions = self.driver.sessions().await.map_err(|e| Silent(e.to_string()))?;
        Ok(sessions.into_iter().map(|session| to_wire(&session, config)).collect())
    }
}

fn to_wire(session: &SessionState, config: &NodeConfig) -> wire::Session {
    let name_of = |vrf: &String| {
        let tenant = config.tenants.iter().find(|tenant| names::vrf(tenant.vni) == *vrf);
        // One that is on its way out is named by its VRF.
        tenant.map_or_else(|| vrf.clone(), |tenant| tenant.name.clone())
    };
    wire::Session {
        tenant: session.vrf.as_ref().map(name_of).unwrap_or_default(),
        peer: session.peer.to_string(),
        established: session.established,
        uptime_seconds: session.uptime.as_secs(),
        prefixes_received: session.prefixes_received,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::time::Instant;

    use super::*;
    use crate::testing::config;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_does_not_hold_up_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let _hangs = UnixListener::bind(dir.path().join("zebra.vty")).unwrap();
        let frr = FrrLink::new(dir.path().to_owned());
        let began = Instant::now();
        let error = frr.plan(&config(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("within"), "{error}");
        assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
