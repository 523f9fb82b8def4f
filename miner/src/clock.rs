//! The wall clock, for display and expiry.
//!
//! Owns: the one place in this room that reads it. Never: measures durations (monotonic instants do).
//! Called wherever a signed object names a time.

use std::time::{SystemTime, UNIX_EPOCH};

use potluck_protocol::unit::UnixMillis;

/// Now; zero when the clock stands before 1970.
#[must_use]
pub(crate) fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
