//! Clients of the daemons' control sockets: FRR's vty and BIRD's. They save a process for every look at a daemon.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// A daemon that is silent for so long is stuck.
const LIMIT: Duration = Duration::from_secs(30);

fn dial(socket: &str) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    stream.set_read_timeout(Some(LIMIT)).context("a limit for reads")?;
    Ok(stream)
}

/// Sends commands to an FRR daemon one by one, from the enable node on. A status other than 0 (and 1, a warning) fails.
///
/// FRR's side of the protocol is lib/vty.c: a command ends with a zero octet; the answer is text, three zero octets and
/// a status octet.
pub fn vty(socket: &str, commands: &[String]) -> Result<Vec<String>> {
    let mut stream = dial(socket)?;
    vty_command(&mut stream, "enable")?;
    commands.iter().map(|c| vty_command(&mut stream, c).with_context(|| format!("{socket}: `{c}`"))).collect()
}

fn vty_command(stream: &mut UnixStream, command: &str) -> Result<String> {
    stream.write_all(format!("{command}\0").as_bytes()).context("write")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        if let [text @ .., 0, 0, 0, status] = answer.as_slice() {
            let text = String::from_utf8_lossy(text).into_owned();
            if *status > 1 {
                bail!("status {status}: {}", text.trim());
            }
            return Ok(text);
        }
        let count = stream.read(&mut buffer).context("read")?;
        if count == 0 {
            bail!("the daemon closed the connection");
        }
        answer.extend_from_slice(&buffer[..count]);
    }
}

/// Sends one command to BIRD and returns its text without the codes.
///
/// BIRD's side is doc/reply_codes of its source: a line is four digits, a hyphen (more follows) or a space (the end) and
/// text; a line that starts with a space continues the one before. Codes from 8000 on are errors.
pub fn bird(socket: &str, command: &str) -> Result<String> {
    let mut stream = dial(socket)?;
    let mut reader = BufReader::new(stream.try_clone().context("share the socket")?);
    bird_answer(&mut reader)?;
    stream.write_all(format!("{command}\n").as_bytes()).context("write")?;
    bird_answer(&mut reader).with_context(|| format!("{socket}: `{command}`"))
}

fn bird_answer(reader: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).context("read")? == 0 {
            bail!("BIRD closed the connection");
        }
        let numbered = line.get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let Some(code) = numbered else {
            text.push_str(line.strip_prefix([' ', '+']).unwrap_or(&line));
            continue;
        };
        text.push_str(line.get(5..).unwrap_or_default());
        if line.as_bytes().get(4) != Some(&b'-') {
            if code >= "8000" {
                bail!("{}", text.trim());
            }
            return Ok(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bird_speaks_in_codes() {
        let mut answer: &[u8] = b"2002-name     proto\n1002-mesh     BGP\n device1  Device\n0000 \n";
        assert_eq!(bird_answer(&mut answer).unwrap(), "name     proto\nmesh     BGP\ndevice1  Device\n\n");
        let mut refusal: &[u8] = b"0002-Reading configuration from x\n8002 x, line 3: syntax error\n";
        let error = bird_answer(&mut refusal).unwrap_err().to_string();
        assert!(error.contains("line 3: syntax error"), "{error}");
    }

    #[test]
    fn vty_ends_with_zeros_and_a_status() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"ten\nlines\0\0\0\0").unwrap();
        assert_eq!(vty_command(&mut ours, "show").unwrap(), "ten\nlines");
        theirs.write_all(b"% no\0\0\0\x0d").unwrap();
        let error = vty_command(&mut ours, "x").unwrap_err().to_string();
        assert_eq!(error, "status 13: % no");
    }
}
