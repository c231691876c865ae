//! The program itself, told to stop in the midst of much to write: it ends in good order and at once, and whoever comes
//! next does the rest.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use calico_vni_crds::calico::{BgpPeerSpec, CalicoApi};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::api::ListParams;
use serde_json::Value;

use crate::{
    burst::apply_one,
    support::{
        eventually,
        stage::{Controller, Stage},
    },
};

const TENANTS: u32 = 200;
/// What may be under way when it is told to stop; see `apply`.
const UNDER_WAY: usize = 16;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_once_it_is_told_to_stop() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    stream::iter(0..TENANTS).map(|i| apply_one(&stage, i)).buffer_unordered(16).collect::<Vec<()>>().await;

    let dir = tempfile::tempdir().unwrap();
    let (config, log) = (dir.path().join("kubeconfig"), dir.path().join("log"));
    std::fs::write(&config, stage.server.kubeconfig("controller").to_string()).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_calico-vni-controller"));
    program
        .args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log-format", "json"])
        .env("KUBECONFIG", &config);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut running = Running(program.spawn().unwrap());
    let log = || std::fs::read_to_string(&log).unwrap();

    eventually("the controller to be in the midst of it", async || {
        let count = stage.server.controller_writes().len();
        if count > 100 { Ok(()) } else { Err((count, log())) }
    })
    .await;
    let id = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let ended = eventually("the controller to end", async || match running.0.try_wait().unwrap() {
        Some(status) => Ok(status),
        None => Err(log()),
    })
    .await;
    assert!(ended.success(), "{ended}: {}", log());

    let told = told_to_stop(&log());
    let writes = stage.server.controller_writes();
    let late: Vec<_> = writes.iter().filter(|write| write.at > told).collect();
    assert!(late.len() <= UNDER_WAY, "written after it was told to stop: {late:#?}");
    assert!(peers(&stage).await < TENANTS as usize, "there was much left to write");

    // Whoever comes next does the rest, and nothing of it twice.
    let controller = Controller::start(&stage.server).await;
    eventually("all peers to be made", async || match peers(&stage).await {
        count if count == TENANTS as usize => Ok(()),
        count => Err(count),
    })
    .await;
    let writes = stage.quiet(Duration::from_secs(1)).await;
    let made = writes.iter().filter(|w| w.what.starts_with("create bgppeers") && w.code < 300).count();
    assert_eq!(made, TENANTS as usize);
    controller.stop().await;
}

async fn peers(stage: &Stage) -> usize {
    stage.calico::<BgpPeerSpec>().list(&ListParams::default()).await.unwrap().items.len()
}

/// When the log says that it was told.
fn told_to_stop(log: &str) -> Timestamp {
    let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("SIGTERM")));
    let line = line.unwrap_or_else(|| panic!("no word of SIGTERM: {log}"));
    line["timestamp"].as_str().unwrap().parse().unwrap()
}
