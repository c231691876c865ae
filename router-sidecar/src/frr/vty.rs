//! A client of the Unix sockets on which FRR's daemons take the commands of vtysh.
//!
//! A command is its text and a zero byte; the answer is text, three zero bytes and a status (FRR's `lib/vty.c`,
//! `vtysh_write` and `vtysh_read`). The socket belongs to root and the group frrvty.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::config::{shown, shown_text};

/// How long one answer may take. A commit of a thousand tenants takes some seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// The status of an answer; the numbers are the `CMD_*` of FRR's `lib/command.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// `CMD_SUCCESS`.
    pub const OK: Self = Self(0);
    /// `CMD_WARNING`: mostly an error, sometimes only the remark that nothing has changed.
    pub const WARNING: Self = Self(1);
    /// `CMD_WARNING_CONFIG_FAILED`.
    pub const FAILED: Self = Self(13);
}

/// An answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: Status,
    /// What the daemon said.
    pub text: String,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("text", &shown_text(&self.text)).finish()
    }
}

/// Why a daemon could not be asked. It is said without passwords.
#[derive(Debug, thiserror::Error)]
pub enum VtyError {
    /// The socket.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer.
    #[error("{}: no answer to `{command}` within {} s", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
    },
    /// An answer that does not end.
    #[error("{}: the answer to `{command}` has more than {octets} octets: ask FRR on the node", path.display())]
    Long {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
        /// The most that is taken.
        octets: usize,
    },
    /// An answer that is an error, to a question that has none.
    #[error("{}: `{command}` gave status {status}: {text}", path.display(), status = reply.status.0, text = reply.text.trim())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
        /// The answer.
        reply: Reply,
    },
}

/// A session with one daemon.
#[derive(Debug)]
pub struct Vty {
    path: PathBuf,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
    /// Octets of the longest answer.
    longest: usize,
}

impl Vty {
    /// Opens a session and makes it privileged.
    pub async fn connect(path: &Path) -> Result<Self, VtyError> {
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(|source| VtyError::Io { path: path.to_owned(), source })?;
        let (reader, writer) = stream.into_split();
        let mut vty = Self { path: path.to_owned(), reader, writer, buffer: Vec::new(), longest: usize::MAX };
        vty.ask("enable").await?;
        Ok(vty)
    }

    /// The same session, in which an answer of more octets is an error. It can be used no further then.
    #[must_use]
    pub fn at_most(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// One command and its answer, whatever that is.
    pub async fn command(&mut self, line: &str) -> Result<Reply, VtyError> {
        let Self { path, reader, writer, buffer, longest } = self;
        let io = |source| VtyError::Io { path: path.clone(), source };
        writer.write_all(&framed([line])).await.map_err(io)?;
        reply(path, reader, (buffer, *longest), line).await
    }

    /// One question whose answer is its text; any other status than success is an error.
    pub async fn ask(&mut self, line: &str) -> Result<String, VtyError> {
        let reply = self.command(line).await?;
        if reply.status == Status::OK {
            return Ok(reply.text);
        }
        let command = shown(line).into_owned();
        let reply = Reply { text: shown_text(&reply.text), ..reply };
        Err(VtyError::Refused { path: self.path.clone(), command, reply })
    }

    /// All commands, their answers in their order. With `ahead` they are written while answers are still coming in.
    pub async fn commands(&mut self, lines: &[&str], ahead: bool) -> Result<Vec<Reply>, VtyError> {
        let mut replies = Vec::with_capacity(lines.len());
        if !ahead {
            for line in lines {
                replies.push(self.command(line).await?);
            }
            return Ok(replies);
        }
        let bytes = framed(lines.iter().copied());
        let Self { path, reader, writer, buffer, longest } = self;
        // Both directions at once: a daemon that cannot write its answers stops reading.
        let write = async {
            let written = writer.write_all(&bytes).await;
            written.map_err(|source| VtyError::Io { path: path.clone(), source })
        };
        let read = async {
            for line in lines {
                replies.push(reply(path, reader, (buffer, *longest), line).await?);
            }
            Ok(())
        };
        tokio::try_join!(write, read)?;
        Ok(replies)
    }
}

fn framed<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    lines.into_iter().flat_map(|line| line.bytes().chain([0])).collect()
}

async fn reply(
    path: &Path,
    reader: &mut OwnedReadHalf,
    (buffer, longest): (&mut Vec<u8>, usize),
    command: &str,
) -> Result<Reply, VtyError> {
    let mut searched = 0;
    loop {
        if let Some((reply, used)) = take(buffer, searched) {
            buffer.drain(..used);
            return Ok(reply);
        }
        if buffer.len() > longest {
            let command = shown(command).into_owned();
            return Err(VtyError::Long { path: path.to_owned(), command, octets: longest });
        }
        // The mark may straddle two reads.
        searched = buffer.len().saturating_sub(3);
        let read = timeout(PATIENCE, reader.read_buf(buffer)).await;
        let read = read
            .map_err(|_| VtyError::Silent { path: path.to_owned(), command: shown(command).into_owned() })?;
        let closed = |source| VtyError::Io { path: path.to_owned(), source };
        if read.map_err(closed)? == 0 {
            return Err(closed(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the daemon closed the session at `{}`", shown(command)),
            )));
        }
    }
}

/// The first answer in the buffer and how many octets it takes.
fn take(buffer: &[u8], from: usize) -> Option<(Reply, usize)> {
    let end = from + buffer.get(from..)?.windows(3).position(|w| w == [0, 0, 0])?;
    let status = *buffer.get(end + 3)?;
    let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
    Some((Reply { status: Status(status), text }, end + 4))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_cut_at_their_marks() {
        let bytes = b"one\0\0\0\x0d\0\0\0\0two";
        let (first, used) = take(bytes, 0).unwrap();
        assert_eq!(first, Reply { status: Status::FAILED, text: "one".to_owned() });
        let (second, more) = take(&bytes[used..], 0).unwrap();
        assert_eq!(second, Reply { status: Status::OK, text: String::new() });
        assert!(take(&bytes[used + more..], 0).is_none());
        assert!(take(b"x\0\0\0", 0).is_none(), "the status is still to come");
    }

    /// A daemon that answers each command with its text, an octet at a time.
    async fn echo(listener: UnixListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut byte = [0];
        let mut line = Vec::new();
        while stream.read_exact(&mut byte).await.is_ok() {
            if byte[0] != 0 {
                line.push(byte[0]);
                continue;
            }
            line.extend([0, 0, 0, u8::from(line.starts_with(b"bad"))]);
            for octet in line.drain(..) {
                stream.write_all(&[octet]).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn commands_and_answers_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo.vty");
        let server = tokio::spawn(echo(UnixListener::bind(&path).unwrap()));
        let mut vty = Vty::connect(&path).await.unwrap();
        for ahead in [false, true] {
            let replies = vty.commands(&["a", "bad b", "", "c"], ahead).await.unwrap();
            let seen: Vec<_> = replies.iter().map(|r| (r.text.as_str(), r.status.0)).collect();
            assert_eq!(seen, [("a", 0), ("bad b", 1), ("", 0), ("c", 0)]);
        }
        let error = vty.ask("bad question").await.unwrap_err();
        assert!(error.to_string().contains("`bad question` gave status 1"), "{error}");
        drop(vty);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo.vty");
        tokio::spawn(echo(UnixListener::bind(&path).unwrap()));
        let mut vty = Vty::connect(&path).await.unwrap().at_most(1000);
        assert_eq!(vty.ask(&"a".repeat(900)).await.unwrap().len(), 900);
        let error = vty.ask(&"b".repeat(1100)).await.unwrap_err().to_string();
        assert!(error.contains("more than 1000 octets"), "{error}");
        assert!(vty.buffer.len() <= 1000 + 1024, "{}", vty.buffer.len());
    }
}
