//! Hostile model files, through the real worker process.
//!
//! Owns: the promise that whoever makes a model file can make a worker refuse it, and nothing else:
//! each lie is a typed error within a bound, and the worker has ended cleanly or takes the next job.
//! Never: replaces the process or the parsers. Small whole models are made here, so that each file has
//! one thing wrong with it.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]
#![allow(
    clippy::await_holding_lock,
    reason = "one worker at a time has the cores; each test has its own thread"
)]

#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/worker.rs"]
mod worker;

use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::{GenerateError, LoadError, TemplateError};
use potluck_sandbox::supervisor::{RunError, StartError, Worker};
use potluck_sandbox::tensor::{ModelCallError, ModelReply, ModelRequest};
use tiny::{TinyEncoder, TinyLlm, file};
use worker::{spec, turn};

/// Nothing that a file says may keep a worker busy for longer.
const BOUND: Duration = Duration::from_secs(20);

async fn start(model: Vec<u8>) -> Result<Worker, StartError> {
    let begun = Instant::now();
    let started = Worker::start(spec(file(&model)), |_, _| {}).await;
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    started
}

/// How a worker takes a model that it cannot serve.
async fn refusal(what: &str, model: Vec<u8>) -> LoadError {
    match start(model).await {
        Err(StartError::Load(error)) => error,
        other => panic!("{what}: {other:?}"),
    }
}

fn job(text: &str) -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([0; 32]),
        messages: vec![ChatMessage { role: Role::User, content: text.to_owned() }],
        sampling: Sampling { max_tokens: 4, temperature_milli: 0, top_p_milli: 1_000, seed: 0 },
    }
}

/// Runs a job to its end; its error.
async fn run(worker: &mut Worker, text: &str) -> Result<(), RunError> {
    let begun = Instant::now();
    let mut run = worker.generate(&job(text)).await?;
    while run.next().await?.is_some() {}
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    Ok(())
}

async fn embed(worker: &mut Worker, texts: Vec<String>) -> Result<ModelReply, ModelCallError> {
    let begun = Instant::now();
    let mut run = worker.serve().await.unwrap();
    let result = run.call(ModelRequest::Embed { texts }).await.unwrap();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    run.end().await.unwrap();
    result
}

#[tokio::test]
async fn the_small_models_are_whole_before_anything_is_broken() {
    let _turn = turn();
    let mut worker = start(TinyLlm::default().bytes()).await.unwrap();
    run(&mut worker, "ab").await.unwrap();
    let mut worker = start(TinyEncoder::default().bytes()).await.unwrap();
    let vectors = embed(&mut worker, vec!["ab a".into(), String::new()]).await;
    assert!(matches!(vectors, Ok(ModelReply::Vectors { dim: 8, rows: 2, .. })), "{vectors:?}");
}

#[tokio::test]
async fn lying_gguf_files_are_refused() {
    let _turn = turn();
    let whole = TinyLlm::default().bytes();
    for (what, change) in [
        ("huge tensor count", (8, u64::MAX)),
        ("huge entry count", (16, u64::MAX)),
        ("one tensor more", (8, TinyLlm::TENSORS + 1)),
        ("one entry more", (16, TinyLlm::default().entries() + 1)),
        ("one tensor less", (8, TinyLlm::TENSORS - 1)),
    ] {
        let mut bytes = whole.clone();
        bytes[change.0..change.0 + 8].copy_from_slice(&change.1.to_le_bytes());
        let error = refusal(what, bytes).await;
        let fits = matches!(
            error,
            LoadError::TooLarge { .. }
                | LoadError::Corrupt { .. }
                | LoadError::Truncated { .. }
                | LoadError::UnsupportedQuantization { .. }
        );
        assert!(fits, "{what}: {error}");
    }
    // Every tensor in the place of the first one, past the end, and between two places.
    for (what, offset) in [("overlap", 0), ("out of range", 1 << 40), ("wraps around", u64::MAX - 31)] {
        let model = TinyLlm { offset: Some(offset), ..TinyLlm::default() };
        let error = refusal(what, model.bytes()).await;
        assert!(matches!(error, LoadError::Corrupt { .. } | LoadError::Truncated { .. }), "{what}: {error}");
    }
    let unaligned = TinyLlm { offset: Some(3), ..TinyLlm::default() };
    assert!(matches!(refusal("unaligned", unaligned.bytes()).await, LoadError::Corrupt { .. }));
    for keep in [whole.len() - 1, whole.len() / 2, 40] {
        let error = refusal("cut", whole[..keep].to_vec()).await;
        assert!(matches!(error, LoadError::Truncated { .. }), "{keep}: {error}");
    }
    for bytes in [&b""[..], b"GGU", b"PK\x03\x04 and so on", &[0; 64]] {
        assert_eq!(refusal("no model", bytes.to_vec()).await, LoadError::UnknownFormat);
    }
}

#[tokio::test]
async fn corrupt_numbers_fail_the_job_and_not_the_worker() {
    let _turn = turn();
    for number in [f32::NAN, f32::INFINITY, f32::MAX] {
        let model = TinyLlm { fill: Some(number), ..TinyLlm::default() };
        let mut worker = match start(model.bytes()).await {
            Ok(worker) => worker,
            Err(StartError::Load(LoadError::Engine { .. })) => continue,
            Err(other) => panic!("{number}: {other}"),
        };
        for _ in 0..2 {
            let failed = run(&mut worker, "ab").await;
            assert!(
                matches!(failed, Err(RunError::Job(GenerateError::NoToken { .. }))),
                "{number}: {failed:?}"
            );
        }
        assert!(worker.is_alive());
    }
}

#[tokio::test]
async fn hostile_chat_templates_run_out_of_fuel() {
    let _turn = turn();
    let double = format!("{{% set x = 'a' %}}{}{{{{ x }}}}", "{% set x = x ~ x %}".repeat(60));
    for (what, template) in [
        (
            "endless",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        ),
        ("recursion", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        ("output", "{% for a in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}".to_owned()),
        ("memory", double),
        ("list", "{% set l = [1] * 100000000000 %}{{ l }}".to_owned()),
        ("format", "{{ '%0999999999d' | format(1) }}".to_owned()),
        ("method", "{{ 'x'.zfill(99999999999) }}{{ 'x'.ljust(99999999999) }}".to_owned()),
        ("include", "{% include '/etc/passwd' %}".to_owned()),
        ("raised", "{{ raise_exception('no') }}".to_owned()),
    ] {
        let mut worker = start(TinyLlm { template: Some(template), ..TinyLlm::default() }.bytes())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        for _ in 0..2 {
            let failed = run(&mut worker, &"x".repeat(4_096)).await;
            let Err(RunError::Job(GenerateError::Template(error))) = failed else {
                panic!("{what}: {failed:?}");
            };
            let said = matches!(error, TemplateError::Refused { .. });
            assert_eq!(said, what == "raised", "{what}: {error}");
        }
        let rss = worker.rss_bytes().unwrap();
        assert!(rss < 400 << 20, "{what}: {rss} bytes are kept");
    }
    for template in
        ["{% for %}".to_owned(), "(".repeat(200_000) + "{{ (", "{{ (".to_owned() + &"(".repeat(200_000)]
    {
        let model = TinyLlm { template: Some(template.clone()), ..TinyLlm::default() };
        match start(model.bytes()).await {
            Err(StartError::Load(LoadError::Corrupt { .. })) => {}
            other => panic!("{}: {other:?}", &template[..9]),
        }
    }
}

#[tokio::test]
async fn lying_safetensors_files_are_refused() {
    let _turn = turn();
    let whole = TinyEncoder::default().bytes();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for len in [0, 1, header - 1, header + 1, header + 8, 1 << 30, u64::MAX] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        let error = refusal("length", bytes).await;
        let fits = matches!(
            error,
            LoadError::Corrupt { .. } | LoadError::Truncated { .. } | LoadError::TooLarge { .. }
        );
        assert!(fits, "{len}: {error}");
    }
    for keep in [9, 100, whole.len() - 1] {
        let error = refusal("cut", whole[..keep].to_vec()).await;
        assert!(matches!(error, LoadError::Truncated { .. }), "{keep}: {error}");
    }
    let name = "encoder.layer.0.output.dense.weight";
    for (what, change) in [
        ("dtype", (r#""dtype":"F32","shape":[8,16]"#, r#""dtype":"F64","shape":[8,16]"#)),
        ("half", (r#""dtype":"F32","shape":[8,16]"#, r#""dtype":"BF16","shape":[8,16]"#)),
        ("shape", (r#""shape":[8,16]"#, r#""shape":[16,8]"#)),
        ("rank", (r#""shape":[8,16]"#, r#""shape":[8,16,1]"#)),
        ("wraps", (r#""shape":[8,16]"#, r#""shape":[4611686018427387904,128]"#)),
        ("name", (name, "encoder.layer.9.output.dense.weight")),
        ("negative", (r#""shape":[8,16]"#, r#""shape":[8,-16]"#)),
        ("not JSON", (r#""shape":[8,16]"#, r#""shape":[8,16"#)),
        ("twice", ("encoder.layer.0.output.dense.bias", "encoder.layer.0.intermediate.dense.bias")),
    ] {
        let error = refusal(what, TinyEncoder::default().header_with(change.0, change.1)).await;
        let fits = matches!(
            error,
            LoadError::Corrupt { .. }
                | LoadError::UnsupportedArchitecture { .. }
                | LoadError::Truncated { .. }
        );
        assert!(fits, "{what}: {error}");
    }
    // Each tensor in the place of the first, past the end, and with a gap before it.
    for (what, shift) in [("overlap", -4), ("gap", 4), ("out of range", 1 << 40)] {
        let error = refusal(what, TinyEncoder { shift, ..TinyEncoder::default() }.bytes()).await;
        assert!(matches!(error, LoadError::Corrupt { .. } | LoadError::Truncated { .. }), "{what}: {error}");
    }
    for number in [f32::NAN, f32::NEG_INFINITY] {
        let error =
            refusal("number", TinyEncoder { fill: Some(number), ..TinyEncoder::default() }.bytes()).await;
        assert!(matches!(error, LoadError::Corrupt { .. }), "{number}: {error}");
    }
}

#[tokio::test]
async fn numbers_that_overflow_are_refused_or_fail_the_call() {
    let _turn = turn();
    let model = TinyEncoder { fill: Some(f32::MAX), ..TinyEncoder::default() };
    let error = refusal("overflow", model.bytes()).await;
    assert!(matches!(error, LoadError::Engine { .. }), "{error}");
}

#[tokio::test]
async fn lying_configurations_are_refused() {
    let _turn = turn();
    for (from, to) in [
        (r#""vocab_size":7"#, r#""vocab_size":18446744073709551615"#),
        (r#""vocab_size":7"#, r#""vocab_size":1000000"#),
        (r#""vocab_size":7"#, r#""vocab_size":6"#),
        (r#""hidden_size":8"#, r#""hidden_size":0"#),
        (r#""hidden_size":8"#, r#""hidden_size":1099511627776"#),
        (r#""hidden_size":8"#, r#""hidden_size":16"#),
        (r#""num_hidden_layers":1"#, r#""num_hidden_layers":4294967296"#),
        (r#""num_hidden_layers":1"#, r#""num_hidden_layers":2"#),
        (r#""num_attention_heads":2"#, r#""num_attention_heads":0"#),
        (r#""num_attention_heads":2"#, r#""num_attention_heads":3"#),
        (r#""intermediate_size":16"#, r#""intermediate_size":-1"#),
        (r#""max_position_embeddings":16"#, r#""max_position_embeddings":1e99"#),
        (r#""type_vocab_size":2"#, r#""type_vocab_size":0"#),
        (r#""layer_norm_eps":1e-12"#, r#""layer_norm_eps":-1.0"#),
        (r#""layer_norm_eps":1e-12"#, r#""layer_norm_eps":1e999"#),
        (r#""model_type":"bert""#, r#""model_type":"roberta""#),
        (r#""hidden_act":"gelu""#, r#""hidden_act":"__import__""#),
        (r#""hidden_act":"gelu","#, ""),
        (r#""model_type":"bert""#, r#""model_type":"bert","is_decoder":true"#),
    ] {
        let error = refusal(to, TinyEncoder::default().config_with(from, to)).await;
        let fits = matches!(
            error,
            LoadError::Corrupt { .. }
                | LoadError::TooLarge { .. }
                | LoadError::Truncated { .. }
                | LoadError::UnsupportedArchitecture { .. }
        );
        assert!(fits, "{to}: {error}");
    }
    let deep = TinyEncoder { config: "[".repeat(1 << 20), ..TinyEncoder::default() };
    assert!(matches!(refusal("deep", deep.bytes()).await, LoadError::Corrupt { .. }));
    for length in ["0", "2", "17", "-1", "9999999999"] {
        let config = format!(r#"{{"max_seq_length":{length}}}"#);
        let error =
            refusal(length, TinyEncoder { sentence: Some(config), ..TinyEncoder::default() }.bytes()).await;
        assert!(matches!(error, LoadError::Corrupt { .. }), "{length}: {error}");
    }
}

#[tokio::test]
async fn hostile_tokenizers_are_refused() {
    let _turn = turn();
    let tokenizer = TinyEncoder::default().tokenizer;
    let changed = |from: &str, to: &str| {
        assert!(tokenizer.contains(from), "{from}");
        TinyEncoder { tokenizer: tokenizer.replace(from, to), ..TinyEncoder::default() }.bytes()
    };
    let regex = r#"{"type":"Split","pattern":{"Regex":"(a|a)*$"},"behavior":"Removed","invert":false}"#;
    for (what, from, to) in [
        ("catastrophic pattern", r#"{"type":"BertPreTokenizer"}"#, regex),
        ("bad pattern", r#"{"type":"BertPreTokenizer"}"#, &regex.replace("(a|a)*$", "((((")),
        ("precompiled table", "BertNormalizer", "Precompiled"),
        ("another family", "WordPiece", "Unigram"),
    ] {
        let error = refusal(what, changed(from, to)).await;
        assert!(matches!(error, LoadError::UnsupportedTokenizer { .. }), "{what}: {error}");
    }
    let many: String = (0..200_000).map(|n| format!("\"t{n}\":{n},")).collect();
    for (what, from, to) in [
        ("no model", "\"model\"", "\"x\""),
        ("no unknown token", "\"[UNK]\":3", "\"[X]\":3"),
        ("id past the vocabulary", "\"a\":4", "\"a\":700"),
        ("giant vocabulary", "\"a\":4", &(many + "\"a\":4")),
        ("deep", "\"a\":4", &format!("\"a\":{}", "[".repeat(1 << 20))),
        ("not text", "\"a\":4", "4:4"),
    ] {
        let error = refusal(what, changed(from, to)).await;
        assert!(matches!(error, LoadError::Corrupt { .. }), "{what}: {error}");
    }
    let slow = changed("\"max_input_chars_per_word\":100", "\"max_input_chars_per_word\":1000000");
    assert!(matches!(refusal("slow words", slow).await, LoadError::TooLarge { .. }));
    let absent = TinyEncoder { tokenizer: String::new(), ..TinyEncoder::default() };
    assert!(matches!(refusal("absent", absent.bytes()).await, LoadError::Corrupt { .. }));
}

#[tokio::test]
async fn the_longest_texts_are_cut_and_stay_within_the_bound() {
    let _turn = turn();
    let mut worker = start(TinyEncoder::default().bytes()).await.unwrap();
    let longest = 64 << 10;
    let texts = ["a", "ab ", "\u{301}", "東", "[SEP]", " ", "#"]
        .map(|part| part.repeat(longest / part.len()))
        .to_vec();
    let vectors = embed(&mut worker, texts).await;
    assert!(matches!(vectors, Ok(ModelReply::Vectors { rows: 7, .. })), "{vectors:?}");
    let many = embed(&mut worker, vec!["a".repeat(longest); 256]).await;
    let words = embed(&mut worker, vec!["a b ".repeat(longest / 4); 8]).await;
    assert!(matches!(many, Ok(ModelReply::Vectors { rows: 256, .. })), "{many:?}");
    assert!(matches!(words, Ok(ModelReply::Vectors { rows: 8, .. })), "{words:?}");
}
