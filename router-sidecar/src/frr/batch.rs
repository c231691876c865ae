//! Writes configuration lines of many operations to one daemon, and says whose line was refused.
//!
//! Three ways, by what is written: instances of BGP plainly and ahead of the answers, lists in one transaction, and
//! everything for the management daemon in one transaction, a line at a time.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    config::{shown, shown_text},
    version::{Daemon, Version},
    vty::{Reply, Status, Vty, VtyError},
};

/// Beginning and end of one transaction; FRR's `lib/vty.c` has them for vtysh's reading of files.
const BEGIN: &str = "XFRR_start_configuration";
const COMMIT: &str = "XFRR_end_configuration";

/// How often, and how long apart, a line is sent again that waits for another daemon.
const RETRIES: u32 = 50;
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The lines of one operation, and its place in the list of operations.
pub struct Part<'a> {
    /// Place in the list.
    pub op: usize,
    /// Lines, contexts included.
    pub lines: &'a [String],
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// A line that a daemon refused.
    #[error("{daemon} refused `{line}` (status {status}): {text}")]
    Refused {
        /// The daemon.
        daemon: Daemon,
        /// The line.
        line: String,
        /// `CMD_*` of FRR's `lib/command.h`.
        status: u8,
        /// What it said.
        text: String,
    },
    /// The VNI is in use. Not sent, since mgmtd of FRR 10.3 dies of repeated refusals.
    #[error("VNI {vni} is carried by VRF {vrf} already; free it there or choose another")]
    VniTaken {
        /// The VNI.
        vni: u32,
        /// Who has it.
        vrf: String,
    },
    /// The daemon went away in the midst of it.
    #[error("{daemon} went away: {reason}")]
    Lost {
        /// The daemon.
        daemon: Daemon,
        /// Why.
        reason: String,
    },
}

/// A line that was refused, and whose it was.
pub type Refusal = (usize, OpError);

/// Writes the parts one after the other. One that is refused does not keep the next from its own context.
pub async fn plain(
    vty: &mut Vty,
    daemon: Daemon,
    version: Version,
    parts: &[Part<'_>],
) -> Result<Vec<Refusal>, VtyError> {
    let mut script = Vec::new();
    for part in parts {
        // A context that was refused leaves the session one level too high; this puts it right.
        script.extend([(part.op, "end"), (part.op, version.enter(daemon))]);
        script.extend(part.lines.iter().map(|line| (part.op, line.as_str())));
    }
    let tail = parts.last().map(|part| (part.op, "end"));
    script.extend(tail);
    let lines: Vec<&str> = script.iter().map(|(_, line)| *line).collect();
    let replies = vty.commands(&lines, version.pipelines(daemon)).await?;
    let mut refusals = Vec::new();
    for ((op, line), mut reply) in script.into_iter().zip(replies) {
        // Only whole instances wait, and their lines need no context but the top one.
        for _ in 0..RETRIES {
            if !waits(&reply) {
                break;
            }
            sleep(RETRY_DELAY).await;
            reply = again(vty, daemon, version, line).await?;
        }
        refusals.extend(refusal(daemon, line, &reply).map(|error| (op, error)));
    }
    Ok(refusals)
}

/// Writes all parts in one transaction, and where that is refused, each in one of its own.
pub async fn transaction(
    vty: &mut Vty,
    daemon: Daemon,
    version: Version,
    parts: &[Part<'_>],
) -> Result<Vec<Refusal>, VtyError> {
    let together = commit(vty, daemon, version, parts).await?;
    // A single line that was refused leaves the others standing; a refused commit takes all with it.
    let committed =
        !together.iter().any(|(_, e)| matches!(e, OpError::Refused { line, .. } if line == COMMIT));
    if committed || parts.len() == 1 {
        return Ok(together);
    }
    let mut refusals = Vec::new();
    for part in parts {
        refusals.extend(commit(vty, daemon, version, std::slice::from_ref(part)).await?);
    }
    Ok(refusals)
}

async fn commit(
    vty: &mut Vty,
    daemon: Daemon,
    version: Version,
    parts: &[Part<'_>],
) -> Result<Vec<Refusal>, VtyError> {
    let Some(last) = parts.last() else { return Ok(Vec::new()) };
    let mut script = vec![(parts[0].op, "end"), (parts[0].op, version.enter(daemon)), (parts[0].op, BEGIN)];
    script.extend(parts.iter().flat_map(|part| part.lines.iter().map(|line| (part.op, line.as_str()))));
    script.extend([(last.op, COMMIT), (last.op, "end")]);
    let lines: Vec<&str> = script.iter().map(|(_, line)| *line).collect();
    let replies = vty.commands(&lines, version.pipelines(daemon)).await?;
    let refused =
        |((op, line), reply): ((usize, &str), Reply)| refusal(daemon, line, &reply).map(|error| (op, error));
    Ok(script.into_iter().zip(replies).filter_map(refused).collect())
}

/// Runs commands outside of configuration.
pub async fn exec(vty: &mut Vty, daemon: Daemon, parts: &[Part<'_>]) -> Result<Vec<Refusal>, VtyError> {
    let mut refusals = Vec::new();
    for part in parts {
        for line in part.lines {
            let reply = vty.command(line).await?;
            refusals.extend(refusal(daemon, line, &reply).map(|error| (part.op, error)));
        }
    }
    Ok(refusals)
}

async fn again(vty: &mut Vty, daemon: Daemon, version: Version, line: &str) -> Result<Reply, VtyError> {
    vty.command("end").await?;
    vty.ask(version.enter(daemon)).await?;
    let reply = vty.command(line).await?;
    vty.command("end").await?;
    Ok(reply)
}

/// bgpd keeps the instance of an L3VNI until zebra has told it that the VNI is gone.
fn waits(reply: &Reply) -> bool {
    reply.text.contains("Please unconfigure l3vni") || reply.text.contains("is scheduled to be deleted")
}

fn refusal(daemon: Daemon, line: &str, reply: &Reply) -> Option<OpError> {
    let text = reply.text.trim();
    let harmless = match reply.status {
        Status::OK => true,
        // The remark that nothing has changed comes without a word, or with these.
        Status::WARNING => text.is_empty() || text.contains("already configured"),
        // What shall go and is not there is as it shall be.
        Status::FAILED => line.starts_with("no router bgp") && text.contains("Can't find BGP instance"),
        Status(_) => false,
    };
    (!harmless).then(|| OpError::Refused {
        daemon,
        line: shown(line).into_owned(),
        status: reply.status.0,
        // Some releases repeat the line that they refuse.
        text: shown_text(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_password_is_not_told() {
        let line = "neighbor 192.0.2.1 password s3cr3t";
        let reply = Reply { status: Status(2), text: format!("% Unknown command: {line}\n{line}") };
        let error = refusal(Daemon::Bgpd, line, &reply).unwrap();
        for text in [error.to_string(), format!("{error:?} {reply:?}")] {
            assert!(text.contains("neighbor 192.0.2.1 password ***") && !text.contains("s3cr3t"), "{text}");
        }
    }
}
