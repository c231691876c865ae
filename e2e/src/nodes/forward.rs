//! TCP from inside a namespace to an address outside of it, with a switch to make the way fail.
//!
//! A socket belongs to the namespace that it was made in. So the listener is made in the node's, while the runtime, which
//! is in the server's, dials out and copies.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use super::{netns, protocol::Health};

/// Forwarders by name.
#[derive(Default)]
pub struct Forwarders(Mutex<BTreeMap<String, Forwarder>>);

struct Forwarder {
    health: watch::Sender<Health>,
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarders {
    /// Starts one, or replaces the one of that name.
    pub async fn start(&self, name: &str, netns: &str, listen: SocketAddr, to: SocketAddr) -> Result<()> {
        let replaced = self.lock().remove(name);
        if let Some(mut old) = replaced {
            old.task.abort();
            // It has let go of its address only when it has ended. Its outcome is that it was ended.
            drop((&mut old.task).await);
        }
        let listener = bind(netns, listen).await?;
        let (health, watched) = watch::channel(Health::Healthy);
        let task = tokio::spawn(accept(listener, to, watched));
        self.lock().insert(name.to_owned(), Forwarder { health, task });
        Ok(())
    }

    /// Changes one's health.
    pub fn set(&self, name: &str, health: Health) -> Result<()> {
        let forwarders = self.lock();
        let forwarder = forwarders.get(name).with_context(|| format!("no forwarder is named {name}"))?;
        forwarder.health.send_replace(health);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Forwarder>> {
        self.0.lock().expect("no thread panics while it holds the table of forwarders")
    }
}

/// Answers every connection with a line, until the server ends.
pub async fn serve(netns: &str, listen: SocketAddr, greeting: String) -> Result<()> {
    let listener = bind(netns, listen).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // A client that is gone already has missed nothing.
            drop(stream.write_all(greeting.as_bytes()).await);
        }
    });
    Ok(())
}

async fn bind(netns: &str, listen: SocketAddr) -> Result<net::TcpListener> {
    let place = netns.to_owned();
    let listener = netns::within(Some(netns), move || {
        let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen} in {place}"))?;
        listener.set_nonblocking(true).context("a listener for the runtime")?;
        Ok(listener)
    })
    .await?;
    net::TcpListener::from_std(listener).context("a listener for the runtime")
}

async fn accept(listener: net::TcpListener, to: SocketAddr, health: watch::Receiver<Health>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(carry(stream, to, health.clone()));
                }
                // Out of descriptors, or a client that gave up: the next accept may do.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

async fn carry(inside: net::TcpStream, to: SocketAddr, mut health: watch::Receiver<Health>) {
    let mut cut = health.clone();
    let copy = async {
        if open_way(&mut health).await.is_err() {
            return;
        }
        let Ok(outside) = net::TcpStream::connect(to).await else { return };
        let (inside_read, inside_write) = inside.into_split();
        let (outside_read, outside_write) = outside.into_split();
        tokio::select! {
            () = pump(inside_read, outside_write, health.clone()) => {}
            () = pump(outside_read, inside_write, health) => {}
        }
    };
    tokio::select! {
        () = copy => {}
        _ = cut.wait_for(|h| *h == Health::Cut) => {}
    }
}

/// Copies until either side closes. Octets that were read when the way went black wait for its healing.
async fn pump(
    mut from: net::tcp::OwnedReadHalf,
    mut to: net::tcp::OwnedWriteHalf,
    mut health: watch::Receiver<Health>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        if open_way(&mut health).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn open_way(health: &mut watch::Receiver<Health>) -> Result<()> {
    health.wait_for(|h| *h != Health::Blackhole).await.context("the forwarder is gone")?;
    Ok(())
}
