//! Waiting for what another process of the node makes or lets go of, with a word to whoever wonders why nothing starts.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::warn;

/// Between two words.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// Looks again after each pause, until there is something or a look fails. What is missing, which a look tells as the inner
/// error, is said at once and then each minute.
pub async fn wait<T, E>(
    pause: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>, E>,
) -> Result<T, E> {
    let mut said: Option<Instant> = None;
    loop {
        let missing = match look()? {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            warn!("{missing}");
            said = Some(Instant::now());
        }
        sleep(pause).await;
    }
}
