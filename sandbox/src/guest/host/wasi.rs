//! WASI 0.2 for a guest: clocks, random numbers, and otherwise an empty world.
//!
//! Owns: what the standard interfaces give. Never: a file, a socket, an environment variable, an
//! argument or the owner's clock. Called by [`super::Host`].
//!
//! Random numbers come from the job's seed, so that equal jobs run equally. The clocks start with the
//! job: the monotonic one at 0, the wall clock at a fixed date, so that a guest learns nothing of the
//! machine's. Both move in steps of a millisecond: enough for a program, too coarse for listening to
//! a neighbour's cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng as _;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use super::log::{Log, LogStream};
use crate::guest::limits::MAX_RANDOM_BYTES;

/// 2025-01-01T00:00:00Z, in seconds since 1970: when every job begins.
const BEGINNING_S: u64 = 1_735_689_600;
/// The clocks' step.
const STEP: Duration = Duration::from_millis(1);
const STEP_NANOS: u64 = 1_000_000;

/// An empty world with `seed`'s random numbers, that writes to `log`.
pub(super) fn context(seed: &[u8; 32], log: &Arc<Log>) -> WasiCtx {
    let random = |purpose: &str| ChaCha20Rng::from_seed(blake3::derive_key(purpose, seed));
    let insecure_seed = blake3::derive_key("potluck 2026-11-24 guest insecure seed", seed);
    let clock = Clock(Instant::now());
    WasiCtx::builder()
        .stdout(LogStream(Arc::clone(log)))
        .stderr(LogStream(Arc::clone(log)))
        .secure_random(random("potluck 2026-11-24 guest random"))
        .insecure_random(random("potluck 2026-11-24 guest insecure random"))
        .insecure_random_seed(insecure_seed.first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes)))
        .max_random_size(MAX_RANDOM_BYTES)
        .wall_clock(clock)
        .monotonic_clock(clock)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

/// Both clocks of a job, and when they started.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    /// Whole steps since the start.
    fn millis(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        STEP
    }

    fn now(&self) -> Duration {
        Duration::from_secs(BEGINNING_S).saturating_add(Duration::from_millis(self.millis()))
    }
}

impl HostMonotonicClock for Clock {
    fn resolution(&self) -> u64 {
        STEP_NANOS
    }

    fn now(&self) -> u64 {
        self.millis().saturating_mul(STEP_NANOS)
    }
}
