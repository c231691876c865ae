//! How often somebody may do something: the generic cell rate algorithm (ITU-T I.371), one moment kept for each. Pure but
//! for the lock around the table.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many at once, and from then on one in each span.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Span between two.
    pub every: Duration,
    /// At once, after a rest; at least one.
    pub burst: u32,
}

impl Pace {
    /// Admits one now, or says how long to wait. `due` is the moment at which a caller in perfect time would come next.
    pub fn admit(self, due: &mut Instant, now: Instant) -> Result<(), Duration> {
        let next = (*due).max(now);
        let tolerance = self.every * self.burst.saturating_sub(1);
        let ahead = next - now;
        if let Some(wait) = ahead.checked_sub(tolerance).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        *due = next + self.every;
        Ok(())
    }
}

/// A pace for each of many. It forgets who has rested, and when it is full it admits nobody new.
#[derive(Debug)]
pub struct Paced<K> {
    pace: Pace,
    most: usize,
    due: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Paced<K> {
    /// For at most that many at a time.
    pub fn new(pace: Pace, most: usize) -> Self {
        Self { pace, most, due: Mutex::default() }
    }

    /// Admits one of `key` now, or says how long to wait.
    pub fn admit(&self, key: K, now: Instant) -> Result<(), Duration> {
        // Nothing under this lock can panic half-way through a change.
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.len() >= self.most && !due.contains_key(&key) {
            due.retain(|_, due| *due > now);
            if due.len() >= self.most {
                return Err(self.pace.every);
            }
        }
        self.pace.admit(due.entry(key).or_insert(now), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { every: Duration::from_secs(2), burst: 3 };

    #[test]
    fn a_burst_passes_and_then_one_in_each_span() {
        let start = Instant::now();
        let paced = Paced::new(PACE, 10);
        for _ in 0..3 {
            assert_eq!(paced.admit("a", start), Ok(()));
        }
        assert_eq!(paced.admit("a", start), Err(Duration::from_secs(2)));
        assert_eq!(paced.admit("b", start), Ok(()), "another one's haste is not its own");
        assert_eq!(paced.admit("a", start + Duration::from_secs(1)), Err(Duration::from_secs(1)));
        assert_eq!(paced.admit("a", start + Duration::from_secs(2)), Ok(()));
        assert_eq!(paced.admit("a", start + Duration::from_secs(2)), Err(Duration::from_secs(2)));
        let rested = start + Duration::from_mins(1);
        for _ in 0..3 {
            assert_eq!(paced.admit("a", rested), Ok(()));
        }
        assert!(paced.admit("a", rested).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_rested() {
        let start = Instant::now();
        let paced = Paced::new(PACE, 2);
        assert_eq!((paced.admit(1, start), paced.admit(2, start)), (Ok(()), Ok(())));
        assert!(paced.admit(3, start).is_err(), "it is full");
        assert_eq!(paced.admit(1, start), Ok(()), "who is known goes on");
        assert_eq!(paced.admit(3, start + Duration::from_secs(2)), Ok(()), "2 has rested");
        assert_eq!(paced.due.lock().unwrap().len(), 2);
    }
}
