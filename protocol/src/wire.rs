//! The frames of the three conversations: `quote`, `job` and `pair`.
//!
//! Owns: what may be said on each stream, and the bounds of every field. Never: reads a socket
//! (`node::net` does, and adds the length prefix) or trusts a signature. Called by both ends.

use serde::{Deserialize, Serialize};

use crate::codec::within;
pub use crate::codec::{Bounded, WireError, decode, decode_bounded, decode_within, encode, encode_within};
use crate::fault::RefusalCode;
use crate::id::{ContentHash, Digest};
use crate::limits::{
    MAX_JOB_PART_BYTES, MAX_NOTE_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUT_TOKENS, MAX_REASON_BYTES,
    MAX_SYNC_OBJECTS,
};
use crate::offer::{GuestNeeds, Offer, Quote};
use crate::proof::Equivocation;
use crate::settle::{Accept, Close, Contract, Meter, Phase, Receipt, Voucher};
use crate::sign::Signed;
use crate::statement::Statement;
use crate::sync::{Heads, LaneHead, check_lanes};
use crate::unit::NanoCredit;

/// What a renter asks on [`crate::version::QUOTE_PROTOCOL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuoteRequest {
    /// The provider's signed offer.
    Offer,
    /// A binding quote for one job on this model, for the peer that asks.
    Quote {
        /// Which model.
        model: ContentHash,
    },
    /// A binding quote for one run of a component, for the peer that asks.
    Exec {
        /// The blake3 of the component.
        component: ContentHash,
        /// What it needs.
        needs: GuestNeeds,
    },
}

/// What a provider answers on [`crate::version::QUOTE_PROTOCOL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuoteResponse {
    /// To [`QuoteRequest::Offer`].
    Offer(Box<Signed<Offer>>),
    /// To [`QuoteRequest::Quote`] and [`QuoteRequest::Exec`].
    Quote {
        /// The binding quote.
        quote: Box<Signed<Quote>>,
        /// What the asker may still come to owe when this is said. Not signed: other jobs, payments and
        /// peers change it.
        credit: NanoCredit,
    },
    /// To either, when there is none.
    Refused(Refusal),
}

/// Why a peer will not do a thing. Not signed: it binds nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of reason.
    pub code: RefusalCode,
    /// In words, at most [`MAX_REASON_BYTES`].
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason cut to the limit.
    #[must_use]
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        let cut = reason.floor_char_boundary(MAX_REASON_BYTES);
        reason.truncate(cut);
        Self { code, reason }
    }
}

/// What a renter says on a job's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenterFrame {
    /// Opens the stream: exactly once, first.
    Open {
        /// What the renter binds itself to.
        contract: Box<Signed<Contract>>,
        /// The provider's own quote that it rests on.
        quote: Box<Signed<Quote>>,
        /// Encoded length of the job that follows in parts, in bytes.
        job_bytes: u32,
    },
    /// The next bytes of the job, or of what [`ProviderFrame::Want`] asked for; at most
    /// [`MAX_JOB_PART_BYTES`].
    JobPart(Vec<u8>),
    /// Payment up to a meter.
    Voucher(Box<Signed<Voucher>>),
    /// Stop now; what was metered is still settled.
    Cancel,
}

/// What a provider says on a job's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderFrame {
    /// The job will run.
    Accept(Box<Signed<Accept>>),
    /// The job will not run; nothing is owed. Ends the stream.
    Refuse(Refusal),
    /// Where the job is. Also the heartbeat.
    Phase {
        /// The phase it is in now.
        phase: Phase,
        /// Jobs ahead of it while queued.
        ahead: u32,
    },
    /// The model has read the prompt.
    Started {
        /// Tokens of the prompt, after the chat template.
        prompt_tokens: u32,
    },
    /// The next tokens and their text. Text may lag behind tokens, never split a character.
    Output {
        /// Token ids, at most [`MAX_OUTPUT_TOKENS`].
        tokens: Vec<u32>,
        /// At most [`MAX_OUTPUT_BYTES`].
        text: String,
    },
    /// The work so far.
    Meter(Box<Signed<Meter>>),
    /// A voucher was received and is durable.
    Receipt(Box<Signed<Receipt>>),
    /// The lane is closed. Ends the stream.
    Close {
        /// The provider's closing of the lane.
        close: Box<Signed<Close>>,
        /// Why, when the job did not finish by itself.
        refusal: Option<Refusal>,
    },
    /// The job runs a component: its input is to be sent now, after the component itself when that is
    /// not known here. Before [`ProviderFrame::Accept`].
    Want {
        /// Is the component to be sent too?
        component: bool,
    },
    /// How far a component says it is.
    Progress {
        /// In thousandths.
        permille: u32,
        /// Doing what; at most [`MAX_NOTE_BYTES`].
        note: String,
    },
    /// The next bytes of a component's log, at most [`MAX_OUTPUT_BYTES`].
    Log(Vec<u8>),
    /// The next part of a component's output, at most [`MAX_OUTPUT_BYTES`].
    OutputPart(Vec<u8>),
}

/// What one peer of a pair asks the other on [`crate::version::PAIR_PROTOCOL`]. Either may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PairRequest {
    /// Do we hold the same? With the digest of all our heads (see [`crate::sync::HeadsDigest`]).
    Same {
        /// Ours.
        heads: Digest,
    },
    /// One page of what we hold; show the page that begins at the same lane.
    Heads(Box<Heads>),
    /// Send what you hold of the balance.
    Steps,
    /// Send what you hold of these lanes beyond these heads, which are ours.
    Fetch(Vec<LaneHead>),
    /// Take these; answer with what they call for (receipts, countersignatures, cancels).
    Push(Vec<Statement>),
    /// Somebody equivocated.
    Proof(Box<Equivocation>),
}

/// What the other answers on [`crate::version::PAIR_PROTOCOL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PairResponse {
    /// To [`PairRequest::Same`]: the other side's digest.
    Same {
        /// Its own.
        heads: Digest,
    },
    /// To [`PairRequest::Heads`].
    Heads(Box<Heads>),
    /// To [`PairRequest::Steps`], [`PairRequest::Fetch`] and [`PairRequest::Push`].
    Statements {
        /// In the order in which they are to be taken in, at most [`MAX_SYNC_OBJECTS`].
        statements: Vec<Statement>,
        /// Ask again with newer heads: there are more.
        more: bool,
    },
    /// To [`PairRequest::Proof`]: it was looked at.
    Noted,
    /// To any, when the peer will not.
    Refused(Refusal),
}

impl Bounded for PairRequest {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Heads(heads) => heads.check_bounds(),
            Self::Fetch(lanes) => check_lanes(lanes),
            Self::Push(statements) => check_statements(statements),
            Self::Proof(proof) => proof.check_bounds(),
            Self::Same { .. } | Self::Steps => Ok(()),
        }
    }
}

impl Bounded for PairResponse {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Heads(heads) => heads.check_bounds(),
            Self::Statements { statements, .. } => check_statements(statements),
            Self::Refused(refusal) => refusal.check_bounds(),
            Self::Same { .. } | Self::Noted => Ok(()),
        }
    }
}

fn check_statements(statements: &[Statement]) -> Result<(), WireError> {
    within(statements.len() <= MAX_SYNC_OBJECTS, "statements in one page")?;
    statements.iter().try_for_each(Bounded::check_bounds)
}

impl Bounded for Refusal {
    fn check_bounds(&self) -> Result<(), WireError> {
        within(self.reason.len() <= MAX_REASON_BYTES, "length of a reason")
    }
}

impl Bounded for RenterFrame {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::JobPart(bytes) => {
                within(!bytes.is_empty() && bytes.len() <= MAX_JOB_PART_BYTES, "length of a job part")
            }
            Self::Open { .. } | Self::Voucher(_) | Self::Cancel => Ok(()),
        }
    }
}

impl Bounded for ProviderFrame {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Output { tokens, text } => {
                within(tokens.len() <= MAX_OUTPUT_TOKENS, "tokens in one output")?;
                within(text.len() <= MAX_OUTPUT_BYTES, "bytes in one output")
            }
            Self::Progress { permille, note } => {
                within(*permille <= 1_000, "progress")?;
                within(note.len() <= MAX_NOTE_BYTES, "length of a progress note")
            }
            Self::Log(bytes) | Self::OutputPart(bytes) => {
                within(!bytes.is_empty() && bytes.len() <= MAX_OUTPUT_BYTES, "bytes in one output")
            }
            Self::Refuse(refusal) | Self::Close { refusal: Some(refusal), .. } => refusal.check_bounds(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_declared_length_does_not_allocate() {
        // A byte string that claims 2^32 bytes and brings none.
        let lie = [0x01, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode::<RenterFrame>(&lie), Err(WireError::Undecodable));
    }

    #[test]
    fn output_past_its_bound_is_refused() {
        let frame = ProviderFrame::Output { tokens: vec![1; MAX_OUTPUT_TOKENS + 1], text: String::new() };
        let bytes = encode(&frame).unwrap();
        assert!(matches!(decode_bounded::<ProviderFrame>(&bytes), Err(WireError::OverLimit { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let _ = decode_bounded::<RenterFrame>(&bytes);
            let _ = decode_bounded::<ProviderFrame>(&bytes);
            let _ = decode::<QuoteRequest>(&bytes);
            let _ = decode::<QuoteResponse>(&bytes);
            let _ = decode_bounded::<PairRequest>(&bytes);
            let _ = decode_bounded::<PairResponse>(&bytes);
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = decode::<RenterFrame>(&bytes) {
                prop_assert_eq!(encode(&frame).unwrap(), bytes);
            }
        }
    }
}
