//! Steady probes: flows of requests that go on while something happens, counted where they arrive and where their answers
//! come back. Packets are written whole, so a request costs one system call, and its source address can be anybody's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use tokio::{
    task::{AbortHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    capture::{Capture, next_id},
    netns,
    packet::{self, Kind, Packet},
    protocol::{Flow, FlowResult},
};

/// Packets that are under way at the end still count, until none has come for so long.
const QUIET: Duration = Duration::from_millis(500);

/// How long they count at most: a flow whose packets go on arriving by themselves is no reason to wait for ever.
const GRACE: Duration = Duration::from_secs(10);

/// Sets of flows by name.
#[derive(Default)]
pub struct Steadies(Mutex<BTreeMap<String, Steady>>);

struct Steady {
    counts: Arc<Mutex<Counts>>,
    capture: Capture,
    sender: AbortHandle,
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

/// What has come of the flows, in their order, and which flow a packet's number belongs to.
struct Counts {
    flows: Vec<Count>,
    by_id: HashMap<u16, usize>,
}

struct Count {
    flow: Flow,
    id: u16,
    result: FlowResult,
    /// When its last answer came, or its first request was sent.
    answered: Option<Instant>,
    longest_gap: Duration,
}

impl Steadies {
    /// Starts to send a request of every flow each interval.
    pub async fn start(&self, name: &str, pause: Duration, flows: Vec<Flow>) -> Result<()> {
        ensure!(!self.lock().contains_key(name), "flows named {name} run already");
        let namespaces = |of: fn(&Flow) -> &String| flows.iter().map(of).cloned().collect::<BTreeSet<_>>();
        let sources = namespaces(|flow| &flow.netns);
        let places = sources.union(&namespaces(|flow| &flow.count_in)).cloned().collect();
        let mut sockets = BTreeMap::new();
        for source in sources {
            let opened = netns::within(Some(&source), || Ok([open(false)?, open(true)?])).await?;
            sockets.insert(source, opened);
        }
        let counts = Arc::new(Mutex::new(Counts::new(flows)));
        let told = Arc::clone(&counts);
        let each = move |netns: &str, packet: &Packet| lock(&told).saw(netns, packet, Instant::now());
        let capture = Capture::start(places, Arc::new(each)).await?;
        let sender = tokio::spawn(send(sockets, pause, Arc::clone(&counts))).abort_handle();
        self.lock().insert(name.to_owned(), Steady { counts, capture, sender });
        Ok(())
    }

    /// What has come of them until now.
    pub fn so_far(&self, name: &str) -> Result<Vec<FlowResult>> {
        let steadies = self.lock();
        let steady = steadies.get(name).with_context(|| format!("no flows are named {name}"))?;
        Ok(steady.results())
    }

    /// Ends them and tells what came of them.
    pub async fn stop(&self, name: &str) -> Result<Vec<FlowResult>> {
        let steady = self.lock().remove(name).with_context(|| format!("no flows are named {name}"))?;
        steady.sender.abort();
        let ended = Instant::now();
        let mut seen = 0;
        while ended.elapsed() < GRACE {
            sleep(QUIET).await;
            steady.capture.catch_up();
            let now = lock(&steady.counts).packets();
            if now == seen {
                break;
            }
            seen = now;
        }
        Ok(lock(&steady.counts).results(ended))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Steady>> {
        self.0.lock().expect("no thread panics while it holds the table of flows")
    }
}

impl Steady {
    fn results(&self) -> Vec<FlowResult> {
        self.capture.catch_up();
        lock(&self.counts).results(Instant::now())
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().expect("counting does not panic")
}

/// A socket for whole packets, in the namespace of the current thread.
fn open(v6: bool) -> Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, SockType::Raw, flags, SockProtocol::Raw).context("a raw socket")
}

async fn send(sockets: BTreeMap<String, [OwnedFd; 2]>, pause: Duration, counts: Arc<Mutex<Counts>>) {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sockets = Arc::new(sockets);
    for number in 0.. {
        ticks.tick().await;
        let (sockets, counts) = (Arc::clone(&sockets), Arc::clone(&counts));
        // The kernel carries a packet through all namespaces within the system call: long work for the runtime.
        let round = spawn_blocking(move || {
            let requests: Vec<(String, Packet)> =
                lock(&counts).flows.iter().map(|count| count.request(number)).collect();
            for (index, (netns, request)) in requests.into_iter().enumerate() {
                let [v4, v6] = &sockets[&netns];
                let to: SockaddrStorage = SocketAddr::new(request.target, 0).into();
                let socket = if request.target.is_ipv4() { v4 } else { v6 };
                lock(&counts).flows[index].answered.get_or_insert_with(Instant::now);
                let sent = sendto(socket.as_raw_fd(), &packet::build(&request), &to, MsgFlags::empty());
                let result = &mut lock(&counts).flows[index].result;
                match sent {
                    Ok(_) => result.sent += 1,
                    Err(error) => {
                        result.refused += 1;
                        result.error = error.to_string();
                    }
                }
            }
        });
        if round.await.is_err() {
            return;
        }
    }
}

impl Counts {
    fn new(flows: Vec<Flow>) -> Self {
        let flows: Vec<Count> = flows
            .into_iter()
            .map(|flow| Count {
                flow,
                id: next_id(),
                result: FlowResult::default(),
                answered: None,
                longest_gap: Duration::ZERO,
            })
            .collect();
        let by_id = flows.iter().enumerate().map(|(index, count)| (count.id, index)).collect();
        Self { flows, by_id }
    }

    /// A packet came in.
    fn saw(&mut self, netns: &str, packet: &Packet, now: Instant) {
        let Some(&index) = self.by_id.get(&packet.id) else { return };
        let count = &mut self.flows[index];
        match packet.kind {
            Kind::EchoRequest | Kind::Syn if netns == count.flow.count_in => count.result.arrived += 1,
            Kind::EchoReply | Kind::SynAck if netns == count.flow.netns => {
                count.result.answered += 1;
                count.gap_until(now);
                count.answered = Some(now);
            }
            _ => {}
        }
    }

    /// All that came in so far.
    fn packets(&self) -> u64 {
        self.flows.iter().map(|count| count.result.arrived + count.result.answered).sum()
    }

    fn results(&mut self, now: Instant) -> Vec<FlowResult> {
        let result = |count: &mut Count| {
            count.gap_until(now);
            let longest_gap_ms = u64::try_from(count.longest_gap.as_millis()).unwrap_or(u64::MAX);
            FlowResult { longest_gap_ms, ..count.result.clone() }
        };
        self.flows.iter_mut().map(result).collect()
    }
}

impl Count {
    fn request(&self, number: u32) -> (String, Packet) {
        let Flow { netns, source, target, port, .. } = &self.flow;
        let kind = if port.is_some() { Kind::Syn } else { Kind::EchoRequest };
        let (id, port) = (self.id, port.unwrap_or(0));
        (netns.clone(), Packet { kind, source: *source, target: *target, id, port, number })
    }

    fn gap_until(&mut self, now: Instant) {
        if let Some(last) = self.answered {
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(from: &str, to: &str) -> Flow {
        let (source, target) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        Flow { netns: from.into(), source, target, port: None, count_in: to.into() }
    }

    #[test]
    fn requests_count_at_the_target_and_answers_at_the_source() {
        let mut counts = Counts::new(vec![flow("a", "b"), flow("a", "c")]);
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        counts.flows[0].answered = Some(begin);
        let (_, request) = counts.flows[0].request(7);
        let reply = Packet { kind: Kind::EchoReply, ..request };
        counts.saw("b", &request, after(1));
        // On their way through other namespaces.
        counts.saw("c", &request, after(1));
        counts.saw("b", &reply, after(2));
        counts.saw("a", &reply, after(30));
        counts.saw("a", &reply, after(130));
        let results = counts.results(after(180));
        assert_eq!((results[0].arrived, results[0].answered, results[0].longest_gap_ms), (1, 2, 100));
        assert_eq!(results[1], FlowResult::default());
        assert_eq!(counts.results(after(500))[0].longest_gap_ms, 370, "the gap until now counts");
    }
}
