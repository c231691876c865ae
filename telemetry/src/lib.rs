//! Metrics and probes over HTTP: `/metrics`, `/healthz` and `/readyz`. Touches one listening socket; what is told comes
//! from whoever serves.

#[cfg(feature = "testing")]
pub mod testing;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::text,
    metrics::info::Info,
    registry::{Metric, Registry, Unit},
};
use tokio::net::TcpListener;

/// <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a program tells of itself.
pub trait Source: Send + Sync + 'static {
    /// All metrics, as [`Metrics::text`] writes them.
    fn metrics(&self) -> String;

    /// Whether it does what it is there for.
    fn readiness(&self) -> Readiness;
}

/// Whether a program does what it is there for, with a line for who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does: and how.
    Ready(String),
    /// It does not: what is missing.
    Missing(String),
}

/// Makes metrics and knows them all.
#[derive(Debug)]
pub struct Maker(Registry);

impl Maker {
    /// Of metrics whose names begin with that word, and first its `build_info` with the program's version.
    pub fn new(prefix: &str, version: &'static str) -> Self {
        let mut registry = Registry::with_prefix(prefix);
        registry.register("build", "Version of the program", Info::new([("version", version)]));
        Self(registry)
    }

    /// A metric of that name.
    pub fn make<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// The same of one that counts seconds, as its name will say.
    pub fn seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    /// All that was made.
    pub fn done(self) -> Metrics {
        Metrics(Mutex::new(self.0))
    }
}

/// Metrics that are never scraped in the midst of a change.
#[derive(Debug)]
pub struct Metrics(Mutex<Registry>);

impl Metrics {
    /// While this is held nobody scrapes: what is told anew as a whole is never seen half told.
    pub fn hold(&self) -> MutexGuard<'_, Registry> {
        // A registry is complete before it comes here, so a panic elsewhere leaves it as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in the text form of OpenMetrics.
    pub fn text(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.hold()).expect("writing to a String cannot fail");
        out
    }
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, source: Arc<dyn Source>) -> io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(metrics))
        // That this answers is all there is to tell: a process whose work has ended ends itself.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(source);
    axum::serve(listener, app).await
}

async fn metrics(State(source): State<Arc<dyn Source>>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], source.metrics()).into_response()
}

async fn readyz(State(source): State<Arc<dyn Source>>) -> Response {
    match source.readiness() {
        Readiness::Ready(how) => (StatusCode::OK, format!("ready: {how}\n")).into_response(),
        Readiness::Missing(what) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")).into_response()
        }
    }
}
