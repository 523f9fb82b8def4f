//! What this peer keeps of the directory, and the keys it is filed under.
//!
//! Owns: [`DhtKey`], and the bounded store behind kademlia: provider records only (who offers what
//! a key names), never values. Never: decides which addresses of a record are believed
//! ([`super::addresses`]), or looks anything up ([`super::discovery`]). Called by kademlia and the
//! event loop. Records end when they expire or their provider is removed.
//!
//! Kademlia's own memory store keeps 20 providers of a key for ever in the same order and never
//! frees a key that nobody asks for; this one takes turns, expires, and holds each provider to a
//! quota. The sharded directory of signed offers will stand beside it.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, hash_map};
use std::iter;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use potluck_protocol::id::ContentHash;

use super::limits::PROVIDED_KEYS;

/// Providers that we keep of one key.
const PROVIDERS_PER_KEY: usize = 256;
/// Providers of one key that are looked at per question; kademlia answers with 20 of them.
const PROVIDERS_PER_ANSWER: usize = 40;
/// Records per key on average, over all keys: bounds the memory (about 600 bytes a record).
const RECORDS_PER_KEY: usize = 8;
/// A full store is swept at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// What an offer is filed under: a model, a hardware class, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DhtKey([u8; 32]);

impl DhtKey {
    /// Whoever serves this model.
    #[must_use]
    pub fn model(model: ContentHash) -> Self {
        Self::of("potluck/v1/dht/model", &[model.as_bytes()])
    }

    /// Whoever has hardware of this class (the text as an offer states it).
    #[must_use]
    pub fn hardware(class: &str) -> Self {
        Self::of("potluck/v1/dht/hardware", &[class.as_bytes()])
    }

    /// Whoever serves this model on hardware of this class.
    #[must_use]
    pub fn model_on(model: ContentHash, class: &str) -> Self {
        Self::of("potluck/v1/dht/model-on", &[model.as_bytes(), class.as_bytes()])
    }

    /// Whoever runs renters' components.
    #[must_use]
    pub fn guests() -> Self {
        Self::of("potluck/v1/dht/guests", &[])
    }

    fn of(domain: &'static str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(domain);
        for part in parts {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(super) fn record_key(self) -> RecordKey {
        RecordKey::new(&self.0)
    }
}

/// The records that this peer keeps for others, and the keys that it publishes itself.
pub(super) struct Directory {
    local: PeerId,
    max_keys: usize,
    /// Others' records.
    kept: HashMap<RecordKey, Vec<ProviderRecord>>,
    kept_records: usize,
    /// How many keys each other provider holds here.
    keys_of: HashMap<PeerId, usize>,
    /// Our own records, which kademlia publishes again and again.
    own: HashMap<RecordKey, ProviderRecord>,
    /// Whose turn it is to be named first.
    turn: Cell<usize>,
    next_sweep: Instant,
}

impl Directory {
    /// A store that keeps at most `max_keys` keys for others.
    pub(super) fn new(local: PeerId, max_keys: usize) -> Self {
        Self {
            local,
            max_keys,
            kept: HashMap::new(),
            kept_records: 0,
            keys_of: HashMap::new(),
            own: HashMap::new(),
            turn: Cell::new(0),
            next_sweep: Instant::now(),
        }
    }

    /// Records kept for others.
    pub(super) fn len(&self) -> usize {
        self.kept_records
    }

    /// The keys that this peer publishes.
    pub(super) fn own_keys(&self) -> Vec<RecordKey> {
        self.own.keys().cloned().collect()
    }

    fn is_full(&self, key: &RecordKey) -> bool {
        let providers = self.kept.get(key).map_or(0, Vec::len);
        providers >= PROVIDERS_PER_KEY
            || (providers == 0 && self.kept.len() >= self.max_keys)
            || self.kept_records >= self.max_keys.saturating_mul(RECORDS_PER_KEY)
    }

    /// Drops what has expired by `now`.
    fn sweep(&mut self, now: Instant) {
        let keys_of = &mut self.keys_of;
        let mut kept_records = 0;
        self.kept.retain(|_, records| {
            records.retain(|record| {
                let dead = record.is_expired(now);
                if dead {
                    release(keys_of, &record.provider);
                }
                !dead
            });
            kept_records += records.len();
            !records.is_empty()
        });
        self.kept_records = kept_records;
        self.next_sweep = now + SWEEP_EVERY;
    }

    fn keep(&mut self, record: ProviderRecord, now: Instant) -> Result<()> {
        if let Some(records) = self.kept.get_mut(&record.key)
            && let Some(known) = records.iter_mut().find(|known| known.provider == record.provider)
        {
            *known = record;
            return Ok(());
        }
        if self.keys_of.get(&record.provider).is_some_and(|keys| *keys >= PROVIDED_KEYS) {
            return Err(Error::MaxProvidedKeys);
        }
        if self.is_full(&record.key) && now >= self.next_sweep {
            self.sweep(now);
        }
        if self.is_full(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        *self.keys_of.entry(record.provider).or_default() += 1;
        self.kept.entry(record.key.clone()).or_default().push(record);
        self.kept_records += 1;
        Ok(())
    }
}

/// One key less for `provider`.
fn release(keys_of: &mut HashMap<PeerId, usize>, provider: &PeerId) {
    if let Some(keys) = keys_of.get_mut(provider) {
        *keys = keys.saturating_sub(1);
        if *keys == 0 {
            keys_of.remove(provider);
        }
    }
}

impl RecordStore for Directory {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        hash_map::Values<'a, RecordKey, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    /// Values are nobody's business here.
    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.key.as_ref().len() != size_of::<DhtKey>() {
            return Err(Error::ValueTooLarge);
        }
        if record.provider != self.local {
            return self.keep(record, Instant::now());
        }
        if self.own.len() >= PROVIDED_KEYS && !self.own.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.own.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let kept = self.kept.get(key).map_or(&[][..], Vec::as_slice);
        let first = self.turn.get();
        self.turn.set(first.wrapping_add(1));
        let first = first.checked_rem(kept.len()).unwrap_or(0);
        let (later, sooner) = kept.split_at(first);
        self.own.get(key).into_iter().chain(sooner).chain(later).take(PROVIDERS_PER_ANSWER).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.remove(key);
            return;
        }
        let Some(records) = self.kept.get_mut(key) else { return };
        let Some(at) = records.iter().position(|record| record.provider == *provider) else {
            return;
        };
        records.swap_remove(at);
        if records.is_empty() {
            self.kept.remove(key);
        }
        self.kept_records = self.kept_records.saturating_sub(1);
        release(&mut self.keys_of, provider);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: DhtKey, provider: PeerId, expires: Option<Instant>) -> ProviderRecord {
        ProviderRecord { key: key.record_key(), provider, expires, addresses: Vec::new() }
    }

    fn numbered(n: usize) -> DhtKey {
        DhtKey::hardware(&n.to_string())
    }

    #[test]
    fn keys_of_different_kinds_and_cuts_differ() {
        let model = ContentHash::from_bytes([7; 32]);
        let keys = [
            DhtKey::model(model),
            DhtKey::hardware("cuda-89-12g"),
            DhtKey::model_on(model, "cuda-89-12g"),
            DhtKey::model_on(model, ""),
            DhtKey::hardware(""),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn one_provider_cannot_fill_the_store() {
        let mut store = Directory::new(PeerId::random(), 1_000);
        let greedy = PeerId::random();
        let taken =
            (0..500).filter(|n| store.add_provider(record(numbered(*n), greedy, None)).is_ok()).count();
        assert_eq!(taken, PROVIDED_KEYS);
        assert!(store.add_provider(record(numbered(501), PeerId::random(), None)).is_ok());
        // What it gives back it may use again.
        store.remove_provider(&numbered(0).record_key(), &greedy);
        assert!(store.add_provider(record(numbered(502), greedy, None)).is_ok());
        assert_eq!(store.len(), PROVIDED_KEYS + 1);
    }

    #[test]
    fn a_full_store_refuses_until_records_expire() {
        let mut store = Directory::new(PeerId::random(), 4);
        let soon = Instant::now();
        for n in 0..4 {
            store.keep(record(numbered(n), PeerId::random(), Some(soon)), soon).expect("room");
        }
        // The sweep of this moment finds nothing dead: they live up to `soon` itself or longer.
        store.next_sweep = soon + SWEEP_EVERY;
        assert!(store.keep(record(numbered(9), PeerId::random(), None), soon).is_err());
        let later = soon + SWEEP_EVERY;
        assert!(store.keep(record(numbered(9), PeerId::random(), None), later).is_ok());
        assert_eq!(store.len(), 1);
        assert_eq!(store.keys_of.len(), 1);
    }

    #[test]
    fn every_provider_of_a_popular_key_gets_its_turn() {
        let mut store = Directory::new(PeerId::random(), 16);
        for _ in 0..100 {
            store.add_provider(record(numbered(1), PeerId::random(), None)).expect("room");
        }
        let mut named = std::collections::HashSet::new();
        for _ in 0..100 {
            // Kademlia passes on the first 20.
            let first = store.providers(&numbered(1).record_key()).into_iter().take(20);
            named.extend(first.map(|record| record.provider));
        }
        assert_eq!(named.len(), 100);
    }

    #[test]
    fn publishing_again_renews_and_does_not_double() {
        let mut store = Directory::new(PeerId::random(), 16);
        let provider = PeerId::random();
        for _ in 0..3 {
            store.add_provider(record(numbered(1), provider, None)).expect("room");
        }
        assert_eq!(store.providers(&numbered(1).record_key()).len(), 1);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn values_and_foreign_keys_are_refused() {
        let mut store = Directory::new(PeerId::random(), 16);
        assert!(store.put(Record::new(vec![1; 32], vec![2])).is_err());
        let mut odd = record(numbered(1), PeerId::random(), None);
        odd.key = RecordKey::new(&[1, 2, 3]);
        assert!(store.add_provider(odd).is_err());
    }
}
