//! Finding a provider: who serves the model, what each asks, and which to take.
//!
//! Owns: the search through the DHT, the quotes, and the choice (a pure function). Never: signs or
//! spends. Called by the session; ends within [`SEARCH_LIMIT`] and one quote's wait.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::stream::{FuturesUnordered, StreamExt as _};
use potluck_node::net::{AskError, DhtKey, Network, OtherVersion};
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::{GuestNeeds, Protection, Quote};
use potluck_protocol::sign::Verified;
use potluck_protocol::unit::{NanoCredit, Rate, UnixMillis};
use potluck_protocol::wire::{self, QuoteRequest, QuoteResponse};

use crate::error::Failure;

/// Providers asked for a quote at most: enough to find a good price, few enough to be quick.
const MAX_ASKED: usize = 16;
/// A provider that does not quote in this time would not start in time either.
const QUOTE_LIMIT: Duration = Duration::from_secs(3);
/// The whole search: an error comes well within 15 s.
pub const SEARCH_LIMIT: Duration = Duration::from_secs(6);

/// What a quote is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// An answer of this model.
    Model(ContentHash),
    /// A run of this component.
    Component {
        /// Its blake3.
        component: ContentHash,
        /// What it needs.
        needs: GuestNeeds,
    },
}

impl Wanted {
    /// Where providers of it are filed.
    fn key(&self) -> DhtKey {
        match self {
            Self::Model(model) => DhtKey::model(*model),
            // Whoever serves the models is found by the rarest guess, the first; what it lacks of the
            // others, or of components, it says when it is asked.
            Self::Component { needs, .. } => {
                needs.models.first().map_or_else(DhtKey::guests, |model| DhtKey::model(*model))
            }
        }
    }

    fn question(&self) -> QuoteRequest {
        match self {
            Self::Model(model) => QuoteRequest::Quote { model: *model },
            Self::Component { component, needs } => {
                QuoteRequest::Exec { component: *component, needs: needs.clone() }
            }
        }
    }

    fn is_quoted(&self, quote: &Quote) -> bool {
        match self {
            Self::Model(model) => quote.model == *model && quote.guest.is_none(),
            Self::Component { component, needs } => {
                quote.model == *component && quote.guest.as_ref() == Some(needs)
            }
        }
    }
}

/// A quote that checks out, and how long its provider took to answer.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The signed quote.
    pub quote: Verified<Quote>,
    /// What we may still come to owe its provider, by its own word.
    pub credit: NanoCredit,
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
    /// Why one of them quoted no price: who, and its words (a stranger's, without control characters).
    pub refusal: Option<String>,
    /// One of them speaks another version than we do.
    pub other_version: Option<OtherVersion>,
}

/// Wall-clock time now, for expiry only.
#[must_use]
pub fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Quotes for what is `wanted`: from `only`, or from whoever the DHT names. Ends when all have answered.
pub async fn quotes(network: &Network, wanted: &Wanted, only: Option<PeerId>) -> Found {
    let begun = Instant::now();
    loop {
        let peers = match only {
            Some(peer) => vec![peer],
            None => network.find_providers(wanted.key(), MAX_ASKED, SEARCH_LIMIT).await.unwrap_or_default(),
        };
        let found = ask_all(network, wanted, peers).await;
        // A provider that has just come up may not be filed yet: one more look while time is left.
        if !found.candidates.is_empty() || begun.elapsed() > SEARCH_LIMIT / 2 {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// One more quote by a provider that quoted before: what it lends may have changed since.
pub async fn again(network: &Network, wanted: &Wanted, provider: PeerId) -> Option<Candidate> {
    match ask(network, provider, wanted).await? {
        Answer::Quote(candidate) => Some(*candidate),
        Answer::Refused(_) | Answer::OtherVersion(_) => None,
    }
}

async fn ask_all(network: &Network, wanted: &Wanted, peers: Vec<PeerId>) -> Found {
    let us = network.local_peer();
    let others = peers.into_iter().filter(|peer| *peer != us).take(MAX_ASKED);
    let mut asking: FuturesUnordered<_> = others.map(|peer| ask(network, peer, wanted)).collect();
    let mut found = Found { asked: asking.len(), ..Found::default() };
    while let Some(answer) = asking.next().await {
        match answer {
            Some(Answer::Quote(candidate)) => found.candidates.push(*candidate),
            Some(Answer::Refused(said)) => found.refusal = Some(said),
            Some(Answer::OtherVersion(version)) => found.other_version = Some(version),
            None => {}
        }
    }
    rank(&mut found.candidates);
    found
}

/// What a provider that keeps to the protocol says, or that of another version.
enum Answer {
    Quote(Box<Candidate>),
    Refused(String),
    OtherVersion(OtherVersion),
}

/// One provider's quote, or its refusal; `None` when it does not answer, or sends what does not check
/// out.
async fn ask(network: &Network, peer: PeerId, wanted: &Wanted) -> Option<Answer> {
    let request = wire::encode(&wanted.question()).ok()?;
    let asked = Instant::now();
    let answer = network.ask(peer, request, QUOTE_LIMIT).await;
    let rtt = asked.elapsed();
    let bytes = match answer.inspect_err(|why| tracing::info!(%peer, %why, "no quote")) {
        Ok(bytes) => bytes,
        Err(AskError::OtherVersion(version)) => return Some(Answer::OtherVersion(version)),
        Err(_) => return None,
    };
    match wire::decode::<QuoteResponse>(&bytes) {
        Ok(QuoteResponse::Quote { quote, credit }) => {
            let quote = quote.verify().inspect_err(|why| tracing::warn!(%peer, %why, "bad quote")).ok()?;
            let body = quote.body();
            body.check(peer, network.local_peer(), wall_clock())
                .inspect_err(|why| tracing::warn!(%peer, %why, "unusable quote"))
                .ok()?;
            (wanted.is_quoted(body)).then(|| Answer::Quote(Box::new(Candidate { quote, credit, rtt })))
        }
        Ok(QuoteResponse::Refused(refusal)) => {
            tracing::info!(%peer, reason = refusal.reason, "quote refused");
            let words: String = refusal.reason.chars().filter(|c| !c.is_control()).take(80).collect();
            Some(Answer::Refused(format!("{} says: {words}", peer.short())))
        }
        Ok(QuoteResponse::Offer(_)) | Err(_) => {
            tracing::warn!(%peer, "answered a quote request with something else");
            None
        }
    }
}

/// Best first: cheapest to run, then for a component's own time, then warm, then the shortest queue, then the nearest; the peer id decides
/// the rest, so that the order is total.
fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|candidate| {
        let quote = candidate.quote.body();
        (quote.terms.run, quote.terms.guest, !quote.warm, quote.ahead, candidate.rtt, quote.provider)
    });
}

/// Those behind at least so much of a jail.
///
/// # Errors
/// When there are quotes, and all are behind less.
pub fn shielded(candidates: Vec<Candidate>, least: Protection) -> Result<Vec<Candidate>, Failure> {
    let quotes = candidates.len();
    let best = candidates.iter().map(|c| c.quote.body().protection).max();
    let fit: Vec<_> = candidates.into_iter().filter(|c| c.quote.body().protection >= least).collect();
    match best {
        Some(best) if fit.is_empty() => Err(Failure::Unprotected { best, least, quotes }),
        _ => Ok(fit),
    }
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
            guest: None,
            terms: Terms {
                run: Rate::new(rate),
                load: Rate::ZERO,
                guest: Rate::ZERO,
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
        let quote = key.sign(quote).unwrap();
        Candidate { quote, credit: NanoCredit::ZERO, rtt: Duration::from_millis(5) }
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
    fn a_job_goes_behind_a_jail_or_nowhere() {
        let all = vec![candidate(1, 20, true, 0), candidate(2, 10, true, 0)];
        assert_eq!(shielded(all.clone(), Protection::None).unwrap().len(), 2);
        let bare = shielded(all, Protection::Full).unwrap_err();
        assert!(matches!(bare, Failure::Unprotected { best: Protection::None, quotes: 2, .. }));
    }

    #[test]
    fn a_quote_for_something_else_is_no_quote() {
        let quote = candidate(1, 20, true, 0).quote.body().clone();
        let model = Wanted::Model(quote.model);
        assert!(model.is_quoted(&quote));
        let needs = GuestNeeds { models: vec![quote.model], memory_mib: 64 };
        let component = Wanted::Component { component: quote.model, needs: needs.clone() };
        assert!(!component.is_quoted(&quote));
        let guest = Quote { guest: Some(needs), ..quote };
        assert!(component.is_quoted(&guest) && !model.is_quoted(&guest));
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
