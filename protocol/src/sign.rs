//! Signatures: one key, domain-separated preimages, and verification as a type.
//!
//! Owns: how an object becomes the bytes that are signed, and [`Verified`], which only a checked
//! signature can make. Never: holds a key file or decides what may be signed (see [`crate::lane`]).
//! Called by every room that signs or believes something.
//!
//! Preimage: `u8 length of domain | domain | u32 LE length of body | body`, where the body is the
//! object's canonical bytes. The domain (`potluck/v1/voucher`) keeps a signature over one kind of
//! object from ever being one over another. The digest of an object is blake3 of its preimage.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use ed25519_dalek::{Signer as _, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};
use thiserror::Error;

use crate::codec::{self, USUAL_BYTES, WireError, check_len};
use crate::id::{Digest, PeerId, hex, unhex};
use crate::limits::MAX_FRAME_BYTES;

/// A kind of object that a peer signs.
pub trait Signable: Serialize + DeserializeOwned {
    /// Versioned domain string, at most 255 bytes.
    const DOMAIN: &'static str;

    /// Whose signature it must bear.
    fn signer(&self) -> PeerId;
}

/// Why an object is not believed. Fault: whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignError {
    /// The signature is not the signer's over these bytes.
    #[error("the signature on {domain} is not by {signer}")]
    BadSignature {
        /// Which kind of object.
        domain: &'static str,
        /// Who should have signed.
        signer: PeerId,
    },
    /// The key is not a point on the curve, so nobody can have signed.
    #[error("{signer} is not a usable public key")]
    BadKey {
        /// The key.
        signer: PeerId,
    },
    /// The key that signs is not the one that the object names.
    #[error("{domain} names {named} as its signer; this key is {ours}")]
    NotOurs {
        /// Which kind of object.
        domain: &'static str,
        /// Who it names.
        named: PeerId,
        /// Who we are.
        ours: PeerId,
    },
    /// The object cannot be encoded within a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A peer's secret key. Never printed; wiped when dropped.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte ed25519 seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// The secret seed, for the key file and for libp2p's handshake only.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half: who this is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        PeerId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs `body`.
    ///
    /// # Errors
    /// When `body` names another signer, or does not fit a frame.
    pub fn sign<T: Signable>(&self, body: T) -> Result<Verified<T>, SignError> {
        if body.signer() != self.peer() {
            return Err(SignError::NotOurs { domain: T::DOMAIN, named: body.signer(), ours: self.peer() });
        }
        let preimage = preimage(&body)?;
        let signature = Signature(self.0.sign(&preimage).to_bytes());
        Ok(Verified::new(Signed { body, signature }, preimage))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.peer())
    }
}

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// A signature from its 64 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Its 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex(&self.0[..6]))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&hex(&self.0))
        } else {
            let (low, high) = self.0.split_at(32);
            (<[u8; 32]>::try_from(low).unwrap_or_default(), <[u8; 32]>::try_from(high).unwrap_or_default())
                .serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = [0; 64];
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let read = unhex(&text).filter(|read| read.len() == 64);
            bytes.copy_from_slice(&read.ok_or_else(|| de::Error::custom("expected 128 hexadecimal digits"))?);
        } else {
            let (low, high) = <([u8; 32], [u8; 32])>::deserialize(deserializer)?;
            bytes[..32].copy_from_slice(&low);
            bytes[32..].copy_from_slice(&high);
        }
        Ok(Self(bytes))
    }
}

/// An object with a signature that nobody has checked yet: what comes off the wire or the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "T: Serialize", deserialize = "T: DeserializeOwned"))]
pub struct Signed<T> {
    /// What is claimed to be signed.
    pub body: T,
    /// The claimed signature.
    pub signature: Signature,
}

impl<T: Signable> Signed<T> {
    /// Checks the signature (`verify_strict`: no malleable or small-order forms).
    ///
    /// # Errors
    /// When it is not the named signer's.
    pub fn verify(self) -> Result<Verified<T>, SignError> {
        let signer = self.body.signer();
        let preimage = preimage(&self.body)?;
        let key = key_of(signer)?;
        let signature = ed25519_dalek::Signature::from_bytes(&self.signature.0);
        key.verify_strict(&preimage, &signature)
            .map_err(|_| SignError::BadSignature { domain: T::DOMAIN, signer })?;
        Ok(Verified::new(self, preimage))
    }
}

/// Keys that a thread keeps at hand.
const KEYS: usize = 64;

thread_local! {
    /// Keys as points. Finding the point takes a tenth of a check, and a pair signs again and again.
    static POINTS: RefCell<HashMap<PeerId, VerifyingKey>> = RefCell::default();
}

/// The point that a peer's key is.
fn key_of(signer: PeerId) -> Result<VerifyingKey, SignError> {
    POINTS.with_borrow_mut(|points| {
        if let Some(key) = points.get(&signer) {
            return Ok(*key);
        }
        let key = VerifyingKey::from_bytes(signer.as_bytes()).map_err(|_| SignError::BadKey { signer })?;
        if points.len() >= KEYS {
            points.clear();
        }
        points.insert(signer, key);
        Ok(key)
    })
}

/// An object whose signature was made or checked by this process. Nothing else can construct one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    signed: Signed<T>,
    digest: Digest,
    bytes: Vec<u8>,
}

impl<T: Signable> Verified<T> {
    /// What is signed is what the preimage says.
    fn new(signed: Signed<T>, preimage: Vec<u8>) -> Self {
        let digest = digest_of(&preimage);
        let mut bytes = preimage;
        bytes.drain(..body_at(T::DOMAIN));
        bytes.extend_from_slice(&signed.signature.0);
        Self { signed, digest, bytes }
    }
}

impl<T> Verified<T> {
    /// The object.
    pub fn body(&self) -> &T {
        &self.signed.body
    }

    /// With its signature, for the wire and the ledger.
    pub fn signed(&self) -> &Signed<T> {
        &self.signed
    }

    /// With its signature, by value.
    pub fn into_signed(self) -> Signed<T> {
        self.signed
    }

    /// blake3 of the preimage.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The canonical bytes of the signed object, as [`codec::encode`] makes them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signed object, its digest, and its canonical bytes.
    pub fn into_parts(self) -> (Signed<T>, Digest, Vec<u8>) {
        (self.signed, self.digest, self.bytes)
    }
}

/// The bytes that are signed for `body` (see the head of this file).
///
/// # Errors
/// When the body does not fit a frame.
pub fn preimage<T: Signable>(body: &T) -> Result<Vec<u8>, WireError> {
    let mut preimage = codec::extend(frame(T::DOMAIN, USUAL_BYTES), body)?;
    let len = preimage.len() - body_at(T::DOMAIN);
    check_len(len, MAX_FRAME_BYTES)?;
    note_len(&mut preimage, T::DOMAIN, len);
    Ok(preimage)
}

/// `u8 length | domain | u32 LE length | body`: the shape of every preimage in the protocol.
pub(crate) fn framed(domain: &'static str, body: &[u8]) -> Vec<u8> {
    let mut preimage = frame(domain, body.len());
    preimage.extend_from_slice(body);
    note_len(&mut preimage, domain, body.len());
    preimage
}

/// Where in a preimage its body begins.
fn body_at(domain: &'static str) -> usize {
    1 + domain.len() + 4
}

/// A preimage without its body, for which there is room, and without its length.
fn frame(domain: &'static str, room: usize) -> Vec<u8> {
    let mut preimage = Vec::with_capacity(body_at(domain) + room);
    preimage.push(u8::try_from(domain.len()).unwrap_or(u8::MAX));
    preimage.extend_from_slice(domain.as_bytes());
    preimage.extend_from_slice(&[0; 4]);
    preimage
}

fn note_len(preimage: &mut [u8], domain: &'static str, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    preimage[1 + domain.len()..body_at(domain)].copy_from_slice(&len.to_le_bytes());
}

pub(crate) fn digest_of(preimage: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(preimage).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settle::Voucher;
    use crate::settle::tests::{sample_contract, sample_voucher};

    fn renter() -> SigningKey {
        SigningKey::from_seed([1; 32])
    }

    #[test]
    fn a_signature_holds_for_its_object_only() {
        let signed = renter().sign(sample_contract()).unwrap().into_signed();
        assert!(signed.clone().verify().is_ok());
        let mut tampered = signed.clone();
        tampered.body.max_ms = crate::unit::GpuMillis::new(tampered.body.max_ms.get() + 1);
        assert!(matches!(tampered.verify(), Err(SignError::BadSignature { .. })));
        // The same signature bytes over another kind of object of the same signer.
        let voucher = Signed { body: sample_voucher(), signature: signed.signature };
        assert!(matches!(voucher.verify(), Err(SignError::BadSignature { .. })));
    }

    #[test]
    fn what_is_verified_knows_its_bytes_and_its_digest() {
        let contract = renter().sign(sample_contract()).unwrap();
        assert_eq!(contract.bytes(), codec::encode(contract.signed()).unwrap());
        assert_eq!(contract, contract.clone().into_signed().verify().unwrap());
        let voucher = renter().sign(sample_voucher()).unwrap();
        let body = codec::encode(voucher.body()).unwrap();
        assert_eq!(voucher.digest(), digest_of(&framed(Voucher::DOMAIN, &body)));
        let (signed, digest, bytes) = voucher.into_parts();
        assert_eq!(bytes, codec::encode(&signed).unwrap());
        assert_eq!(digest, signed.verify().unwrap().digest());
    }

    #[test]
    fn nobody_signs_for_another() {
        let stranger = SigningKey::from_seed([9; 32]);
        assert!(matches!(stranger.sign(sample_contract()), Err(SignError::NotOurs { .. })));
    }

    #[test]
    fn every_bit_of_a_signature_counts() {
        let signed = renter().sign(sample_contract()).unwrap().into_signed();
        for bit in 0..512 {
            let mut bytes = *signed.signature.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = Signed { body: signed.body.clone(), signature: Signature::from_bytes(bytes) };
            assert!(forged.verify().is_err(), "bit {bit}");
        }
    }
}
