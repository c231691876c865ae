//! What the tests against a real API server stand on.

pub mod agent;
pub mod server;
pub mod stage;

use std::{fmt::Debug, time::Duration};

use tokio::time::Instant;

/// How long a state is waited for; the machine may be busy.
const DEADLINE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// Waits until `look` sees what is wanted; says what was awaited and what was seen last.
pub async fn eventually<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(seen) if Instant::now() > deadline => panic!("waited for: {what}\nseen last: {seen:#?}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
