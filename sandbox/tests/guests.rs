//! Components in the real wasm worker, jailed as a renter's are.
//!
//! Owns: the promises that a guest's daemon makes: what a job takes and gives, that every hostile
//! component ends in a typed error which says whose fault it is, and that the daemon's side lives on
//! and keeps nothing. Never: replaces a process, its jail or a model (the models are small, and real).
//! Every assertion names what stops the act.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]
#![allow(
    clippy::await_holding_lock,
    reason = "one worker at a time has the cores; each test has its own thread"
)]

#[path = "guests/bombs.rs"]
mod bombs;
#[path = "guests/compiling.rs"]
mod compiling;
#[path = "guests/kit.rs"]
mod kit;
#[path = "guests/processes.rs"]
mod processes;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/worker.rs"]
mod worker;
#[path = "guests/world.rs"]
mod world;

use std::time::Duration;

use kit::{CHATTY, ECHO, REFUSES, bytes_of, edited, limits, run, start, wasm};
use potluck_protocol::limits::MAX_GUEST_INPUT_BYTES;
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::GuestRunError;
use potluck_sandbox::guest::wire::{GuestError, MAX_WORDS_BYTES};
use worker::turn;

#[tokio::test]
async fn bytes_go_in_and_come_out() {
    let _turn = turn();
    let echo = wasm(ECHO);
    for input in [Vec::new(), b"hello".to_vec(), vec![0xa5; usize::try_from(MAX_GUEST_INPUT_BYTES).unwrap()]]
    {
        let ended = run(&echo, &input, limits()).await.unwrap();
        assert!(ended.output.as_ref() == Ok(&input), "{} bytes came back changed", input.len());
        assert!(ended.log.is_empty() && ended.notes.is_empty() && ended.usage.log_dropped_bytes == 0);
        let peak = ended.usage.peak_memory_bytes;
        assert!((65_536..=limits().memory_bytes).contains(&peak), "{peak} bytes at the most");
    }
}

#[tokio::test]
async fn an_error_of_the_job_is_its_answer() {
    let _turn = turn();
    let refuses = wasm(REFUSES);
    let ended = run(&refuses, "schlecht: ü".as_bytes(), limits()).await.unwrap();
    assert_eq!(ended.output, Err("schlecht: ü".to_owned()));
    let ended = run(&refuses, "ü".repeat(1 << 20).as_bytes(), limits()).await.unwrap();
    let words = ended.output.unwrap_err();
    assert_eq!(words.len(), MAX_WORDS_BYTES, "the worker cuts an error's words");
    assert!(words.chars().all(|c| c == 'ü'), "it cuts between two characters");
    let error = run(&refuses, b"\xff\xfe", limits()).await.unwrap_err();
    assert!(
        matches!(&error, GuestRunError::Guest(GuestError::Trapped { .. })) && error.is_guests_fault(),
        "the runtime takes no words that are no UTF-8: {error}"
    );
}

#[tokio::test]
async fn progress_and_log_arrive_in_order() {
    let _turn = turn();
    let input = bytes_of(3u32, b"a line");
    let ended = run(&wasm(CHATTY), &input, limits()).await.unwrap();
    assert_eq!(ended.output, Ok(3u32.to_le_bytes().to_vec()));
    assert_eq!(String::from_utf8_lossy(&ended.log), "a line\n".repeat(3));
    assert_eq!(ended.notes.first().map(|(permille, note)| (*permille, note.as_str())), Some((3, "talking")));
}

#[tokio::test]
async fn a_flood_of_words_is_cut_and_counted() {
    let _turn = turn();
    let (lines, line) = (20_000u32, [b'x'; 60]);
    let began = std::time::Instant::now();
    let ended = run(&wasm(CHATTY), &bytes_of(lines, &line), limits()).await.unwrap();
    let all = u64::from(lines) * 61;
    let kept = u64::from(limits().log_bytes);
    assert_eq!(ended.log.len() as u64, kept, "the log keeps its first bytes");
    assert_eq!(ended.usage.log_dropped_bytes, all - kept, "the log counts what it does not keep");
    let most = began.elapsed().as_millis() / 100 + 1;
    let came = ended.notes.len() as u128;
    assert!((1..=most).contains(&came), "the pace lets ten notes a second pass: {came} of at most {most}");
}

#[tokio::test]
async fn equal_jobs_run_equally_and_learn_no_date() {
    let _turn = turn();
    let dice = wasm(kit::DICE);
    let mut first = start(&dice, limits()).await.unwrap();
    let mut second = start(&dice, limits()).await.unwrap();
    let mut other = start(&dice, limits()).await.unwrap();
    let mut outputs = Vec::new();
    for (guest, seed) in [(&mut first, 7), (&mut second, 7), (&mut other, 8)] {
        outputs.push(kit::finish_with(guest, b"", &[], [seed; 32]).await.unwrap().output.unwrap());
    }
    assert_eq!(outputs[0], outputs[1], "random numbers come from the seed");
    assert_ne!(outputs[0][..32], outputs[2][..32], "another seed gives other numbers");
    // 2025-01-01, and not today.
    let seconds = u64::from_le_bytes(outputs[0][32..40].try_into().unwrap());
    assert!((1_735_689_600..1_735_689_660).contains(&seconds), "the clock is the job's own: {seconds}");
}

#[tokio::test]
async fn what_is_no_job_is_refused_by_name() {
    let _turn = turn();
    let cases = [
        (kit::NO_RUN, "it exports no function called run"),
        (kit::OTHER_RUN, "its run is of another type"),
        (kit::NO_SUCH_IMPORT, "elsewhere:vault/keys"),
    ];
    for (text, words) in cases {
        let error = run(&wasm(text), b"", limits()).await.unwrap_err();
        let GuestRunError::Guest(GuestError::NoJob { what }) = &error else { panic!("{error}") };
        assert!(what.contains(words) && error.is_guests_fault(), "the linker refuses it: {what}");
    }
}

#[tokio::test]
async fn what_a_trap_says_is_cut() {
    let _turn = turn();
    let error = run(&wasm(kit::TRAP), b"", limits()).await.unwrap_err();
    let GuestRunError::Guest(GuestError::Trapped { what }) = &error else { panic!("{error}") };
    assert!(what.contains("unreachable") && error.is_guests_fault(), "{what}");
    // The runtime names the functions of a trap, and their names are the guest's.
    let name = "n".repeat(50_000);
    let named = edited(kit::TRAP, kit::RUN, &kit::RUN.replace("(func", &format!("(func ${name}")));
    let error = run(&wasm(&named), b"", limits()).await.unwrap_err();
    let GuestRunError::Guest(GuestError::Trapped { what }) = &error else { panic!("{error}") };
    assert!(what.len() <= MAX_WORDS_BYTES, "the worker cuts a trap's words: {} bytes", what.len());
}

#[tokio::test]
async fn too_large_an_answer_is_not_taken() {
    let _turn = turn();
    let large = wasm(kit::LARGE);
    let max = limits().output_bytes;
    let ended = run(&large, &max.to_le_bytes(), limits()).await.unwrap();
    assert_eq!(ended.output.unwrap().len() as u64, u64::from(max));
    let error = run(&large, &(max + 1).to_le_bytes(), limits()).await.unwrap_err();
    let GuestRunError::Guest(GuestError::OutputTooLarge { bytes, .. }) = &error else { panic!("{error}") };
    assert_eq!(*bytes, u64::from(max) + 1, "the worker looks at the length first");
    // Its own bytes run out before the answer is made.
    let small = GuestLimits::new(1 << 20, Duration::from_secs(30));
    let error = run(&large, &(1u32 << 30).to_le_bytes(), small).await.unwrap_err();
    let out = matches!(error, GuestRunError::Guest(GuestError::OutOfMemory { limit_bytes: 0x10_0000 }));
    assert!(out, "the budget stops it: {error}");
}
