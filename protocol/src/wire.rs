//! The codec: canonical postcard in bounded frames, and the frames of a job's stream.
//!
//! Owns: [`encode`], [`decode`] and the two conversations (`quote`, `job`). Never: reads a socket
//! (`node::net` does, and adds the length prefix) or trusts a signature. Called by both ends.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::fault::RefusalCode;
use crate::id::ContentHash;
use crate::limits::{
    MAX_FRAME_BYTES, MAX_JOB_PART_BYTES, MAX_NOTE_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUT_TOKENS,
    MAX_REASON_BYTES,
};
use crate::offer::{GuestNeeds, Offer, Quote};
use crate::settle::{Accept, Close, Contract, Meter, Phase, Receipt, Voucher};
use crate::sign::Signed;

/// Why bytes are not a message. Fault: whoever sent them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// Longer than a frame may be.
    #[error("the message has {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not the encoding of the expected type.
    #[error("the message cannot be decoded")]
    Undecodable,
    /// Decodes, but is not how the value is written: bytes left over or an over-long number.
    #[error("the message is not in canonical form")]
    NotCanonical,
    /// Decodes, but a field is past its bound.
    #[error("the message breaks a limit: {what}")]
    OverLimit {
        /// Which limit.
        what: &'static str,
    },
}

/// The canonical bytes of `value` (postcard; see SPEC.md, Encoding).
///
/// # Errors
/// [`WireError::TooLarge`] past [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WireError> {
    encode_within(value, MAX_FRAME_BYTES)
}

/// As [`encode`], with another bound in bytes.
///
/// # Errors
/// [`WireError::TooLarge`] past `max`.
pub fn encode_within<T: Serialize + ?Sized>(value: &T, max: usize) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_stdvec(value).map_err(|_| WireError::Undecodable)?;
    if bytes.len() > max {
        return Err(WireError::TooLarge { len: bytes.len(), max });
    }
    Ok(bytes)
}

/// The value whose canonical bytes are `bytes`.
///
/// # Errors
/// Past [`MAX_FRAME_BYTES`], not of this type, with bytes left over, or not canonical.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode_within(bytes, MAX_FRAME_BYTES)
}

/// As [`decode`], with another bound in bytes.
///
/// # Errors
/// As [`decode`].
pub fn decode_within<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLarge { len: bytes.len(), max });
    }
    let value: T = postcard::from_bytes(bytes).map_err(|_| WireError::Undecodable)?;
    // A varint can be padded and bytes can follow the value; one value has one encoding here.
    if postcard::to_stdvec(&value).map_err(|_| WireError::Undecodable)? != bytes {
        return Err(WireError::NotCanonical);
    }
    Ok(value)
}

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
    /// To [`QuoteRequest::Quote`].
    Quote(Box<Signed<Quote>>),
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

/// A message with bounds on its inner fields, beyond the frame's.
pub trait Bounded {
    /// Checks every field that a peer could blow up.
    ///
    /// # Errors
    /// [`WireError::OverLimit`] names the first limit broken.
    fn check_bounds(&self) -> Result<(), WireError>;
}

fn within(ok: bool, what: &'static str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::OverLimit { what }) }
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

/// [`decode`], then [`Bounded::check_bounds`].
///
/// # Errors
/// As those.
pub fn decode_bounded<T: Serialize + DeserializeOwned + Bounded>(bytes: &[u8]) -> Result<T, WireError> {
    let value: T = decode(bytes)?;
    value.check_bounds()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padded_numbers_and_trailing_bytes_are_refused() {
        assert_eq!(decode::<u32>(&[0x01]), Ok(1));
        assert_eq!(decode::<u32>(&[0x81, 0x00]), Err(WireError::NotCanonical));
        assert_eq!(decode::<u32>(&[0x01, 0x00]), Err(WireError::NotCanonical));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_decoding() {
        let big = vec![0; MAX_FRAME_BYTES + 1];
        assert!(matches!(decode::<Vec<u8>>(&big), Err(WireError::TooLarge { .. })));
        assert!(matches!(encode(&big), Err(WireError::TooLarge { .. })));
    }

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
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = decode::<RenterFrame>(&bytes) {
                prop_assert_eq!(encode(&frame).unwrap(), bytes);
            }
        }
    }
}
