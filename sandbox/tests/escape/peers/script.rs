//! What each peer says, and what the supervisor must make of it.
//!
//! Owns: a script for every way to say the wrong thing, or nothing, or to die, at every step of the
//! conversation. Never: starts a process or follows a script. Called by [`super`] on both sides.

use libc::{SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGSYS};
use potluck_protocol::job::FinishReason;
use potluck_sandbox::engine::{EngineDevice, ModelInfo, ModelKind};
use potluck_sandbox::exit::Death;
use potluck_sandbox::ipc::order::OrderError;
use potluck_sandbox::ipc::{Event, IPC_VERSION, IpcError};
use potluck_sandbox::supervisor::{RunError, StartError};

use super::{Ending, Peer};

/// What a peer has to confess that found the variables it may know and three descriptors.
pub(super) const CLEAN: &str = "nothing left over";

/// One thing that a peer does.
#[derive(Debug)]
pub(super) enum Step {
    /// Says a proper event.
    Say(Event),
    /// Writes bytes that are none.
    Write(Vec<u8>),
    /// Waits for the next command.
    Hear,
    /// Ends without a word.
    Leave,
    /// Computes without end.
    Spin,
    /// Sleeps without end.
    Hang,
    /// Writes to its log, far past what is kept.
    Flood,
    /// Calls itself until the stack ends.
    Recurse,
    /// Says which variables and descriptors it finds, as a panic's words.
    Confess,
    /// Hands a descriptor over, again and again; each comes with a byte that is no frame.
    Give,
}

const fn peer(name: &'static str, script: fn() -> Vec<Step>, expected: fn(&Ending) -> bool) -> Peer {
    Peer { name, script, unjailed: false, expected }
}

/// Every one of them.
pub(crate) const ALL: &[Peer] = &[
    // Before it is loaded.
    peer("leaves_without_a_word", || vec![Step::Leave], died_early),
    peer("says_nothing", || vec![Step::Hang], too_late),
    peer("skips_hello", || vec![Step::Say(loaded())], not_now),
    peer(
        "speaks_another_version",
        || vec![Step::Say(Event::Hello { version: IPC_VERSION + 1 })],
        |ending| order(ending).is_some_and(|error| matches!(error, OrderError::Version { .. })),
    ),
    peer("says_hello_twice", || vec![hello(), hello()], not_now),
    peer("writes_garbage", || vec![Step::Write([&[8, 0, 0, 0][..], &[0xff; 8]].concat())], no_message),
    peer("writes_an_empty_frame", || vec![Step::Write(vec![0; 4])], no_message),
    peer("adds_a_byte_to_a_frame", || vec![Step::Write(vec![3, 0, 0, 0, 0, 2, 0])], no_message),
    peer(
        "announces_four_gigabytes",
        || vec![Step::Write(vec![0xff; 8])],
        |ending| matches!(ending, Ending::Start(StartError::Ipc(IpcError::FrameTooLong { .. }))),
    ),
    peer("dies_inside_a_length", || vec![Step::Write(vec![1, 0]), Step::Leave], died_early),
    peer("dies_inside_a_frame", || vec![hello(), Step::Write(vec![9, 0, 0, 0, 1]), Step::Leave], died_early),
    peer("dies_after_hello", || vec![hello(), Step::Leave], died_early),
    peer("dies_after_hearing_load", || vec![hello(), Step::Hear, Step::Leave], died_early),
    peer("dies_while_loading", || vec![hello(), Step::Hear, loading(), Step::Leave], died_early),
    peer("spins_while_loading", || vec![hello(), Step::Hear, loading(), Step::Spin], too_late),
    peer(
        "panics_while_loading",
        || vec![hello(), Step::Hear, Step::Say(broken("boom"))],
        |ending| matches!(ending, Ending::Start(StartError::Broken { what }) if what == "boom"),
    ),
    peer(
        "finds_nothing_left_over",
        || vec![hello(), Step::Hear, Step::Confess],
        |ending| matches!(ending, Ending::Start(StartError::Broken { what }) if what == CLEAN),
    ),
    peer("is_loaded_twice", || begin([Step::Say(loaded())]), not_now),
    // While it runs a job.
    peer("dies_when_loaded", || begin([Step::Leave]), died),
    peer("dies_after_hearing_a_job", || begin([Step::Hear, Step::Leave]), died),
    peer("dies_after_started", || begin([Step::Hear, started(1), Step::Leave]), died),
    peer("dies_after_prefilled", || begin([Step::Hear, started(1), prefilled(4), Step::Leave]), died),
    peer("dies_after_output", || begin([Step::Hear, started(1), output(&[1]), Step::Leave]), died),
    peer(
        "dies_inside_output",
        || begin([Step::Hear, started(1), Step::Write(vec![200, 0, 0, 0, 6, 1]), Step::Leave]),
        died,
    ),
    peer("dies_between_jobs", || begin(answer(1).into_iter().chain([Step::Leave])), died),
    peer(
        "panics_in_a_job",
        || begin([Step::Hear, started(1), Step::Say(broken("boom"))]),
        |ending| matches!(ending, Ending::Run(RunError::Broken { what }) if what == "boom"),
    ),
    peer("spins_in_a_job", || begin([Step::Hear, started(1), Step::Spin]), silent),
    peer("falls_silent_in_a_job", || begin([Step::Hear, started(1), Step::Hang]), silent),
    peer(
        "overflows_its_stack",
        || begin([Step::Hear, started(1), Step::Recurse]),
        |ending| {
            let by_itself = |signal| [SIGSEGV, SIGABRT, SIGBUS, SIGSYS].contains(&signal);
            matches!(ending, Ending::Run(RunError::WorkerDied { death }) if death.signal.is_some_and(by_itself))
        },
    ),
    peer("puts_out_before_it_is_asked", || begin([output(&[1])]), not_now),
    peer(
        "answers_another_job",
        || begin([Step::Hear, started(7)]),
        |ending| order(ending).is_some_and(|error| matches!(error, OrderError::WrongRun { .. })),
    ),
    peer("puts_out_without_starting", || begin([Step::Hear, output(&[1])]), not_now),
    peer("counts_a_longer_prompt", || begin([Step::Hear, started(1), prefilled(99)]), miscounted),
    peer(
        "puts_out_without_end",
        || begin([Step::Hear, started(1)].into_iter().chain((0..64).map(|_| output(&[1; 16])))),
        miscounted,
    ),
    peer(
        "puts_out_a_token_that_is_none",
        || begin([Step::Hear, started(1), output(&[1_000_000])]),
        miscounted,
    ),
    peer(
        "lies_about_its_count",
        || begin([Step::Hear, started(1), output(&[1]), finished(1, 9)]),
        miscounted,
    ),
    peer(
        "finishes_twice",
        || begin(answer(1).into_iter().chain([finished(1, 1)])),
        |ending| order(ending).is_some(),
    ),
    // In the end.
    peer("does_not_leave", || two_jobs([Step::Hang]), killed),
    peer("spins_instead_of_leaving", || two_jobs([Step::Spin]), killed),
    peer(
        "floods_its_log",
        || {
            [hello(), Step::Flood]
                .into_iter()
                .chain(two_jobs([Step::Hear, Step::Leave]).into_iter().skip(1))
                .collect()
        },
        |ending| left(ending).is_some_and(|death| death.last_words.len() < 4_096),
    ),
    Peer {
        unjailed: true,
        ..peer(
            "hands_over_descriptors",
            || vec![Step::Give],
            |ending| matches!(ending, Ending::Start(StartError::Ipc(_))),
        )
    },
];

fn died_early(ending: &Ending) -> bool {
    matches!(ending, Ending::Start(StartError::Died { death }) if death.code == Some(0))
}

fn too_late(ending: &Ending) -> bool {
    matches!(ending, Ending::Start(StartError::Timeout { .. }))
}

fn no_message(ending: &Ending) -> bool {
    matches!(ending, Ending::Start(StartError::Ipc(IpcError::Wire(_))))
}

fn died(ending: &Ending) -> bool {
    matches!(ending, Ending::Run(RunError::WorkerDied { death }) if death.code == Some(0))
}

fn silent(ending: &Ending) -> bool {
    matches!(ending, Ending::Run(RunError::Silent { .. }))
}

fn killed(ending: &Ending) -> bool {
    matches!(ending, Ending::Stopped(death) if death.signal == Some(SIGKILL))
}

fn left(ending: &Ending) -> Option<&Death> {
    match ending {
        Ending::Stopped(death) if death.code == Some(0) => Some(death),
        _ => None,
    }
}

fn order(ending: &Ending) -> Option<&OrderError> {
    match ending {
        Ending::Start(StartError::Ipc(IpcError::Order(error)))
        | Ending::Run(RunError::Ipc(IpcError::Order(error))) => Some(error),
        _ => None,
    }
}

fn not_now(ending: &Ending) -> bool {
    order(ending).is_some_and(|error| matches!(error, OrderError::NotNow { .. }))
}

fn miscounted(ending: &Ending) -> bool {
    order(ending).is_some_and(|error| matches!(error, OrderError::Count { .. }))
}

fn hello() -> Step {
    Step::Say(Event::Hello { version: IPC_VERSION })
}

fn loading() -> Step {
    Step::Say(Event::Loading { done_bytes: 1, total_bytes: 2 })
}

fn loaded() -> Event {
    Event::Loaded(ModelInfo {
        kind: ModelKind::Llm,
        architecture: "llama".into(),
        name: "hostile".into(),
        context_tokens: 64,
        vocab: 100,
        parameters: 1,
        device: EngineDevice::Cpu { threads: 1 },
    })
}

pub(super) fn broken(what: &str) -> Event {
    Event::Broken { what: what.to_owned() }
}

fn started(run: u64) -> Step {
    Step::Say(Event::Started { run, prompt_tokens: 4 })
}

fn prefilled(done_tokens: u32) -> Step {
    Step::Say(Event::Prefilled { run: 1, done_tokens })
}

fn output(tokens: &[u32]) -> Step {
    Step::Say(Event::Output { run: 1, tokens: tokens.to_vec(), text: "x".into() })
}

fn finished(run: u64, completion_tokens: u32) -> Step {
    Step::Say(Event::Finished { run, reason: FinishReason::Stop, completion_tokens })
}

/// Loads as an honest worker would, then goes on with `steps`.
fn begin(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    [hello(), Step::Hear, Step::Say(loaded())].into_iter().chain(steps).collect()
}

/// Answers one job as an honest worker would.
fn answer(run: u64) -> [Step; 4] {
    let output = Event::Output { run, tokens: vec![1], text: "x".into() };
    [Step::Hear, started(run), Step::Say(output), finished(run, 1)]
}

/// Answers both jobs as an honest worker would, then goes on with `steps`.
fn two_jobs(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    begin(answer(1).into_iter().chain(answer(2)).chain(steps))
}
