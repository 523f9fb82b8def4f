//! Pages: how sled keeps slots, several of one subject in one value.
//!
//! Owns: [`Page`], its key, and which slots share one. Never: decides what fills a slot. Called by the index.
//!
//! A lane fills three slots a quantum, each with some forty bytes. As a key each it costs sled more than that
//! in its tree and its log, and the writer more than all else that it does with a record.

use serde::{Deserialize, Serialize};

use super::error::ReadError;
use super::index::{Filled, FilledBy, Index};
use super::slot::{SLOT_KEY_BYTES, SUBJECT_BYTES, SlotKey};

/// The slots of so many numbers on end are in one page, of all kinds.
const NUMBERS: u32 = 8;
/// Bytes of a page's key: what its subject is known by, and which of the subject's pages it is.
const PAGE_KEY_BYTES: usize = SUBJECT_BYTES + 4;

/// A page's key in its table: the pages of a subject lie side by side.
pub(super) type PageKey = [u8; PAGE_KEY_BYTES];

/// A kind's number, and which number within the page.
type Place = (u8, u8);

/// Slots that are filled, in rising order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page(Vec<(Place, Filled)>);

/// The page that a slot is in, and where.
fn locate(slot: &SlotKey) -> (PageKey, Place) {
    let (subject, rest) = slot.split_at(SUBJECT_BYTES);
    let k = rest.last_chunk().map_or(0, |k| u32::from_be_bytes(*k));
    let mut key = [0; PAGE_KEY_BYTES];
    key[..SUBJECT_BYTES].copy_from_slice(subject);
    key[SUBJECT_BYTES..].copy_from_slice(&(k / NUMBERS).to_be_bytes());
    (key, (slot[SUBJECT_BYTES], u8::try_from(k % NUMBERS).unwrap_or(u8::MAX)))
}

/// The key of the page that a slot is in.
pub(super) fn page_key(slot: &SlotKey) -> PageKey {
    locate(slot).0
}

impl Page {
    /// What fills a slot of this page.
    pub(super) fn find(&self, slot: &SlotKey) -> Option<Filled> {
        let (_, place) = locate(slot);
        let at = self.0.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        self.0.get(at).map(|(_, filled)| *filled)
    }

    /// Fills a slot of this page, or empties it.
    pub(super) fn set(&mut self, slot: &SlotKey, filled: Option<Filled>) {
        let (_, place) = locate(slot);
        match (self.0.binary_search_by_key(&place, |(place, _)| *place), filled) {
            (Ok(at), Some(filled)) => self.0[at].1 = filled,
            (Ok(at), None) => _ = self.0.remove(at),
            (Err(at), Some(filled)) => self.0.insert(at, (place, filled)),
            (Err(_), None) => {}
        }
    }

    /// Is none of its slots filled?
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Filled slots.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those of this kind.
    pub(super) fn of_kind(&self, kind: u8) -> usize {
        self.0.iter().filter(|((of, _), _)| *of == kind).count()
    }
}

impl Index {
    /// A page, and what fills its slots: by which kind and number, given its key.
    pub(super) fn page(&self, key: &[u8], bytes: &[u8]) -> Result<Vec<FilledBy>, ReadError> {
        let page: Page = self.decode(bytes)?;
        let nth = key.last_chunk().filter(|_| key.len() == PAGE_KEY_BYTES);
        let first = nth.and_then(|nth| u32::from_be_bytes(*nth).checked_mul(NUMBERS));
        let first = first.ok_or_else(|| self.broken())?;
        Ok(page.0.into_iter().map(|((kind, k), filled)| ((kind, first | u32::from(k)), filled)).collect())
    }
}

// The last four bytes of a slot's key are its number.
const _: () = assert!(SLOT_KEY_BYTES == SUBJECT_BYTES + 1 + 4);
