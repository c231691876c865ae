//! What the lab and its node side say to each other: one JSON object a line, requests in any number at a time, replies
//! in the order in which they get ready. No I/O here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// A request or a reply with the number that joins the two.
#[derive(Debug, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// Chosen by the client, unique on a connection.
    pub id: u64,
    /// The message.
    pub body: T,
}

/// What the server answers.
pub type Answer = Result<Reply, String>;

/// What the node side can be asked for. A network namespace is named as `ip netns` names it; absent means the one that
/// the server lives in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The connection is the owner's: when it ends, a server that was told so ends too.
    Own,
    /// Runs a program to its end.
    Exec(Command),
    /// Starts a program that stays, under a name, its output in a log file.
    Spawn {
        /// Name for later requests; it is free again once the process has ended.
        name: String,
        /// The program. Its `stdin` and `timeout_ms` are not used.
        command: Command,
    },
    /// Sends a signal to a named process alone, not to its children.
    Signal {
        /// The process.
        name: String,
        /// Number as in `signal(7)`.
        signal: i32,
    },
    /// Waits for a named process to end and tells how.
    Wait {
        /// The process.
        name: String,
    },
    /// Kills a named process with its group, waits for its end and forgets it. Fine when there is none.
    Kill {
        /// The process.
        name: String,
    },
    /// Named processes that run or have ended and were not forgotten.
    Processes,
    /// Reads a file.
    Read {
        /// Absolute path.
        path: String,
    },
    /// Writes a file beside the path and renames it there, so nobody reads half of it.
    Write {
        /// Absolute path; missing directories are made.
        path: String,
        /// Whole contents.
        contents: String,
        /// Permissions, such as `0o644`.
        mode: u32,
        /// User and group by name; absent: root's.
        owner: Option<String>,
    },
    /// Removes a file or a whole directory. Fine when there is none.
    Remove {
        /// Absolute path.
        path: String,
    },
    /// Commands for `ip -batch`, all in one process; it stops at the first that fails.
    Ip {
        /// Where.
        netns: Option<String>,
        /// Commands without the leading `ip`.
        lines: Vec<String>,
    },
    /// Writes sysctls, by path below `/proc/sys`.
    Sysctl {
        /// Where.
        netns: Option<String>,
        /// Such as `net/ipv4/ip_forward` and `1`.
        settings: Vec<(String, String)>,
    },
    /// Sends echo requests or opens connections, everything at once.
    Probe {
        /// What to try.
        probes: Vec<Probe>,
    },
    /// Sends packets that are made by hand, all in their order.
    Shoot {
        /// The packets.
        shots: Vec<Shot>,
    },
    /// Starts to send requests, round after round, until they are stopped.
    Steady {
        /// Name for [`Request::SteadyResults`].
        name: String,
        /// Milliseconds from one round to the next.
        interval_ms: u64,
        /// One request of each in every round.
        flows: Vec<Flow>,
    },
    /// Tells what has come of flows.
    SteadyResults {
        /// The flows.
        name: String,
        /// Whether they end now.
        stop: bool,
    },
    /// Accepts TCP connections in a namespace until the server ends; each is answered with one line and closed.
    Serve {
        /// Where.
        netns: String,
        /// Address and port.
        listen: SocketAddr,
        /// The line.
        greeting: String,
    },
    /// Listens in a namespace and carries connections to an address that the server's own namespace reaches.
    Forward {
        /// Name for [`Request::Link`]; one that exists is replaced.
        name: String,
        /// Where to listen.
        netns: String,
        /// Address and port to listen on.
        listen: SocketAddr,
        /// Where to.
        to: SocketAddr,
    },
    /// Changes the health of a forwarder.
    Link {
        /// The forwarder.
        name: String,
        /// From now on.
        health: Health,
    },
    /// Sends commands to a daemon of FRR over its vty socket and returns what each one printed.
    Vty {
        /// Path of the socket, such as `/run/frr/leaf/bgpd.vty`.
        socket: String,
        /// Commands, from the view node on.
        commands: Vec<String>,
    },
    /// Sends one command to BIRD over its control socket and returns what it printed.
    Bird {
        /// Path of the socket.
        socket: String,
        /// As typed to `birdc`.
        command: String,
    },
    /// All that helps to understand a failure.
    Dump,
}

/// What the server answers when a request succeeds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// A program's end.
    Output(Output),
    /// Text that was asked for.
    Text(String),
    /// A text for each command.
    Texts(Vec<String>),
    /// In the order of the request.
    Probed(Vec<Probed>),
    /// In the order of the shots.
    Landed(Vec<Landed>),
    /// In the order of the flows.
    Flows(Vec<FlowResult>),
    /// State by process name.
    Processes(BTreeMap<String, ProcessState>),
    /// Contents by file name; names may have directories in them.
    Files(BTreeMap<String, String>),
    /// Process id of what was started.
    Started(u32),
}

/// A program to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Command {
    /// Where.
    pub netns: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the server's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Given to the program.
    #[serde(default)]
    pub stdin: String,
    /// Milliseconds; the program is killed when they are over.
    pub timeout_ms: u64,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Exit code; 128 and the signal's number when it was killed.
    pub code: i32,
    /// Lossy UTF-8.
    pub stdout: String,
    /// Lossy UTF-8.
    pub stderr: String,
}

/// A named process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Process id as the node side sees it.
    pub pid: u32,
    /// Exit code when it has ended, as in [`Output`].
    pub ended: Option<i32>,
}

/// Whether a forwarder carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Connections are carried.
    Healthy,
    /// Open connections are closed and new ones refused.
    Cut,
    /// Connections stay open and are accepted, and no octet passes; what was held back passes after healing.
    Blackhole,
}

/// One attempt to reach something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Probe {
    /// From where.
    pub netns: String,
    /// Source address; absent: the kernel's choice.
    pub source: Option<IpAddr>,
    /// What to reach.
    pub target: IpAddr,
    /// TCP port; absent: ICMP echo.
    pub port: Option<u16>,
    /// Echo requests at most; they end with the first answer. TCP tries once.
    pub count: u16,
    /// Milliseconds until the attempt has failed.
    pub timeout_ms: u64,
    /// Namespace in which the requests that arrive are counted: the target's.
    #[serde(default)]
    pub count_in: Option<String>,
}

/// What came of a [`Probe`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Microseconds to the first answer; absent: there was none.
    pub answered_us: Option<u64>,
    /// The error of a probe that could not be sent, or the refusal that came back. Empty after silence.
    pub error: String,
    /// Echo requests or TCP SYNs of this very probe that came in where they were to be counted, whatever their source
    /// address was by then; absent: they were not counted.
    #[serde(default)]
    pub arrived: Option<u64>,
}

impl Probed {
    /// Whether there was an answer.
    pub fn answered(&self) -> bool {
        self.answered_us.is_some()
    }
}

/// Requests from an address that need not be the sender's, sent once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// From where.
    pub netns: String,
    /// Inside of which tunnel; absent: as they are.
    pub tunnel: Option<Tunnel>,
    /// Source address, written into the packets as it is.
    pub source: IpAddr,
    /// Target address, of the same family.
    pub target: IpAddr,
    /// TCP port, for SYNs; absent: ICMP echo requests.
    pub port: Option<u16>,
    /// How many.
    pub count: u16,
    /// Namespace in which those that arrive are counted.
    pub count_in: String,
    /// Whether they have to arrive, and so are waited for.
    pub reach: bool,
}

/// A VXLAN tunnel that is made by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Outer source; the sender's namespace has to have it.
    pub from: IpAddr,
    /// Outer target, the receiver's tunnel end point.
    pub to: IpAddr,
    /// VNI, 24 bits.
    pub vni: u32,
    /// Hardware address inside: the receiver's router MAC.
    pub router_mac: [u8; 6],
}

/// What came of a [`Shot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landed {
    /// Packets that went out.
    pub sent: u64,
    /// Packets that came in where they are counted.
    pub arrived: u64,
    /// The last refusal of the sender's own kernel.
    pub error: String,
}

/// Requests of one kind from one place to another, round after round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// From where they are sent, and where answers are counted.
    pub netns: String,
    /// Source address, written into the packets as it is: it need not be the sender's.
    pub source: IpAddr,
    /// Target address, of the same family.
    pub target: IpAddr,
    /// TCP port, for SYNs; absent: ICMP echo requests.
    pub port: Option<u16>,
    /// Namespace in which requests that arrive are counted: the target's.
    pub count_in: String,
}

/// What came of a [`Flow`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowResult {
    /// Requests that went out.
    pub sent: u64,
    /// Requests that the sender's own kernel did not send, as where it has no route.
    pub refused: u64,
    /// Requests that came in where they are counted.
    pub arrived: u64,
    /// Answers that came back.
    pub answered: u64,
    /// Milliseconds of the longest time without an answer, from the first request to the end.
    pub longest_gap_ms: u64,
    /// The last of the refusals.
    pub error: String,
}
