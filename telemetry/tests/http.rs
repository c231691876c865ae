//! Over a real connection.

use std::sync::{Arc, Mutex};

use calico_vni_telemetry::{
    Maker, Metrics, Readiness, Source, serve,
    testing::{Scrape, get},
};
use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};
use tokio::net::TcpListener;

struct Program {
    metrics: Metrics,
    readiness: Mutex<Readiness>,
}

impl Source for Program {
    fn metrics(&self) -> String {
        self.metrics.text()
    }

    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn metrics_and_probes_are_served() {
    let mut maker = Maker::new("x", "1");
    let visits: Family<[(&'static str, String); 1], Counter> = maker.make("visits", "Visits");
    let took = maker.seconds("took", "Time", Histogram::new([0.1, 1.0]));
    visits.get_or_create(&[("who", "a \"b\"\\\n,c=\"".to_owned())]).inc_by(3);
    took.observe(0.5);
    let missing = Readiness::Missing("the first list of IPPool".to_owned());
    let program = Arc::new(Program { metrics: maker.done(), readiness: Mutex::new(missing) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::clone(&program) as Arc<dyn Source>));

    let (status, body) = get(address, "/metrics").await;
    let scrape = Scrape::parse(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(scrape.value("x_visits_total", &[("who", "a \"b\"\\\n,c=\"")]), Some(3.0));
    assert_eq!(scrape.value("x_took_seconds_bucket", &[("le", "0.1")]), Some(0.0));
    assert_eq!(scrape.value("x_took_seconds_bucket", &[("le", "1.0")]), Some(1.0));
    assert_eq!(scrape.value("x_build_info", &[("version", "1")]), Some(1.0));
    assert_eq!(scrape.families["x_took_seconds"].kind, "histogram");

    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz").await, (503, "not ready: the first list of IPPool\n".to_owned()));
    *program.readiness.lock().unwrap() = Readiness::Ready("leads".to_owned());
    assert_eq!(get(address, "/readyz").await, (200, "ready: leads\n".to_owned()));
    assert_eq!(get(address, "/").await.0, 404);
}

#[test]
fn what_prometheus_would_refuse_is_refused() {
    for (text, why) in [
        ("# HELP a A.\n# TYPE a gauge\na 1\n", "EOF"),
        ("a 1\n# EOF\n", "announced"),
        ("# HELP a A.\n# TYPE a counter\na 1\n# EOF\n", "announced"),
        ("# HELP a A.\n# TYPE a gauge\na{b=\"c\"} 1\na{b=\"c\"} 2\n# EOF\n", "twice"),
        ("# HELP a A.\n# TYPE a gauge\na one\n# EOF\n", "number"),
        ("# HELP a A.\n# TYPE a gauge\na{b=\"c} 1\n# EOF\n", "no end"),
        ("# HELP a A.\n# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n", "unit"),
    ] {
        let error = Scrape::parse(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
