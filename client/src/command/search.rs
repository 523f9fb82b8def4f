//! `potluck search offers`: who offers what, at what price, behind what.
//!
//! Owns: the search by model and hardware class, and its table. Never: signs, spends or ranks for a
//! job (see [`crate::search`]). Called by [`crate::cli`]; ends within the join's and the search's limit.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::stream::{FuturesUnordered, StreamExt as _};
use potluck_node::catalogue;
use potluck_node::net::{DhtKey, Network};
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::{Offer, OfferedModel};
use potluck_protocol::wire::{self, QuoteRequest, QuoteResponse};

use crate::error::Failure;
use crate::joined::{Joining, NetworkArgs};
use crate::output::{Printer, eprintln_prose, print_data};
use crate::search::{SEARCH_LIMIT, wall_clock};

/// A provider that does not show its offer in this time is left out.
const OFFER_LIMIT: Duration = Duration::from_secs(3);
/// Providers asked at most.
const MAX_ASKED: usize = 64;

/// Verbs of `potluck search`.
#[derive(Debug, Subcommand)]
pub enum SearchCommand {
    /// Signed offers, cheapest first
    Offers(OffersArgs),
}

/// Flags of `potluck search offers`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  potluck search offers --model smollm2-135m
  potluck search offers --components         who runs programs of your own
  potluck search offers --hardware cpu --json | jq .run_nanocredits_per_second")]
pub struct OffersArgs {
    /// Offers of this model: its name or its hash
    #[arg(long, required_unless_present_any = ["hardware", "components"])]
    pub model: Option<String>,
    /// Offers on this class of hardware, for example cpu
    #[arg(long, value_name = "CLASS")]
    pub hardware: Option<String>,
    /// Offers of machines that run components
    #[arg(long)]
    pub components: bool,
    /// Show at most so many
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Where the network is, and where our state.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// One line of the answer: a model in a provider's offer.
struct Row {
    offer: Offer,
    model: OfferedModel,
}

/// Runs the command.
///
/// # Errors
/// When the network cannot be joined, or nobody offers it.
pub async fn run(args: &OffersArgs, printer: &Printer) -> Result<(), Failure> {
    let model = args.model.as_deref().map(catalogue::resolve).transpose()?;
    let joining = Joining::open(&args.network, printer).await?;
    let rows = tokio::select! {
        biased;
        () = joining.stop.cancelled() => Err(Failure::Cancelled { tokens: 0 }),
        rows = rows(&joining, model, args) => rows,
    };
    joining.network.shutdown().await;
    let mut rows = rows?;
    rows.sort_by_key(|row| (row.model.run, row.offer.provider));
    rows.truncate(args.limit);
    show(&rows, args.json).map_err(|source| Failure::Io {
        action: "write",
        path: PathBuf::from("standard output"),
        source,
    })
}

async fn rows(joining: &Joining, model: Option<ContentHash>, args: &OffersArgs) -> Result<Vec<Row>, Failure> {
    joining.join().await?;
    let begun = std::time::Instant::now();
    let key = match (model, args.hardware.as_deref()) {
        (Some(model), Some(class)) => DhtKey::model_on(model, class),
        (Some(model), None) => DhtKey::model(model),
        (None, Some(class)) => DhtKey::hardware(class),
        (None, None) => DhtKey::guests(),
    };
    let peers = joining.network.find_providers(key, MAX_ASKED, SEARCH_LIMIT).await.unwrap_or_default();
    let mut asking: FuturesUnordered<_> =
        peers.into_iter().take(MAX_ASKED).map(|peer| ask(&joining.network, peer)).collect();
    let (asked, mut rows) = (asking.len(), Vec::new());
    while let Some(offer) = asking.next().await {
        rows.extend(offer.into_iter().flat_map(|offer| matching(offer, model, args)));
    }
    if rows.is_empty() {
        let model = args.model.clone().unwrap_or_else(|| "what you look for".into());
        return Err(Failure::NoProvider { model, asked, waited: begun.elapsed(), refusal: None });
    }
    Ok(rows)
}

/// The models of `offer` that were asked for: a provider files itself, so its word is checked here.
fn matching(offer: Offer, model: Option<ContentHash>, args: &OffersArgs) -> Vec<Row> {
    let other_class = args.hardware.as_deref().is_some_and(|class| offer.hardware.class != class);
    if other_class || (args.components && offer.guests.is_none()) {
        return Vec::new();
    }
    let models = offer.models.clone();
    models
        .into_iter()
        .filter(|offered| model.is_none_or(|model| offered.model == model))
        .map(|model| Row { offer: offer.clone(), model })
        .collect()
}

/// One provider's offer; `None` when it does not answer or sends what does not check out.
async fn ask(network: &Network, peer: PeerId) -> Option<Offer> {
    let request = wire::encode(&QuoteRequest::Offer).ok()?;
    let bytes = network.ask(peer, request, OFFER_LIMIT).await.ok()?;
    let Ok(QuoteResponse::Offer(offer)) = wire::decode(&bytes) else { return None };
    let offer = offer.verify().inspect_err(|why| tracing::warn!(%peer, %why, "bad offer")).ok()?;
    let body = offer.body();
    (body.provider == peer && body.check(wall_clock()).is_ok()).then(|| body.clone())
}

fn show(rows: &[Row], json: bool) -> std::io::Result<()> {
    if !json {
        eprintln_prose(&format!(
            "{:<15} {:<20} {:>10} {:>8}  {:<8} {:<12} model",
            "provider", "hardware", "$/h run", "context", "jail", "components"
        ));
    }
    for Row { offer, model } in rows {
        // A name is a stranger's text: control characters stay out of the terminal.
        let plain = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        if json {
            let line = serde_json::json!({
                "provider": offer.provider,
                "model": model.model,
                "model_name": model.name,
                "run_nanocredits_per_second": model.run,
                "load_nanocredits_per_second": model.load,
                "context_tokens": model.context_tokens,
                "hardware_class": offer.hardware.class,
                "hardware": offer.hardware.name,
                "memory_mib": offer.hardware.memory_mib,
                "protection": offer.protection,
                "guest_runtime": offer.guests.as_ref().map(|guests| &guests.runtime),
                "guest_nanocredits_per_second": offer.guests.as_ref().map(|guests| guests.rate),
                "guest_memory_mib": offer.guests.as_ref().map(|guests| guests.memory_mib),
                "epoch": offer.epoch,
                "expires_unix_ms": offer.expires,
            });
            print_data(&line.to_string())?;
        } else {
            print_data(&format!(
                "{:<15} {:<20} {:>10} {:>8}  {:<8} {:<12} {}",
                offer.provider.short(),
                plain(&offer.hardware.name),
                model.run.to_string(),
                model.context_tokens,
                offer.protection.name(),
                offer.guests.as_ref().map_or_else(|| "no".to_owned(), |guests| guests.rate.to_string()),
                plain(&model.name),
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::offer::{Hardware, Protection};
    use potluck_protocol::unit::{Rate, UnixMillis};

    #[test]
    fn a_provider_filed_under_what_it_does_not_offer_is_left_out() {
        let wanted = ContentHash::of(b"wanted");
        let offered = |model| OfferedModel {
            model,
            name: "m".into(),
            context_tokens: 1,
            run: Rate::new(1),
            load: Rate::ZERO,
        };
        let offer = Offer {
            provider: PeerId::from_bytes([1; 32]),
            epoch: 1,
            wire: 1,
            issued: UnixMillis::ZERO,
            expires: UnixMillis::new(1),
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1 },
            protection: Protection::None,
            models: vec![offered(wanted), offered(ContentHash::of(b"other"))],
            guests: None,
        };
        let args = |class: Option<&str>, components| OffersArgs {
            model: None,
            hardware: class.map(str::to_owned),
            components,
            limit: 20,
            network: NetworkArgs { bootstrap: Vec::new(), state_dir: None },
            json: false,
        };
        let count = |model, args: OffersArgs| matching(offer.clone(), model, &args).len();
        assert_eq!(count(Some(wanted), args(Some("cpu"), false)), 1);
        assert_eq!(count(None, args(Some("cpu"), false)), 2);
        assert_eq!(count(Some(wanted), args(Some("cuda-8.6-12g"), false)), 0);
        assert_eq!(count(None, args(None, true)), 0);
    }
}
