//! One controller of one or several: it serves agents while it leads, and sends them away while another does. The wiring
//! of the election, the agents' service, its certificate, and the work itself.

use std::{sync::Arc, time::Duration};

use calico_vni_identity::{serving::Certificate, upkeep::Origin};
use calico_vni_telemetry::Source;
use kube::Client;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    grpc::{self, Access, Gate},
    leader::Candidate,
    metrics::Metrics,
    runtime::{self, RuntimeError, Settings},
    served::Served,
};

/// Longest wait for agents to take leave when the controller stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// What one controller is.
pub struct Options {
    /// What may be set.
    pub settings: Settings,
    /// How agents reach it.
    pub access: Access,
    /// Where its certificate comes from, if it has one.
    pub origin: Option<Origin>,
    /// How it comes to lead; alone it always does.
    pub candidate: Option<Candidate>,
    /// Where metrics and probes are asked for.
    pub http: Option<TcpListener>,
}

impl Options {
    /// One alone, without TLS.
    pub fn alone(settings: Settings) -> Self {
        Self { settings, access: Access::plain(), origin: None, candidate: None, http: None }
    }
}

/// Runs the controller until it is told to stop. Agents are let in once everything has been read. Nothing is written from
/// the moment on in which it is told to stop, or its lead is lost.
pub async fn run(
    client: Client,
    listener: TcpListener,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), RuntimeError> {
    let Options { settings, access, origin, candidate, http } = options;
    let gate = watch::Sender::new(Gate::Preparing { missing: "the Lease of whoever leads".to_owned() });
    let leads = watch::Sender::new(false);
    let metrics = Arc::new(Metrics::default());
    let certificate = access.certificate.clone();
    let told = Served {
        metrics: Arc::clone(&metrics),
        gate: gate.subscribe(),
        leads: leads.subscribe(),
        door: Arc::clone(&access.door),
    };
    let telemetry = async {
        if let Some(listener) = http {
            let source: Arc<dyn Source> = Arc::new(told);
            let served = calico_vni_telemetry::serve(listener, source);
            shutdown.run_until_cancelled(served).await.unwrap_or(Ok(()))?;
        }
        Ok(())
    };
    let service = async {
        let served = grpc::serve(listener, gate.subscribe(), access, shutdown.clone());
        // Agents are told that their streams end; who does not listen is left.
        let farewell = async {
            shutdown.cancelled().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            served = served => served.map_err(RuntimeError::from),
            () = farewell => Ok(()),
        }
    };
    let work = async {
        if let Some(candidate) = &candidate {
            elected(&client, candidate, (&gate, &leads), &metrics, &settings, &shutdown).await
        } else {
            leads.send_replace(true);
            runtime::lead(&client, &gate, &metrics, &settings, shutdown.clone()).await
        }
    };
    let upkeep = async {
        if let (Some(origin), Some(certificate)) = (origin, &certificate) {
            fresh(origin, certificate, leads.subscribe(), &shutdown).await;
        }
        Ok(())
    };
    tokio::try_join!(service, work, upkeep, telemetry)?;
    Ok(())
}

async fn fresh(
    origin: Origin,
    certificate: &Arc<Certificate>,
    leads: watch::Receiver<bool>,
    shutdown: &CancellationToken,
) {
    shutdown.run_until_cancelled(origin.keep_fresh(certificate, leads)).await;
}

/// Leads whenever it is its turn.
async fn elected(
    client: &Client,
    candidate: &Candidate,
    (gate, leads): (&watch::Sender<Gate>, &watch::Sender<bool>),
    metrics: &Arc<Metrics>,
    settings: &Settings,
    shutdown: &CancellationToken,
) -> Result<(), RuntimeError> {
    let standby =
        |holder: &str| drop(gate.send_replace(Gate::Standby { reason: format!("standby; {holder} leads") }));
    while let Some(mut term) = shutdown.run_until_cancelled(candidate.acquire(standby)).await {
        leads.send_replace(true);
        let stop = shutdown.child_token();
        // Whatever is under way in the work ends with this block.
        let ended = tokio::select! {
            biased;
            reason = term.lost() => Err(reason),
            ended = runtime::lead(client, gate, metrics, settings, stop.clone()) => Ok(ended),
        };
        leads.send_replace(false);
        metrics.rests();
        match ended {
            Ok(ended) => {
                term.release().await;
                return ended;
            }
            Err(reason) => {
                error!(reason, "the lead is lost: nothing is written, and agents are sent to whoever leads");
                gate.send_replace(Gate::Standby { reason: format!("standby; the lead was lost: {reason}") });
                stop.cancel();
            }
        }
    }
    Ok(())
}
