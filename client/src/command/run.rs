//! `potluck run MODEL [PROMPT|-]`: one answer from the network.
//!
//! Owns: the verb's flags and how they become a job. Never: searches, spends or talks on the wire (see
//! [`crate::rent`]). Called by [`crate::cli`].

use std::time::Instant;

use clap::Args;
use potluck_node::catalogue;
use potluck_protocol::job::{Job, Sampling};

use crate::compose;
use crate::error::Failure;
use crate::output::Printer;
use crate::rent::{self, RentArgs, Request};
use crate::search::Wanted;
use crate::session::Order;

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
    /// What the job may cost, and whose machine it may run on.
    #[command(flatten)]
    pub rent: RentArgs,
}

/// Runs the command; what it prints goes through `printer`.
///
/// # Errors
/// The failure that the person is told of.
pub async fn run(args: RunArgs, printer: &mut Printer) -> Result<(), Failure> {
    let begun = Instant::now();
    let request = request(&args)?;
    rent::rent(&args.rent.network, &request, begun, printer).await?;
    Ok(())
}

fn request(args: &RunArgs) -> Result<Request, Failure> {
    let model = catalogue::resolve(&args.model)?;
    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature_milli: args.temperature,
        top_p_milli: args.top_p,
        seed: compose::seed(args.seed)?,
    };
    let prompt = compose::prompt(args.prompt.as_deref())?;
    let job = Job::Generate(compose::job(model, args.system.clone(), prompt, sampling));
    let order = Order { job_bytes: job.to_bytes()?, payload: None };
    Request::new(&args.rent, args.model.clone(), Wanted::Model(model), order, None)
}
