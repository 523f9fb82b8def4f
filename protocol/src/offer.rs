//! What a provider advertises, and what it binds itself to when asked.
//!
//! Owns: [`Offer`] (a signed advertisement) and [`Quote`] (a signed promise to one renter).
//! Never: finds offers or chooses among them. Called by the provider, the renter and the directory.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{ContentHash, PeerId};
use crate::limits::{
    CLOCK_SLACK_MS, MAX_GUEST_MEMORY_MIB, MAX_GUEST_MODELS, MAX_JOB_MS, MAX_NAME_BYTES, MAX_OFFERED_MODELS,
    MAX_QUANTUM_MS, MAX_WINDOW_MS, MIN_QUANTUM_MS,
};
use crate::sign::Signable;
use crate::unit::{GpuMillis, Rate, UnixMillis};

/// What stands between a stranger's work and the owner's machine, as the provider states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// A process of its own, nothing more.
    None,
    /// Some layers of the jail.
    Partial,
    /// Every layer of the jail, tested at start.
    Full,
}

impl Protection {
    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// What a job would run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// What it is filed under: `cpu`, or `cuda-8.6-12g`; lower case, digits, `-` and `.`.
    pub class: String,
    /// As people call it, for example `RTX 4070 Ti`.
    pub name: String,
    /// Memory that models may fill, in MiB.
    pub memory_mib: u32,
}

/// A model in an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedModel {
    /// Which, by content.
    pub model: ContentHash,
    /// As people call it.
    pub name: String,
    /// Tokens of context.
    pub context_tokens: u32,
    /// Price of running.
    pub run: Rate,
    /// Price of loading it into memory; nothing when it is warm.
    pub load: Rate,
}

/// A provider's advertisement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Whose.
    pub provider: PeerId,
    /// Only rises: the newer of two offers is the one with the higher epoch.
    pub epoch: u64,
    /// The newest wire version that the provider speaks.
    pub wire: u16,
    /// When it was signed.
    pub issued: UnixMillis,
    /// When it stops being one.
    pub expires: UnixMillis,
    /// On what.
    pub hardware: Hardware,
    /// Behind what.
    pub protection: Protection,
    /// Which models, at what price.
    pub models: Vec<OfferedModel>,
    /// Whether it runs renters' components, and how.
    pub guests: Option<GuestOffer>,
}

/// How a provider runs renters' components.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestOffer {
    /// The runtime and its version, for example `wasmtime 48.0.8`: whoever hears of a hole in one can
    /// keep away.
    pub runtime: String,
    /// Price of a component's own time; model time is billed as running.
    pub rate: Rate,
    /// The most memory a component may have, in MiB.
    pub memory_mib: u32,
}

/// What a component needs from the machine it runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNeeds {
    /// The models it calls.
    pub models: Vec<ContentHash>,
    /// Memory, in MiB.
    pub memory_mib: u32,
}

impl GuestNeeds {
    /// Checks the bounds.
    ///
    /// # Errors
    /// Names the field that is out of them.
    pub fn check(&self) -> Result<(), OfferError> {
        bounded(self.models.len() <= MAX_GUEST_MODELS, "number of models")?;
        bounded((1..=MAX_GUEST_MEMORY_MIB).contains(&self.memory_mib), "memory")
    }
}

impl Signable for Offer {
    const DOMAIN: &'static str = "potluck/v1/offer";

    fn signer(&self) -> PeerId {
        self.provider
    }
}

/// The prices and the pace of metering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Price of running.
    pub run: Rate,
    /// Price of loading.
    pub load: Rate,
    /// Price of a component's own time; zero where no component runs.
    pub guest: Rate,
    /// A meter at least once in so much work.
    pub quantum: GpuMillis,
    /// Work that may be unpaid before the provider stops.
    pub window: GpuMillis,
}

/// A provider's binding promise to one renter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Who promises.
    pub provider: PeerId,
    /// To whom.
    pub renter: PeerId,
    /// Makes every quote unique.
    pub serial: u64,
    /// For what: a model, or a component when `guest` is set.
    pub model: ContentHash,
    /// What the component may have.
    pub guest: Option<GuestNeeds>,
    /// At what price and pace.
    pub terms: Terms,
    /// The longest job it will take.
    pub max_ms: GpuMillis,
    /// Jobs that would run first.
    pub ahead: u32,
    /// Is the model in memory?
    pub warm: bool,
    /// On what.
    pub hardware: Hardware,
    /// Behind what.
    pub protection: Protection,
    /// Until when a contract may rest on it.
    pub expires: UnixMillis,
}

impl Signable for Quote {
    const DOMAIN: &'static str = "potluck/v1/quote";

    fn signer(&self) -> PeerId {
        self.provider
    }
}

/// Why an offer or a quote is not one. Fault: provider.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OfferError {
    /// A field is past its bound.
    #[error("the {what} is out of bounds")]
    OutOfBounds {
        /// Which field.
        what: &'static str,
    },
    /// It has expired.
    #[error("it expired {ago_ms} ms ago")]
    Expired {
        /// How long ago, beyond the slack for clocks, in milliseconds.
        ago_ms: u64,
    },
}

fn bounded(ok: bool, what: &'static str) -> Result<(), OfferError> {
    if ok { Ok(()) } else { Err(OfferError::OutOfBounds { what }) }
}

fn unexpired(expires: UnixMillis, now: UnixMillis) -> Result<(), OfferError> {
    let last = expires.get().saturating_add(CLOCK_SLACK_MS);
    if now.get() > last { Err(OfferError::Expired { ago_ms: now.get() - last }) } else { Ok(()) }
}

impl Hardware {
    /// Checks lengths and the class's alphabet.
    ///
    /// # Errors
    /// The first bound broken.
    pub fn check(&self) -> Result<(), OfferError> {
        let class =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        bounded(
            !self.class.is_empty() && self.class.len() <= MAX_NAME_BYTES && self.class.bytes().all(class),
            "hardware class",
        )?;
        bounded(self.name.len() <= MAX_NAME_BYTES, "hardware name")
    }
}

impl Terms {
    /// Checks the pace of metering.
    ///
    /// # Errors
    /// The first bound broken.
    pub fn check(&self) -> Result<(), OfferError> {
        bounded((MIN_QUANTUM_MS..=MAX_QUANTUM_MS).contains(&self.quantum.get()), "quantum")?;
        bounded(self.window >= self.quantum && self.window.get() <= MAX_WINDOW_MS, "window")
    }
}

impl Offer {
    /// Checks bounds and expiry (with slack for clocks).
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, now: UnixMillis) -> Result<(), OfferError> {
        bounded(!self.models.is_empty() && self.models.len() <= MAX_OFFERED_MODELS, "number of models")?;
        bounded(self.models.iter().all(|m| m.name.len() <= MAX_NAME_BYTES), "model name")?;
        bounded(
            self.guests.as_ref().is_none_or(|guests| {
                guests.runtime.len() <= MAX_NAME_BYTES && guests.memory_mib <= MAX_GUEST_MEMORY_MIB
            }),
            "offer for components",
        )?;
        self.hardware.check()?;
        unexpired(self.expires, now)
    }
}

impl Quote {
    /// Checks bounds, expiry (with slack for clocks), and that it is by `provider` for `renter`.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, provider: PeerId, renter: PeerId, now: UnixMillis) -> Result<(), OfferError> {
        bounded(self.provider == provider, "provider")?;
        bounded(self.renter == renter, "renter")?;
        bounded((1..=MAX_JOB_MS).contains(&self.max_ms.get()), "longest job")?;
        if let Some(needs) = &self.guest {
            needs.check()?;
        }
        self.hardware.check()?;
        self.terms.check()?;
        unexpired(self.expires, now)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample_quote(provider: PeerId, renter: PeerId) -> Quote {
        Quote {
            provider,
            renter,
            serial: 9,
            model: ContentHash::from_bytes([3; 32]),
            guest: None,
            terms: Terms {
                run: Rate::new(11_111),
                load: Rate::ZERO,
                guest: Rate::ZERO,
                quantum: GpuMillis::new(1_000),
                window: GpuMillis::new(2_000),
            },
            max_ms: GpuMillis::new(600_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1_024 },
            protection: Protection::None,
            expires: UnixMillis::new(1_000_000),
        }
    }

    #[test]
    fn a_quote_is_for_one_renter_and_a_time() {
        let (provider, renter) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let quote = sample_quote(provider, renter);
        assert_eq!(quote.check(provider, renter, UnixMillis::new(900_000)), Ok(()));
        assert!(quote.check(provider, provider, UnixMillis::new(900_000)).is_err());
        let late = UnixMillis::new(1_000_000 + CLOCK_SLACK_MS + 1);
        assert_eq!(quote.check(provider, renter, late), Err(OfferError::Expired { ago_ms: 1 }));
        let mut slow = quote;
        slow.terms.window = GpuMillis::new(500);
        assert_eq!(
            slow.check(provider, renter, UnixMillis::new(0)),
            Err(OfferError::OutOfBounds { what: "window" })
        );
    }
}
