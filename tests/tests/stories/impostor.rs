//! A provider of our own making, who tells one lie a job.
//!
//! Owns: the provider's side of the protocol, step by step, and the lies. Never: runs a model (its
//! tokens are made up) or keeps a ledger. Called by [`crate::impostors`].

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use potluck_node::identity::Identity;
use potluck_node::net::{
    FrameReader, FrameWriter, Inbound, JobStream, Network, NetworkConfig, NetworkLimits, Role,
};
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::lane::ProviderLane;
use potluck_protocol::offer::{Hardware, Protection, Quote, Terms};
use potluck_protocol::output::OutputChain;
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Meter, Usage};
use potluck_protocol::sign::{Signed, SigningKey, Verified};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};
use potluck_protocol::wire::{
    self, PairRequest, PairResponse, ProviderFrame, QuoteRequest, QuoteResponse, RenterFrame,
};
use potluck_tests::programs::model;

/// How long a renter may be silent.
const WITHIN: Duration = Duration::from_secs(20);
/// What the impostor asks, in nano-credits per second.
pub(crate) const RATE: u64 = 11_111;
/// What it meters first when it does not lie, in milliseconds.
pub(crate) const FIRST_MS: u64 = 90;

/// What is false about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Nothing: shows that the others fail for their lie alone.
    None,
    /// The accept bears another key's signature.
    AcceptByAnother,
    /// The first meter claims a minute that has not passed.
    MoreTime,
    /// The first meter counts tokens that were not sent.
    MoreTokens,
    /// The first meter was changed after it was signed.
    MeterTampered,
    /// A second meter bears the first one's number.
    MeterAgain,
    /// The receipt names another amount.
    ReceiptForLess,
    /// The receipt bears another key's signature.
    ReceiptByAnother,
    /// The close names more than was vouched.
    CloseForMore,
    /// After the accept nothing more is said.
    Silence,
}

/// The peer.
pub(crate) struct Impostor {
    pub(crate) peer: PeerId,
    lie: Arc<Mutex<Lie>>,
    network: Network,
}

impl Impostor {
    /// Enters the network and serves whoever asks.
    pub(crate) async fn enter(home: &Path, bootstrap: &str) -> Self {
        let identity = Identity::load_or_create(&home.join("identity.key")).unwrap();
        let config = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            bootstrap: vec![bootstrap.parse().unwrap()],
            external: Vec::new(),
            role: Role::Provider,
            limits: NetworkLimits::for_role(Role::Provider),
        };
        let (network, inbound) = Network::start(&identity, config).await.unwrap();
        network.join(WITHIN).await.unwrap();
        let lie = Arc::new(Mutex::new(Lie::None));
        let peer = identity.peer();
        tokio::spawn(serve(identity, inbound, Arc::clone(&lie)));
        Self { peer, lie, network }
    }

    /// What the next job's lie is.
    pub(crate) fn tell(&self, lie: Lie) {
        *self.lie.lock().unwrap() = lie;
    }

    /// Leaves the network.
    pub(crate) async fn leave(self) {
        self.network.shutdown().await;
    }
}

async fn serve(identity: Identity, mut inbound: Inbound, lie: Arc<Mutex<Lie>>) {
    let identity = Arc::new(identity);
    loop {
        tokio::select! {
            request = inbound.requests.recv() => {
                let Some(request) = request else { return };
                let answer = quote(identity.signing_key(), request.peer, &request.bytes);
                request.answer(wire::encode(&answer).unwrap()).unwrap();
            }
            question = inbound.pairs.recv() => {
                let Some(question) = question else { return };
                let answer = wire::encode(&agree(&question.bytes)).unwrap();
                question.answer(answer).unwrap();
            }
            stream = inbound.jobs.recv() => {
                let Some(stream) = stream else { return };
                let (identity, lie) = (Arc::clone(&identity), *lie.lock().unwrap());
                tokio::spawn(async move { Job::open(identity.signing_key(), stream).await.run(lie).await });
            }
        }
    }
}

/// It keeps no ledger, and says that it holds whatever the other side holds.
fn agree(question: &[u8]) -> PairResponse {
    match wire::decode_bounded(question).unwrap() {
        PairRequest::Same { heads } => PairResponse::Same { heads },
        PairRequest::Push(_) => PairResponse::Statements { statements: Vec::new(), more: false },
        _ => PairResponse::Noted,
    }
}

fn wall_clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap())
}

pub(crate) fn quote(key: &SigningKey, renter: PeerId, request: &[u8]) -> QuoteResponse {
    let QuoteRequest::Quote { model: wanted } = wire::decode(request).unwrap() else {
        panic!("no quote asked")
    };
    assert_eq!(wanted, served());
    let terms = Terms {
        run: Rate::new(RATE),
        load: Rate::ZERO,
        guest: Rate::ZERO,
        quantum: GpuMillis::new(1_000),
        window: GpuMillis::new(2_000),
    };
    let quote = Quote {
        provider: key.peer(),
        renter,
        serial: 1,
        model: wanted,
        guest: None,
        terms,
        max_ms: GpuMillis::new(600_000),
        ahead: 0,
        warm: true,
        hardware: Hardware { class: "cpu".into(), name: "no CPU at all".into(), memory_mib: 1 },
        protection: Protection::Full,
        expires: wall_clock().saturating_add(UnixMillis::new(60_000)),
    };
    let quote = Box::new(key.sign(quote).unwrap().into_signed());
    QuoteResponse::Quote { quote, credit: NanoCredit::new(1 << 40) }
}

fn served() -> ContentHash {
    model().unwrap().blake3
}

/// One job, as far as the lie lets it come.
struct Job<'a> {
    key: &'a SigningKey,
    reader: FrameReader,
    writer: FrameWriter,
    contract: Verified<Contract>,
    lane: ProviderLane,
    chain: OutputChain,
}

impl<'a> Job<'a> {
    async fn open(key: &'a SigningKey, stream: JobStream) -> Self {
        let (mut reader, writer) = stream.split();
        let RenterFrame::Open { contract, job_bytes, .. } = hear(&mut reader).await.unwrap() else {
            panic!("the renter did not open");
        };
        let (mut left, contract) = (usize::try_from(job_bytes).unwrap(), contract.verify().unwrap());
        while left > 0 {
            let RenterFrame::JobPart(part) = hear(&mut reader).await.unwrap() else { panic!("no job part") };
            left -= part.len();
        }
        let lane = ProviderLane::new(&contract);
        let chain = OutputChain::new(contract.digest());
        Self { key, reader, writer, contract, lane, chain }
    }

    async fn run(mut self, lie: Lie) {
        let accept =
            Accept { lane: self.contract.body().lane, contract: self.contract.digest(), at: wall_clock() };
        let mut accept = self.key.sign(accept).unwrap().into_signed();
        if lie == Lie::AcceptByAnother {
            accept.signature = strangers_signature();
        }
        self.say(&ProviderFrame::Accept(Box::new(accept))).await;
        let tokens = vec![1, 2, 3];
        self.chain.extend(&tokens);
        self.say(&ProviderFrame::Output { tokens, text: "one two three".into() }).await;
        if lie == Lie::Silence {
            // The stream stays open until the renter gives up.
            while hear(&mut self.reader).await.is_some() {}
            return;
        }
        if self.meter(lie).await.is_some() && self.receipt(lie).await.is_some() {
            self.close(lie).await;
        }
    }

    /// Sends a frame; a renter that has gone hears it no more.
    async fn say(&mut self, frame: &ProviderFrame) {
        let _ = self.writer.write(&wire::encode(frame).unwrap(), WITHIN).await;
    }

    async fn meter(&mut self, lie: Lie) -> Option<()> {
        let ms = if lie == Lie::MoreTime { 60_000 } else { FIRST_MS };
        let usage = Usage { run: GpuMillis::new(ms), ..Usage::default() };
        let mut meter = self.lane.meter(usage, &self.chain, lie != Lie::MeterAgain).unwrap();
        if lie == Lie::MoreTokens {
            meter.tokens += 1;
        }
        let meter = self.key.sign(meter).unwrap();
        self.lane.metered(&meter);
        let mut sent: Signed<Meter> = meter.into_signed();
        if lie == Lie::MeterTampered {
            sent.body.usage.run = GpuMillis::new(FIRST_MS + 1);
        }
        let again = sent.body.clone();
        self.say(&ProviderFrame::Meter(Box::new(sent))).await;
        let RenterFrame::Voucher(voucher) = hear(&mut self.reader).await? else { return None };
        let voucher = voucher.verify().unwrap();
        if lie == Lie::MeterAgain {
            let more = Usage { run: GpuMillis::new(FIRST_MS + 1), ..Usage::default() };
            let second = self.key.sign(Meter { usage: more, ..again }).unwrap();
            self.say(&ProviderFrame::Meter(Box::new(second.into_signed()))).await;
            let _ = hear(&mut self.reader).await;
            return None;
        }
        let mut receipt = self.lane.accept(&voucher).unwrap();
        if lie == Lie::ReceiptForLess {
            receipt.amount = NanoCredit::new(receipt.amount.get() - 1);
        }
        let mut receipt = self.key.sign(receipt).unwrap().into_signed();
        if lie == Lie::ReceiptByAnother {
            receipt.signature = strangers_signature();
        }
        self.say(&ProviderFrame::Receipt(Box::new(receipt))).await;
        Some(())
    }

    /// A renter that believes the receipt says nothing more; one that does not cancels.
    async fn receipt(&mut self, lie: Lie) -> Option<()> {
        if matches!(lie, Lie::ReceiptForLess | Lie::ReceiptByAnother) {
            let _ = hear(&mut self.reader).await;
            return None;
        }
        Some(())
    }

    async fn close(&mut self, lie: Lie) {
        let extra = u64::from(lie == Lie::CloseForMore);
        let close = Close {
            lane: self.contract.body().lane,
            by: self.key.peer(),
            k: self.lane.vouchers(),
            amount: self.lane.amount().saturating_add(NanoCredit::new(extra)),
            reason: CloseReason::Completed,
            finish: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: self.chain.tokens(),
            result: self.chain.head(),
            at: wall_clock(),
        };
        let close = Box::new(self.key.sign(close).unwrap().into_signed());
        self.say(&ProviderFrame::Close { close, refusal: None }).await;
        while hear(&mut self.reader).await.is_some() {}
    }
}

/// A valid signature, over something else, by somebody else.
fn strangers_signature() -> potluck_protocol::sign::Signature {
    let thief = SigningKey::from_seed([9; 32]);
    let QuoteResponse::Quote { quote, .. } =
        quote(&thief, thief.peer(), &wire::encode(&QuoteRequest::Quote { model: served() }).unwrap())
    else {
        panic!("no quote")
    };
    quote.signature
}

/// The renter's next frame; `None` when it has gone.
async fn hear(reader: &mut FrameReader) -> Option<RenterFrame> {
    let bytes = reader.read(WITHIN).await.ok()??;
    Some(wire::decode_bounded(&bytes).unwrap())
}
