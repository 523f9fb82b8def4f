//! From a wish to a settled job: search, choose, run, and go to the next provider while nothing was
//! started.
//!
//! Owns: the flags and the order of things that every paying verb shares: a contract comes after the two
//! ledgers were compared. Never: talks on the wire itself, or reads a prompt or a component. Called by
//! `potluck run` and `potluck exec`.

use std::time::Instant;

use clap::{Args, ValueEnum};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{IdError, PeerId};
use potluck_protocol::offer::Protection;
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate};

use crate::books::Books;
use crate::error::Failure;
use crate::joined::{Joining, NetworkArgs};
use crate::output::{Outcome, Printer};
use crate::search::{self, Candidate, Wanted};
use crate::session::{self, Desk, JobFailure, Order, Spending};

/// Providers tried one after the other when each refuses before it starts.
const MAX_TRIES: usize = 3;

/// What must stand between the job and the provider's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shield {
    /// Every layer of the jail, tested by the provider at its start
    Full,
    /// Some layers
    Partial,
    /// Nothing: an owner who runs `--unsafe-no-jail` is taken too
    None,
}

impl From<Shield> for Protection {
    fn from(shield: Shield) -> Self {
        match shield {
            Shield::Full => Self::Full,
            Shield::Partial => Self::Partial,
            Shield::None => Self::None,
        }
    }
}

/// Flags of every verb that spends.
#[derive(Debug, Args)]
pub struct RentArgs {
    /// The dearest price to accept, in dollars per GPU-hour
    #[arg(long, value_name = "$/h")]
    pub max_price: Option<String>,
    /// The most this job may cost, in dollars [default: 0.01, or what the provider lends if that is less]
    #[arg(long, value_name = "$")]
    pub budget: Option<String>,
    /// Ask this provider only
    #[arg(long, value_name = "PEER")]
    pub provider: Option<String>,
    /// The least jail to accept
    #[arg(long, value_enum, default_value = "full", env = "POTLUCK_PROTECTION")]
    pub protection: Shield,
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

/// A job and the limits it is rented within.
#[derive(Debug)]
pub struct Request {
    name: String,
    wanted: Wanted,
    order: Order,
    spending: Spending,
    max_price: Option<Rate>,
    protection: Protection,
    provider: Option<PeerId>,
}

impl Request {
    /// A request as the flags say. `name` is what people call the job; `max_ms` the longest it may take,
    /// when the person set one.
    ///
    /// # Errors
    /// When a price, an amount or a provider's id is not one.
    pub fn new(
        args: &RentArgs,
        name: String,
        wanted: Wanted,
        order: Order,
        max_ms: Option<GpuMillis>,
    ) -> Result<Self, Failure> {
        let max_price = args.max_price.as_deref().map(Rate::from_dollars_per_hour).transpose()?;
        let budget = args.budget.as_deref().map(NanoCredit::from_dollars).transpose()?;
        let provider =
            args.provider.as_deref().map(str::parse).transpose().map_err(|why: IdError| Failure::Usage {
                message: why.to_string(),
                hint: "a provider prints its id when it starts".into(),
            })?;
        let spending = Spending { budget, max_ms };
        Ok(Self { name, wanted, order, spending, max_price, protection: args.protection.into(), provider })
    }
}

/// Rents: joins, finds, chooses, runs. What it prints goes through `printer`.
///
/// # Errors
/// The failure that the person is told of.
pub async fn rent(
    args: &NetworkArgs,
    request: &Request,
    begun: Instant,
    printer: &mut Printer,
) -> Result<Outcome, Failure> {
    let mut joining = Joining::open(args, printer).await?;
    let books = Books::open(&mut joining, printer.tells())?;
    let (identity, network) = (&joining.identity, &joining.network);
    let desk = Desk { identity, books: &books, network, stop: &joining.stop, begun };
    // Before a contract is out there is nothing to settle; afterwards the session watches `stop`.
    let result = match find(&joining, &desk, request, printer).await {
        Ok(candidates) => try_each(&desk, request, candidates, printer).await,
        Err(failure) => Err(failure),
    };
    books.close().await;
    network.shutdown().await;
    result
}

async fn find(
    joining: &Joining,
    desk: &Desk<'_>,
    request: &Request,
    printer: &Printer,
) -> Result<Vec<Candidate>, Failure> {
    let search = async {
        joining.join().await?;
        printer.waiting(format!("asking who runs {}", request.name));
        let begun = Instant::now();
        let found = search::quotes(desk.network, &request.wanted, request.provider).await;
        if let (true, Some(version)) = (found.candidates.is_empty(), found.other_version) {
            return Err(version.into());
        }
        if found.candidates.is_empty() {
            return Err(Failure::NoProvider {
                model: request.name.clone(),
                asked: found.asked,
                waited: begun.elapsed(),
                refusal: found.refusal,
            });
        }
        search::affordable(search::shielded(found.candidates, request.protection)?, request.max_price)
    };
    tokio::select! {
        biased;
        () = desk.stop.cancelled() => Err(Failure::Cancelled { tokens: 0 }),
        found = search => found,
    }
}

/// One provider: compares ledgers, then runs the job there. A provider that began anew in between asks for
/// one more comparison.
async fn try_one(
    desk: &Desk<'_>,
    request: &Request,
    candidate: &Candidate,
    quotes: usize,
    printer: &mut Printer,
) -> Result<Outcome, JobFailure> {
    let met = meet(desk, request, candidate.clone(), printer).await?;
    // A closed stdout is noticed again with the first text, inside the session.
    let _ = printer.quote(&met, quotes, desk.begun.elapsed());
    let first = session::run(desk, &met, &request.order, request.spending, printer).await;
    let Err(JobFailure::NotStarted(Failure::Refused { code: RefusalCode::SyncNeeded, .. })) = first else {
        return first;
    };
    let met = meet(desk, request, quoted_again(desk, request, candidate).await?, printer).await?;
    session::run(desk, &met, &request.order, request.spending, printer).await
}

/// Compares ledgers with the quoting provider. Where what it lends bounds the job and may have grown by
/// that, because something was left open between the two, it is asked once more.
async fn meet(
    desk: &Desk<'_>,
    request: &Request,
    candidate: Candidate,
    printer: &Printer,
) -> Result<Candidate, JobFailure> {
    let provider = candidate.quote.body().provider;
    printer.waiting(format!("comparing ledgers with {}", provider.short()));
    let meeting = async {
        let left_open = desk.books.left_open(provider)?;
        desk.books.sync(provider).await.map_err(JobFailure::NotStarted)?;
        let may_grow = left_open || candidate.credit == NanoCredit::ZERO;
        if request.spending.is_lent(&candidate) && may_grow {
            return quoted_again(desk, request, &candidate).await;
        }
        Ok(candidate)
    };
    tokio::select! {
        biased;
        () = desk.stop.cancelled() => Err(JobFailure::Final(Failure::Cancelled { tokens: 0 })),
        met = meeting => met,
    }
}

/// A newer quote of the same provider, within the same limits.
async fn quoted_again(
    desk: &Desk<'_>,
    request: &Request,
    candidate: &Candidate,
) -> Result<Candidate, JobFailure> {
    let provider = candidate.quote.body().provider;
    let newer = search::again(desk.network, &request.wanted, provider).await;
    let within = search::shielded(newer.into_iter().collect(), request.protection)
        .and_then(|quotes| search::affordable(quotes, request.max_price))
        .map_err(JobFailure::NotStarted)?;
    within.into_iter().next().ok_or_else(|| {
        let why = "it quotes no price any more".to_owned();
        JobFailure::NotStarted(Failure::Unreachable { provider, why })
    })
}

async fn try_each(
    desk: &Desk<'_>,
    request: &Request,
    candidates: Vec<Candidate>,
    printer: &mut Printer,
) -> Result<Outcome, Failure> {
    let quotes = candidates.len();
    let mut last = None;
    for candidate in candidates.iter().take(MAX_TRIES) {
        match try_one(desk, request, candidate, quotes, printer).await {
            Ok(outcome) => return Ok(outcome),
            Err(JobFailure::Final(failure)) => return Err(failure),
            Err(JobFailure::NotStarted(failure)) => {
                tracing::info!(%failure, "trying the next provider");
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| Failure::NoProvider {
        model: request.name.clone(),
        asked: quotes,
        waited: desk.begun.elapsed(),
        refusal: None,
    }))
}
