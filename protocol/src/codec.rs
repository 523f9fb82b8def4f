//! The codec: canonical postcard in bounded messages.
//!
//! Owns: [`encode`] and [`decode`], the one encoding of a value, and [`Bounded`]. Never: knows a frame
//! (see [`crate::wire`]) or reads a socket. Called by whatever signs, sends, receives or keeps bytes.

use postcard::ser_flavors::Flavor;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::limits::MAX_FRAME_BYTES;

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
    let bytes = to_bytes(value)?;
    check_len(bytes.len(), max)?;
    Ok(bytes)
}

/// Is a message of `len` bytes within `max`?
///
/// # Errors
/// [`WireError::TooLarge`] when it is not.
pub fn check_len(len: usize, max: usize) -> Result<(), WireError> {
    if len > max { Err(WireError::TooLarge { len, max }) } else { Ok(()) }
}

/// Room for most objects at once: growing byte by byte takes longer than the bytes themselves.
pub(crate) const USUAL_BYTES: usize = 512;

/// Where an encoding is put together. The library's own for a vector with room takes each byte of an identity
/// or a digest as a collection of one.
struct Room(Vec<u8>);

impl Flavor for Room {
    type Output = Vec<u8>;

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WireError> {
    extend(Vec::with_capacity(USUAL_BYTES), value)
}

/// `bytes`, and behind them those of `value`, however long.
pub(crate) fn extend<T: Serialize + ?Sized>(bytes: Vec<u8>, value: &T) -> Result<Vec<u8>, WireError> {
    postcard::serialize_with_flavor(value, Room(bytes)).map_err(|_| WireError::Undecodable)
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
    check_len(bytes.len(), max)?;
    let value: T = postcard::from_bytes(bytes).map_err(|_| WireError::Undecodable)?;
    // A varint can be padded and bytes can follow the value; one value has one encoding here.
    if to_bytes(&value)? != bytes {
        return Err(WireError::NotCanonical);
    }
    Ok(value)
}

/// A message with bounds on its inner fields, beyond the frame's.
pub trait Bounded {
    /// Checks every field that a peer could blow up.
    ///
    /// # Errors
    /// [`WireError::OverLimit`] names the first limit broken.
    fn check_bounds(&self) -> Result<(), WireError>;
}

pub(crate) fn within(ok: bool, what: &'static str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::OverLimit { what }) }
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
}
