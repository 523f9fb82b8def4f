//! What the compile worker takes, and what is too much for it.
//!
//! Owns: malformed and heavy components, and artefacts that are not this machine's own. Never: lets
//! the compiler near this process. Run by the guest tests.

use std::fs;
use std::time::Duration;

use potluck_protocol::id::ContentHash;
use potluck_sandbox::guest::cache::ArtefactCache;
use potluck_sandbox::guest::compiler::{CompileError, Compiler};
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::{Guest, GuestRunError};
use potluck_sandbox::guest::wire::{CompileRefusal, GuestError};
use potluck_sandbox::jail::JailPlan;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::kit::{CHATTY, ECHO, THRIFTY, bytes_of, compiler, finish_with, limits, spec, wasm, within};
use crate::processes::assert_no_children;
use crate::worker::turn;

#[tokio::test]
async fn what_is_no_binary_component_is_not_parsed() {
    let _turn = turn();
    let core = wasm("(module)");
    let cases: [(&str, &[u8]); 4] = [
        ("a core module", &core),
        ("the text form", ECHO.as_bytes()),
        ("nothing", b""),
        ("a program", b"\x7fELF\x02\x01\x01\0"),
    ];
    for (what, bytes) in cases {
        let error = within(compiler().compile(bytes)).await.unwrap_err();
        let refused = matches!(&error, CompileError::Refused(CompileRefusal::NotAComponent { .. }));
        assert!(refused && error.is_guests_fault(), "the first bytes are looked at: {what}: {error}");
    }
}

/// A number as wasm writes it.
fn leb(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        if n == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

fn section(id: u8, body: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(body.len()), body].concat()
}

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A component of one core module with `count` functions of this `body` and 64 locals of 64 bits.
pub(crate) fn functions(count: usize, body: &[u8]) -> Vec<u8> {
    let code = [&[1, 64, 0x7e][..], body, &[0x0b]].concat();
    let code = [leb(code.len()), code].concat().repeat(count);
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[leb(count), vec![0; count]].concat()),
        section(10, &[leb(count), code].concat()),
    ];
    [COMPONENT.to_vec(), section(1, &module.concat())].concat()
}

/// A body of `steps` branches, each around an assignment: `if a != 0 { b = c * a }`.
pub(crate) fn branches(steps: usize) -> Vec<u8> {
    let step = |n: usize| {
        let local = |by: usize| u8::try_from((n * by + n / 7) % 64).unwrap();
        let (a, b, c) = (local(3), local(5), local(11));
        [0x02, 0x40, 0x20, a, 0x50, 0x0d, 0, 0x20, c, 0x20, a, 0x7e, 0x21, b, 0x0b]
    };
    (0..steps).flat_map(step).collect()
}

#[tokio::test]
async fn what_takes_too_long_to_compile_is_killed() {
    let _turn = turn();
    let limit = Duration::from_secs(1);
    let hasty = Compiler { within: limit, ..compiler() };
    let bombs = [
        ("one huge function", functions(1, &branches(500_000))),
        ("very many functions", functions(300_000, &branches(2))),
    ];
    for (what, bomb) in bombs {
        let error = within(hasty.compile(&bomb)).await.unwrap_err();
        let late = matches!(error, CompileError::Timeout { limit: of } if of == limit);
        assert!(late && error.is_guests_fault(), "the compile limit stops {what}: {error}");
        // The worker that outlived its limit is gone, and so is its launcher.
        assert_no_children().await;
    }
    within(compiler().compile(&wasm(ECHO))).await.expect("the next one is compiled");
}

/// Components in components, `depth` of them.
fn nested(depth: usize) -> Vec<u8> {
    let mut heads = vec![COMPONENT.to_vec()];
    let mut len = COMPONENT.len();
    for _ in 0..depth {
        let head = [COMPONENT, &[4], &leb(len)].concat();
        len += head.len();
        heads.push(head);
    }
    heads.reverse();
    heads.concat()
}

#[tokio::test]
async fn what_grows_when_it_is_read_stops_at_a_limit() {
    let _turn = turn();
    let mut types = String::from("(component (type $t0 (tuple u8 u8))");
    for n in 1..64 {
        types += &format!("(type $t{n} (tuple $t{} $t{}))", n - 1, n - 1);
    }
    types += ")";
    let error = within(compiler().compile(&wasm(&types))).await.unwrap_err();
    let refused = matches!(&error, CompileError::Refused(CompileRefusal::Invalid { .. }));
    assert!(refused, "the validator refuses a type of 2^64 parts: {error}");
    let (bomb, limit) = (nested(100_000), JailPlan::compile().limits.memory_bytes);
    for (compiler, what) in [
        (compiler(), "the jail's memory limit stops a hundred thousand levels"),
        (Compiler { jailed: false, ..compiler() }, "without a jail, the compiler's address space ends"),
    ] {
        let error = within(compiler.compile(&bomb)).await.unwrap_err();
        let CompileError::Refused(refusal) = &error else { panic!("{what}: {error}") };
        assert_eq!(*refusal, CompileRefusal::TooHeavy { limit_bytes: limit }, "{what}");
    }
}

/// One change to a component.
fn edit() -> impl Strategy<Value = (u8, Index, u8)> {
    (0u8..4, any::<Index>(), any::<u8>())
}

fn change(bytes: &mut Vec<u8>, (kind, at, with): (u8, Index, u8)) {
    if bytes.is_empty() {
        return;
    }
    let at = at.index(bytes.len());
    match kind {
        0 => bytes[at] ^= with,
        1 => bytes.insert(at, with),
        2 => drop(bytes.remove(at)),
        _ => bytes.truncate(at.max(8)),
    }
}

/// Compiles and runs what may be anything; what came of it that is not its own doing.
async fn survive(component: &[u8], input: &[u8]) -> Result<(), String> {
    let compiled = match within(compiler().compile(component)).await {
        Ok(compiled) => compiled,
        Err(error) if error.is_guests_fault() => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let cache =
        ArtefactCache::open(folder.path(), compiled.engine, 1 << 30).map_err(|error| error.to_string())?;
    let artefact =
        cache.put(ContentHash::of(component), &compiled.artefact).map_err(|error| error.to_string())?;
    let tight = GuestLimits::new(16 << 20, Duration::from_millis(500));
    let ended = match within(Guest::start(spec(artefact, tight))).await {
        Ok(mut guest) => finish_with(&mut guest, input, &[], [0; 32]).await.map(drop),
        Err(error) => Err(error),
    };
    match ended {
        Err(error) if !error.is_guests_fault() => Err(error.to_string()),
        _ => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is done to a component, it is compiled and run, or refused by name.
    #[test]
    fn a_broken_component_breaks_nothing(
        which in 0usize..3,
        edits in prop::collection::vec(edit(), 1..4),
    ) {
        let _turn = turn();
        let mut component = wasm([ECHO, CHATTY, THRIFTY][which]);
        edits.into_iter().for_each(|edit| change(&mut component, edit));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let survived = runtime.block_on(survive(&component, &bytes_of(3, b"words")));
        prop_assert_eq!(survived, Ok(()));
    }
}

#[tokio::test]
async fn an_artefact_that_was_tampered_with_is_compiled_again() {
    let _turn = turn();
    let (echo, folder) = (wasm(ECHO), tempfile::tempdir().unwrap());
    let hash = ContentHash::of(&echo);
    let compiled = within(compiler().compile(&echo)).await.unwrap();
    let open = || ArtefactCache::open(folder.path(), compiled.engine, 1 << 30).unwrap();
    open().put(hash, &compiled.artefact).unwrap();
    let artefacts = || {
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "artefact")).collect::<Vec<_>>()
    };
    let [file] = &artefacts()[..] else { panic!("{:?}", artefacts()) };
    let mut bytes = fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, &bytes).unwrap();
    // As the next start of the daemon finds it.
    let cache = open();
    assert!(cache.get(hash).is_none(), "the seal stops an artefact that was changed on disk");
    assert!(artefacts().is_empty() && !cache.contains(hash), "it is dropped");
    let again = within(compiler().compile(&echo)).await.unwrap();
    cache.put(hash, &again.artefact).unwrap();
    let artefact = open().get(hash).expect("what was compiled again is sound");
    let mut guest = within(Guest::start(spec(artefact, limits()))).await.unwrap();
    let ended = finish_with(&mut guest, b"sound", &[], [0; 32]).await.unwrap();
    assert_eq!(ended.output, Ok(b"sound".to_vec()));
}

#[tokio::test]
async fn what_is_no_artefact_is_not_loaded() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let cache = ArtefactCache::open(folder.path(), [0; 32], 1 << 20).unwrap();
    for bytes in [&b""[..], b"not machine code", &wasm(ECHO)] {
        let artefact = cache.put(ContentHash::of(bytes), bytes).unwrap();
        let error = within(Guest::start(spec(artefact, limits()))).await.unwrap_err();
        let refused = matches!(&error, GuestRunError::Guest(GuestError::Artefact { .. }));
        assert!(refused && !error.is_guests_fault(), "the runtime loads only its own: {error}");
    }
}
