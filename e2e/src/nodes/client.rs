//! The outside's handle on the node side: one connection, any number of requests at a time.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::protocol::{
    Answer, Command, Flow, FlowResult, Health, Landed, Numbered, Output, Probe, Probed, ProcessState, Reply,
    Request, Shot,
};

/// Longest wait for a reply that is not bound to a program's own time.
const LIMIT: Duration = Duration::from_mins(2);

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A connection to the node side; clones share it.
#[derive(Clone)]
pub struct Nodes {
    requests: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Waiting,
    next: Arc<AtomicU64>,
}

impl Nodes {
    /// Connects, and makes sure that a server answers: a virtual machine's port accepts before anybody listens in it.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true).context("send at once")?;
        let (reader, mut writer) = stream.into_split();
        let (requests, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(line) = outgoing.recv().await {
                if writer.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let answered = Arc::clone(&waiting);
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(answer) = serde_json::from_str::<Numbered<Answer>>(&line) else { break };
                let receiver = lock(&answered).as_mut().and_then(|w| w.remove(&answer.id));
                // The request may have been given up.
                receiver.map(|r| r.send(answer.body));
            }
            // Dropping the senders tells all who still wait.
            lock(&answered).take();
        });
        let nodes = Self { requests, waiting, next: Arc::new(AtomicU64::new(0)) };
        nodes.ask(Request::Processes, Duration::from_secs(5)).await?;
        Ok(nodes)
    }

    /// Makes this connection the owner's. Apart from [`Nodes::connect`], since an attempt to connect that was given up
    /// can still reach a machine that boots, and end there.
    pub async fn own(&self) -> Result<()> {
        self.done(Request::Own).await
    }

    /// Whether the connection is still there.
    pub fn connected(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    async fn ask(&self, request: Request, limit: Duration) -> Result<Reply> {
        let gone = || anyhow!("the node side is gone; its console or log says why");
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, sender);
        let mut line = serde_json::to_vec(&Numbered { id, body: request }).context("write a request")?;
        line.push(b'\n');
        self.requests.send(line).map_err(|_| gone())?;
        let answer = timeout(limit, receiver)
            .await
            .map_err(|_| anyhow!("the node side did not answer within {} s", limit.as_secs()))?
            .map_err(|_| gone())?;
        answer.map_err(|text| anyhow!(text))
    }

    async fn done(&self, request: Request) -> Result<()> {
        match self.ask(request, LIMIT).await? {
            Reply::Done => Ok(()),
            other => unexpected(&other),
        }
    }

    /// Runs a program to its end, whatever that is.
    pub async fn exec(&self, command: Command) -> Result<Output> {
        let limit = Duration::from_millis(command.timeout_ms) + LIMIT;
        match self.ask(Request::Exec(command), limit).await? {
            Reply::Output(output) => Ok(output),
            other => unexpected(&other),
        }
    }

    /// Runs a program in a namespace and returns what it printed; a failure of the program is an error with its text.
    pub async fn run(&self, netns: &str, argv: &[&str]) -> Result<String> {
        let command = Command {
            netns: Some(netns.to_owned()),
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            timeout_ms: 60_000,
            ..Command::default()
        };
        let output = self.exec(command).await?;
        if output.code != 0 {
            bail!("`{}` in {netns} ended with {}: {}", argv.join(" "), output.code, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// Starts a program that stays and tells its process id.
    pub async fn spawn(&self, name: &str, command: Command) -> Result<u32> {
        match self.ask(Request::Spawn { name: name.to_owned(), command }, LIMIT).await? {
            Reply::Started(pid) => Ok(pid),
            other => unexpected(&other),
        }
    }

    /// Sends a signal to a named process.
    pub async fn signal(&self, name: &str, signal: i32) -> Result<()> {
        self.done(Request::Signal { name: name.to_owned(), signal }).await
    }

    /// Waits for a named process's end and tells its exit code.
    pub async fn wait(&self, name: &str) -> Result<i32> {
        match self.ask(Request::Wait { name: name.to_owned() }, LIMIT).await? {
            Reply::Output(output) => Ok(output.code),
            other => unexpected(&other),
        }
    }

    /// Kills a named process with its children and forgets it.
    pub async fn kill(&self, name: &str) -> Result<()> {
        self.done(Request::Kill { name: name.to_owned() }).await
    }

    /// Named processes.
    pub async fn processes(&self) -> Result<BTreeMap<String, ProcessState>> {
        match self.ask(Request::Processes, LIMIT).await? {
            Reply::Processes(states) => Ok(states),
            other => unexpected(&other),
        }
    }

    /// Reads a file.
    pub async fn read(&self, path: &str) -> Result<String> {
        self.text(Request::Read { path: path.to_owned() }).await
    }

    /// Writes a file as one step.
    pub async fn write(&self, path: &str, contents: &str, mode: u32, owner: Option<&str>) -> Result<()> {
        let (path, contents, owner) = (path.to_owned(), contents.to_owned(), owner.map(str::to_owned));
        self.done(Request::Write { path, contents, mode, owner }).await
    }

    /// Removes a file or directory.
    pub async fn remove(&self, path: &str) -> Result<()> {
        self.done(Request::Remove { path: path.to_owned() }).await
    }

    /// Runs `ip -batch` in a namespace, or in the server's own.
    pub async fn ip(&self, netns: Option<&str>, lines: Vec<String>) -> Result<()> {
        self.done(Request::Ip { netns: netns.map(str::to_owned), lines }).await
    }

    /// Writes sysctls in a namespace.
    pub async fn sysctl(&self, netns: &str, settings: Vec<(String, String)>) -> Result<()> {
        self.done(Request::Sysctl { netns: Some(netns.to_owned()), settings }).await
    }

    /// Tries everything at once; the results are in the same order.
    pub async fn probe(&self, probes: Vec<Probe>) -> Result<Vec<Probed>> {
        match self.ask(Request::Probe { probes }, LIMIT).await? {
            Reply::Probed(results) => Ok(results),
            other => unexpected(&other),
        }
    }

    /// Sends packets that are made by hand; the results are in the same order.
    pub async fn shoot(&self, shots: Vec<Shot>) -> Result<Vec<Landed>> {
        match self.ask(Request::Shoot { shots }, LIMIT).await? {
            Reply::Landed(landed) => Ok(landed),
            other => unexpected(&other),
        }
    }

    /// Starts flows; [`crate::steady::Steady`] is the handle for scenarios.
    pub async fn steady(&self, name: &str, pause: Duration, flows: Vec<Flow>) -> Result<()> {
        let interval_ms = u64::try_from(pause.as_millis()).context("a pause between rounds")?;
        self.done(Request::Steady { name: name.to_owned(), interval_ms, flows }).await
    }

    /// What has come of flows until now.
    pub async fn steady_so_far(&self, name: &str) -> Result<Vec<FlowResult>> {
        self.flows(name, false).await
    }

    /// Ends flows and tells what came of them.
    pub async fn steady_stop(&self, name: &str) -> Result<Vec<FlowResult>> {
        self.flows(name, true).await
    }

    async fn flows(&self, name: &str, stop: bool) -> Result<Vec<FlowResult>> {
        match self.ask(Request::SteadyResults { name: name.to_owned(), stop }, LIMIT).await? {
            Reply::Flows(results) => Ok(results),
            other => unexpected(&other),
        }
    }

    /// Answers TCP connections in a namespace by a line.
    pub async fn serve(&self, netns: &str, listen: SocketAddr, greeting: &str) -> Result<()> {
        self.done(Request::Serve { netns: netns.to_owned(), listen, greeting: greeting.to_owned() }).await
    }

    /// Carries TCP connections out of a namespace.
    pub async fn forward(&self, name: &str, netns: &str, listen: SocketAddr, to: SocketAddr) -> Result<()> {
        self.done(Request::Forward { name: name.to_owned(), netns: netns.to_owned(), listen, to }).await
    }

    /// Changes a forwarder's health.
    pub async fn link(&self, name: &str, health: Health) -> Result<()> {
        self.done(Request::Link { name: name.to_owned(), health }).await
    }

    /// Commands for an FRR daemon; a text for each.
    pub async fn vty(&self, socket: &str, commands: &[&str]) -> Result<Vec<String>> {
        let commands = commands.iter().map(|&c| c.to_owned()).collect();
        match self.ask(Request::Vty { socket: socket.to_owned(), commands }, LIMIT).await? {
            Reply::Texts(texts) => Ok(texts),
            other => unexpected(&other),
        }
    }

    /// A command for BIRD.
    pub async fn bird(&self, socket: &str, command: &str) -> Result<String> {
        self.text(Request::Bird { socket: socket.to_owned(), command: command.to_owned() }).await
    }

    /// State of everything by file name.
    pub async fn dump(&self) -> Result<BTreeMap<String, String>> {
        match self.ask(Request::Dump, LIMIT).await? {
            Reply::Files(files) => Ok(files),
            other => unexpected(&other),
        }
    }

    async fn text(&self, request: Request) -> Result<String> {
        match self.ask(request, LIMIT).await? {
            Reply::Text(text) => Ok(text),
            other => unexpected(&other),
        }
    }
}

fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!("the node side answered something else: {reply:?}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds the table of requests")
}
