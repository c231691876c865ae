//! Programs of this machine: run to their end, for what they print.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};
use tokio::{io::AsyncWriteExt as _, process::Command};

/// Runs a program and returns what it prints; its own words are the error.
pub async fn output(program: &str, args: &[&str]) -> Result<String> {
    fed(program, args, &[]).await
}

/// The same, with something on its standard input.
pub async fn fed(program: &str, args: &[&str], input: &[u8]) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    let mut stdin = child.stdin.take().context("standard input of a child")?;
    let feed = async move {
        // Who has heard enough closes it; how the program ends tells whether that was well.
        drop(stdin.write_all(input).await);
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        bail!("{name} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
