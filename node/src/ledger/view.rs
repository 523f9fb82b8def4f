//! What a ledger can be asked: totals, balances between two peers, lanes.
//!
//! Owns: the answers' types. Never: reads a file or adds anything up. Made by the index, shown by every
//! program that shows money.

use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::Terms;
use potluck_protocol::settle::CloseReason;
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use serde::{Deserialize, Serialize};

/// Which side of a lane we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneRole {
    /// We pay.
    Renter,
    /// We are paid.
    Provider,
}

/// All accounts together, in nano-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// What peers owe us.
    pub owed_to_us: i128,
    /// What we owe peers.
    pub we_owe: i128,
    /// `owed_to_us - we_owe`.
    pub balance: i128,
}

/// The account with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PairBalance {
    /// With whom.
    pub peer: PeerId,
    /// In nano-credits; above zero when the peer owes us.
    pub balance: i128,
    /// Lanes ever.
    pub lanes: u64,
    /// Lanes without a close or an abandoning.
    pub open: u64,
}

/// Which lanes to list; the default lists all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Opened then or later.
    pub since: Option<UnixMillis>,
    /// With this peer.
    pub peer: Option<PeerId>,
    /// At most so many, the newest.
    pub limit: Option<usize>,
}

/// One lane: who, when, how long, how much and why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneSummary {
    /// Which.
    pub lane: LaneId,
    /// Our side of it.
    pub role: LaneRole,
    /// The other side.
    pub peer: PeerId,
    /// When the contract was signed (wall clock).
    pub opened: UnixMillis,
    /// When it was closed (wall clock), if it was.
    pub closed: Option<UnixMillis>,
    /// Milliseconds of running that are vouched.
    pub run_ms: u64,
    /// Milliseconds of loading that are vouched.
    pub load_ms: u64,
    /// Time paid for in which a component worked, in milliseconds.
    pub guest_ms: u64,
    /// What is vouched: what the renter owes for this lane.
    pub amount: NanoCredit,
    /// The most that it may cost.
    pub max_total: NanoCredit,
    /// Its prices and pace.
    pub terms: Option<Terms>,
    /// Number of meters kept.
    pub meters: u32,
    /// Number of vouchers kept.
    pub vouchers: u32,
    /// Number of receipts kept.
    pub receipts: u32,
    /// Tokens read; 0 until it is closed.
    pub prompt_tokens: u32,
    /// Tokens written, as the close or else the last meter says.
    pub completion_tokens: u32,
    /// Why it ended, if it did.
    pub reason: Option<CloseReason>,
    /// How the answer ended, if it did.
    pub finish: Option<FinishReason>,
    /// Digest of the job.
    pub job: Option<Digest>,
    /// Digest of the contract.
    pub contract: Option<Digest>,
    /// Digest of the last voucher.
    pub voucher: Option<Digest>,
    /// Digest of the last receipt.
    pub receipt: Option<Digest>,
    /// The model, when the quote is kept.
    pub model: Option<ContentHash>,
}
