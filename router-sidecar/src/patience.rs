//! How long FRR may be silent before it counts as down. Pure.
//!
//! A busy bgpd answers late, and one that has died is started again within seconds. Taking a node's labels off for that
//! would cost every session on it; BIRD notices by itself when nobody is there.

use std::time::Duration;

use tokio::time::Instant;

/// Silence that is waited out.
const SILENT: Duration = Duration::from_mins(1);

/// When FRR was last heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    heard: Option<Instant>,
}

impl Patience {
    /// It has answered.
    pub fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Whether it counts as down when it does not answer now. One that was never heard does.
    pub fn is_over(self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.duration_since(heard) > SILENT)
    }
}
