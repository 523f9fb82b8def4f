//! Golden vectors: the bytes of every signed object, of the job digest, the output chain and the
//! frames, frozen as files that a second implementation can be written against.
//!
//! Owns: `tests/vectors/*.json`. Never: writes there unless `POTLUCK_BLESS=1`. Run by `make test`;
//! fails when any byte differs, and when a file in the folder is not one of those it reads.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use potluck_protocol::balance::{
    Cancel, CancelReason, Countersign, Fold, Folded, PairId, PairState, Raise, Settle,
};
use potluck_protocol::credit::{CreditPolicy, Standing};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId, hex, unhex};
use potluck_protocol::job::{
    ChatMessage, ExecSpec, FinishReason, Job, JobSpec, NamedModel, Role, Sampling, job_digest,
};
use potluck_protocol::offer::{
    GuestNeeds, GuestOffer, Hardware, Offer, OfferedModel, Protection, Quote, Terms,
};
use potluck_protocol::output::{OutputChain, Unit};
use potluck_protocol::pair::PairBook;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::sampler::SeededSampler;
use potluck_protocol::settle::{
    Abandon, Accept, Close, CloseReason, Contract, Meter, Phase, Receipt, Usage, Voucher,
};
use potluck_protocol::sign::{Signable, Signed, SigningKey, Verified, preimage};
use potluck_protocol::statement::Statement;
use potluck_protocol::sync::{Heads, HeadsDigest, LaneHead, StepHead};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};
use potluck_protocol::wire::{
    self, PairRequest, PairResponse, ProviderFrame, QuoteRequest, QuoteResponse, Refusal, RenterFrame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const RENTER_SEED: [u8; 32] = [1; 32];
const PROVIDER_SEED: [u8; 32] = [2; 32];

/// Files that another test reads (`export_vectors.rs`).
const ELSEWHERE: [&str; 1] = ["export.json"];

/// One story's objects, each resting on the ones before it.
struct Story {
    job: Job,
    chain: OutputChain,
    offer: Verified<Offer>,
    quote: Verified<Quote>,
    contract: Verified<Contract>,
    accept: Verified<Accept>,
    meter: Verified<Meter>,
    voucher: Verified<Voucher>,
    receipt: Verified<Receipt>,
    close: Verified<Close>,
}

const TOKENS: [u32; 3] = [504, 6_376, 314];
const OUTPUT_PART: &[u8] = b"a part of a component's output";

fn hardware() -> Hardware {
    Hardware { class: "cuda-8.9-12g".into(), name: "RTX 4070 Ti".into(), memory_mib: 12_282 }
}

fn terms() -> Terms {
    Terms {
        run: Rate::new(38_888),
        load: Rate::new(13_888),
        guest: Rate::new(5_555),
        quantum: GpuMillis::new(1_000),
        window: GpuMillis::new(2_000),
    }
}

fn offer_of(provider: PeerId, model: ContentHash) -> Offer {
    Offer {
        provider,
        epoch: 300,
        wire: 1,
        issued: UnixMillis::new(1_700_000_000_000),
        expires: UnixMillis::new(1_700_000_900_000),
        hardware: hardware(),
        protection: Protection::None,
        models: vec![OfferedModel {
            model,
            name: "smollm2-135m".into(),
            context_tokens: 2_048,
            run: terms().run,
            load: terms().load,
        }],
        guests: Some(GuestOffer {
            runtime: "wasmtime 48.0.8".into(),
            rate: terms().guest,
            memory_mib: 1_024,
        }),
    }
}

fn quote_of(provider: PeerId, renter: PeerId, model: ContentHash) -> Quote {
    Quote {
        provider,
        renter,
        serial: 0x0123_4567_89ab_cdef,
        model,
        guest: None,
        terms: terms(),
        max_ms: GpuMillis::new(3_600_000),
        ahead: 2,
        warm: true,
        hardware: hardware(),
        protection: Protection::Partial,
        expires: UnixMillis::new(1_700_000_060_000),
    }
}

fn story() -> Story {
    let (renter, provider) = (SigningKey::from_seed(RENTER_SEED), SigningKey::from_seed(PROVIDER_SEED));
    let model = ContentHash::of(b"a model");
    let job = Job::Generate(JobSpec {
        model,
        messages: vec![
            ChatMessage { role: Role::System, content: "Be brief.".into() },
            ChatMessage { role: Role::User, content: "Pourquoi le ciel est-il bleu ? 蓝".into() },
        ],
        sampling: Sampling { max_tokens: 64, temperature_milli: 700, top_p_milli: 950, seed: u64::MAX },
    });
    let offer = provider.sign(offer_of(provider.peer(), model)).unwrap();
    let quote = provider.sign(quote_of(provider.peer(), renter.peer(), model)).unwrap();
    let lane =
        LaneId { renter: renter.peer(), provider: provider.peer(), epoch: 0, lane: 0xfedc_ba98_7654_3210 };
    let contract = Contract {
        lane,
        job: job_digest(&job.to_bytes().unwrap()),
        quote: quote.digest(),
        terms: terms(),
        max_total: NanoCredit::new(1_000_000),
        max_ms: GpuMillis::new(600_000),
        created: UnixMillis::new(1_700_000_001_000),
        start_by: UnixMillis::new(1_700_000_031_000),
    };
    let contract = renter.sign(contract).unwrap();
    let accept = Accept { lane, contract: contract.digest(), at: UnixMillis::new(1_700_000_001_020) };
    let accept = provider.sign(accept).unwrap();
    let mut chain = OutputChain::new(contract.digest());
    chain.extend(&TOKENS);
    let usage = Usage { load: GpuMillis::new(250), run: GpuMillis::new(1_284), guest: GpuMillis::new(40) };
    let meter = Meter {
        lane,
        contract: contract.digest(),
        k: 1,
        usage,
        tokens: chain.tokens(),
        commitment: chain.head(),
        last: true,
    };
    let meter = provider.sign(meter).unwrap();
    let voucher = Voucher {
        lane,
        k: 1,
        usage,
        amount: usage.amount(&terms()),
        meter: meter.digest(),
        previous: contract.digest(),
    };
    let voucher = renter.sign(voucher).unwrap();
    let amount = voucher.body().amount;
    let receipt = provider.sign(Receipt { lane, k: 1, amount, voucher: voucher.digest() }).unwrap();
    let close = Close {
        lane,
        by: provider.peer(),
        k: 1,
        amount,
        reason: CloseReason::Completed,
        finish: FinishReason::Stop,
        prompt_tokens: 37,
        completion_tokens: chain.tokens(),
        result: chain.head(),
        at: UnixMillis::new(1_700_000_002_400),
    };
    let close = provider.sign(close).unwrap();
    Story { job, chain, offer, quote, contract, accept, meter, voucher, receipt, close }
}

/// The pair's own objects, after the lane of the story has ended.
struct Account {
    pair: PairId,
    folded: Folded,
    fold: Fold,
    abandon: Verified<Abandon>,
    state: Verified<PairState>,
    countersign: Verified<Countersign>,
    cancel: Verified<Cancel>,
    raise: Verified<Raise>,
    equivocation: Equivocation,
}

fn account(story: &Story) -> Account {
    let (renter, provider) = (SigningKey::from_seed(RENTER_SEED), SigningKey::from_seed(PROVIDER_SEED));
    let pair = PairId::of(renter.peer(), provider.peer()).unwrap();
    let voucher = story.voucher.body();
    let folded = Folded { lane: voucher.lane, k: 1, amount: voucher.amount, voucher: story.voucher.digest() };
    let mut fold = Fold::new(pair, UnixMillis::new(1_700_000_002_000));
    fold.add(&folded).unwrap();
    let abandon = Abandon {
        lane: voucher.lane,
        by: renter.peer(),
        k: 1,
        amount: voucher.amount,
        voucher: story.voucher.digest(),
    };
    // The renter owes the lane and pays 100,000 of it outside.
    let paid = NanoCredit::new(100_000);
    let state = PairState {
        pair,
        by: renter.peer(),
        epoch: 0,
        n: 1,
        balance: fold.delta() - pair.debt_of(renter.peer(), paid).unwrap(),
        floor: fold.floor(),
        lanes: fold.lanes(),
        folded: fold.count(),
        settle: Some(Settle {
            payer: renter.peer(), amount: paid, reference: "invoice 2026-07 · 蓝".into()
        }),
        previous: pair.genesis(),
    };
    let state = renter.sign(state).unwrap();
    let (by, proposal) = (provider.peer(), state.digest());
    let countersign = provider.sign(Countersign { pair, by, epoch: 0, n: 1, state: proposal }).unwrap();
    let cancel = Cancel { pair, by, epoch: 0, n: 1, proposal, reason: CancelReason::NotPaid };
    let cancel = provider.sign(cancel).unwrap();
    let mut less = voucher.clone();
    less.amount = NanoCredit::new(less.amount.get() - 1);
    let less = renter.sign(less).unwrap().into_signed();
    Account {
        pair,
        folded,
        fold,
        abandon: renter.sign(abandon).unwrap(),
        state,
        countersign,
        cancel,
        raise: renter.sign(Raise { pair, by: renter.peer(), epoch: 1 }).unwrap(),
        equivocation: Equivocation::of(story.voucher.signed().clone().into(), less.into()).unwrap().0,
    }
}

fn lane_head(story: &Story) -> LaneHead {
    let mut head = LaneHead::nothing(story.contract.body().lane);
    for statement in [
        Statement::from(story.contract.signed().clone()),
        story.accept.signed().clone().into(),
        story.meter.signed().clone().into(),
        story.voucher.signed().clone().into(),
        story.receipt.signed().clone().into(),
        story.close.signed().clone().into(),
    ] {
        head.hold(&statement, &statement.verify().unwrap());
    }
    head
}

fn step_head(account: &Account) -> StepHead {
    let mut book = PairBook::new(account.pair.low(), account.pair.high()).unwrap();
    book.note_state(&account.state);
    book.note_agreed(&account.state, &account.countersign);
    StepHead::of(&book)
}

fn digests_vector(story: &Story, account: &Account) -> Value {
    let (step, head) = (step_head(account), lane_head(story));
    let mut digest = HeadsDigest::new(&step).unwrap();
    let before = digest.get();
    digest.add(&head).unwrap();
    json!({
        "pair": account.pair,
        "genesis": account.pair.genesis().to_string(),
        "lanes": {
            "domain": "potluck/v1/lanes",
            "folded": [account.folded],
            "folded_bytes": [hex(&wire::encode(&account.folded).unwrap())],
            "empty": Fold::new(account.pair, UnixMillis::ZERO).lanes().to_string(),
            "digest": account.fold.lanes().to_string(),
            "delta": i64::try_from(account.fold.delta()).unwrap(),
        },
        "heads": {
            "domain": "potluck/v1/heads",
            "step": step,
            "step_bytes": hex(&wire::encode(&step).unwrap()),
            "lane": head,
            "lane_bytes": hex(&wire::encode(&head).unwrap()),
            "digests": [before.to_string(), digest.get().to_string()],
        },
    })
}

fn equivocation_vector(account: &Account) -> Value {
    let proof = &account.equivocation;
    json!({
        "domain": "potluck/v1/equivocation",
        "proof": proof,
        "bytes": hex(&wire::encode(proof).unwrap()),
        "digest": proof.digest().unwrap().to_string(),
        "signer": proof.verify().unwrap().signer,
        "slot": proof.verify().unwrap().slot.to_string(),
    })
}

fn pair_requests(story: &Story, account: &Account) -> Value {
    let heads = Heads { step: step_head(account), after: None, lanes: vec![lane_head(story)], whole: true };
    let push = vec![
        Statement::from(account.state.signed().clone()),
        account.cancel.signed().clone().into(),
        account.raise.signed().clone().into(),
        account.abandon.signed().clone().into(),
    ];
    json!([
        frame_vector("same", &PairRequest::Same { heads: Digest::from_bytes([7; 32]) }),
        frame_vector("heads", &PairRequest::Heads(Box::new(heads))),
        frame_vector("steps", &PairRequest::Steps),
        frame_vector("fetch", &PairRequest::Fetch(vec![LaneHead::nothing(story.contract.body().lane)])),
        frame_vector("push", &PairRequest::Push(push)),
        frame_vector("proof", &PairRequest::Proof(Box::new(account.equivocation.clone()))),
    ])
}

fn pair_responses(story: &Story, account: &Account) -> Value {
    let heads = Heads {
        step: step_head(account),
        after: Some(story.contract.body().lane),
        lanes: Vec::new(),
        whole: true,
    };
    let statements: Vec<Statement> = vec![
        story.quote.signed().clone().into(),
        story.contract.signed().clone().into(),
        story.accept.signed().clone().into(),
        story.meter.signed().clone().into(),
        story.voucher.signed().clone().into(),
        story.receipt.signed().clone().into(),
        story.close.signed().clone().into(),
        account.countersign.signed().clone().into(),
    ];
    let refusal = Refusal::new(RefusalCode::LedgerFailed, "the ledger cannot be read");
    json!([
        frame_vector("same", &PairResponse::Same { heads: Digest::from_bytes([7; 32]) }),
        frame_vector("heads", &PairResponse::Heads(Box::new(heads))),
        frame_vector("statements", &PairResponse::Statements { statements, more: true }),
        frame_vector("noted", &PairResponse::Noted),
        frame_vector("refused", &PairResponse::Refused(refusal)),
    ])
}

fn credit_vector() -> Value {
    let policy = CreditPolicy::of_rate(terms().run);
    let case = |balance: i64, open_caps, settled, audited, frozen| {
        let standing = Standing {
            balance: i128::from(balance),
            open_caps: NanoCredit::new(open_caps),
            settled: NanoCredit::new(settled),
            audited: NanoCredit::new(audited),
            frozen,
        };
        let exposure = u64::try_from(standing.exposure()).unwrap();
        json!({ "standing": standing, "limit": policy.limit(&standing), "exposure": exposure })
    };
    json!({
        "policy": policy,
        "cases": [
            case(0, 0, 0, 0, false),
            case(7_000_000, 500_000, 10_000_000, 1_000_003, false),
            case(-5_000, 3_000, 0, 0, false),
            case(1, 0, u64::MAX, u64::MAX, false),
            case(-5_000, 0, 10_000_000, 0, true),
        ],
    })
}

fn signed_vector<T: Signable>(object: &Verified<T>, seed: [u8; 32]) -> Value {
    let body = object.body();
    json!({
        "key_seed": hex(&seed),
        "signer": body.signer().to_string(),
        "domain": T::DOMAIN,
        "body": body,
        "body_bytes": hex(&wire::encode(body).unwrap()),
        "preimage": hex(&preimage(body).unwrap()),
        "digest": object.digest().to_string(),
        "signature": hex(object.signed().signature.as_bytes()),
        "signed_bytes": hex(&wire::encode(object.signed()).unwrap()),
    })
}

fn frame_vector<T: Serialize>(name: &str, frame: &T) -> Value {
    json!({ "name": name, "frame": frame, "bytes": hex(&wire::encode(frame).unwrap()) })
}

fn renter_frames(story: &Story) -> Value {
    let open = RenterFrame::Open {
        contract: Box::new(story.contract.signed().clone()),
        quote: Box::new(story.quote.signed().clone()),
        job_bytes: u32::try_from(story.job.to_bytes().unwrap().len()).unwrap(),
    };
    json!([
        frame_vector("open", &open),
        frame_vector("job_part", &RenterFrame::JobPart(vec![0, 1, 127, 128, 255])),
        frame_vector("voucher", &RenterFrame::Voucher(Box::new(story.voucher.signed().clone()))),
        frame_vector("cancel", &RenterFrame::Cancel),
    ])
}

fn provider_frames(story: &Story) -> Value {
    let refusal = Refusal::new(RefusalCode::Busy, "the queue is full");
    let close = |refusal| ProviderFrame::Close { close: Box::new(story.close.signed().clone()), refusal };
    json!([
        frame_vector("accept", &ProviderFrame::Accept(Box::new(story.accept.signed().clone()))),
        frame_vector("refuse", &ProviderFrame::Refuse(refusal.clone())),
        frame_vector("phase", &ProviderFrame::Phase { phase: Phase::Stalled, ahead: 300 }),
        frame_vector("started", &ProviderFrame::Started { prompt_tokens: 37 }),
        frame_vector("output", &ProviderFrame::Output { tokens: TOKENS.to_vec(), text: "bleu 蓝".into() }),
        frame_vector("meter", &ProviderFrame::Meter(Box::new(story.meter.signed().clone()))),
        frame_vector("receipt", &ProviderFrame::Receipt(Box::new(story.receipt.signed().clone()))),
        frame_vector("close", &close(None)),
        frame_vector("close_refused", &close(Some(refusal))),
        frame_vector("want", &ProviderFrame::Want { component: true }),
        frame_vector("progress", &ProviderFrame::Progress { permille: 500, note: "half".into() }),
        frame_vector("log", &ProviderFrame::Log(b"a line\n".to_vec())),
        frame_vector("output_part", &ProviderFrame::OutputPart(vec![0, 127, 128, 255])),
    ])
}

fn quote_requests(story: &Story) -> Value {
    json!([
        frame_vector("offer", &QuoteRequest::Offer),
        frame_vector("quote", &QuoteRequest::Quote { model: story.job.runs() }),
        frame_vector("exec", &exec_request()),
    ])
}

fn quote_responses(story: &Story) -> Value {
    let refused = QuoteResponse::Refused(Refusal::new(RefusalCode::UnknownModel, "no such model here"));
    json!([
        frame_vector("offer", &QuoteResponse::Offer(Box::new(story.offer.signed().clone()))),
        frame_vector(
            "quote",
            &QuoteResponse::Quote {
                quote: Box::new(story.quote.signed().clone()),
                credit: NanoCredit::new(2_333_280),
            },
        ),
        frame_vector("refused", &refused),
    ])
}

fn exec_spec() -> ExecSpec {
    ExecSpec {
        component: ContentHash::of(b"a component"),
        component_bytes: 18_000_000,
        input: ContentHash::of(b"an input"),
        input_bytes: 8,
        models: vec![NamedModel { name: "chat".into(), model: ContentHash::of(b"a model") }],
        memory_mib: 512,
        seed: 7,
    }
}

fn exec_request() -> QuoteRequest {
    let spec = exec_spec();
    let needs: GuestNeeds = spec.needs();
    QuoteRequest::Exec { component: spec.component, needs }
}

fn job_vector(job: &Job) -> Value {
    let bytes = job.to_bytes().unwrap();
    json!({
        "job": job,
        "bytes": hex(&bytes),
        "domain": "potluck/v1/job",
        "digest": job_digest(&bytes).to_string(),
    })
}

fn chain_vector(story: &Story) -> Value {
    let heads: Vec<String> = (0..=TOKENS.len())
        .map(|count| {
            let mut chain = OutputChain::new(story.contract.digest());
            chain.extend(&TOKENS[..count]);
            chain.head().to_string()
        })
        .collect();
    assert_eq!(heads.last(), Some(&story.chain.head().to_string()));
    let mut after_part = story.chain.clone();
    after_part.extend_units(&[Unit::part(OUTPUT_PART)]);
    json!({
        "domain": "potluck/v1/output",
        "contract": story.contract.digest().to_string(),
        "tokens": TOKENS,
        "heads": heads,
        "then_part": hex(OUTPUT_PART),
        "part_domain": "potluck/v1/output-part",
        "head_after_part": after_part.head().to_string(),
    })
}

/// Logits whose every value is exact in f32, with ties, and more of them than take part in a draw.
fn logits() -> Vec<f32> {
    (0..200u16).map(|id| f32::from((id * 37) % 64) * 0.125).collect()
}

fn sampler_vector() -> Value {
    let case = |temperature_milli, top_p_milli, seed| {
        let sampling = Sampling { max_tokens: 1, temperature_milli, top_p_milli, seed };
        let mut sampler = SeededSampler::new(&sampling);
        let tokens: Vec<u32> = (0..24).map(|position| sampler.pick(&logits(), position).unwrap()).collect();
        json!({ "sampling": sampling, "tokens_by_position": tokens })
    };
    json!({
        "logits": logits(),
        "cases": [case(0, 1_000, 7), case(700, 950, 7), case(700, 950, 8), case(2_000, 1_000, u64::MAX), case(1_000, 100, 0)],
    })
}

/// What each file in the folder must hold.
fn vectors() -> BTreeMap<&'static str, Value> {
    let story = story();
    let account = account(&story);
    BTreeMap::from([
        ("offer.json", signed_vector(&story.offer, PROVIDER_SEED)),
        ("quote.json", signed_vector(&story.quote, PROVIDER_SEED)),
        ("contract.json", signed_vector(&story.contract, RENTER_SEED)),
        ("accept.json", signed_vector(&story.accept, PROVIDER_SEED)),
        ("meter.json", signed_vector(&story.meter, PROVIDER_SEED)),
        ("voucher.json", signed_vector(&story.voucher, RENTER_SEED)),
        ("receipt.json", signed_vector(&story.receipt, PROVIDER_SEED)),
        ("close.json", signed_vector(&story.close, PROVIDER_SEED)),
        ("abandon.json", signed_vector(&account.abandon, RENTER_SEED)),
        ("pair_state.json", signed_vector(&account.state, RENTER_SEED)),
        ("countersign.json", signed_vector(&account.countersign, PROVIDER_SEED)),
        ("cancel.json", signed_vector(&account.cancel, PROVIDER_SEED)),
        ("raise.json", signed_vector(&account.raise, RENTER_SEED)),
        ("equivocation.json", equivocation_vector(&account)),
        ("pair_digests.json", digests_vector(&story, &account)),
        ("credit.json", credit_vector()),
        ("frames_pair_requests.json", pair_requests(&story, &account)),
        ("frames_pair_responses.json", pair_responses(&story, &account)),
        ("job.json", job_vector(&story.job)),
        ("job_exec.json", job_vector(&Job::Exec(exec_spec()))),
        ("output_chain.json", chain_vector(&story)),
        ("sampler.json", sampler_vector()),
        ("frames_quote_requests.json", quote_requests(&story)),
        ("frames_quote_responses.json", quote_responses(&story)),
        ("frames_renter.json", renter_frames(&story)),
        ("frames_provider.json", provider_frames(&story)),
    ])
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn read(name: &str) -> Value {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bytes_at(vector: &Value, key: &str) -> Vec<u8> {
    unhex(vector[key].as_str().unwrap_or_else(|| panic!("{key} is missing"))).unwrap()
}

#[test]
fn every_vector_is_what_this_build_computes_and_none_is_left_unread() {
    let expected = vectors();
    if std::env::var_os("POTLUCK_BLESS").is_some_and(|value| value == "1") {
        fs::create_dir_all(folder()).unwrap();
        for (name, value) in &expected {
            let text = serde_json::to_string_pretty(value).unwrap();
            fs::write(folder().join(name), text + "\n").unwrap();
        }
    }
    for (name, value) in &expected {
        let frozen = read(name);
        assert_eq!(&frozen, value, "{name} differs; is the change of the wire meant? (POTLUCK_BLESS=1)");
    }
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let read = expected.contains_key(name.as_str()) || ELSEWHERE.contains(&name.as_str());
        assert!(read, "{name} is in the folder, and no test reads it");
    }
}

/// From the file's bytes alone: they decode to the file's fields, and the signature is the signer's.
fn check_signed<T: Signable + Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str) {
    let vector = read(name);
    let signed: Signed<T> = wire::decode(&bytes_at(&vector, "signed_bytes")).unwrap();
    let body: T = wire::decode(&bytes_at(&vector, "body_bytes")).unwrap();
    assert_eq!(signed.body, body, "{name}");
    assert_eq!(serde_json::to_value(&body).unwrap(), vector["body"], "{name}");
    assert_eq!(hex(signed.signature.as_bytes()), vector["signature"].as_str().unwrap(), "{name}");
    let verified = signed.verify().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(verified.digest().to_string(), vector["digest"].as_str().unwrap(), "{name}");
}

#[test]
fn frozen_signatures_verify_from_their_bytes() {
    check_signed::<Offer>("offer.json");
    check_signed::<Quote>("quote.json");
    check_signed::<Contract>("contract.json");
    check_signed::<Accept>("accept.json");
    check_signed::<Meter>("meter.json");
    check_signed::<Voucher>("voucher.json");
    check_signed::<Receipt>("receipt.json");
    check_signed::<Close>("close.json");
    check_signed::<Abandon>("abandon.json");
    check_signed::<PairState>("pair_state.json");
    check_signed::<Countersign>("countersign.json");
    check_signed::<Cancel>("cancel.json");
    check_signed::<Raise>("raise.json");
}

/// A preimage as SPEC.md describes it, built here by hand.
fn preimage_by_hand(domain: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(domain.len()).unwrap()];
    bytes.extend(domain.as_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn preimages_and_digests_are_as_the_specification_says() {
    for name in [
        "offer",
        "quote",
        "contract",
        "accept",
        "meter",
        "voucher",
        "receipt",
        "close",
        "abandon",
        "pair-state",
        "countersign",
        "cancel",
        "raise",
    ] {
        let vector = read(&format!("{}.json", name.replace('-', "_")));
        let domain = vector["domain"].as_str().unwrap();
        assert_eq!(domain, format!("potluck/v1/{name}"));
        let preimage = preimage_by_hand(domain, &bytes_at(&vector, "body_bytes"));
        assert_eq!(hex(&preimage), vector["preimage"].as_str().unwrap(), "{name}");
        let digest = format!("b3:{}", blake3::hash(&preimage).to_hex());
        assert_eq!(digest, vector["digest"].as_str().unwrap(), "{name}");
    }
    let job = read("job.json");
    let preimage = preimage_by_hand(job["domain"].as_str().unwrap(), &bytes_at(&job, "bytes"));
    assert_eq!(format!("b3:{}", blake3::hash(&preimage).to_hex()), job["digest"].as_str().unwrap());
}

#[test]
fn the_output_chain_is_as_the_specification_says() {
    let vector = read("output_chain.json");
    let domain = vector["domain"].as_str().unwrap();
    let contract: Digest = vector["contract"].as_str().unwrap().parse().unwrap();
    let mut head = *blake3::hash(&preimage_by_hand(domain, contract.as_bytes())).as_bytes();
    let heads = vector["heads"].as_array().unwrap();
    assert_eq!(heads[0].as_str().unwrap(), Digest::from_bytes(head).to_string());
    for (token, expected) in vector["tokens"].as_array().unwrap().iter().zip(&heads[1..]) {
        let token = u32::try_from(token.as_u64().unwrap()).unwrap();
        let link = [&head[..], &token.to_le_bytes()[..]].concat();
        head = *blake3::hash(&preimage_by_hand(domain, &link)).as_bytes();
        assert_eq!(expected.as_str().unwrap(), Digest::from_bytes(head).to_string());
    }
}

fn check_frames<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(file: &str) {
    for vector in read(file).as_array().unwrap() {
        let bytes = bytes_at(vector, "bytes");
        let frame: T =
            wire::decode(&bytes).unwrap_or_else(|error| panic!("{file} {}: {error}", vector["name"]));
        assert_eq!(serde_json::to_value(&frame).unwrap(), vector["frame"], "{file} {}", vector["name"]);
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(wire::decode::<T>(&longer).is_err(), "{file} {}: a byte too many", vector["name"]);
        assert!(
            wire::decode::<T>(&bytes[..bytes.len() - 1]).is_err(),
            "{file} {}: a byte too few",
            vector["name"]
        );
    }
}

#[test]
fn frozen_frames_decode_exactly() {
    check_frames::<QuoteRequest>("frames_quote_requests.json");
    check_frames::<QuoteResponse>("frames_quote_responses.json");
    check_frames::<RenterFrame>("frames_renter.json");
    check_frames::<ProviderFrame>("frames_provider.json");
    check_frames::<PairRequest>("frames_pair_requests.json");
    check_frames::<PairResponse>("frames_pair_responses.json");
}

/// The chained digests of a pair, built here by hand.
#[test]
fn the_digests_of_a_pair_are_as_the_specification_says() {
    let vector = read("pair_digests.json");
    let hash = |domain: &Value, body: &[u8]| {
        *blake3::hash(&preimage_by_hand(domain.as_str().unwrap(), body)).as_bytes()
    };
    let shown = |digest: [u8; 32]| Value::from(Digest::from_bytes(digest).to_string());
    let lanes = &vector["lanes"];
    let empty = hash(&lanes["domain"], &[]);
    assert_eq!(lanes["empty"], shown(empty));
    let folded = unhex(lanes["folded_bytes"][0].as_str().unwrap()).unwrap();
    assert_eq!(lanes["digest"], shown(hash(&lanes["domain"], &[&empty[..], &folded].concat())));
    let heads = &vector["heads"];
    let step = hash(&heads["domain"], &bytes_at(heads, "step_bytes"));
    assert_eq!(heads["digests"][0], shown(step));
    let link = [&step[..], &bytes_at(heads, "lane_bytes")].concat();
    assert_eq!(heads["digests"][1], shown(hash(&heads["domain"], &link)));
    let key = |side: &str| *vector["pair"][side].as_str().unwrap().parse::<PeerId>().unwrap().as_bytes();
    let two = [key("low"), key("high")].concat();
    assert_eq!(vector["genesis"], shown(hash(&Value::from("potluck/v1/pair"), &two)));
}

/// The proof convicts from its bytes alone, and is small enough to travel.
#[test]
fn the_frozen_proof_convicts_from_its_bytes() {
    let vector = read("equivocation.json");
    let bytes = bytes_at(&vector, "bytes");
    assert!(bytes.len() <= 700, "{} bytes", bytes.len());
    let proof: Equivocation = wire::decode_bounded(&bytes).unwrap();
    assert_eq!(vector["signer"].as_str().unwrap(), proof.verify().unwrap().signer.to_string());
    let preimage = preimage_by_hand(vector["domain"].as_str().unwrap(), &bytes);
    assert_eq!(vector["digest"].as_str().unwrap(), format!("b3:{}", blake3::hash(&preimage).to_hex()));
}
