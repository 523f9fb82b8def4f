//! Finding a provider: who serves the model, what each asks, and which to take.
//!
//! Owns: the search through the DHT, the quotes, and the choice (a pure function). Never: signs or
//! spends. Called by the session; ends within [`SEARCH_LIMIT`] and one quote's wait.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::stream::{FuturesUnordered, StreamExt as _};
use potluck_node::net::{DhtKey, Network};
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::Quote;
use potluck_protocol::sign::Verified;
use potluck_protocol::unit::{Rate, UnixMillis};
use potluck_protocol::wire::{self, QuoteRequest, QuoteResponse};

use crate::error::Failure;

/// Providers asked for a quote at most: enough to find a good price, few enough to be quick.
const MAX_ASKED: usize = 16;
/// A provider that does not quote in this time would not start in time either.
const QUOTE_LIMIT: Duration = Duration::from_secs(3);
/// The whole search: an error comes well within 15 s.
pub const SEARCH_LIMIT: Duration = Duration::from_secs(6);

/// A quote that checks out, and how long its provider took to answer.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The signed quote.
    pub quote: Verified<Quote>,
    /// Time from asking to the answer: an upper bound on the round trip.
    pub rtt: Duration,
}

/// What a search came to.
#[derive(Debug, Default)]
pub struct Found {
    /// Providers that were asked.
    pub asked: usize,
    /// Usable quotes, best first.
    pub candidates: Vec<Candidate>,
}

/// Wall-clock time now, for expiry only.
#[must_use]
pub fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Quotes for `model`: from `only`, or from whoever the DHT names. Ends when all have answered.
pub async fn quotes(network: &Network, model: ContentHash, only: Option<PeerId>) -> Found {
    let begun = Instant::now();
    loop {
        let peers = match only {
            Some(peer) => vec![peer],
            None => network
                .find_providers(DhtKey::model(model), MAX_ASKED, SEARCH_LIMIT)
                .await
                .unwrap_or_default(),
        };
        let found = ask_all(network, model, peers).await;
        // A provider that has just come up may not be filed yet: one more look while time is left.
        if !found.candidates.is_empty() || begun.elapsed() > SEARCH_LIMIT / 2 {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn ask_all(network: &Network, model: ContentHash, peers: Vec<PeerId>) -> Found {
    let us = network.local_peer();
    let others = peers.into_iter().filter(|peer| *peer != us).take(MAX_ASKED);
    let mut asking: FuturesUnordered<_> = others.map(|peer| ask(network, peer, model)).collect();
    let mut found = Found { asked: asking.len(), ..Found::default() };
    while let Some(answer) = asking.next().await {
        found.candidates.extend(answer);
    }
    rank(&mut found.candidates);
    found
}

/// One provider's quote; `None` when it has none, does not answer, or sends what does not check out.
async fn ask(network: &Network, peer: PeerId, model: ContentHash) -> Option<Candidate> {
    let request = wire::encode(&QuoteRequest::Quote { model }).ok()?;
    let asked = Instant::now();
    let answer = network.ask(peer, request, QUOTE_LIMIT).await;
    let rtt = asked.elapsed();
    let bytes = answer.inspect_err(|why| tracing::info!(%peer, %why, "no quote")).ok()?;
    match wire::decode::<QuoteResponse>(&bytes) {
        Ok(QuoteResponse::Quote(quote)) => {
            let quote = quote.verify().inspect_err(|why| tracing::warn!(%peer, %why, "bad quote")).ok()?;
            let body = quote.body();
            body.check(peer, network.local_peer(), wall_clock())
                .inspect_err(|why| tracing::warn!(%peer, %why, "unusable quote"))
                .ok()?;
            (body.model == model).then_some(Candidate { quote, rtt })
        }
        Ok(QuoteResponse::Refused(refusal)) => {
            tracing::info!(%peer, reason = refusal.reason, "quote refused");
            None
        }
        Ok(QuoteResponse::Offer(_)) | Err(_) => {
            tracing::warn!(%peer, "answered a quote request with something else");
            None
        }
    }
}

/// Best first: cheapest, then warm, then the shortest queue, then the nearest; the peer id decides
/// the rest, so that the order is total.
fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|candidate| {
        let quote = candidate.quote.body();
        (quote.terms.run, !quote.warm, quote.ahead, candidate.rtt, quote.provider)
    });
}

/// Those that cost at most `limit`.
///
/// # Errors
/// When there are quotes, and all are dearer.
pub fn affordable(candidates: Vec<Candidate>, limit: Option<Rate>) -> Result<Vec<Candidate>, Failure> {
    let Some(limit) = limit else { return Ok(candidates) };
    let quotes = candidates.len();
    let cheapest = candidates.iter().map(|c| c.quote.body().terms.run).min();
    let fit: Vec<_> = candidates.into_iter().filter(|c| c.quote.body().terms.run <= limit).collect();
    match cheapest {
        Some(cheapest) if fit.is_empty() => Err(Failure::TooDear { cheapest, limit, quotes }),
        _ => Ok(fit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::offer::{Hardware, Protection, Terms};
    use potluck_protocol::sign::SigningKey;
    use potluck_protocol::unit::GpuMillis;

    fn candidate(seed: u8, rate: u64, warm: bool, ahead: u32) -> Candidate {
        let key = SigningKey::from_seed([seed; 32]);
        let quote = Quote {
            provider: key.peer(),
            renter: PeerId::from_bytes([0; 32]),
            serial: 1,
            model: ContentHash::of(b"model"),
            terms: Terms {
                run: Rate::new(rate),
                load: Rate::ZERO,
                quantum: GpuMillis::new(1_000),
                window: GpuMillis::new(2_000),
            },
            max_ms: GpuMillis::new(1_000),
            ahead,
            warm,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1 },
            protection: Protection::None,
            expires: UnixMillis::new(1),
        };
        Candidate { quote: key.sign(quote).unwrap(), rtt: Duration::from_millis(5) }
    }

    #[test]
    fn price_comes_first_then_warmth_then_queue() {
        let mut all = vec![
            candidate(1, 20, true, 0),
            candidate(2, 10, false, 0),
            candidate(3, 10, true, 2),
            candidate(4, 10, true, 1),
        ];
        rank(&mut all);
        let order: Vec<_> = all
            .iter()
            .map(|c| (c.quote.body().terms.run.get(), c.quote.body().warm, c.quote.body().ahead))
            .collect();
        assert_eq!(order, [(10, true, 1), (10, true, 2), (10, false, 0), (20, true, 0)]);
    }

    #[test]
    fn a_price_limit_keeps_what_fits_and_names_the_cheapest() {
        let all = vec![candidate(1, 20, true, 0), candidate(2, 10, true, 0)];
        assert_eq!(affordable(all.clone(), Some(Rate::new(10))).unwrap().len(), 1);
        let dear = affordable(all, Some(Rate::new(9))).unwrap_err();
        assert!(matches!(dear, Failure::TooDear { cheapest, quotes: 2, .. } if cheapest == Rate::new(10)));
        assert!(affordable(Vec::new(), Some(Rate::new(9))).unwrap().is_empty());
    }
}
