//! Everything that helps to understand a failure, by file name.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use futures::future::join_all;

use super::{LOG_DIR, RUN_DIR, control, netns, process::exec, protocol::Command};

/// The end of a log is what tells; more than this would only make the folder heavy.
const LOG_TAIL: usize = 512 * 1024;

/// What is asked in every namespace: a file, the command, and what it reads. A family is an option of the whole batch.
const ASKED: [(&str, &[&str], &str); 4] = [
    (
        "ip.txt",
        &["ip", "-d", "-force", "-batch", "-"],
        "link show\naddr show\nrule show\nroute show table all\nneigh show\n",
    ),
    ("ip6-rules.txt", &["ip", "-6", "rule", "show"], ""),
    ("fdb.txt", &["bridge", "fdb", "show"], ""),
    ("nft.txt", &["nft", "list", "ruleset"], ""),
];

const BGPD: [&str; 6] = [
    "show running-config",
    "show bgp vrf all summary",
    "show bgp vrf all ipv4 unicast",
    "show bgp l2vpn evpn",
    "show bgp vrf all neighbors",
    "show evpn vni",
];
const ZEBRA: [&str; 4] =
    ["show running-config", "show vrf vni", "show ip route vrf all", "show evpn rmac vni all"];
const BIRD: [&str; 3] = ["show protocols all", "show route all", "show status"];

/// Asks everybody; what cannot be had is told in its file.
pub async fn dump() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut names: Vec<String> = list(Path::new(netns::DIR)).iter().filter_map(|p| file_name(p)).collect();
    names.sort();
    let asked = names.iter().flat_map(|name| ASKED.map(|asked| (name, asked)));
    let answers = join_all(asked.map(async |(name, (file, argv, stdin))| {
        let command = Command {
            netns: Some(name.clone()),
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            stdin: stdin.to_owned(),
            timeout_ms: 60_000,
            ..Command::default()
        };
        (format!("{name}/{file}"), output(command).await)
    }));
    files.extend(answers.await);
    let processes = Command {
        argv: vec!["ps".into(), "-eo".into(), "pid,ppid,stat,etime,rss,args".into()],
        timeout_ms: 30_000,
        ..Command::default()
    };
    files.insert("processes.txt".into(), output(processes).await);
    for directory in list(Path::new("/run/frr")).into_iter().chain(list(Path::new(RUN_DIR))) {
        let Some(name) = file_name(&directory) else { continue };
        for (socket, commands) in [("bgpd.vty", &BGPD[..]), ("zebra.vty", &ZEBRA[..])] {
            let path = directory.join(socket);
            if path.exists() {
                files.insert(format!("frr/{name}-{socket}.txt"), daemon(&path, commands, vty));
            }
        }
        for socket in ["bird.ctl", "bird6.ctl"] {
            let path = directory.join(socket);
            if path.exists() {
                files.insert(format!("bird/{name}-{socket}.txt"), daemon(&path, &BIRD, control::bird));
            }
        }
        for path in
            list(&directory).into_iter().filter(|p| p.extension().is_some_and(|e| e == "conf" || e == "cfg"))
        {
            let text = fs::read(&path).unwrap_or_default();
            let file = file_name(&path).unwrap_or_default();
            files.insert(format!("conf/{name}-{file}"), String::from_utf8_lossy(&text).into_owned());
        }
    }
    for path in list(Path::new(LOG_DIR)) {
        let text = fs::read(&path).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(LOG_TAIL)..];
        files.insert(
            format!("log/{}", file_name(&path).unwrap_or_default()),
            String::from_utf8_lossy(tail).into_owned(),
        );
    }
    files
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.path()).collect()
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

async fn output(command: Command) -> String {
    match exec(command).await {
        Ok(output) => output.stdout + &output.stderr,
        Err(error) => format!("{error:#}"),
    }
}

fn vty(socket: &str, command: &str) -> Result<String> {
    Ok(control::vty(socket, &[command.to_owned()])?.concat())
}

fn daemon(socket: &Path, commands: &[&str], ask: impl Fn(&str, &str) -> Result<String>) -> String {
    let mut text = String::new();
    for command in commands {
        let answer = ask(&socket.to_string_lossy(), command).unwrap_or_else(|e| format!("{e:#}"));
        let _ = writeln!(text, "# {command}\n{answer}");
    }
    text
}
