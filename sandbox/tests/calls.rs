//! Runs of calls over the real worker process with the real models.
//!
//! Owns: the promises of the tensor channel as a guest's daemon sees them: sessions that write what a
//! job writes, vectors that are the published model's, a typed error for every bad request, and a run
//! that ends when it is dropped. Never: replaces the process, the socket or a model.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]
#![allow(
    clippy::await_holding_lock,
    reason = "one worker at a time has the cores; each test has its own thread"
)]

#[path = "common/encoder.rs"]
mod encoder;
#[path = "common/model.rs"]
mod model;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/worker.rs"]
mod worker;

use std::time::Duration;

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, FinishReason, JobSpec, Role, Sampling};
use potluck_sandbox::engine::{GenerateError, MAX_SESSIONS, ModelKind};
use potluck_sandbox::supervisor::{ModelRun, RunError, RunEvent, Worker};
use potluck_sandbox::tensor::{
    ModelCallError, ModelReply, ModelRequest, NamedTensor, Prompt, Tensor, TensorType,
};
use worker::{spec, turn};

type Answer = Result<ModelReply, ModelCallError>;

async fn llm() -> Worker {
    Worker::start(spec(model::model()), |_, _| {}).await.expect("the worker starts")
}

async fn encoder() -> Worker {
    Worker::start(spec(encoder::encoder()), |_, _| {}).await.expect("the worker starts")
}

fn chat(text: &str) -> Vec<ChatMessage> {
    vec![ChatMessage { role: Role::User, content: text.to_owned() }]
}

fn job(text: &str, max_tokens: u32, temperature_milli: u32, seed: u64) -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([0; 32]),
        messages: chat(text),
        sampling: Sampling { max_tokens, temperature_milli, top_p_milli: 950, seed },
    }
}

/// What a declarative job answers.
async fn answer(worker: &mut Worker, job: &JobSpec) -> Result<(Vec<u32>, String), RunError> {
    let mut run = worker.generate(job).await?;
    let mut answer = (Vec::new(), String::new());
    while let Some(event) = run.next().await? {
        if let RunEvent::Output { tokens, text } = event {
            answer.0.extend(tokens);
            answer.1 += &text;
        }
    }
    Ok(answer)
}

async fn open(run: &mut ModelRun<'_>, temperature_milli: u32, seed: u64) -> u32 {
    let request = ModelRequest::OpenSession { temperature_milli, top_p_milli: 950, seed };
    match run.call(request).await.unwrap() {
        Ok(ModelReply::Session { session, context_tokens: 4_096 }) => session,
        other => panic!("{other:?}"),
    }
}

async fn prefill(run: &mut ModelRun<'_>, session: u32, prompt: Prompt) -> Answer {
    run.call(ModelRequest::Prefill { session, prompt }).await.unwrap()
}

/// Steps by `n` up to `max` tokens or the end; what was written.
async fn write(run: &mut ModelRun<'_>, session: u32, n: u32, max: usize) -> (Vec<u32>, String) {
    let mut all = (Vec::new(), String::new());
    loop {
        let left = u32::try_from(max - all.0.len()).unwrap();
        match run.call(ModelRequest::Step { session, tokens: n.min(left) }).await.unwrap() {
            Ok(ModelReply::Stepped { tokens, text, finish }) => {
                all.0.extend(tokens);
                all.1 += &text;
                if finish.is_some() || all.0.len() == max {
                    return all;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An I64 tensor of these numbers in one row.
fn row(name: &str, numbers: &[i64]) -> NamedTensor {
    let dims = vec![1, u32::try_from(numbers.len()).unwrap()];
    let data = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    NamedTensor { name: name.into(), tensor: Tensor::new(TensorType::I64, dims, data).unwrap() }
}

#[tokio::test]
async fn a_session_writes_what_a_job_writes_and_two_do_not_mix() {
    let _turn = turn();
    let mut worker = llm().await;
    assert_eq!(worker.info().kind, ModelKind::Llm);
    let france = "What is the capital of France? Answer in one short sentence.";
    let joke = "Tell me a joke.";
    let greedy = answer(&mut worker, &job(france, 40, 0, 0)).await.unwrap();
    let seeded = answer(&mut worker, &job(joke, 40, 900, 1)).await.unwrap();

    let mut run = worker.serve().await.unwrap();
    let (a, b) = (open(&mut run, 0, 0).await, open(&mut run, 900, 1).await);
    assert!(matches!(
        prefill(&mut run, a, Prompt::Chat(chat(france))).await,
        Ok(ModelReply::Prefilled { .. })
    ));
    prefill(&mut run, b, Prompt::Chat(chat(joke))).await.unwrap();
    let first = write(&mut run, b, 1, 3).await;
    assert_eq!(write(&mut run, a, 7, 40).await, greedy);
    let rest = write(&mut run, b, 5, 37).await;
    assert_eq!(([first.0, rest.0].concat(), first.1 + &rest.1), seeded);
    assert!(greedy.1.contains("Paris"), "{}", greedy.1);

    // The conversation goes on where it was; a new run knows nothing of it.
    let Ok(ModelReply::Prefilled { total_tokens }) = prefill(&mut run, a, Prompt::Text(" Yes.".into())).await
    else {
        panic!("a session reads more than once");
    };
    let read = u32::try_from(greedy.0.len()).unwrap();
    assert!(total_tokens > read, "{total_tokens}");
    run.end().await.unwrap();
    let mut run = worker.serve().await.unwrap();
    let gone = prefill(&mut run, a, Prompt::Text("x".into())).await;
    assert_eq!(gone, Err(ModelCallError::UnknownSession));
    drop(run);
    assert_eq!(answer(&mut worker, &job(france, 40, 0, 0)).await.unwrap(), greedy);
}

#[tokio::test]
async fn every_bad_request_is_a_typed_error_and_the_run_goes_on() {
    let _turn = turn();
    let mut worker = llm().await;
    let mut run = worker.serve().await.unwrap();
    let session = open(&mut run, 0, 0).await;
    let compute = |inputs| ModelRequest::Compute { session: Some(session), inputs };
    let lie = Tensor { ty: TensorType::I64, dims: vec![u32::MAX, u32::MAX], data: vec![0; 8] };
    let short = Tensor { ty: TensorType::I64, dims: vec![3], data: vec![0; 8] };
    let float = Tensor::from_f32s(vec![1], &[1.0]).unwrap();
    let named = |tensor| NamedTensor { name: "tokens".into(), tensor };
    let tokens = |tokens| ModelRequest::Prefill { session, prompt: Prompt::Tokens(tokens) };
    for (request, fits) in [
        (compute(vec![named(lie)]), "bytes"),
        (compute(vec![named(short)]), "shape"),
        (compute(vec![named(float)]), "I32 or I64"),
        (compute(vec![row("tokens", &[49_152])]), "49152"),
        (compute(vec![row("tokens", &[-1])]), "-1"),
        (compute(vec![row("tokens", &[])]), "no tokens"),
        (compute(vec![row("input_ids", &[1])]), "tokens"),
        (compute(vec![row("tokens", &[1]), row("more", &[1])]), "one input"),
        (compute(vec![]), "one input"),
        (ModelRequest::Compute { session: None, inputs: vec![row("tokens", &[1])] }, "session"),
        (tokens(vec![1, u32::MAX]), "vocabulary"),
        (tokens(vec![]), "no tokens"),
        (ModelRequest::Prefill { session, prompt: Prompt::Text(String::new()) }, "no tokens"),
        (ModelRequest::Step { session, tokens: 1 }, "read nothing"),
        (ModelRequest::Step { session, tokens: 0 }, "1 to 1024"),
        (ModelRequest::OpenSession { temperature_milli: 9_999, top_p_milli: 1, seed: 0 }, "temperature"),
    ] {
        let shown = format!("{request:?}");
        match run.call(request).await.unwrap() {
            Err(ModelCallError::InvalidInput { what }) => assert!(what.contains(fits), "{shown}: {what}"),
            other => panic!("{shown}: {other:?}"),
        }
    }
    let unknown = run.call(ModelRequest::CloseSession { session: 77 }).await.unwrap();
    assert_eq!(unknown, Err(ModelCallError::UnknownSession));
    let embed = run.call(ModelRequest::Embed { texts: vec!["x".into()] }).await.unwrap();
    assert!(matches!(embed, Err(ModelCallError::NotSupported { .. })), "{embed:?}");
    assert_eq!(run.call(tokens(vec![1; 4_097])).await.unwrap(), Err(ModelCallError::ContextFull));
    let huge = Tensor { ty: TensorType::U8, dims: vec![16 << 20], data: vec![0; 16 << 20] };
    let twice = vec![named(huge.clone()), NamedTensor { name: "more".into(), tensor: huge }];
    let too_large = run.call(compute(twice)).await.unwrap();
    assert!(matches!(too_large, Err(ModelCallError::InvalidInput { .. })), "{too_large:?}");
    for _ in 1..MAX_SESSIONS {
        open(&mut run, 0, 0).await;
    }
    let more = run.call(ModelRequest::OpenSession { temperature_milli: 0, top_p_milli: 1, seed: 0 }).await;
    assert_eq!(more.unwrap(), Err(ModelCallError::TooManySessions));
    assert_eq!(run.call(ModelRequest::CloseSession { session }).await.unwrap(), Ok(ModelReply::Closed));
    let fresh = open(&mut run, 0, 0).await;
    assert!(prefill(&mut run, fresh, Prompt::Text("Hello".into())).await.is_ok());
    assert_eq!(write(&mut run, fresh, 2, 2).await.0.len(), 2);
}

#[tokio::test]
async fn logits_are_those_that_the_next_step_chooses_from() {
    let _turn = turn();
    let mut worker = llm().await;
    let mut run = worker.serve().await.unwrap();
    let session = open(&mut run, 0, 0).await;
    let inputs = vec![row("tokens", &[504, 3575, 282, 4649, 314])];
    let Ok(ModelReply::Tensors(outputs)) =
        run.call(ModelRequest::Compute { session: Some(session), inputs }).await.unwrap()
    else {
        panic!("no tensors");
    };
    let [NamedTensor { name, tensor }] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!((name.as_str(), tensor.dims.as_slice()), ("logits", &[49_152][..]));
    let logits = tensor.to_f32s().unwrap();
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let (tokens, _) = write(&mut run, session, 1, 1).await;
    assert_eq!(tokens, [u32::try_from(best).unwrap()]);
}

#[tokio::test]
async fn a_full_context_ends_a_step_and_refuses_a_prompt() {
    let _turn = turn();
    let small = tiny::file(&tiny::TinyLlm::default().bytes());
    let mut worker = Worker::start(spec(small), |_, _| {}).await.unwrap();
    assert_eq!(worker.info().context_tokens, 64);
    let mut run = worker.serve().await.unwrap();
    let request = ModelRequest::OpenSession { temperature_milli: 2_000, top_p_milli: 1_000, seed: 3 };
    let opened = run.call(request).await.unwrap();
    assert_eq!(opened, Ok(ModelReply::Session { session: 1, context_tokens: 64 }));
    let too_long = prefill(&mut run, 1, Prompt::Tokens(vec![5; 65])).await;
    assert_eq!(too_long, Err(ModelCallError::ContextFull));
    let read = prefill(&mut run, 1, Prompt::Tokens(vec![5; 61])).await;
    assert_eq!(read, Ok(ModelReply::Prefilled { total_tokens: 61 }));
    let more = prefill(&mut run, 1, Prompt::Tokens(vec![5; 4])).await;
    assert_eq!(more, Err(ModelCallError::ContextFull));
    for (asked, written, full) in
        [(2, 2, None), (9, 1, Some(FinishReason::Length)), (9, 0, Some(FinishReason::Length))]
    {
        match run.call(ModelRequest::Step { session: 1, tokens: asked }).await.unwrap() {
            Ok(ModelReply::Stepped { tokens, finish, .. }) => {
                assert_eq!((tokens.len(), finish), (written, full));
            }
            other => panic!("{other:?}"),
        }
    }
    let more = prefill(&mut run, 1, Prompt::Tokens(vec![5])).await;
    assert_eq!(more, Err(ModelCallError::ContextFull));
}

#[tokio::test]
async fn a_dropped_call_ends_the_run_and_frees_the_worker() {
    let _turn = turn();
    let mut worker = llm().await;
    let mut run = worker.serve().await.unwrap();
    let session = open(&mut run, 0, 0).await;
    let long = prefill(&mut run, session, Prompt::Tokens(vec![504; 4_000]));
    let dropped = tokio::time::timeout(Duration::from_millis(300), long).await;
    assert!(dropped.is_err(), "the prompt was read too fast for this test");
    let after = run.call(ModelRequest::Step { session, tokens: 1 }).await.unwrap();
    assert_eq!(after, Err(ModelCallError::Cancelled));
    drop(run);
    // The rest of the prompt is not computed first.
    let asked = std::time::Instant::now();
    let said = answer(&mut worker, &job("Say hello.", 1, 0, 0)).await.unwrap();
    assert!(!said.0.is_empty());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());

    // Dropped between calls, and while a reply is on its way.
    for wait in [0, 1, 20] {
        let mut run = worker.serve().await.unwrap();
        let session = open(&mut run, 0, 0).await;
        let step = prefill(&mut run, session, Prompt::Text("Hello there".into()));
        let _may_be_cut = tokio::time::timeout(Duration::from_millis(wait), step).await;
        drop(run);
    }
    let run = worker.serve().await.unwrap();
    run.end().await.unwrap();
    assert!(worker.is_alive());
}

#[tokio::test]
async fn a_lost_worker_is_an_error_of_the_call_and_not_a_hang() {
    let _turn = turn();
    for (signal, is_stop) in [(rustix::process::Signal::KILL, false), (rustix::process::Signal::STOP, true)] {
        let mut short = spec(model::model());
        short.limits.silence_timeout = Duration::from_secs(2);
        let mut worker = Worker::start(short, |_, _| {}).await.unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
        let mut run = worker.serve().await.unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let request = ModelRequest::OpenSession { temperature_milli: 0, top_p_milli: 1, seed: 0 };
        let lost = run.call(request.clone()).await;
        if is_stop {
            assert!(matches!(lost, Err(RunError::Silent { .. })), "{lost:?}");
        } else {
            assert!(matches!(lost, Err(RunError::WorkerDied { .. })), "{lost:?}");
        }
        assert_eq!(run.call(request).await.unwrap(), Err(ModelCallError::Cancelled));
        drop(run);
        assert!(!worker.is_alive());
        assert!(matches!(worker.serve().await, Err(RunError::WorkerDied { .. })));
    }
}

/// The published model's numbers.
fn fixture() -> serde_json::Value {
    serde_json::from_str(include_str!("fixtures/all-minilm-l6-v2.json")).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-3
}

#[tokio::test]
async fn vectors_are_those_of_the_published_model() {
    let _turn = turn();
    let mut worker = encoder().await;
    let info = worker.info().clone();
    assert_eq!((info.kind, info.architecture.as_str()), (ModelKind::Encoder, "bert"));
    assert_eq!((info.context_tokens, info.vocab), (256, 30_522));
    let fixture = fixture();
    let sentences = fixture["sentences"].as_array().unwrap();
    let mut texts: Vec<String> = sentences.iter().map(|s| s["text"].as_str().unwrap().to_owned()).collect();
    // Enough of them that they do not fit one pass, of all lengths.
    texts.extend((0..40).map(|n| "more words ".repeat(n)));
    let mut run = worker.serve().await.unwrap();
    let Ok(ModelReply::Vectors { dim: 384, rows, data }) =
        run.call(ModelRequest::Embed { texts: texts.clone() }).await.unwrap()
    else {
        panic!("no vectors");
    };
    assert_eq!(usize::try_from(rows).unwrap(), texts.len());
    let vectors: Vec<&[f32]> = data.chunks(384).collect();
    for (sentence, vector) in sentences.iter().zip(&vectors) {
        let expected = numbers(&sentence["first8"]);
        assert!(
            expected.iter().zip(*vector).all(|(a, b)| close(*a, f64::from(*b))),
            "{sentence}: {vector:?}"
        );
    }
    for vector in &vectors {
        assert!(close(dot(vector, vector), 1.0));
    }
    for (i, row) in fixture["cosines"].as_array().unwrap().iter().enumerate() {
        for (j, cosine) in numbers(row).into_iter().enumerate() {
            assert!(close(cosine, dot(vectors[i], vectors[j])), "{i} {j}");
        }
    }
    // Alone a text has the vector that it has in company.
    let alone = run.call(ModelRequest::Embed { texts: vec![texts[1].clone()] }).await.unwrap();
    let Ok(ModelReply::Vectors { data: alone, .. }) = alone else { panic!("{alone:?}") };
    assert!(alone.iter().zip(vectors[1]).all(|(a, b)| close(f64::from(*a), f64::from(*b))));
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[tokio::test]
async fn hidden_states_are_computed_from_tensors_and_bad_ones_are_refused() {
    let _turn = turn();
    let mut worker = encoder().await;
    let fixture = fixture();
    let hidden = &fixture["hidden"];
    let ids: Vec<i64> = hidden["input_ids"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
    let mut run = worker.serve().await.unwrap();
    let compute = |inputs| ModelRequest::Compute { session: None, inputs };
    let ones = vec![1; ids.len()];
    let zeros = vec![0; ids.len()];
    let whole = vec![row("input_ids", &ids), row("attention_mask", &ones), row("token_type_ids", &zeros)];
    let mut padded_ids = ids.clone();
    padded_ids.extend([0, 0, 0]);
    let mut padded_mask = ones.clone();
    padded_mask.extend([0, 0, 0]);
    let padded = vec![row("input_ids", &padded_ids), row("attention_mask", &padded_mask)];
    for inputs in [whole, vec![row("input_ids", &ids)], padded] {
        let tokens = inputs[0].tensor.dims[1];
        let Ok(ModelReply::Tensors(outputs)) = run.call(compute(inputs)).await.unwrap() else {
            panic!("no tensors")
        };
        let [NamedTensor { name, tensor }] = outputs.as_slice() else { panic!("{outputs:?}") };
        assert_eq!((name.as_str(), tensor.dims.clone()), ("last_hidden_state", vec![1, tokens, 384]));
        let states = tensor.to_f32s().unwrap();
        for (key, at) in [("first_row_first4", 0), ("last_row_first4", (ids.len() - 1) * 384)] {
            let expected = numbers(&hidden[key]);
            assert!(expected.iter().zip(&states[at..]).all(|(a, b)| close(*a, f64::from(*b))), "{key}");
        }
    }
    let lie = Tensor { ty: TensorType::I64, dims: vec![2, 1 << 31], data: vec![0; 16] };
    let flat = Tensor { ty: TensorType::I32, dims: vec![2], data: vec![0; 8] };
    let many = Tensor { ty: TensorType::I32, dims: vec![400, 512], data: vec![0; 400 * 512 * 4] };
    let none = Tensor { ty: TensorType::I32, dims: vec![0, 3], data: vec![] };
    let named = |tensor| NamedTensor { name: "input_ids".into(), tensor };
    for (inputs, fits) in [
        (vec![named(lie)], "bytes"),
        (vec![named(flat)], "shape"),
        (vec![named(none)], "at least one row"),
        (vec![named(many)], "would not fit"),
        (vec![row("input_ids", &[0; 513])], "512"),
        (vec![row("input_ids", &[30_522])], "30521"),
        (vec![row("input_ids", &[-1])], "30521"),
        (vec![row("input_ids", &[1, 2]), row("attention_mask", &[1])], "shape"),
        (vec![row("input_ids", &[1]), row("attention_mask", &[2])], "from 0 to 1"),
        (vec![row("input_ids", &[1]), row("token_type_ids", &[2])], "from 0 to 1"),
        (vec![row("input_ids", &[1]), row("pixels", &[2])], "pixels"),
        (vec![row("attention_mask", &[1])], "missing"),
    ] {
        match run.call(compute(inputs)).await.unwrap() {
            Err(ModelCallError::InvalidInput { what }) => assert!(what.contains(fits), "{what}"),
            other => panic!("{fits}: {other:?}"),
        }
    }
    let session = run.call(ModelRequest::OpenSession { temperature_milli: 0, top_p_milli: 1, seed: 0 }).await;
    assert!(matches!(session.unwrap(), Err(ModelCallError::NotSupported { .. })));
    let step = run.call(ModelRequest::Step { session: 1, tokens: 1 }).await.unwrap();
    assert!(matches!(step, Err(ModelCallError::NotSupported { .. })));
    run.end().await.unwrap();

    // A declarative job is refused by name, and the worker goes on.
    let refused = answer(&mut worker, &job("Hello", 4, 0, 0)).await;
    assert!(matches!(refused, Err(RunError::Job(GenerateError::NotSupported { .. }))), "{refused:?}");
    let mut run = worker.serve().await.unwrap();
    let vectors = run.call(ModelRequest::Embed { texts: vec![String::new(), "a".into()] }).await.unwrap();
    assert!(matches!(vectors, Ok(ModelReply::Vectors { rows: 2, .. })), "{vectors:?}");
}

#[tokio::test]
async fn a_long_call_shows_life_and_obeys_a_cancel() {
    let _turn = turn();
    let mut short = spec(encoder::encoder());
    short.limits.silence_timeout = Duration::from_secs(3);
    let mut worker = Worker::start(short, |_, _| {}).await.unwrap();
    let texts = vec!["many words are here ".repeat(100); 256];
    let mut run = worker.serve().await.unwrap();
    let call = run.call(ModelRequest::Embed { texts });
    // Longer than its silence may be: only its signs of life keep it going.
    let cut = tokio::time::timeout(Duration::from_secs(5), call).await;
    assert!(!matches!(cut, Ok(Err(_))), "{cut:?}");
    drop(run);
    let run = worker.serve().await.unwrap();
    run.end().await.unwrap();
}
