//! Waiting for a state with a deadline. The one place in the lab where time passes on purpose.

use std::{fmt, time::Duration};

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// Pause between two looks. Short against everything that is awaited, long against a look's own cost.
pub const PAUSE: Duration = Duration::from_millis(100);

/// An error that further waiting cannot mend, such as the death of the process that is awaited.
#[derive(Debug)]
struct Hopeless(anyhow::Error);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Hopeless {}

/// Makes [`until`] stop at once instead of looking again.
pub fn hopeless(error: anyhow::Error) -> anyhow::Error {
    anyhow!(Hopeless(error))
}

/// Looks until the look succeeds. Its errors say what is seen instead; the last of them is told when time is up.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut seen = anyhow!("nothing yet: the first look did not end");
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.is::<Hopeless>() => {
                return Err(error.context(format!("while waiting for {what}")));
            }
            Ok(Err(error)) => seen = error,
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(anyhow!("waited {} s for {what}; last seen: {seen:#}", limit.as_secs()));
        }
        sleep(PAUSE).await;
    }
}

/// Looks for the whole time and fails at the first look that fails: for what must stay as it is.
pub async fn always(what: &str, time: Duration, mut look: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        look().await.map_err(|e| e.context(format!("{what} did not stay so")))?;
        if Instant::now() >= end {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_what_was_awaited_and_seen() {
        let mut looks = 0;
        let error = until("the moon", Duration::from_millis(250), async || -> Result<()> {
            looks += 1;
            Err(anyhow!("cloud {looks}"))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("for the moon; last seen: cloud "), "{error}");
    }

    #[tokio::test]
    async fn ends_with_the_first_success_and_with_the_hopeless() {
        let mut looks = 0;
        let third = until("three", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(anyhow!("{looks}")) }
        });
        assert_eq!(third.await.unwrap(), 3);
        let error =
            until("life", Duration::from_mins(1), async || -> Result<()> { Err(hopeless(anyhow!("dead"))) })
                .await;
        assert_eq!(format!("{:#}", error.unwrap_err()), "while waiting for life: dead");
    }

    #[tokio::test]
    async fn what_must_stay_fails_when_it_changes() {
        let mut looks = 0;
        let error = always("calm", Duration::from_secs(5), async || {
            looks += 1;
            if looks < 3 { Ok(()) } else { Err(anyhow!("storm")) }
        })
        .await;
        assert_eq!(format!("{:#}", error.unwrap_err()), "calm did not stay so: storm");
    }
}
