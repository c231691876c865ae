//! What the agent tells about itself: how each tenant stands, and FRR's health.

use calico_vni_proto::{codec::Digest, wire};

/// How a tenant stands on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantReport {
    /// Tenant's name.
    pub name: String,
    /// Its VNI.
    pub vni: u32,
    /// What is wrong; `None`: programmed, and read back.
    pub error: Option<String>,
}

/// What stands after a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the guard that was worked from.
    pub guard: Option<Digest>,
    /// Of the configuration that was worked from.
    pub config: Option<Digest>,
    /// The tenants of that configuration.
    pub tenants: Vec<TenantReport>,
}

impl Report {
    /// For the controller; `None` as long as there is no configuration to report on.
    pub fn to_wire(&self) -> Option<wire::Applied> {
        let bytes = |digest: Option<Digest>| digest.map(Digest::to_wire).unwrap_or_default();
        self.config.is_some().then(|| wire::Applied {
            guard_digest: bytes(self.guard),
            config_digest: bytes(self.config),
            tenants: self
                .tenants
                .iter()
                .map(|tenant| wire::TenantResult {
                    name: tenant.name.clone(),
                    vni: tenant.vni,
                    error: tenant.error.clone().unwrap_or_default(),
                })
                .collect(),
        })
    }
}

/// FRR and its sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Whether FRR answers.
    pub frr_running: bool,
    /// Its BGP sessions.
    pub sessions: Vec<wire::Session>,
    /// What an operator has to be told of the node, in order.
    pub notices: Vec<wire::Notice>,
    /// What the guard has dropped.
    pub drops: Vec<wire::Drops>,
    /// The configuration of the last result before this was looked at: health of a new one is news, whatever it says.
    pub since: Option<Digest>,
}

impl Health {
    /// For the controller.
    pub fn to_wire(&self) -> wire::Health {
        wire::Health {
            frr_running: self.frr_running,
            sessions: self.sessions.clone(),
            notices: self.notices.clone(),
            drops: self.drops.clone(),
        }
    }

    /// Whether something changed other than what only grows: the time that sessions are up, and what was dropped.
    pub fn differs(&self, other: &Self) -> bool {
        let timeless = |health: &Self| {
            let mut health = health.clone();
            health.sessions.iter_mut().for_each(|session| session.uptime_seconds = 0);
            health.drops.clear();
            health
        };
        timeless(self) != timeless(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_uptime_is_no_news() {
        let session = |uptime_seconds, established| Health {
            frr_running: true,
            sessions: vec![wire::Session { uptime_seconds, established, ..Default::default() }],
            ..Default::default()
        };
        assert!(!session(5, true).differs(&session(10, true)));
        assert!(session(5, true).differs(&session(5, false)));
    }

    #[test]
    fn without_a_configuration_there_is_nothing_to_report() {
        assert_eq!(Report::default().to_wire(), None);
    }
}
