//! Statuses on their way: what says something else a moment later is not worth a write, nor its watchers' time. The time
//! is passed in.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::write::{Key, Write};
use crate::status::Report;

/// A status is written when plans have said the same for so long,
const SETTLED: Duration = Duration::from_millis(300);
/// or not what stands for so long.
const LONGEST: Duration = Duration::from_secs(2);

/// Statuses that differ from what stands and were not written yet.
#[derive(Default)]
pub struct Settling(BTreeMap<Key, Change>);

struct Change {
    content: Write,
    same_since: Instant,
    differs_since: Instant,
}

impl Change {
    fn due(&self) -> Instant {
        (self.same_since + SETTLED).min(self.differs_since + LONGEST)
    }
}

impl Settling {
    /// Those of a plan's statuses that are to be written now. What is urgent does not wait.
    pub fn due(&mut self, reports: Vec<Report>, now: Instant) -> Vec<Write> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for Report { write, urgent } in reports {
            let (key, content) = (write.key(), write.content());
            let change = match before.remove(&key) {
                Some(change) if change.content == content => change,
                Some(change) => Change { content, same_since: now, ..change },
                None => Change { content, same_since: now, differs_since: now },
            };
            if urgent || change.due() <= now {
                due.push(write);
            } else {
                self.0.insert(key, change);
            }
        }
        due
    }

    /// When the next is to be written, if plans go on to say the same.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.values().map(Change::due).min()
    }
}

#[cfg(test)]
mod tests {
    use calico_vni_crds::TenantStatus;

    use super::{super::write::Version, *};

    fn report(prefixes: u32, urgent: bool) -> Vec<Report> {
        let status = Box::new(TenantStatus { prefixes: Some(prefixes), ..TenantStatus::default() });
        vec![Report { write: Write::TenantStatus { at: Version::default(), status }, urgent }]
    }

    #[test]
    fn a_status_waits_until_it_rests_and_not_for_long() {
        let now = Instant::now();
        let mut settling = Settling::default();
        assert_eq!(settling.due(report(1, false), now), []);
        assert_eq!(settling.next_due(), Some(now + SETTLED));
        assert_eq!(settling.due(report(1, false), now + SETTLED).len(), 1);
        assert_eq!(settling.next_due(), None);

        // One that never rests.
        let mut written = Vec::new();
        for step in 0..40 {
            let at = now + step * SETTLED / 2;
            if !settling.due(report(step, false), at).is_empty() {
                written.push(step);
            }
        }
        assert_eq!(written, [14, 29]);
    }

    #[test]
    fn what_is_urgent_or_stands_by_now_waits_for_nothing() {
        let now = Instant::now();
        let mut settling = Settling::default();
        assert_eq!(settling.due(report(1, true), now).len(), 1);
        settling.due(report(2, false), now);
        assert_eq!(settling.due(Vec::new(), now), []);
        assert_eq!(settling.next_due(), None, "what stands by now is forgotten");
    }
}
