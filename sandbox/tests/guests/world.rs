//! What a component finds outside of itself: models, and otherwise nothing.
//!
//! Owns: that the job's models answer through both doors, that a lie about a tensor goes nowhere, and
//! that there is no file, socket, name or variable to be had. Never: plays a model: small ones run in
//! the real worker. Run by the guest tests.

use potluck_sandbox::guest::supervisor::GuestStep;
use potluck_sandbox::supervisor::Worker;
use potluck_sandbox::tensor::ModelRequest;

use crate::kit::{self, EMBED, EMPTY_WORLD, LLM, NN, NN_TOKENS, SOCKETS};
use crate::kit::{begin, edited, finish_with, follow, limits, run, start, wasm, within};
use crate::tiny::{self, TinyEncoder, TinyLlm};
use crate::worker::{self, turn};

/// The width of the small encoder.
const WIDTH: usize = 8;

async fn model(bytes: &[u8]) -> Worker {
    within(Worker::start(worker::spec(tiny::file(bytes)), |_, _| {})).await.unwrap()
}

/// Runs the component of `text` with the model `name`, which `model` is.
async fn with_model(text: &str, input: &[u8], name: &str, model: &mut Worker) -> kit::Ended {
    let mut guest = start(&wasm(text), limits()).await.unwrap();
    let mut calls = within(model.serve()).await.unwrap();
    guest.run(begin(input, &[name], [0; 32])).unwrap();
    let ended = follow(&mut guest, Some(&mut calls)).await.unwrap();
    within(calls.end()).await.unwrap();
    ended
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn tokens(ids: &[i64]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

#[tokio::test]
async fn an_encoder_answers_through_both_doors() {
    let _turn = turn();
    let mut encoder = model(&TinyEncoder::default().bytes()).await;
    let ended = with_model(EMBED, b"a", "encoder", &mut encoder).await;
    let vector = floats(&ended.output.unwrap());
    let length = vector.iter().map(|x| x * x).sum::<f32>();
    assert!(vector.len() == WIDTH && (length - 1.0).abs() < 1e-4, "{vector:?}");
    let ended = with_model(NN, &tokens(&[1, 4, 2]), "encoder", &mut encoder).await;
    let states = floats(&ended.output.unwrap());
    assert_eq!(states.len(), 3 * WIDTH);
    // The vector is the mean of the states, made one long.
    let mean: Vec<f32> =
        (0..WIDTH).map(|at| (0..3).map(|row| states[row * WIDTH + at]).sum::<f32>()).collect();
    let long = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    let far = vector.iter().zip(&mean).map(|(a, b)| (a - b / long).abs()).fold(0.0, f32::max);
    assert!(far < 1e-4, "{vector:?} and {mean:?}");
}

#[tokio::test]
async fn a_language_model_answers_through_both_doors() {
    let _turn = turn();
    let mut writer = model(&TinyLlm::default().bytes()).await;
    let first = with_model(LLM, b"hello", "writer", &mut writer).await.output;
    let text = first.clone().unwrap();
    assert!(std::str::from_utf8(&text).is_ok_and(|text| !text.is_empty()), "{first:?}");
    assert_eq!(
        with_model(LLM, b"hello", "writer", &mut writer).await.output,
        first,
        "equal jobs run equally"
    );
    let logits = with_model(NN_TOKENS, &tokens(&[7]), "writer", &mut writer).await.output.unwrap();
    assert_eq!(floats(&logits).len(), 258);
}

#[tokio::test]
async fn a_model_that_the_job_does_not_name_is_not_called() {
    let _turn = turn();
    for models in [&[][..], &["other"]] {
        let mut guest = start(&wasm(EMBED), limits()).await.unwrap();
        let ended = finish_with(&mut guest, b"a", models, [0; 32]).await.unwrap();
        assert_eq!(ended.output, Err("encoder".into()), "the import knows only the job's names");
        let mut guest = start(&wasm(NN), limits()).await.unwrap();
        let ended = finish_with(&mut guest, &tokens(&[1]), models, [0; 32]).await.unwrap();
        assert_eq!(ended.output, Err("no such graph".into()), "wasi:nn knows only the job's names");
    }
}

#[tokio::test]
async fn a_lie_about_a_tensor_never_leaves_the_worker() {
    let _turn = turn();
    let shape = "(i32.store (i32.const 96) (i32.const 1))";
    let one = "(call $tensor (i32.const 96) (i32.const 2) (i32.const 6) (local.get $at) (local.get $bytes))";
    let lies = [
        ("too many rows", edited(NN, shape, "(i32.store (i32.const 96) (i32.const 2))"), "bytes"),
        ("4,294,967,295 rows", edited(NN, shape, "(i32.store (i32.const 96) (i32.const -1))"), "more than"),
        ("no rows", edited(NN, shape, "(i32.store (i32.const 96) (i32.const 0))"), "bytes"),
        ("nine dimensions", edited(NN, one, &one.replace("(i32.const 2)", "(i32.const 9)")), "dim"),
        ("half precision", edited(NN, one, &one.replace("(i32.const 6)", "(i32.const 0)")), "FP16"),
    ];
    for (lie, text, words) in lies {
        let mut guest = start(&wasm(&text), limits()).await.unwrap();
        // A call would be a panic here: there is no model.
        let ended = finish_with(&mut guest, &tokens(&[1, 4, 2]), &["encoder"], [0; 32]).await.unwrap();
        assert_eq!(ended.output, Err("not computed".into()), "{lie}: the worker checks shapes");
        let log = String::from_utf8_lossy(&ended.log);
        assert!(log.contains("wasi:nn") && log.contains(words), "{lie}: {log}");
    }
    // What is no lie is asked, and is the model's to judge.
    let mut guest = start(&wasm(NN), limits()).await.unwrap();
    guest.run(begin(&tokens(&[-1]), &["encoder"], [0; 32])).unwrap();
    let step = within(guest.next()).await.unwrap();
    assert!(
        matches!(&step, GuestStep::Call { call: 1, model: 0, request: ModelRequest::Compute { .. } }),
        "{step:?}"
    );
}

#[tokio::test]
async fn the_world_is_empty() {
    let _turn = turn();
    let ended = run(&wasm(SOCKETS), b"", limits()).await.unwrap();
    // The second bytes: access-denied, access-denied, permanent-resolver-failure.
    let refused = vec![1, 1, 1, 1, 1, 20];
    assert_eq!(ended.output, Ok(refused), "the host makes no socket and knows no name");
    let ended = run(&wasm(EMPTY_WORLD), b"", limits()).await.unwrap();
    assert_eq!(ended.output, Ok(vec![0; 12]), "the host gives no folder, variable or argument");
}
