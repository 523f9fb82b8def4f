//! Names of things: peers, contents, digests and lanes.
//!
//! Owns: the fixed-width identifiers and their text forms. Never: looks anything up, or decides
//! whether a name is trusted. Called by every room.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// What libp2p puts before an ed25519 public key to make a PeerId: an identity multihash (`00 24`)
/// of the protobuf `PublicKey { type: Ed25519 (08 01), data: 32 bytes (12 20) }`.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A text that is not an identifier of the expected kind. Fault: whoever typed or sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Not the base58 form of an ed25519 libp2p peer id.
    #[error("`{text}` is not a peer id (expected 52 characters that begin with 12D3KooW)")]
    NotAPeer {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not `blake3:` and 64 hexadecimal digits.
    #[error("`{text}` is not a content hash (expected blake3: and 64 hexadecimal digits)")]
    NotAHash {
        /// What was given, cut to 80 characters.
        text: String,
    },
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Lower-case hexadecimal of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Bytes of a hexadecimal text, either case; `None` when it is not one.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// A peer: its ed25519 public key. The libp2p PeerId, the ledger account and the signing key are
/// this one key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// The peer whose ed25519 public key is `key`. Whether it is a valid curve point shows when a
    /// signature is checked.
    #[must_use]
    pub const fn from_bytes(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The 32 bytes of the ed25519 public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 38 bytes that libp2p calls a PeerId (identity multihash of the public key).
    #[must_use]
    pub fn to_libp2p_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads libp2p's 38 bytes; `None` for any other kind of key.
    #[must_use]
    pub fn from_libp2p_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The form for people: the first characters, enough to tell peers on one screen apart.
    #[must_use]
    pub fn short(&self) -> String {
        let full = self.to_string();
        format!("{}…", full.get(..14).unwrap_or(&full))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_libp2p_bytes()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let not_a_peer = || IdError::NotAPeer { text: excerpt(text) };
        if text.len() > 64 {
            return Err(not_a_peer());
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| not_a_peer())?;
        Self::from_libp2p_bytes(&bytes).ok_or_else(not_a_peer)
    }
}

/// The content of a model or component: its unkeyed blake3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The content whose blake3 hash is `hash`.
    #[must_use]
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The 32 bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.strip_prefix("blake3:")
            .and_then(unhex)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError::NotAHash { text: excerpt(text) })
    }
}

/// The digest of a signed object or of an output so far: blake3 over a domain-separated preimage
/// (see [`crate::sign`] and [`crate::output`]). Text form: `b3:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// A digest from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The form for people: `b3:` and the first 12 digits.
    #[must_use]
    pub fn short(&self) -> String {
        format!("b3:{}…", hex(&self.0[..6]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.strip_prefix("b3:")
            .and_then(unhex)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError::NotAHash { text: excerpt(text) })
    }
}

/// One lane: the account of one job between one renter and one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneId {
    /// Who pays.
    pub renter: PeerId,
    /// Who works.
    pub provider: PeerId,
    /// Rises when either side restored an old ledger; lanes of different epochs never mix.
    pub epoch: u32,
    /// A random number that the renter draws for each job.
    pub lane: u64,
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job_{:016x}", self.lane)
    }
}

/// Fixed 32 bytes in binary encodings, the text form in human-readable ones.
macro_rules! serde_fixed32 {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

serde_fixed32!(PeerId);
serde_fixed32!(ContentHash);
serde_fixed32!(Digest);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peer_id_reads_as_libp2p_writes_it() {
        // The identity key of seed 0x01 * 32, as libp2p prints it.
        let peer = crate::sign::SigningKey::from_seed([1; 32]).peer();
        let text = peer.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse::<PeerId>(), Ok(peer));
    }

    #[test]
    fn other_key_types_are_refused() {
        // An RSA-style sha256 multihash (12 20 …) is a valid libp2p PeerId, but no Potluck account.
        let mut bytes = vec![0x12, 0x20];
        bytes.extend([7; 32]);
        assert_eq!(PeerId::from_libp2p_bytes(&bytes), None);
        assert!(bs58::encode(bytes).into_string().parse::<PeerId>().is_err());
    }

    proptest! {
        #[test]
        fn text_forms_round_trip(bytes: [u8; 32]) {
            let peer = PeerId::from_bytes(bytes);
            prop_assert_eq!(peer.to_string().parse::<PeerId>(), Ok(peer));
            let hash = ContentHash::from_bytes(bytes);
            prop_assert_eq!(hash.to_string().parse::<ContentHash>(), Ok(hash));
            let digest = Digest::from_bytes(bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<PeerId>();
            let _ = text.parse::<ContentHash>();
            let _ = text.parse::<Digest>();
        }
    }
}
