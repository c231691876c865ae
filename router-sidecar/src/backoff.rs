//! What failed is tried again later and later, so that a thing which cannot be mended keeps nobody busy. Pure: time is
//! passed in.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Pause after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// Failures by the change that failed.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: HashMap<String, (u32, Instant)>,
}

impl Backoff {
    /// Whether this is to be left alone for now.
    pub fn waits(&self, op: &str, now: Instant) -> bool {
        self.failures.get(op).is_some_and(|(_, not_before)| now < *not_before)
    }

    /// These failed at `now`, and nothing else that was tried did.
    pub fn settle(&mut self, failed: impl IntoIterator<Item = String>, now: Instant) {
        let mut before = std::mem::take(&mut self.failures);
        for op in failed {
            let entry = match before.remove(&op) {
                // It was not tried in this round.
                Some(waiting) if now < waiting.1 => waiting,
                Some((count, _)) => (count + 1, now + pause(count)),
                None => (1, now + pause(0)),
            };
            self.failures.insert(op, entry);
        }
    }

    /// Nothing was tried at `now`: what was due waits once more.
    pub fn postpone(&mut self, now: Instant) {
        let failed: Vec<String> = self.failures.keys().cloned().collect();
        self.settle(failed, now);
    }

    /// When the first of them may be tried again.
    pub fn next(&self) -> Option<Instant> {
        self.failures.values().map(|(_, not_before)| *not_before).min()
    }
}

fn pause(failures_before: u32) -> Duration {
    FIRST.saturating_mul(2u32.saturating_pow(failures_before)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_success() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            backoff.settle(["op".to_owned()], now);
            let next = backoff.next().unwrap();
            assert!(backoff.waits("op", now) && !backoff.waits("op", next) && !backoff.waits("other", now));
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.settle([], now);
        assert_eq!(backoff.next(), None);
    }

    #[test]
    fn a_round_in_between_does_not_lengthen_the_pause() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.settle(["op".to_owned()], now);
        let next = backoff.next();
        backoff.settle(["op".to_owned()], now + Duration::from_millis(100));
        assert_eq!(backoff.next(), next);
    }
}
