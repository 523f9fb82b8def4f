//! What `potluck new` makes, and the worked example, build into components that do their work in the
//! real, jailed worker.
//!
//! Owns: that each language's tools, template and world fit together, and that a template does the same
//! in each language. Never: answers as a model would (the stories have real ones). Run by `make test`;
//! says on stderr what could not be built for want of tools.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::FinishReason;
use potluck_protocol::limits::MAX_COMPONENT_BYTES;
use potluck_sandbox::guest::cache::{Artefact, ArtefactCache};
use potluck_sandbox::guest::compiler::Compiler;
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::{self, GuestSpec, GuestStep};
use potluck_sandbox::guest::wire::{Blob, GuestModel, GuestStart};
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::tensor::{ModelCallError, ModelReply, ModelRequest, Prompt};
use potluck_tests::guest_tools::{Guest, component};
use potluck_tests::programs::program;
use serde_json::{Value, json};

/// The first bytes of a component, as against a core module.
const COMPONENT: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];
/// How long compiling 18 MB may take, on a machine that does other things too.
const COMPILE: Duration = Duration::from_secs(240);

/// A component, built and compiled.
struct Ready {
    guest: Guest,
    artefact: ArtefactCache,
    hash: ContentHash,
}

impl Ready {
    /// `None` when its tools cannot be had here.
    async fn make(guest: Guest, folder: &Path) -> Option<Self> {
        let bytes = fs::read(component(guest).await.unwrap()?).unwrap();
        assert!(bytes.starts_with(&COMPONENT), "{} is no component", guest.name());
        assert!(u64::try_from(bytes.len()).unwrap() <= MAX_COMPONENT_BYTES, "{}", bytes.len());
        let program = program("potluck-wasm-worker").unwrap();
        let begun = Instant::now();
        let compiled = Compiler { program, jailed: true, within: COMPILE }.compile(&bytes).await.unwrap();
        println!("{}: {} bytes, compiled in {:?}", guest.name(), bytes.len(), begun.elapsed());
        let artefact = ArtefactCache::open(&folder.join(guest.name()), compiled.engine, 1 << 30).unwrap();
        let hash = ContentHash::of(&bytes);
        artefact.put(hash, &compiled.artefact).unwrap();
        Some(Self { guest, artefact, hash })
    }

    /// One run in a fresh worker; `answer` stands where the model's worker would.
    async fn run(
        &self,
        model: Option<&str>,
        input: &[u8],
        mut answer: impl FnMut(ModelRequest) -> Answer,
    ) -> Said {
        let limits = GuestLimits::new(256 << 20, Duration::from_secs(120));
        let artefact: Artefact = self.artefact.get(self.hash).unwrap();
        let program = program("potluck-wasm-worker").unwrap();
        let jail = Jail::Jailed(Box::new(JailPlan::wasm(limits.memory_bytes)));
        let begun = Instant::now();
        let mut guest =
            supervisor::Guest::start(GuestSpec { program, artefact, limits, jail }).await.unwrap();
        let models =
            model.map(|name| GuestModel { name: name.into(), hash: self.hash }).into_iter().collect();
        guest.run(GuestStart { models, input: Blob(input.to_vec()), seed: [7; 32] }).unwrap();
        let (mut log, mut progress) = (Vec::new(), 0);
        loop {
            match guest.next().await.unwrap() {
                GuestStep::Call { call, model: 0, request } => guest.reply(call, answer(request)).unwrap(),
                GuestStep::Call { model, .. } => panic!("there is no model {model}"),
                GuestStep::Progress { .. } => progress += 1,
                GuestStep::Log(bytes) => log.extend(bytes),
                GuestStep::Finished { output, usage } => {
                    println!("{}: done in {:?}, {usage:?}", self.guest.name(), begun.elapsed());
                    let log = String::from_utf8(log).unwrap();
                    return Said { output, log, progress };
                }
            }
        }
    }

    /// A run without a model.
    async fn alone(&self, input: &[u8]) -> Said {
        self.run(None, input, |request| panic!("there is no model to ask {request:?}")).await
    }
}

type Answer = Result<ModelReply, ModelCallError>;

/// What a run said.
struct Said {
    output: Result<Vec<u8>, String>,
    log: String,
    progress: usize,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_slice(self.output.as_ref().unwrap()).unwrap()
    }
}

/// A model's part in a conversation: says `pieces` one by one, and keeps what it was asked.
fn speaker<'a>(
    pieces: &'a [&str],
    asked: &'a mut Vec<String>,
) -> impl FnMut(ModelRequest) -> Answer + use<'a> {
    let mut left = pieces.iter();
    move |request| match request {
        ModelRequest::OpenSession { temperature_milli: 0, top_p_milli: 1_000, .. } => {
            Ok(ModelReply::Session { session: 1, context_tokens: 2_048 })
        }
        ModelRequest::Prefill { session: 1, prompt: Prompt::Chat(turns) } => {
            asked.extend(turns.into_iter().map(|turn| turn.content));
            Ok(ModelReply::Prefilled { total_tokens: 40 })
        }
        ModelRequest::Step { session: 1, .. } => {
            let text = (*left.next().unwrap()).to_owned();
            let finish = (left.len() == 0).then_some(FinishReason::Stop);
            Ok(ModelReply::Stepped { tokens: vec![5, 6], text, finish })
        }
        ModelRequest::CloseSession { session: 1 } => Ok(ModelReply::Closed),
        other => panic!("the template asked {other:?}"),
    }
}

#[tokio::test]
async fn a_template_does_the_same_in_every_language() {
    let folder = tempfile::tempdir().unwrap();
    for guest in [Guest::C, Guest::Python, Guest::Rust] {
        let Some(ready) = Ready::make(guest, folder.path()).await else { continue };
        let text = "Saturn is a\tplanet\nwith \"rings\" ü\n\nand moons".as_bytes();
        let counts = json!({ "lines": 4, "words": 9, "bytes": 45, "summary": null });
        let counted = ready.alone(text).await;
        assert_eq!(counted.json(), counts, "{}", guest.name());
        assert!(counted.log.contains("no model is named chat"), "{}", counted.log);
        let empty = json!({ "lines": 0, "words": 0, "bytes": 0, "summary": null });
        assert_eq!(ready.alone(b"").await.json(), empty, "{}", guest.name());

        let mut asked = Vec::new();
        let said =
            ready.run(Some("chat"), text, speaker(&[" \"Saturn\"\n", "\u{1}ü\\ ", "\n"], &mut asked)).await;
        assert_eq!(said.json()["summary"], "\"Saturn\"\n\u{1}ü\\", "{}", guest.name());
        assert!(said.progress > 0);
        let ask = "Say in one short sentence what this text is about:\n\n";
        assert_eq!(asked, [format!("{ask}{}", str::from_utf8(text).unwrap())], "{}", guest.name());

        let bad = ready.alone(b"one \xff two").await;
        assert_eq!(bad.output.unwrap_err(), "the input is not UTF-8 text", "{}", guest.name());
        let full = ready.run(Some("chat"), text, |_| Err(ModelCallError::TooManySessions)).await;
        let why = full.output.unwrap_err();
        assert!(why.starts_with("the model failed (LimitReached): "), "{}: {why}", guest.name());
    }
}

#[tokio::test]
async fn the_example_refuses_what_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ready) = Ready::make(Guest::NearestLines, folder.path()).await else { return };
    for bad in ["", "3", "{}", r#"{"query": 3, "text": "a"}"#, r#"{"query": "a", "lines": [1]}"#] {
        let why = ready.alone(bad.as_bytes()).await.output.unwrap_err();
        assert!(why.starts_with("the input "), "{bad}: {why}");
    }
    let nothing = ready.alone(br#"{"query": "a", "text": " \n "}"#).await.output.unwrap_err();
    assert!(nothing.starts_with("there are 0 lines"), "{nothing}");
    let no_model = ready.alone(br#"{"query": "a", "text": "b"}"#).await.output.unwrap_err();
    assert!(no_model.starts_with("a model failed (UnknownModel): "), "{no_model}");
}
