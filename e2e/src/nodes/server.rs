//! The node side's server: reads requests, does them, all at once, and answers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    unistd::User,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};

use super::{
    RUN_DIR, control, dump, forward,
    forward::Forwarders,
    netns, probe,
    process::{self, Processes},
    protocol::{Answer, Command, Numbered, Reply, Request},
    shot,
    steady::Steadies,
};

/// How the server is started.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Address and port to listen on.
    #[arg(long)]
    pub listen: String,
    /// Write the address that is listened on to this file, once it is.
    #[arg(long)]
    pub address_file: Option<std::path::PathBuf>,
    /// End when the connection of the owner ends.
    #[arg(long)]
    pub exit_with_owner: bool,
    /// Cover the directories that the nodes use by empty ones of this process's own. Wants a mount namespace of its own.
    #[arg(long)]
    pub private: bool,
}

struct Server {
    processes: Processes,
    forwarders: Forwarders,
    steadies: Steadies,
    owner_left: Notify,
}

/// Serves until the owner leaves, or for ever.
pub async fn run(options: Options) -> Result<()> {
    if options.private {
        cover_directories()?;
    }
    fs::create_dir_all(netns::DIR).context("make the directory of network namespaces")?;
    fs::create_dir_all(super::LOG_DIR).context("make the directory of logs")?;
    let listener =
        TcpListener::bind(&options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
    if let Some(file) = &options.address_file {
        let address = listener.local_addr().context("address of the listener")?.to_string();
        write_whole(&file.to_string_lossy(), &address, 0o644, None)?;
    }
    let server = Arc::new(Server {
        processes: Processes::default(),
        forwarders: Forwarders::default(),
        steadies: Steadies::default(),
        owner_left: Notify::new(),
    });
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                stream.set_nodelay(true).context("send at once")?;
                tokio::spawn(connection(Arc::clone(&server), stream));
            }
            () = server.owner_left.notified(), if options.exit_with_owner => {
                server.processes.kill_all();
                return Ok(());
            }
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream) {
    let (reader, mut writer) = stream.into_split();
    let (sender, mut receiver) = mpsc::unbounded_channel::<Numbered<Answer>>();
    let write = tokio::spawn(async move {
        while let Some(answer) = receiver.recv().await {
            let mut line = serde_json::to_vec(&answer).expect("an answer is plain data");
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    });
    let mut owner = false;
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(request) = serde_json::from_str::<Numbered<Request>>(&line) else {
            tracing::error!(%line, "a line that is no request; the client is of another version");
            break;
        };
        owner |= matches!(request.body, Request::Own);
        let server = Arc::clone(&server);
        let sender = sender.clone();
        tokio::spawn(async move {
            let body = server.handle(request.body).await.map_err(|e| format!("{e:#}"));
            // The client may have left meanwhile.
            drop(sender.send(Numbered { id: request.id, body }));
        });
    }
    if owner {
        server.owner_left.notify_one();
    }
    drop(sender);
    drop(write.await);
}

impl Server {
    async fn handle(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Own => Ok(Reply::Done),
            Request::Exec(command) => Ok(Reply::Output(process::exec(command).await?)),
            Request::Spawn { name, command } => {
                Ok(Reply::Started(self.processes.spawn(&name, command).await?))
            }
            Request::Signal { name, signal } => done(self.processes.signal(&name, signal)),
            Request::Wait { name } => {
                let code = self.processes.wait(&name).await?;
                Ok(Reply::Output(super::protocol::Output {
                    code,
                    stdout: String::new(),
                    stderr: String::new(),
                }))
            }
            Request::Kill { name } => done(self.processes.kill(&name).await),
            Request::Processes => Ok(Reply::Processes(self.processes.states())),
            Request::Read { path } => {
                let octets = fs::read(&path).with_context(|| format!("read {path}"))?;
                Ok(Reply::Text(String::from_utf8_lossy(&octets).into_owned()))
            }
            Request::Write { path, contents, mode, owner } => {
                done(write_whole(&path, &contents, mode, owner.as_deref()))
            }
            Request::Remove { path } => done(remove(&path)),
            Request::Ip { netns, lines } => done(ip(netns, &lines).await),
            Request::Sysctl { netns, settings } => {
                let write = move || settings.iter().try_for_each(|(name, value)| sysctl(name, value));
                done(netns::within(netns.as_deref(), write).await)
            }
            Request::Probe { probes } => Ok(Reply::Probed(probe::probe(probes).await?)),
            Request::Shoot { shots } => Ok(Reply::Landed(shot::shoot(shots).await?)),
            Request::Steady { name, interval_ms, flows } => {
                done(self.steadies.start(&name, Duration::from_millis(interval_ms), flows).await)
            }
            Request::SteadyResults { name, stop: true } => Ok(Reply::Flows(self.steadies.stop(&name).await?)),
            Request::SteadyResults { name, stop: false } => Ok(Reply::Flows(self.steadies.so_far(&name)?)),
            Request::Serve { netns, listen, greeting } => {
                done(forward::serve(&netns, listen, greeting).await)
            }
            Request::Forward { name, netns, listen, to } => {
                done(self.forwarders.start(&name, &netns, listen, to).await)
            }
            Request::Link { name, health } => done(self.forwarders.set(&name, health)),
            Request::Vty { socket, commands } => {
                Ok(Reply::Texts(netns::within(None, move || control::vty(&socket, &commands)).await?))
            }
            Request::Bird { socket, command } => {
                Ok(Reply::Text(netns::within(None, move || control::bird(&socket, &command)).await?))
            }
            Request::Dump => Ok(Reply::Files(dump::dump().await)),
        }
    }
}

fn done(result: Result<()>) -> Result<Reply> {
    result.map(|()| Reply::Done)
}

async fn ip(netns: Option<String>, lines: &[String]) -> Result<()> {
    let command = Command {
        netns,
        argv: vec!["ip".into(), "-batch".into(), "-".into()],
        stdin: lines.join("\n") + "\n",
        timeout_ms: 60_000,
        ..Command::default()
    };
    let place = command.netns.clone().unwrap_or_else(|| "the server's own namespace".into());
    let output = process::exec(command).await?;
    if output.code == 0 {
        return Ok(());
    }
    // `Command failed -:7`: which line it was.
    let number = output.stderr.rsplit("-:").next().and_then(|n| n.trim().parse::<usize>().ok());
    let line = number.and_then(|n| lines.get(n - 1)).map_or("?", String::as_str);
    bail!("`ip {line}` in {place}: {}", output.stderr.trim());
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("set the sysctl {name} to {value}"))
}

fn write_whole(path: &str, contents: &str, mode: u32, owner: Option<&str>) -> Result<()> {
    let target = Path::new(path);
    let directory = target.parent().with_context(|| format!("{path} has no directory"))?;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let beside = directory.join(format!(".{}.new", target.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&beside, contents).with_context(|| format!("write {}", beside.display()))?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode))
        .with_context(|| format!("permissions of {path}"))?;
    if let Some(name) = owner {
        let user =
            User::from_name(name).context("look up a user")?.with_context(|| format!("no user {name}"))?;
        for place in [&beside, directory] {
            chown(place, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .with_context(|| format!("give {} to {name}", place.display()))?;
        }
    }
    fs::rename(&beside, target).with_context(|| format!("put {path} in place"))
}

fn remove(path: &str) -> Result<()> {
    let result = if Path::new(path).is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {path}"))
        }
        _ => Ok(()),
    }
}

/// Runs of the lab on one machine must not meet: each sees its own names of network namespaces, sockets and state.
fn cover_directories() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make all mounts private")?;
    for directory in [netns::DIR, "/run/frr", RUN_DIR, "/var/lib/calico-vni"] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
        mount(Some("lab"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("cover {directory}"))?;
    }
    let frr = User::from_name("frr").context("look up a user")?.context("no user frr: is FRR installed?")?;
    chown("/run/frr", Some(frr.uid.as_raw()), Some(frr.gid.as_raw())).context("give /run/frr to FRR")
}
