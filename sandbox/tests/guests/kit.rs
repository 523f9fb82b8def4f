//! How the guest tests make components and run them.
//!
//! Owns: the components' texts, the way from text to a jailed run, and the limit on every wait. Never:
//! decides what a test expects, or runs a component in this process. Called by all guest tests.

use std::future::Future;
use std::time::Duration;

use potluck_protocol::id::ContentHash;
use potluck_sandbox::guest::cache::{Artefact, ArtefactCache};
use potluck_sandbox::guest::compiler::Compiler;
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::{Guest, GuestRunError, GuestSpec, GuestStep};
use potluck_sandbox::guest::wire::{Blob, GuestModel, GuestStart, GuestUsage};
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::ModelRun;

pub(crate) const CHATTY: &str = include_str!("chatty.wat");
pub(crate) const DEEP: &str = include_str!("deep.wat");
pub(crate) const DICE: &str = include_str!("dice.wat");
pub(crate) const ECHO: &str = include_str!("echo.wat");
pub(crate) const EMBED: &str = include_str!("embed.wat");
pub(crate) const EMPTY_WORLD: &str = include_str!("empty_world.wat");
pub(crate) const HOARDER: &str = include_str!("hoarder.wat");
pub(crate) const HOG: &str = include_str!("hog.wat");
pub(crate) const LARGE: &str = include_str!("large.wat");
pub(crate) const LLM: &str = include_str!("llm.wat");
pub(crate) const NN: &str = include_str!("nn.wat");
pub(crate) const NN_TOKENS: &str = include_str!("nn_tokens.wat");
pub(crate) const NO_RUN: &str = include_str!("no_run.wat");
pub(crate) const NO_SUCH_IMPORT: &str = include_str!("no_such_import.wat");
pub(crate) const OTHER_RUN: &str = include_str!("other_run.wat");
pub(crate) const REFUSES: &str = include_str!("refuses.wat");
pub(crate) const SLEEPER: &str = include_str!("sleeper.wat");
pub(crate) const SOCKETS: &str = include_str!("sockets.wat");
pub(crate) const SPIN: &str = include_str!("spin.wat");
pub(crate) const THRIFTY: &str = include_str!("thrifty.wat");
pub(crate) const TRAP: &str = include_str!("trap.wat");

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-wasm-worker");
/// No wait of the daemon's side takes longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for `future`, which must not hang.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the daemon's side does not hang")
}

/// The binary form of a component.
pub(crate) fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// `text` with `to` for its only `from`.
pub(crate) fn edited(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

/// How the function that every component here is about begins.
pub(crate) const RUN: &str = r#"(func (export "run") (param $at i32)"#;

/// As the echo, with `fields` in its module and `body` for its run, whose locals `$at` and `$bytes` are
/// where the input is.
pub(crate) fn guest(fields: &str, body: &str) -> String {
    let other = edited(ECHO, "(call $give (i32.const 0) (local.get $at) (local.get $bytes))", body);
    edited(&other, RUN, &format!("{fields}\n{RUN}"))
}

/// A number of 32 bits, and what follows it.
pub(crate) fn bytes_of(number: u32, rest: &[u8]) -> Vec<u8> {
    [&number.to_le_bytes()[..], rest].concat()
}

/// 256 MiB and half a minute: more than any honest component here needs.
pub(crate) fn limits() -> GuestLimits {
    GuestLimits::new(256 << 20, Duration::from_secs(30))
}

/// As [`limits`], with `ms` of computing.
pub(crate) fn brief(ms: u64) -> GuestLimits {
    GuestLimits { compute_ms: ms, ..limits() }
}

/// The compiler as the daemon has it.
pub(crate) fn compiler() -> Compiler {
    Compiler { program: PROGRAM.into(), jailed: true, within: Duration::from_secs(60) }
}

/// The artefact of `component`, by the compile worker and the cache.
pub(crate) async fn compiled(component: &[u8]) -> Artefact {
    let compiled = within(compiler().compile(component)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = ArtefactCache::open(folder.path(), compiled.engine, 1 << 30).unwrap();
    cache.put(ContentHash::of(component), &compiled.artefact).unwrap()
}

/// How the daemon starts `artefact`.
pub(crate) fn spec(artefact: Artefact, limits: GuestLimits) -> GuestSpec {
    let jail = Jail::Jailed(Box::new(JailPlan::wasm(limits.memory_bytes)));
    GuestSpec { program: PROGRAM.into(), artefact, limits, jail }
}

/// Compiles and loads `component`.
pub(crate) async fn start(component: &[u8], limits: GuestLimits) -> Result<Guest, GuestRunError> {
    within(Guest::start(spec(compiled(component).await, limits))).await
}

/// What a run begins with.
pub(crate) fn begin(input: &[u8], models: &[&str], seed: [u8; 32]) -> GuestStart {
    let named = |name: &&str| GuestModel { name: (*name).into(), hash: ContentHash::of(name.as_bytes()) };
    GuestStart { models: models.iter().map(named).collect(), input: Blob(input.to_vec()), seed }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) output: Result<Vec<u8>, String>,
    pub(crate) log: Vec<u8>,
    pub(crate) notes: Vec<(u16, String)>,
    pub(crate) usage: GuestUsage,
}

/// Compiles, loads and runs `component`, which calls no model.
pub(crate) async fn run(component: &[u8], input: &[u8], limits: GuestLimits) -> Result<Ended, GuestRunError> {
    let mut guest = start(component, limits).await?;
    finish_with(&mut guest, input, &[], [0; 32]).await
}

/// Runs a loaded guest to its end, which may name `models` but may call none.
pub(crate) async fn finish_with(
    guest: &mut Guest,
    input: &[u8],
    models: &[&str],
    seed: [u8; 32],
) -> Result<Ended, GuestRunError> {
    guest.run(begin(input, models, seed))?;
    follow(guest, None).await
}

/// Follows a started guest to its end, its calls answered by `model`.
pub(crate) async fn follow(
    guest: &mut Guest,
    mut model: Option<&mut ModelRun<'_>>,
) -> Result<Ended, GuestRunError> {
    let (mut log, mut notes) = (Vec::new(), Vec::new());
    loop {
        match within(guest.next()).await? {
            GuestStep::Log(bytes) => log.extend(bytes),
            GuestStep::Progress { permille, note } => notes.push((permille, note)),
            GuestStep::Finished { output, usage } => return Ok(Ended { output, log, notes, usage }),
            GuestStep::Call { call, request, .. } => {
                let model = model.as_mut().expect("only a guest with a model calls one");
                let answer = within(model.call(request)).await.unwrap();
                guest.reply(call, answer)?;
            }
        }
    }
}
