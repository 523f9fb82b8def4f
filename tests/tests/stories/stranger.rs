//! A renter of our own making, who can say anything on the wire.
//!
//! Owns: the renter's side of the protocol, step by step, each step open to tampering. Never: behaves
//! well by itself, or keeps a ledger. Called by [`crate::strangers`].

use std::path::Path;
use std::time::Duration;

use potluck_node::identity::Identity;
use potluck_node::net::{FrameReader, FrameWriter, Inbound, Network, NetworkConfig, NetworkLimits, Role};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::job::{ChatMessage, Job, JobSpec, Role as Speaker, Sampling, job_digest};
use potluck_protocol::lane::RenterLane;
use potluck_protocol::limits::MAX_JOB_PART_BYTES;
use potluck_protocol::offer::Quote;
use potluck_protocol::settle::{Close, Contract, Meter, Voucher};
use potluck_protocol::sign::{Signed, Verified};
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use potluck_protocol::wire::{
    self, PairRequest, PairResponse, ProviderFrame, QuoteRequest, QuoteResponse, Refusal, RenterFrame,
};
use potluck_tests::programs::model;

use crate::LONG;

/// How long a provider may be silent.
const WITHIN: Duration = Duration::from_secs(20);

/// A peer with a key of its own.
pub(crate) struct Stranger {
    pub(crate) identity: Identity,
    network: Network,
    _inbound: Inbound,
    provider: PeerId,
}

/// What a stranger needs for one job.
#[derive(Clone)]
pub(crate) struct Papers {
    pub(crate) quote: Signed<Quote>,
    pub(crate) contract: Contract,
    pub(crate) job: Vec<u8>,
}

impl Stranger {
    /// Enters the network.
    pub(crate) async fn enter(home: &Path, bootstrap: &str, provider: &str) -> Self {
        let identity = Identity::load_or_create(&home.join("identity.key")).unwrap();
        let config = NetworkConfig {
            listen: Vec::new(),
            bootstrap: vec![bootstrap.parse().unwrap()],
            external: Vec::new(),
            role: Role::Renter,
            limits: NetworkLimits::for_role(Role::Renter),
        };
        let (network, inbound) = Network::start(&identity, config).await.unwrap();
        network.join(WITHIN).await.unwrap();
        Self { identity, network, _inbound: inbound, provider: provider.parse().unwrap() }
    }

    /// A quote and a fitting contract for a job of `max_tokens`; `lane` makes it a job of its own.
    pub(crate) async fn papers(&self, lane: u64, max_tokens: u32) -> Papers {
        self.sync().await;
        let model = model().unwrap().blake3;
        let request = wire::encode(&QuoteRequest::Quote { model }).unwrap();
        let answer = self.network.ask(self.provider, request, WITHIN).await.unwrap();
        let QuoteResponse::Quote { quote, .. } = wire::decode(&answer).unwrap() else { panic!("no quote") };
        let quote = quote.verify().unwrap();
        let job = Job::Generate(JobSpec {
            model,
            messages: vec![ChatMessage { role: Speaker::User, content: LONG.into() }],
            sampling: Sampling { max_tokens, temperature_milli: 0, top_p_milli: 1_000, seed: 0 },
        });
        let job = job.to_bytes().unwrap();
        let contract = Contract {
            lane: LaneId { renter: self.identity.peer(), provider: self.provider, epoch: 0, lane },
            job: job_digest(&job),
            quote: quote.digest(),
            terms: quote.body().terms,
            // Several fit what is lent to a stranger.
            max_total: NanoCredit::new(100_000),
            max_ms: quote.body().max_ms,
            created: UnixMillis::ZERO,
            // Beyond any clock: a deadline is another story.
            start_by: quote.body().expires,
        };
        Papers { quote: quote.into_signed(), contract, job }
    }

    /// Says that it holds just what the provider holds, which makes the two synced.
    async fn sync(&self) {
        let mut heads = Digest::from_bytes([0; 32]);
        // A job that is just ending may change what the provider holds in between.
        for _ in 0..100 {
            let request = wire::encode(&PairRequest::Same { heads }).unwrap();
            let answer = self.network.ask_pair(self.provider, request, WITHIN).await.unwrap();
            let PairResponse::Same { heads: theirs } = wire::decode_bounded(&answer).unwrap() else {
                panic!("no digest")
            };
            if theirs == heads {
                return;
            }
            heads = theirs;
        }
        panic!("the provider's books do not come to rest");
    }

    /// Signs as this stranger.
    pub(crate) fn sign(&self, contract: Contract) -> Verified<Contract> {
        self.identity.signing_key().sign(contract).unwrap()
    }

    /// Opens a job's stream and says nothing yet.
    pub(crate) async fn connect(&self) -> Talk {
        let stream = self.network.open_job(self.provider, WITHIN).await.unwrap();
        let (reader, writer) = stream.split();
        Talk { reader, writer }
    }

    /// Opens a job with these papers, under this contract.
    pub(crate) async fn open(&self, papers: &Papers, contract: Signed<Contract>) -> Talk {
        let mut talk = self.connect().await;
        talk.say(&RenterFrame::Open {
            contract: Box::new(contract),
            quote: Box::new(papers.quote.clone()),
            job_bytes: u32::try_from(papers.job.len()).unwrap(),
        })
        .await;
        for part in papers.job.chunks(MAX_JOB_PART_BYTES) {
            // A provider that refused the contract need not read on.
            talk.try_say(&RenterFrame::JobPart(part.to_vec())).await;
        }
        talk
    }

    /// Opens an honest job and reads until the provider wants its first payment.
    pub(crate) async fn until_first_meter(&self, lane: u64) -> Debt {
        let papers = self.papers(lane, 4_000).await;
        let contract = self.sign(papers.contract.clone());
        let mut talk = self.open(&papers, contract.signed().clone()).await;
        let mut account = RenterLane::new(&contract);
        loop {
            match talk.hear().await {
                ProviderFrame::Output { tokens, .. } => account.delivered(&tokens),
                ProviderFrame::Meter(meter) => {
                    let meter = meter.verify().unwrap();
                    return Debt { talk, account, meter };
                }
                ProviderFrame::Refuse(refusal) => panic!("an honest job was refused: {refusal:?}"),
                ProviderFrame::Close { refusal, .. } => panic!("closed before a meter came: {refusal:?}"),
                ProviderFrame::Accept(_) | ProviderFrame::Phase { .. } | ProviderFrame::Started { .. } => {}
                other => panic!("out of place: {other:?}"),
            }
        }
    }

    /// Leaves the network.
    pub(crate) async fn leave(self) {
        self.network.shutdown().await;
    }
}

/// A job whose first meter waits for payment.
pub(crate) struct Debt {
    pub(crate) talk: Talk,
    pub(crate) account: RenterLane,
    pub(crate) meter: Verified<Meter>,
}

impl Debt {
    /// The voucher that is due.
    pub(crate) fn due(&mut self) -> Voucher {
        let hour = Duration::from_secs(3_600);
        self.account.pay(&self.meter, hour, Duration::ZERO).unwrap()
    }
}

/// A stream with the provider.
pub(crate) struct Talk {
    reader: FrameReader,
    writer: FrameWriter,
}

impl Talk {
    /// Sends a frame.
    pub(crate) async fn say(&mut self, frame: &RenterFrame) {
        self.say_bytes(&wire::encode(frame).unwrap()).await;
    }

    /// Sends a frame, or notices that nobody listens any more.
    pub(crate) async fn try_say(&mut self, frame: &RenterFrame) {
        let _ = self.writer.write(&wire::encode(frame).unwrap(), WITHIN).await;
    }

    /// Sends any bytes as one frame.
    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.writer.write(bytes, WITHIN).await.unwrap();
    }

    /// The provider's next frame.
    pub(crate) async fn hear(&mut self) -> ProviderFrame {
        let bytes = self.reader.read(WITHIN).await.unwrap().expect("the provider ended the stream");
        wire::decode_bounded(&bytes).unwrap()
    }

    /// Reads until the job ends, and gives the reason that the provider names.
    pub(crate) async fn refusal(&mut self) -> Refusal {
        loop {
            match self.hear().await {
                ProviderFrame::Refuse(refusal) => return refusal,
                ProviderFrame::Close { refusal, .. } => return refusal.expect("it closed without a reason"),
                _ => {}
            }
        }
    }

    /// Reads until the lane is closed, paying nothing more.
    pub(crate) async fn closed(&mut self) -> Close {
        loop {
            match self.hear().await {
                ProviderFrame::Close { close, .. } => return close.verify().unwrap().body().clone(),
                ProviderFrame::Refuse(refusal) => panic!("refused: {refusal:?}"),
                _ => {}
            }
        }
    }
}
