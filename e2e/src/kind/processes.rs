//! What the processes of our pods may, as the kernel has it, against what the chart says.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, api::ListParams};

use super::cluster::Cluster;
use crate::{chart::Rights, step};

/// Bits of the capabilities that the chart names (linux/capability.h).
const BITS: [(&str, u32); 10] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("FOWNER", 3),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("NET_BIND_SERVICE", 10),
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("SYS_ADMIN", 21),
];

/// Prints each process of a node: its command line, then lines of its status. One may end meanwhile.
const LIST: &str = r#"for p in /proc/[0-9]*; do
	printf 'command: %s\n' "$(tr '\0\n' '  ' <$p/cmdline)"; grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' $p/status
done 2>/dev/null; true"#;

#[derive(Debug, Default, PartialEq, Eq)]
struct Process {
    command: String,
    uid: u32,
    effective: u64,
    bounding: u64,
    no_new_privs: bool,
    filtered: bool,
}

/// Looks at every process of ours on every node.
pub async fn capabilities(cluster: &Cluster) -> Result<()> {
    let sets = Api::<DaemonSet>::namespaced(cluster.client.clone(), "calico-vni");
    let rights = Rights::of(sets.list(&ListParams::default()).await?);
    let (agent, frr) = (mask(rights.get("agent")?)?, mask(rights.get("frr")?)?);
    let mut controllers = 0;
    for node in &cluster.nodes {
        let mut seen = BTreeMap::new();
        for process in parse(&node.exec(&["sh", "-c", LIST]).await?)? {
            let (what, uid, may) = match process.command.split_whitespace().collect::<Vec<_>>()[..] {
                [program, "run", ..] if program.ends_with("/calico-vni-router") => ("agent", 0, agent),
                [program, "frr", ..] if program.ends_with("/calico-vni-router") => ("frr", 0, frr),
                [program, ..] if program.ends_with("/calico-vni-controller") => ("controller", 65532, 0),
                // FRR's own, which give up what they do not use.
                ["/usr/lib/frr/zebra", ..] => ("zebra", 920, frr),
                ["/usr/lib/frr/bgpd", ..] => ("bgpd", 920, frr),
                ["/usr/lib/frr/mgmtd", ..] => ("mgmtd", 920, frr),
                _ => continue,
            };
            let who = format!("{}: {what}: {process:x?}", node.name);
            ensure!(process.bounding == may, "{who}: the chart grants {may:x}");
            if uid == 920 {
                ensure!(process.effective & !may == 0, "{who}: more than {may:x}");
            } else {
                ensure!(process.effective == may, "{who}: the chart grants {may:x}");
            }
            ensure!(process.uid == uid, "{who}: user {uid} is meant");
            ensure!(process.no_new_privs && process.filtered, "{who}: no filter of system calls");
            *seen.entry(what).or_insert(0) += 1;
        }
        controllers += seen.remove("controller").unwrap_or(0);
        let expected = ["agent", "bgpd", "frr", "mgmtd", "zebra"].map(|what| (what, 1));
        ensure!(seen == expected.into(), "{}: {seen:?}", node.name);
    }
    ensure!(controllers == 2, "{controllers} controllers");
    step!("kind: agent {agent:x}, FRR {frr:x}, controller 0: what each process may is what the chart says");
    Ok(())
}

/// The bits of what a container may.
fn mask(rights: &[String]) -> Result<u64> {
    rights.iter().try_fold(0, |mask, name| {
        let bit = BITS.iter().find(|(known, _)| *known == name);
        let (_, bit) = bit.with_context(|| format!("{name} is not among this test's capabilities"))?;
        Ok(mask | 1 << bit)
    })
}

fn parse(text: &str) -> Result<Vec<Process>> {
    let mut processes: Vec<Process> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':').with_context(|| format!("`{line}`"))?;
        let value = value.trim();
        if key == "command" {
            processes.push(Process { command: value.to_owned(), ..Process::default() });
            continue;
        }
        let process = processes.last_mut().context("a status before any process")?;
        match key {
            "Uid" => process.uid = value.split_whitespace().nth(1).context("no effective user")?.parse()?,
            "CapEff" => process.effective = u64::from_str_radix(value, 16)?,
            "CapBnd" => process.bounding = u64::from_str_radix(value, 16)?,
            "NoNewPrivs" => process.no_new_privs = value == "1",
            // 2: by a filter (proc(5)).
            "Seccomp" => process.filtered = value == "2",
            _ => bail!("`{line}`"),
        }
    }
    Ok(processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "command: /usr/lib/frr/bgpd -N calico-vni \nUid:\t0\t920\t920\t920\nCapEff:\t0000000000002400\n\
                    CapBnd:\t00000000002034eb\nNoNewPrivs:\t1\nSeccomp:\t2\ncommand: \nUid:\t0\t0\t0\t0\n";
        let read = parse(text).unwrap();
        let bgpd = Process {
            command: "/usr/lib/frr/bgpd -N calico-vni".into(),
            uid: 920,
            effective: 0x2400,
            bounding: 0x0020_34eb,
            no_new_privs: true,
            filtered: true,
        };
        assert_eq!(read, [bgpd, Process::default()]);
        assert!(parse("Threads: 1").is_err());
    }
}
