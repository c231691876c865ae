//! When to try again what failed. The time is passed in.

use std::{collections::BTreeMap, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::write::Key;

/// First and longest pause between two attempts at one object; each is up to twice as long by jitter.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Writes that failed, each with its own pause.
#[derive(Default)]
pub struct Retries {
    failed: BTreeMap<Key, Pause>,
}

struct Pause {
    until: Instant,
    attempts: u32,
    backoff: ExponentialBackoff,
}

impl Retries {
    /// Whether it may be tried now.
    pub fn is_due(&self, key: &Key, now: Instant) -> bool {
        self.failed.get(key).is_none_or(|pause| pause.until <= now)
    }

    /// It failed: how long it rests.
    pub fn failed(&mut self, key: &Key, now: Instant) -> Duration {
        let pause = self.failed.entry(key.clone()).or_insert_with(|| Pause {
            until: now,
            attempts: 0,
            backoff: ExponentialBuilder::new()
                .with_min_delay(FIRST)
                .with_max_delay(LONGEST)
                .without_max_times()
                .with_jitter()
                .build(),
        });
        let rest = pause.backoff.next().unwrap_or(LONGEST);
        pause.until = now + rest;
        pause.attempts = pause.attempts.saturating_add(1);
        rest
    }

    /// How often it failed since it last succeeded.
    pub fn attempts(&self, key: &Key) -> u32 {
        self.failed.get(key).map_or(0, |pause| pause.attempts)
    }

    /// It succeeded, or is not wanted any more.
    pub fn forget(&mut self, key: &Key) {
        self.failed.remove(key);
    }

    /// Keeps only what is still wanted.
    pub fn keep(&mut self, wanted: impl Fn(&Key) -> bool) {
        self.failed.retain(|key, _| wanted(key));
    }

    /// When the next of them is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.failed.values().map(|pause| pause.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_rests_longer_by_itself() {
        let key = |name: &str| Key { kind: "BGPPeer", name: name.into(), op: "put" };
        let mut retries = Retries::default();
        let now = Instant::now();
        assert!(retries.is_due(&key("a"), now));
        let first = retries.failed(&key("a"), now);
        assert!(first >= FIRST && first <= 2 * FIRST, "{first:?}");
        assert!(!retries.is_due(&key("a"), now) && retries.is_due(&key("b"), now));
        assert!(retries.is_due(&key("a"), now + first));
        for _ in 0..20 {
            retries.failed(&key("a"), now);
        }
        let late = retries.failed(&key("a"), now);
        assert!(late >= LONGEST && late <= 2 * LONGEST, "{late:?}");
        assert_eq!(retries.next_due(), Some(now + late));
        retries.keep(|k| k.name == "b");
        assert_eq!(retries.next_due(), None);
    }
}
