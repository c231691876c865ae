//! Progress lines with the time since the program started. Writes to standard output and nowhere else.

use std::{
    fmt,
    sync::OnceLock,
    time::{Duration, Instant},
};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Starts the clock; the first call counts.
pub fn start() -> Instant {
    *STARTED.get_or_init(Instant::now)
}

/// Prints one line with the time since [`start`]. Use the macro [`crate::step!`].
pub fn print(text: fmt::Arguments<'_>) {
    println!("{} {text}", stamp(start().elapsed()));
}

fn stamp(elapsed: Duration) -> String {
    format!("[{:6.1} s]", elapsed.as_secs_f64())
}

/// Tells what has been done, with the time since the program started.
#[macro_export]
macro_rules! step {
    ($($arg:tt)*) => { $crate::step::print(format_args!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_line_up() {
        assert_eq!(stamp(Duration::from_millis(1_250)), "[   1.2 s]");
        assert_eq!(stamp(Duration::from_secs(100)).len(), stamp(Duration::ZERO).len());
    }
}
