//! A network namespace for a test of the kernel. Needs root.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use calico_vni_router::netns::Netns;

/// A namespace that is gone with the test.
pub struct Namespace {
    /// As `ip netns` names it.
    pub name: String,
    /// The namespace.
    pub netns: Arc<Netns>,
    path: PathBuf,
}

impl Namespace {
    /// A new one with its loopback up. Its name begins so.
    pub fn new(prefix: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from("/run/netns").join(&name);
        let netns = Arc::new(Netns::create(&path).expect("this test needs root"));
        let namespace = Self { name, netns, path };
        namespace.run("ip", "link set lo up");
        namespace
    }

    /// Runs a program in it, which has to succeed, and returns what it prints.
    pub fn run(&self, program: &str, args: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, program])
            .args(args.split_whitespace())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = Netns::remove(&self.path) {
            eprintln!("{error}");
        }
    }
}
