//! Components that take more than they may: memory, stack, time, handles.
//!
//! Owns: one act for each resource, and the name of what stops it. Never: waits for a clock to prove a
//! limit; the limits' own errors do. Run by the guest tests.

use std::time::Duration;

use potluck_sandbox::guest::compiler::CompileError;
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::GuestRunError;
use potluck_sandbox::guest::wire::{CompileRefusal, GuestError};

use crate::kit::{self, DEEP, ECHO, HOARDER, HOG, SLEEPER, SPIN, THRIFTY};
use crate::kit::{brief, bytes_of, compiler, edited, guest, limits, run, wasm, within};
use crate::worker::turn;

const MEMORY: u64 = 64 << 20;

fn small() -> GuestLimits {
    GuestLimits::new(MEMORY, Duration::from_secs(30))
}

/// The error of a component that must not end well, which is its own fault.
async fn error_of(text: &str, input: &[u8], limits: GuestLimits) -> GuestError {
    match run(&wasm(text), input, limits).await {
        Err(GuestRunError::Guest(error)) => {
            assert!(error.is_guests_fault(), "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

async fn assert_late(what: &str, text: &str, input: &[u8]) {
    let error = error_of(text, input, brief(300)).await;
    assert_eq!(error, GuestError::Deadline { limit_ms: 300 }, "the guest's clock stops {what}");
}

#[tokio::test]
async fn memory_beyond_the_budget_is_refused() {
    let _turn = turn();
    let full = GuestError::OutOfMemory { limit_bytes: MEMORY };
    assert_eq!(error_of(HOG, b"", small()).await, full, "the budget refuses memory");
    let ended = run(&wasm(THRIFTY), b"", small()).await.unwrap();
    let pages = u32::from_le_bytes(ended.output.unwrap().try_into().unwrap());
    let had = u64::from(pages) << 16;
    assert!(had <= MEMORY && had + (1 << 20) > MEMORY, "the budget gives all of {MEMORY} bytes: {had}");
    assert_eq!(ended.usage.peak_memory_bytes, had, "what it had is what is reported");

    let table = guest(
        "(table $t 1 funcref)",
        "(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 65536)))))
         (unreachable)",
    );
    assert_eq!(error_of(&table, b"", small()).await, full, "the budget refuses tables");
}

#[tokio::test]
async fn memory_that_is_only_declared_counts_as_well() {
    let _turn = turn();
    // Three times 4 GiB, of which no byte is ever touched.
    let declared = edited(
        ECHO,
        "(core instance $guest (instantiate $Guest))",
        "(core module $Large (memory 65536))
         (core instance (instantiate $Large))
         (core instance (instantiate $Large))
         (core instance (instantiate $Large))
         (core instance $guest (instantiate $Guest))",
    );
    let full = GuestError::OutOfMemory { limit_bytes: limits().memory_bytes };
    assert_eq!(error_of(&declared, b"", limits()).await, full, "the budget refuses 12 GiB at the start");
    // And 10 GB in one, which no memory of 32 bits has.
    let impossible = edited(ECHO, r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 163840)"#);
    let refused = within(compiler().compile(&wasm(&impossible))).await.unwrap_err();
    let invalid = matches!(&refused, CompileError::Refused(CompileRefusal::Invalid { .. }));
    assert!(invalid, "the validator refuses 10 GB in one memory: {refused}");
}

#[tokio::test]
async fn a_stack_ends() {
    let _turn = turn();
    assert_eq!(
        error_of(DEEP, b"", limits()).await,
        GuestError::StackOverflow,
        "the guest's stack is bounded"
    );
}

#[tokio::test]
async fn time_ends_wherever_it_is_spent() {
    let _turn = turn();
    assert_late("a loop", SPIN, b"").await;
    let start = guest("(func $s (loop $x (br $x))) (start $s)", "(i32.const 16)");
    assert_late("a loop in the start function", &start, b"").await;
    let realloc = edited(ECHO, "(local.set $at (global.get $free))", "(loop $x (br $x))");
    assert_late("a loop in the function by which the host takes memory", &realloc, b"input").await;
    let calls = edited(
        kit::DICE,
        "(call $random (i64.const 32) (i32.const 64))",
        "(loop $x (call $now (i32.const 160)) (br $x)) (call $random (i64.const 32) (i32.const 64))",
    );
    assert_late("a loop of calls to the host", &calls, b"").await;
    assert_late("a flood of words", kit::CHATTY, &bytes_of(u32::MAX, b"flood")).await;
    assert_late("a sleep", SLEEPER, &86_400_000u64.to_le_bytes()).await;
    let fills = guest(
        "",
        "(drop (memory.grow (i32.const 2000)))
         (loop $x (memory.fill (i32.const 65536) (i32.const 1) (i32.const 131072000)) (br $x))
         (unreachable)",
    );
    assert_late("a loop of large fills", &fills, b"").await;
}

#[tokio::test]
async fn handles_and_bytes_that_cross_are_bounded() {
    let _turn = turn();
    let error = error_of(HOARDER, b"", limits()).await;
    let handles = matches!(&error, GuestError::OverLimit { .. });
    assert!(handles, "the table of handles is bounded: {error}");
    let random = edited(
        kit::DICE,
        "(call $random (i64.const 32) (i32.const 64))",
        "(call $random (i64.const 4000000000) (i32.const 64))",
    );
    let error = error_of(&random, b"", limits()).await;
    let trapped = matches!(&error, GuestError::Trapped { .. });
    assert!(trapped, "the host gives no 4 GB of randomness at once: {error}");
    // A line of 100 MiB.
    let line = edited(
        kit::CHATTY,
        "(call $log (i32.add (local.get $at) (i32.const 4)) (i32.sub (local.get $bytes) (i32.const 4)))",
        "(drop (memory.grow (i32.const 2000))) (call $log (i32.const 0) (i32.const 104857600))",
    );
    let error = error_of(&line, &bytes_of(1, b""), limits()).await;
    let too_much = matches!(&error, GuestError::OverLimit { .. });
    assert!(too_much, "what crosses in one call is bounded: {error}");
}
