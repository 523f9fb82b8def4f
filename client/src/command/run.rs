//! `potluck run MODEL [PROMPT|-]`: one answer from the network.
//!
//! Owns: the order of things (compose, join, search, choose, run) and the retry at the next provider
//! while nothing was started. Never: talks on the wire itself. Called by [`crate::cli`].

use std::time::Instant;

use clap::Args;
use potluck_node::catalogue;
use potluck_node::ledger::Ledger;
use potluck_protocol::id::PeerId;
use potluck_protocol::job::Sampling;
use potluck_protocol::unit::{NanoCredit, Rate};

use crate::compose;
use crate::error::Failure;
use crate::joined::{Joining, NetworkArgs};
use crate::output::Printer;
use crate::search::{self, Candidate};
use crate::session::{self, Desk, JobFailure, Spending};

/// Providers tried one after the other when each refuses before it starts.
const MAX_TRIES: usize = 3;

/// Flags of `potluck run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  potluck run smollm2-135m \"Name a planet with rings.\"
  echo 'Why is the sky blue?' | potluck run smollm2-135m - --max-price 0.10 --budget 0.001
  potluck run smollm2-135m \"hi\" --bootstrap /ip4/203.0.113.7/udp/4101/quic-v1/p2p/12D3KooW...

Exit status: 0 ok, 1 job failed, 2 usage, 3 no provider, 4 price or budget, 5 local state, 130 stopped.")]
pub struct RunArgs {
    /// A model's name (smollm2-135m) or its hash (blake3:...)
    pub model: String,
    /// The prompt; `-` or nothing reads standard input
    pub prompt: Option<String>,
    /// Stop after so many tokens
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    pub max_tokens: u32,
    /// Randomness, 0 (greedy) to 2
    #[arg(long, default_value = "0", value_parser = compose::thousandths)]
    pub temperature: u32,
    /// Nucleus mass, above 0 to 1
    #[arg(long, default_value = "1", value_parser = compose::thousandths)]
    pub top_p: u32,
    /// Seed of the sampler: the same seed gives the same answer (default: drawn at random)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Instructions before the prompt
    #[arg(long)]
    pub system: Option<String>,
    /// The dearest price to accept, in dollars per GPU-hour
    #[arg(long, value_name = "$/h")]
    pub max_price: Option<String>,
    /// The most this answer may cost, in dollars
    #[arg(long, value_name = "$", default_value = "0.01")]
    pub budget: String,
    /// Ask this provider only
    #[arg(long, value_name = "PEER")]
    pub provider: Option<String>,
    /// Where the network is, and where our state.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// One JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
    /// No line of summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the command; what it prints goes through `printer`.
///
/// # Errors
/// The failure that the person is told of.
pub async fn run(args: RunArgs, printer: &mut Printer) -> Result<(), Failure> {
    let begun = Instant::now();
    let request = Request::parse(&args)?;
    let joining = Joining::open(&args.network, printer).await?;
    let (identity, network) = (&joining.identity, &joining.network);
    let (ledger, _report) = Ledger::open(&joining.state.ledger_dir(), identity.peer())?;
    let desk = Desk { identity, ledger: &ledger, network, stop: &joining.stop, begun };
    // Before a contract is out there is nothing to settle; afterwards the session watches `stop`.
    let result = match find(&joining, &desk, &request, printer).await {
        Ok(candidates) => try_each(&desk, &request, candidates, printer).await,
        Err(failure) => Err(failure),
    };
    network.shutdown().await;
    result
}

struct Request {
    model_name: String,
    job_bytes: Vec<u8>,
    model: potluck_protocol::id::ContentHash,
    max_price: Option<Rate>,
    spending: Spending,
    provider: Option<PeerId>,
}

impl Request {
    fn parse(args: &RunArgs) -> Result<Self, Failure> {
        let model = catalogue::resolve(&args.model)?;
        let max_price = args.max_price.as_deref().map(Rate::from_dollars_per_hour).transpose()?;
        let budget = NanoCredit::from_dollars(&args.budget)?;
        let usage = |message: String, hint: &str| Failure::Usage { message, hint: hint.into() };
        let provider = args.provider.as_deref().map(str::parse).transpose().map_err(
            |why: potluck_protocol::id::IdError| {
                usage(why.to_string(), "a provider prints its id when it starts")
            },
        )?;
        let seed = match args.seed {
            Some(seed) => seed,
            None => {
                getrandom::u64().map_err(|why| Failure::Internal { what: format!("no randomness: {why}") })?
            }
        };
        let sampling = Sampling {
            max_tokens: args.max_tokens,
            temperature_milli: args.temperature,
            top_p_milli: args.top_p,
            seed,
        };
        let prompt = compose::prompt(args.prompt.as_deref())?;
        let job_bytes = compose::job(model, args.system.clone(), prompt, sampling).to_bytes()?;
        Ok(Self {
            model_name: args.model.clone(),
            job_bytes,
            model,
            max_price,
            spending: Spending { budget },
            provider,
        })
    }
}

async fn find(
    joining: &Joining,
    desk: &Desk<'_>,
    request: &Request,
    printer: &Printer,
) -> Result<Vec<Candidate>, Failure> {
    let search = async {
        joining.join().await?;
        printer.waiting(format!("asking who serves {}", request.model_name));
        let begun = Instant::now();
        let found = search::quotes(desk.network, request.model, request.provider).await;
        if found.candidates.is_empty() {
            return Err(Failure::NoProvider {
                model: request.model_name.clone(),
                asked: found.asked,
                waited: begun.elapsed(),
            });
        }
        search::affordable(found.candidates, request.max_price)
    };
    tokio::select! {
        biased;
        () = desk.stop.cancelled() => Err(Failure::Cancelled { tokens: 0 }),
        found = search => found,
    }
}

async fn try_each(
    desk: &Desk<'_>,
    request: &Request,
    candidates: Vec<Candidate>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let quotes = candidates.len();
    let mut last = None;
    for candidate in candidates.iter().take(MAX_TRIES) {
        // A closed stdout is noticed again with the first text, inside the session.
        let _ = printer.quote(candidate.quote.body(), quotes, desk.begun.elapsed());
        match session::run(desk, candidate, &request.job_bytes, request.spending, printer).await {
            Ok(_outcome) => return Ok(()),
            Err(JobFailure::Final(failure)) => return Err(failure),
            Err(JobFailure::NotStarted(failure)) => {
                tracing::info!(%failure, "trying the next provider");
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| Failure::NoProvider {
        model: request.model_name.clone(),
        asked: quotes,
        waited: desk.begun.elapsed(),
    }))
}
