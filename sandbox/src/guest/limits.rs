//! What a guest may use.
//!
//! Owns: [`GuestLimits`] and the numbers that no owner can change. Never: enforces one (the run
//! worker does, and the jail and the daemon's timer behind it). Called by the daemon (to make them)
//! and by the run worker (to check and keep them).

use std::time::Duration;

use potluck_protocol::limits::{MAX_GUEST_LOG_BYTES, MAX_GUEST_MEMORY_MIB, MAX_GUEST_OUTPUT_BYTES};
use potluck_protocol::wire::WireError;
use serde::{Deserialize, Serialize};

/// The least memory that is worth starting anything in, in bytes: sixteen pages of WebAssembly.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// The most memory that can be given, in bytes.
pub const MAX_MEMORY_BYTES: u64 = (MAX_GUEST_MEMORY_MIB as u64) << 20;
/// The longest that a guest may compute, in milliseconds: a day.
pub const MAX_COMPUTE_MS: u64 = 24 * 60 * 60 * 1_000;

/// Bytes of stack for WebAssembly code. What recurses deeper is trapped.
pub(super) const WASM_STACK_BYTES: usize = 2 << 20;
/// Bytes of the whole stack that a guest runs on: its own part, and the host's functions that it
/// calls.
pub(super) const FIBER_STACK_BYTES: usize = 4 << 20;
/// Streams, pollables, tensors, sessions and so on that a guest may hold at once.
pub(super) const MAX_HANDLES: usize = 1_024;
/// Core instances and tables that a guest may be made of: a Python program is made of about fifty.
pub(super) const MAX_INSTANCES: usize = 256;
/// Memories that a guest may have: each reserves its 4 GiB of addresses.
pub(super) const MAX_MEMORIES: usize = 32;
/// Bytes that cross into the host in one call: the largest tensor, and what is around it.
pub(super) const MAX_HOSTCALL_BYTES: usize = 32 << 20;
/// Bytes of randomness in one call.
pub(super) const MAX_RANDOM_BYTES: u64 = 1 << 20;

/// The ceilings of one run. Make them with [`GuestLimits::new`]; whoever takes them from another
/// process calls [`GuestLimits::check`] first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLimits {
    /// All of its memories and tables together, in bytes: [`MIN_MEMORY_BYTES`] to
    /// [`MAX_MEMORY_BYTES`].
    pub memory_bytes: u64,
    /// How long it may compute, in milliseconds: 1 to [`MAX_COMPUTE_MS`]. The time in which it waits
    /// for a model's answer or is paused does not count.
    pub compute_ms: u64,
    /// Its answer, in bytes: at most [`MAX_GUEST_OUTPUT_BYTES`].
    pub output_bytes: u32,
    /// Its log, in bytes that are kept: at most [`MAX_GUEST_LOG_BYTES`]. What follows is counted.
    pub log_bytes: u32,
}

impl Default for GuestLimits {
    /// 512 MiB, an hour of computing, and the largest answer and log.
    fn default() -> Self {
        Self::new(512 << 20, Duration::from_secs(3_600))
    }
}

impl GuestLimits {
    /// These ceilings, each brought within its bounds, and the largest answer and log.
    #[must_use]
    pub fn new(memory_bytes: u64, compute: Duration) -> Self {
        let compute_ms = u64::try_from(compute.as_millis()).unwrap_or(MAX_COMPUTE_MS);
        Self {
            memory_bytes: memory_bytes.clamp(MIN_MEMORY_BYTES, MAX_MEMORY_BYTES),
            compute_ms: compute_ms.clamp(1, MAX_COMPUTE_MS),
            output_bytes: MAX_GUEST_OUTPUT_BYTES,
            log_bytes: MAX_GUEST_LOG_BYTES,
        }
    }

    /// [`Self::compute_ms`] as a duration.
    #[must_use]
    pub fn compute(&self) -> Duration {
        Duration::from_millis(self.compute_ms)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`WireError::OverLimit`], the first bound broken.
    pub fn check(&self) -> Result<(), WireError> {
        let bounds = [
            ((MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes), "a guest's memory"),
            ((1..=MAX_COMPUTE_MS).contains(&self.compute_ms), "a guest's computing time"),
            (self.output_bytes <= MAX_GUEST_OUTPUT_BYTES, "a guest's answer"),
            (self.log_bytes <= MAX_GUEST_LOG_BYTES, "a guest's log"),
        ];
        match bounds.into_iter().find(|(ok, _)| !ok) {
            Some((_, what)) => Err(WireError::OverLimit { what }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_is_within_bounds_and_each_bound_is_checked() {
        let fine = GuestLimits::default();
        assert_eq!(fine.check(), Ok(()));
        let broken = [
            GuestLimits { memory_bytes: MIN_MEMORY_BYTES - 1, ..fine },
            GuestLimits { memory_bytes: MAX_MEMORY_BYTES + 1, ..fine },
            GuestLimits { compute_ms: 0, ..fine },
            GuestLimits { compute_ms: MAX_COMPUTE_MS + 1, ..fine },
            GuestLimits { output_bytes: MAX_GUEST_OUTPUT_BYTES + 1, ..fine },
            GuestLimits { log_bytes: MAX_GUEST_LOG_BYTES + 1, ..fine },
        ];
        for limits in broken {
            assert!(limits.check().is_err(), "{limits:?}");
        }
    }

    proptest! {
        #[test]
        fn what_new_makes_passes_check(memory in any::<u64>(), ms in any::<u64>()) {
            prop_assert_eq!(GuestLimits::new(memory, Duration::from_millis(ms)).check(), Ok(()));
        }
    }
}
