//! Calico's own confd in place of the stand-in: its command line and surroundings, for one node.
//!
//! confd writes to a path that is compiled in, so every node's confd gets a mount namespace of its own where the node's
//! directory is bound there; and it has BIRD read the file by runit's `sv`, so a command of that name comes first in
//! its PATH. Says what to write and what to run; others do it, where the nodes are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Variable with the path of the confd binary.
pub const CONFD: &str = "CALICO_CONFD";
/// Variable with the path of confd's directory, which holds `conf.d/` and `templates/` of the same Calico.
pub const CONFD_DIR: &str = "CALICO_CONFD_DIR";

/// Where confd writes.
const OUTPUT: &str = "/etc/calico/confd/config";
/// Run by a shell in the mount namespace: the node's directory, then confd and its arguments.
const SCRIPT: &str = r#"set -e; mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; exec "$@""#;

/// The real confd, as the environment names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealConfd {
    /// The binary.
    pub binary: PathBuf,
    /// Directory with `conf.d/` and `templates/`.
    pub templates: PathBuf,
}

/// Where `birdc`, `bird` and the shell are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// Contents.
    pub text: String,
    /// Permissions.
    pub mode: u32,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables, in addition to those of the parent.
    pub env: Vec<(String, String)>,
}

/// A node's part.
#[derive(Debug, Clone, Copy)]
pub struct NodeConfd<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// kubeconfig that reaches the API server from where confd runs.
    pub kubeconfig: &'a Path,
    /// The node's directory: `bird.cfg` and `bird6.cfg` appear there, and it is where BIRD's `-c` points.
    pub dir: &'a Path,
    /// Control socket of `bird`.
    pub bird: &'a Path,
    /// Control socket of `bird6`.
    pub bird6: &'a Path,
}

impl RealConfd {
    /// Both variables, or none of the two.
    pub fn from_env() -> Result<Option<Self>, String> {
        match (env::var_os(CONFD), env::var_os(CONFD_DIR)) {
            (None, None) => Ok(None),
            (Some(binary), Some(templates)) => {
                Ok(Some(Self { binary: binary.into(), templates: templates.into() }))
            }
            _ => Err(format!("{CONFD} and {CONFD_DIR} go together: set both or none")),
        }
    }

    /// What confd needs in the node's directory, and how to start it. It needs root, for the mount.
    pub fn prepare(&self, at: NodeConfd<'_>) -> (File, Process) {
        let tools = at.dir.join("tools");
        // Called as `sv hup bird` or `sv hup bird6`.
        let text = format!(
            "#!/bin/sh\ncase \"$2\" in\nbird) exec birdc -s '{}' configure ;;\nbird6) exec birdc6 -s '{}' configure ;;\nesac\n",
            at.bird.display(),
            at.bird6.display(),
        );
        (File { path: tools.join("sv"), text, mode: 0o755 }, self.process(at, &tools))
    }

    fn process(&self, at: NodeConfd<'_>, tools: &Path) -> Process {
        let text = |path: &Path| path.display().to_string();
        let mut argv: Vec<_> = ["unshare", "-m", "sh", "-c", SCRIPT, "confd"].map(str::to_owned).into();
        argv.extend([text(at.dir), OUTPUT.to_owned(), text(&self.binary)]);
        argv.push(format!("-confdir={}", self.templates.display()));
        let env = [
            ("DATASTORE_TYPE", "kubernetes".to_owned()),
            ("KUBECONFIG", text(at.kubeconfig)),
            ("NODENAME", at.node.to_owned()),
            ("PATH", format!("{}:{PATH}", tools.display())),
        ];
        Process { argv, env: env.map(|(key, value)| (key.to_owned(), value)).into() }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    /// A script in confd's place sees what confd would, and writes where confd writes.
    #[test]
    fn each_node_has_its_own_output_and_its_own_bird() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join("confd");
        let body = format!(
            "#!/bin/sh\necho \"$NODENAME $DATASTORE_TYPE $KUBECONFIG $1\" > {OUTPUT}/bird.cfg\ncommand -v sv\n"
        );
        fs::write(&binary, body).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let real = RealConfd { binary, templates: "/templates".into() };
        for node in ["n1", "n2"] {
            let dir = root.path().join(node);
            let (bird, bird6) = (dir.join("bird.ctl"), dir.join("bird6.ctl"));
            let at = NodeConfd { node, kubeconfig: Path::new("/kc"), dir: &dir, bird: &bird, bird6: &bird6 };
            let (file, process) = real.prepare(at);
            fs::create_dir_all(file.path.parent().unwrap()).unwrap();
            fs::write(&file.path, file.text).unwrap();
            fs::set_permissions(&file.path, fs::Permissions::from_mode(file.mode)).unwrap();
            let run =
                Command::new(&process.argv[0]).args(&process.argv[1..]).envs(process.env).output().unwrap();
            assert!(run.status.success(), "{run:?}");
            assert_eq!(
                String::from_utf8(run.stdout).unwrap(),
                format!("{}\n", dir.join("tools/sv").display())
            );
        }
        let written = |node: &str| fs::read_to_string(root.path().join(node).join("bird.cfg")).unwrap();
        assert_eq!(written("n1"), "n1 kubernetes /kc -confdir=/templates\n");
        assert_eq!(written("n2"), "n2 kubernetes /kc -confdir=/templates\n");
        assert!(!Path::new(OUTPUT).join("bird.cfg").exists(), "nothing outside of the mount namespaces");
    }
}
