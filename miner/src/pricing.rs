//! What the owner asks: prices and the pace of metering, as pure policy.
//!
//! Owns: the terms of a quote and the contents of an offer. Never: reads a clock, signs or sends.
//! Called by [`crate::desk`].

use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::limits::{DEFAULT_QUANTUM_MS, DEFAULT_WINDOW_MS, MAX_NAME_BYTES};
use potluck_protocol::offer::{
    GuestNeeds, GuestOffer, Hardware, Offer, OfferedModel, Protection, Quote, Terms,
};
use potluck_protocol::unit::{GpuMillis, Rate, UnixMillis};
use potluck_protocol::version::WireVersion;

/// How long a quote binds, in milliseconds.
pub const QUOTE_LIFE_MS: u64 = 60_000;
/// How long an offer stands, in milliseconds: three times the interval at which it is renewed.
pub const OFFER_LIFE_MS: u64 = 900_000;

/// What the owner set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriceList {
    /// Price of running a model.
    pub run: Rate,
    /// Price of compiling a component and loading its models.
    pub load: Rate,
    /// Price of a component's own time.
    pub guest: Rate,
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

/// The terms of a job. A model that answers prompts is kept in memory, so that loading it costs
/// nothing; a component gets models of its own.
#[must_use]
pub fn terms(prices: &PriceList, is_component: bool) -> Terms {
    let only_component = |rate| if is_component { rate } else { Rate::ZERO };
    Terms {
        run: prices.run,
        load: only_component(prices.load),
        guest: only_component(prices.guest),
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
    /// Which model or component.
    pub runs: ContentHash,
    /// What the component needs.
    pub guest: Option<GuestNeeds>,
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
        model: case.runs,
        terms: terms(prices, case.guest.is_some()),
        max_ms: prices.max_job,
        ahead: case.ahead,
        warm: case.guest.is_none(),
        guest: case.guest,
        hardware: case.hardware,
        protection: case.protection,
        expires: now.saturating_add(UnixMillis::new(QUOTE_LIFE_MS)),
    }
}

/// What an offer shows beside the prices.
#[derive(Debug, Clone)]
pub struct Display {
    /// The models that are in memory.
    pub wares: Vec<Ware>,
    /// On what.
    pub hardware: Hardware,
    /// Behind what.
    pub protection: Protection,
    /// The runtime and the memory in MiB of components, when they are run here.
    pub guests: Option<(String, u32)>,
}

/// The advertisement. `last_epoch` is that of the offer before: epochs rise even when the wall clock
/// is set back.
#[must_use]
pub fn offer(
    provider: PeerId,
    prices: &PriceList,
    display: Display,
    last_epoch: u64,
    now: UnixMillis,
) -> Offer {
    let terms = terms(prices, false);
    let models = display.wares.iter().map(|ware| OfferedModel {
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
        models: models.collect(),
        hardware: display.hardware,
        protection: display.protection,
        guests: display.guests.map(|(runtime, memory_mib)| GuestOffer {
            runtime: cut_name(&runtime),
            rate: prices.guest,
            memory_mib,
        }),
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

    const PRICES: PriceList = PriceList {
        run: Rate::new(11_111),
        load: Rate::new(2_777),
        guest: Rate::new(1_388),
        max_job: GpuMillis::new(3_600_000),
    };

    fn hardware() -> Hardware {
        Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1_024 }
    }

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    fn case(guest: Option<GuestNeeds>) -> QuoteCase {
        QuoteCase {
            provider: peer(1),
            renter: peer(2),
            serial: 7,
            runs: ContentHash::from_bytes([3; 32]),
            guest,
            hardware: hardware(),
            protection: Protection::None,
            ahead: 2,
        }
    }

    #[test]
    fn a_component_pays_for_its_own_time_and_its_models() {
        let quote =
            quote(&PRICES, case(Some(GuestNeeds { models: vec![], memory_mib: 64 })), UnixMillis::ZERO);
        let terms = quote.terms;
        assert_eq!((terms.run, terms.load, terms.guest), (PRICES.run, PRICES.load, PRICES.guest));
        assert!(!quote.warm && quote.check(peer(1), peer(2), UnixMillis::ZERO).is_ok());
    }

    #[test]
    fn a_quote_keeps_the_protocols_rules_and_binds_for_a_minute() {
        let now = UnixMillis::new(1_700_000_000_000);
        let quote = quote(&PRICES, case(None), now);
        assert_eq!(quote.check(peer(1), peer(2), now), Ok(()));
        assert_eq!(quote.expires.get() - now.get(), 60_000);
        assert_eq!(
            (quote.terms.run, quote.terms.load, quote.terms.guest),
            (PRICES.run, Rate::ZERO, Rate::ZERO)
        );
    }

    #[test]
    fn epochs_rise_when_the_clock_is_set_back() {
        let ware =
            Ware { model: ContentHash::from_bytes([3; 32]), name: "é".repeat(64), context_tokens: 2_048 };
        let display = Display {
            wares: vec![ware],
            hardware: hardware(),
            protection: Protection::None,
            guests: Some(("wasmtime 48".into(), 1_024)),
        };
        let at = |last, now| {
            let now = UnixMillis::new(now);
            let offer = offer(peer(1), &PRICES, display.clone(), last, now);
            assert_eq!(offer.check(now), Ok(()));
            offer.epoch
        };
        let first = at(0, 1_000_000);
        assert_eq!(first, 1_000_000);
        assert_eq!(at(first, 5_000), first + 1);
    }
}
