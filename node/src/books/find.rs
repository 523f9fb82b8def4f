//! Names that people give to jobs and objects.
//!
//! Owns: reading `job_…` and the beginning of a digest, and finding the one lane of a name. Never: reads
//! the journal. Called by the verbs that take an ID.

use potluck_protocol::id::{Digest, LaneId, hex};

use super::error::BooksError;
use crate::ledger::{Filter, LaneSummary, Ledger};

/// Digits of a lane's number.
const LANE_DIGITS: usize = 16;
/// Digits of a digest.
const DIGEST_DIGITS: usize = 64;
/// Fewer digits than these name nothing.
const MIN_DIGITS: usize = 4;
/// Jobs named when a name is not one alone.
const SHOWN: usize = 4;

/// The name of a job, or the beginning of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobName(String);

impl JobName {
    /// Is it this one?
    pub(super) fn is(&self, lane: &LaneId) -> bool {
        lane.to_string().starts_with(&self.0)
    }
}

/// The beginning of a digest's hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DigestName(String);

impl DigestName {
    /// Is it this one's?
    pub(super) fn is(&self, digest: &Digest) -> bool {
        hex(digest.as_bytes()).starts_with(&self.0)
    }
}

/// What an ID may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A job.
    Job(JobName),
    /// An object.
    Digest(DigestName),
}

fn not_a_name(id: &str) -> BooksError {
    BooksError::NotAName { id: id.chars().take(80).collect() }
}

/// Lower-case digits, as many as may be; a shortened form may end in `…`.
fn digits(text: &str, most: usize) -> Option<String> {
    let text = text.strip_suffix('…').unwrap_or(text);
    let fits = (MIN_DIGITS..=most).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_hexdigit());
    fits.then(|| text.to_ascii_lowercase())
}

/// Reads an ID.
pub(super) fn name(id: &str) -> Result<Name, BooksError> {
    if let Some(rest) = id.strip_prefix("b3:") {
        return digits(rest, DIGEST_DIGITS)
            .map(|it| Name::Digest(DigestName(it)))
            .ok_or_else(|| not_a_name(id));
    }
    job(id).map(Name::Job)
}

/// Reads the name of a job.
pub(super) fn job(id: &str) -> Result<JobName, BooksError> {
    let rest = id.strip_prefix("job_").unwrap_or(id);
    digits(rest, LANE_DIGITS).map(|it| JobName(format!("job_{it}"))).ok_or_else(|| not_a_name(id))
}

/// The one lane of that name.
pub(super) fn lane(ledger: &Ledger, id: &str, name: &JobName) -> Result<LaneSummary, BooksError> {
    let mut found = ledger.lanes(&Filter::default())?;
    found.retain(|lane| name.is(&lane.lane));
    match found.len() {
        0 => Err(BooksError::NotFound { id: id.to_owned() }),
        1 => Ok(found.remove(0)),
        _ => {
            let named = |lane: &LaneSummary| format!("{} with {}", lane.lane, lane.peer.short());
            let jobs = found.iter().take(SHOWN).map(named).collect();
            Err(BooksError::Ambiguous { id: id.to_owned(), jobs })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::id::PeerId;

    #[test]
    fn jobs_and_digests_go_by_their_beginnings() {
        let (renter, provider) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let lane = LaneId { renter, provider, epoch: 0, lane: 0x0123_4567_89ab_cdef };
        for id in ["job_0123456789abcdef", "job_0123", "0123456789ABCDEF", "job_01234567…"] {
            assert!(job(id).unwrap().is(&lane), "{id}");
        }
        assert!(!job("job_1234").unwrap().is(&lane));
        let digest = Digest::from_bytes([0x9f; 32]);
        let Name::Digest(found) = name(&digest.short()).unwrap() else { panic!("it begins with b3:") };
        assert!(found.is(&digest) && !found.is(&Digest::from_bytes([0x90; 32])));
        for wrong in
            ["", "job_", "job_012", "b3:", "b3:12", "b3:xyzw", "job_0123456789abcdef0", "me", "１２３４"]
        {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
