//! What the owner asks: prices and the pace of metering, as pure policy.
//!
//! Owns: the terms of a quote and the contents of an offer. Never: reads a clock, signs or sends.
//! Called by [`crate::desk`].

use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::limits::{DEFAULT_QUANTUM_MS, DEFAULT_WINDOW_MS, MAX_NAME_BYTES};
use potluck_protocol::offer::{Hardware, Offer, OfferedModel, Protection, Quote, Terms};
use potluck_protocol::unit::{GpuMillis, Rate, UnixMillis};
use potluck_protocol::version::WireVersion;

/// How long a quote binds, in milliseconds.
pub const QUOTE_LIFE_MS: u64 = 60_000;
/// How long an offer stands, in milliseconds: three times the interval at which it is renewed.
pub const OFFER_LIFE_MS: u64 = 900_000;

/// What the owner set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriceList {
    /// Price of running.
    pub run: Rate,
    /// The longest job, in milliseconds of worker time.
    pub max_job: GpuMillis,
}

/// A model as it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ware {
    /// Which.
    pub model: ContentHash,
    /// As people call it.
    pub name: String,
    /// Tokens of context.
    pub context_tokens: u32,
}

/// The terms of every job. Models are kept in memory here, so that loading costs nothing.
#[must_use]
pub fn terms(prices: &PriceList) -> Terms {
    Terms {
        run: prices.run,
        load: Rate::ZERO,
        quantum: GpuMillis::new(DEFAULT_QUANTUM_MS),
        window: GpuMillis::new(DEFAULT_WINDOW_MS),
    }
}

/// What one renter asks a quote for.
#[derive(Debug, Clone)]
pub struct QuoteCase {
    /// Who sells.
    pub provider: PeerId,
    /// Who asks.
    pub renter: PeerId,
    /// A number that no other quote bears.
    pub serial: u64,
    /// Which model.
    pub model: ContentHash,
    /// On what.
    pub hardware: Hardware,
    /// Behind what.
    pub protection: Protection,
    /// Jobs that would run first.
    pub ahead: u32,
}

/// The binding quote for one job.
#[must_use]
pub fn quote(prices: &PriceList, case: QuoteCase, now: UnixMillis) -> Quote {
    Quote {
        provider: case.provider,
        renter: case.renter,
        serial: case.serial,
        model: case.model,
        terms: terms(prices),
        max_ms: prices.max_job,
        ahead: case.ahead,
        warm: true,
        hardware: case.hardware,
        protection: case.protection,
        expires: now.saturating_add(UnixMillis::new(QUOTE_LIFE_MS)),
    }
}

/// The advertisement. `last_epoch` is that of the offer before: epochs rise even when the wall clock
/// is set back.
#[must_use]
pub fn offer(
    provider: PeerId,
    prices: &PriceList,
    wares: &[Ware],
    hardware: Hardware,
    protection: Protection,
    last_epoch: u64,
    now: UnixMillis,
) -> Offer {
    let terms = terms(prices);
    let models = wares.iter().map(|ware| OfferedModel {
        model: ware.model,
        name: cut_name(&ware.name),
        context_tokens: ware.context_tokens,
        run: terms.run,
        load: terms.load,
    });
    Offer {
        provider,
        epoch: now.get().max(last_epoch.saturating_add(1)),
        wire: WireVersion::V1.number(),
        issued: now,
        expires: now.saturating_add(UnixMillis::new(OFFER_LIFE_MS)),
        hardware,
        protection,
        models: models.collect(),
    }
}

/// `name` as it fits an offer: at most [`MAX_NAME_BYTES`] bytes, no character split.
#[must_use]
pub fn cut_name(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: PriceList = PriceList { run: Rate::new(11_111), max_job: GpuMillis::new(3_600_000) };

    fn hardware() -> Hardware {
        Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1_024 }
    }

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    #[test]
    fn a_quote_keeps_the_protocols_rules_and_binds_for_a_minute() {
        let case = QuoteCase {
            provider: peer(1),
            renter: peer(2),
            serial: 7,
            model: ContentHash::from_bytes([3; 32]),
            hardware: hardware(),
            protection: Protection::None,
            ahead: 2,
        };
        let now = UnixMillis::new(1_700_000_000_000);
        let quote = quote(&PRICES, case, now);
        assert_eq!(quote.check(peer(1), peer(2), now), Ok(()));
        assert_eq!(quote.expires.get() - now.get(), 60_000);
        assert_eq!((quote.terms.run, quote.terms.load), (PRICES.run, Rate::ZERO));
    }

    #[test]
    fn epochs_rise_when_the_clock_is_set_back() {
        let wares =
            [Ware { model: ContentHash::from_bytes([3; 32]), name: "é".repeat(64), context_tokens: 2_048 }];
        let at = |last, now| {
            let now = UnixMillis::new(now);
            let offer = offer(peer(1), &PRICES, &wares, hardware(), Protection::None, last, now);
            assert_eq!(offer.check(now), Ok(()));
            offer.epoch
        };
        let first = at(0, 1_000_000);
        assert_eq!(first, 1_000_000);
        assert_eq!(at(first, 5_000), first + 1);
    }
}
