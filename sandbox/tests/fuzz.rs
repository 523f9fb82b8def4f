//! The fuzz targets' bodies on the stable compiler, for a bounded time: what `make test` can afford of
//! `make fuzz`.
//!
//! Owns: a seeded mutator without coverage. Never: finds what the fuzzer finds in hours. The same seed
//! gives the same inputs; a failure prints its input.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking")]

#[path = "../../tests/fuzz/bodies/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "../../tests/fuzz/bodies/workers.rs"]
mod workers;

use std::panic::{AssertUnwindSafe, catch_unwind};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::wire::{self, Blob, GuestCommand, GuestEvent, GuestStart};
use potluck_sandbox::ipc::{self, Command, Event};
use potluck_sandbox::tensor::{ModelReply, ModelRequest, NamedTensor, Prompt, Tensor};

/// A small generator of numbers (splitmix64): the inputs are the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A copy with a few bytes changed, put in, taken out or cut off.
    fn mutated(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = self.byte(),
                1 => bytes.insert(at, self.byte()),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ if at < bytes.len() => bytes[at] = 0xff,
                _ => bytes.push(self.byte()),
            }
        }
        bytes
    }
}

/// Feeds `count` mutations of the seeds; a panic is told with its input.
fn feed(seeds: &[Vec<u8>], count: usize, body: fn(&[u8])) {
    let mut numbers = Numbers(7);
    for _ in 0..count {
        let seed = &seeds[numbers.below(seeds.len())];
        let input = numbers.mutated(seed);
        let fine = catch_unwind(AssertUnwindSafe(|| body(&input)));
        assert!(fine.is_ok(), "this input broke a law: {}", potluck_protocol::id::hex(&input));
    }
}

fn job() -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([3; 32]),
        messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
        sampling: Sampling { max_tokens: 16, temperature_milli: 0, top_p_milli: 1_000, seed: 7 },
    }
}

fn tensors() -> Vec<NamedTensor> {
    let tensor = Tensor::from_f32s(vec![2, 2], &[0.0, 1.0, 2.0, 3.0]).unwrap();
    vec![NamedTensor { name: "x".into(), tensor }]
}

/// The bodies of true frames.
fn frames() -> Vec<Vec<u8>> {
    let compute = ModelRequest::Compute { session: Some(1), inputs: tensors() };
    let embed = ModelRequest::Embed { texts: vec!["a".into(), "b".into()] };
    let prefill = ModelRequest::Prefill { session: 1, prompt: Prompt::Tokens(vec![1, 2, 3]) };
    let commands = [
        Command::Load { device: DeviceChoice::Cuda(1) },
        Command::Generate { run: 1, job: Box::new(job()) },
        Command::Call { run: 2, request: Box::new(embed.clone()) },
        Command::Call { run: 2, request: Box::new(compute.clone()) },
    ];
    let events = [
        Event::Hello { version: 2 },
        Event::Output { run: 1, tokens: vec![1, 2], text: "x".into() },
        Event::Reply { run: 2, result: Ok(ModelReply::Tensors(tensors())) },
    ];
    let start = GuestStart { models: Vec::new(), input: Blob(vec![7; 9]), seed: [1; 32] };
    let said = [
        GuestCommand::Load { limits: GuestLimits::default() },
        GuestCommand::Start(Box::new(start)),
        GuestCommand::Reply { call: 1, result: Ok(ModelReply::Tensors(tensors())) },
    ];
    let heard = [
        GuestEvent::Call { call: 1, model: 0, request: Box::new(prefill) },
        GuestEvent::Call { call: 2, model: 1, request: Box::new(compute) },
        GuestEvent::Log(Blob(b"a line".to_vec())),
        GuestEvent::Progress { permille: 5, note: "n".into() },
    ];
    let whole = commands.iter().map(|it| ipc::encode_command(it).unwrap());
    let whole = whole.chain(events.iter().map(|it| ipc::encode_event(it).unwrap()));
    let whole = whole.chain(said.iter().map(|it| wire::encode(it).unwrap()));
    let whole: Vec<_> = whole.chain(heard.iter().map(|it| wire::encode(it).unwrap())).collect();
    let bodies: Vec<_> = whole.iter().map(|frame| frame[4..].to_vec()).collect();
    whole.into_iter().chain(bodies).collect()
}

#[test]
fn mutated_frames_never_panic_and_have_one_encoding() {
    feed(&frames(), 60_000, workers::hear);
}

#[test]
fn mutated_models_load_or_say_why_not() {
    let mut seeds: Vec<Vec<u8>> = (0..3u8).map(|kind| vec![kind, 9, 0, 1, 2, 3]).collect();
    seeds.push([&[0][..], &tiny::TinyLlm::default().bytes()].concat());
    seeds.push([&[0][..], &tiny::TinyEncoder::default().bytes()].concat());
    seeds.push(b"\x03{% for m in messages %}{{ m.content | upper }}{% endfor %}".to_vec());
    feed(&seeds, 600, models::load);
}
