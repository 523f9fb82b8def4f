//! How much memory a guest has.
//!
//! Owns: the one sum of all its memories, its tables and the tensors that the host keeps for it.
//! Never: counts the host's own memory (the jail's ceiling is for that). Called by wasmtime, whenever
//! a memory or a table grows, and by [`super::nn`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;
use wasmtime::ResourceLimiter;

use crate::guest::limits::{MAX_INSTANCES, MAX_MEMORIES};

/// What an entry of a table takes: a pointer.
const TABLE_ENTRY_BYTES: usize = size_of::<usize>();

/// The sum and its ceiling. One thread uses it; the atomics are for the types' sake.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    refused: AtomicBool,
}

/// The host needs to keep something for the guest, and the guest has no memory left for it. Fault:
/// renter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the guest's memory is full")]
pub(in crate::guest) struct OutOfMemory;

impl Budget {
    /// At most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), peak: AtomicU64::new(0), refused: AtomicBool::new(false) }
    }

    /// Takes `bytes`, unless the sum would pass the ceiling.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), OutOfMemory> {
        let used = u64::try_from(bytes).ok().and_then(|b| self.used.load(Ordering::Relaxed).checked_add(b));
        match used {
            Some(used) if used <= self.limit => {
                self.used.store(used, Ordering::Relaxed);
                self.peak.fetch_max(used, Ordering::Relaxed);
                Ok(())
            }
            _ => {
                self.refused.store(true, Ordering::Relaxed);
                Err(OutOfMemory)
            }
        }
    }

    /// Gives `bytes` back that were taken.
    pub(super) fn release(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let used = self.used.load(Ordering::Relaxed).saturating_sub(bytes);
        self.used.store(used, Ordering::Relaxed);
    }

    /// The most that was taken at once, in bytes.
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Whether anything was ever refused.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The budget as wasmtime asks it.
#[derive(Debug)]
pub(super) struct Limiter {
    budget: Arc<Budget>,
    /// What the last growth took, should it fail.
    last: usize,
}

impl Limiter {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, last: 0 }
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.budget.charge(bytes).is_ok();
        self.last = if grown { bytes } else { 0 };
        grown
    }

    fn take_back(&mut self) {
        self.budget.release(std::mem::take(&mut self.last));
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ENTRY_BYTES)))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_INSTANCES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Memory(usize, usize),
        Table(usize, usize),
        Fail,
        Keep(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        let size = prop_oneof![0usize..5_000, any::<usize>()];
        prop_oneof![
            (size.clone(), size.clone()).prop_map(|(a, b)| Act::Memory(a, b)),
            (size.clone(), size.clone()).prop_map(|(a, b)| Act::Table(a, b)),
            Just(Act::Fail),
            size.prop_map(Act::Keep),
        ]
    }

    proptest! {
        #[test]
        fn the_sum_never_passes_the_ceiling(limit in 0u64..20_000, acts in prop::collection::vec(act(), 0..60)) {
            let budget = Arc::new(Budget::new(limit));
            let mut limiter = Limiter::new(Arc::clone(&budget));
            let mut grown = 0u128;
            let mut last = 0u128;
            for act in acts {
                let (yes, bytes) = match act {
                    Act::Memory(from, to) => {
                        (limiter.memory_growing(from, to, None).unwrap(), to.saturating_sub(from) as u128)
                    }
                    Act::Table(from, to) => {
                        let entries = to.saturating_sub(from) as u128;
                        (limiter.table_growing(from, to, None).unwrap(), entries * TABLE_ENTRY_BYTES as u128)
                    }
                    Act::Fail => {
                        limiter.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
                        grown -= std::mem::take(&mut last);
                        continue;
                    }
                    Act::Keep(bytes) => {
                        if budget.charge(bytes).is_ok() {
                            budget.release(bytes);
                        }
                        continue;
                    }
                };
                prop_assert_eq!(yes, grown + bytes <= u128::from(limit));
                last = if yes { bytes } else { 0 };
                grown += last;
                prop_assert!(budget.peak() <= limit);
                prop_assert_eq!(u128::from(budget.used.load(Ordering::Relaxed)), grown);
            }
        }
    }
}
