//! `potluckd run`: everything a provider needs, in order, then the run loop.
//!
//! Owns: the order of the start. Never: serves (see [`crate::provider`]). What was started is stopped
//! again when a later step fails.

use std::path::Path;
use std::sync::Arc;

use potluck_node::accounts::Accounts;
use potluck_node::books;
use potluck_node::identity::Identity;
use potluck_node::ledger::Retention;
use potluck_node::net::{Inbound, Network, NetworkConfig, NetworkLimits, Role};
use potluck_node::shutdown;
use potluck_node::state::StateDir;
use potluck_protocol::sign::SigningKey;
use potluck_protocol::unit::GpuMillis;
use potluck_sandbox::cpu::check_cpu;
use potluck_sandbox::protection::EffectiveProtection;
use tokio_util::sync::CancellationToken;

use crate::admission::AdmissionPolicy;
use crate::cli::RunArgs;
use crate::clock::wall_now;
use crate::config::Config;
use crate::control::Control;
use crate::desk::{Desk, DeskSetup};
use crate::error::CommandError;
use crate::gate::Gate;
use crate::guests::GuestHouse;
use crate::jailing::{Jailing, Programs};
use crate::model_file::ModelFile;
use crate::owner::Owner;
use crate::pause_file::PauseFile;
use crate::pausing::Pausing;
use crate::pricing::PriceList;
use crate::provider::Provider;
use crate::report::Reporter;
use crate::worker_slot::{WorkerPlan, WorkerSlot};

pub(super) fn run(args: RunArgs) -> Result<(), CommandError> {
    check_cpu()?;
    let told = !args.json;
    let reporter = Reporter::start(args.json)
        .map_err(|source| CommandError::System { doing: "start the reports", source })?;
    let dir = args.state.dir();
    let state = StateDir::open(&dir)?;
    let jailing = if args.unsafe_no_jail { Jailing::Off } else { Jailing::Full };
    let config = merged(Config::load(state.path())?, args);
    let pauses = PauseFile::in_folder(state.path());
    let programs = Programs::find()?;
    let identity = Identity::load_or_create(&state.key_path())?;
    let (ledger, _) = books::open(&state.ledger_dir(), identity.peer(), told)?;
    let key = |identity: &Identity| SigningKey::from_seed(identity.signing_key().seed());
    ledger.tend(key(&identity), Retention::default())?;
    let models = config.models.iter().map(|named| ModelFile::open(named)).collect::<Result<Vec<_>, _>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::System { doing: "start the runtime", source })?;
    let outcome = runtime.block_on(async {
        let stop = shutdown::on_signals()
            .map_err(|source| CommandError::System { doing: "watch for signals", source })?;
        let protection = protection(jailing, &programs, &config).await?;
        let guests = guests(jailing, &programs, &config, state.path(), reporter).await?;
        let plan = WorkerPlan {
            program: programs.model.clone(),
            device: config.device,
            threads: config.threads,
            jailing,
        };
        let (network, inbound) = start_network(&identity, &config).await?;
        let addresses: Vec<_> = network.listeners().await.iter().map(ToString::to_string).collect();
        reporter.listening(identity.peer(), &addresses);
        let accounts = Accounts::open(key(&identity), ledger.clone(), network.clone(), &state)?;
        let slots: Vec<_> = models.into_iter().map(|model| WorkerSlot::new(plan.clone(), model)).collect();
        let setup = DeskSetup {
            identity,
            ledger,
            accounts,
            prices: PriceList {
                run: config.price,
                load: config.load_price,
                guest: config.guest_price,
                max_job: GpuMillis::new(config.max_job_seconds.saturating_mul(1_000)),
            },
            policy: AdmissionPolicy { queue: config.queue, credit: config.credit() },
            slots,
            gate: Arc::new(Gate::new(Owner::start(pauses.load(), wall_now()), &stop)),
            guests,
            protection,
        };
        let desk = Desk::new(setup, first_serial()?);
        let started = start_workers(&desk, &stop, reporter).await;
        match started {
            Ok(true) => {
                let control = Control::bind(state.path())?;
                let has_bootstrap = !config.bootstrap.is_empty();
                let pausing = Pausing::new(Arc::clone(&desk), pauses, reporter);
                Provider { desk, network, inbound, control, pausing, has_bootstrap, reporter }
                    .run(stop)
                    .await;
            }
            Ok(false) => network.shutdown().await,
            Err(error) => {
                network.shutdown().await;
                return Err(error);
            }
        }
        reporter.stopped();
        Ok(())
    });
    reporter.flush();
    outcome
}

/// The file's settings with the flags over them.
fn merged(mut config: Config, args: RunArgs) -> Config {
    if !args.listen.is_empty() {
        config.listen = args.listen;
    }
    if !args.bootstrap.is_empty() {
        config.bootstrap = args.bootstrap;
    }
    if !args.model.is_empty() {
        config.models = args.model;
    }
    config.price = args.price.unwrap_or(config.price);
    config.device = args.device.unwrap_or(config.device);
    config.threads = args.threads.or(config.threads);
    config.credit_limit = args.credit_limit.or(config.credit_limit);
    config.new_peer_credit = args.new_peer_credit.unwrap_or(config.new_peer_credit);
    config.unknown_credit_limit = args.unknown_credit_limit.or(config.unknown_credit_limit);
    config
}

/// What the jail is worth here: whole, or the owner switched it off.
async fn protection(
    jailing: Jailing,
    programs: &Programs,
    config: &Config,
) -> Result<EffectiveProtection, CommandError> {
    let protection = jailing.probe_models(programs, config.device).await?;
    if jailing.is_on() && !protection.is_jailed() {
        return Err(CommandError::NoJail { summary: protection.summary() });
    }
    Ok(protection)
}

/// How components are run; `None` when they are not, by the owner's wish or for want of their jail.
async fn guests(
    jailing: Jailing,
    programs: &Programs,
    config: &Config,
    state: &Path,
    reporter: Reporter,
) -> Result<Option<GuestHouse>, CommandError> {
    if !config.guests {
        return Ok(None);
    }
    let protection = jailing.probe_guests(programs).await;
    if jailing.is_on() && !protection.is_jailed() {
        reporter.no_guests(&protection.summary());
        return Ok(None);
    }
    let (program, memory_mib) = (programs.guest.clone(), config.guest_memory_mib);
    Ok(Some(GuestHouse::open(program, jailing.is_on(), state, memory_mib).await?))
}

/// A place to start counting quotes that no earlier run used.
fn first_serial() -> Result<u64, CommandError> {
    getrandom::u64().map_err(|error| CommandError::System {
        doing: "draw a random number",
        source: std::io::Error::other(error.to_string()),
    })
}

async fn start_network(identity: &Identity, config: &Config) -> Result<(Network, Inbound), CommandError> {
    let network = NetworkConfig {
        listen: config.listen.clone(),
        bootstrap: config.bootstrap.clone(),
        external: config.external.clone(),
        role: Role::Provider,
        limits: NetworkLimits::default(),
    };
    Ok(Network::start(identity, network).await?)
}

/// Loads every model, unless the owner has the machine; false when it was stopped on the way.
async fn start_workers(
    desk: &Arc<Desk>,
    stop: &CancellationToken,
    reporter: Reporter,
) -> Result<bool, CommandError> {
    let owner = desk.gate().owner();
    if !owner.wants_workers() {
        let names: Vec<_> = desk.slots().iter().map(|slot| slot.model().name.as_str()).collect();
        reporter.ready_paused(desk.me(), &names, &owner, wall_now());
        return Ok(true);
    }
    for slot in desk.slots() {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(false),
            started = slot.start(reporter) => started?,
        }
    }
    let ready: Vec<_> = desk.slots().iter().filter_map(|slot| slot.as_ready_model()).collect();
    if let Err(error) = desk.renew_offer() {
        tracing::error!(%error, "the offer cannot be signed");
    }
    reporter.ready(desk.me(), &ready, desk.prices().run, desk.protection());
    Ok(true)
}
