//! Whose fault a failure is, and what it is called on the wire.
//!
//! Owns: the parties and the codes a provider may refuse or end a job with. Never: decides
//! what follows (retry, ban, refund): that is policy of each program. Called by every room.

use serde::{Deserialize, Serialize};

/// Who caused a failure, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The renter's request or signature.
    Renter,
    /// The provider's work, worker or signature.
    Provider,
    /// Neither: the way between them.
    Network,
    /// This machine: its disk, its state folder, its clock.
    Local,
    /// None of them: it was within everybody's rights.
    Nobody,
}

/// Why a provider refused a job or ended it early. The numbers are the wire; none is ever reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The frame, contract or job breaks a rule of the protocol. Fault: renter.
    Malformed,
    /// The signature on a contract or a voucher is not the renter's. Fault: renter.
    BadSignature,
    /// The quote is not ours, is for somebody else, or does not match the contract. Fault: renter.
    QuoteMismatch,
    /// The quote or the start deadline has passed. Fault: nobody; ask again.
    Expired,
    /// The lane was used before. Fault: renter.
    Replayed,
    /// The model is not served here (any more). Fault: provider.
    UnknownModel,
    /// The queue is full. Fault: nobody; try another provider.
    Busy,
    /// The renter owes as much as the owner lends. Fault: renter; settle first.
    CreditExhausted,
    /// The budget does not pay for one millisecond. Fault: renter.
    BudgetTooSmall,
    /// The prompt does not fit the model's context. Fault: renter.
    PromptTooLong,
    /// The worker or the model failed. Fault: provider.
    WorkerFailed,
    /// The provider's ledger cannot be written. Fault: provider.
    LedgerFailed,
    /// The owner wants the machine back. Fault: nobody.
    OwnerYield,
    /// A voucher did not come in time, or was wrong. Fault: renter.
    VoucherMissing,
    /// Components are not run here, or none with such needs. Fault: provider.
    NoGuests,
    /// The component gave an error, trapped or broke a limit. Fault: renter.
    GuestFailed,
    /// The model cannot do what the job asks. Fault: renter.
    NotSupported,
    /// The two ledgers must be compared first. Fault: nobody; sync and try again.
    SyncNeeded,
    /// One of the two signed two different things in one place. Fault: whoever the proof convicts; as
    /// the provider sees it, the renter.
    Frozen,
}

impl RefusalCode {
    /// Whose fault it is, as the provider sees it.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::UnknownModel | Self::Busy | Self::WorkerFailed | Self::LedgerFailed | Self::NoGuests => {
                Fault::Provider
            }
            Self::OwnerYield | Self::SyncNeeded => Fault::Nobody,
            Self::Malformed
            | Self::BadSignature
            | Self::QuoteMismatch
            | Self::Expired
            | Self::Replayed
            | Self::CreditExhausted
            | Self::BudgetTooSmall
            | Self::PromptTooLong
            | Self::VoucherMissing
            | Self::GuestFailed
            | Self::NotSupported
            | Self::Frozen => Fault::Renter,
        }
    }

    /// The stable text form, as in `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::QuoteMismatch => "quote_mismatch",
            Self::Expired => "expired",
            Self::Replayed => "replayed",
            Self::UnknownModel => "unknown_model",
            Self::Busy => "busy",
            Self::CreditExhausted => "credit_exhausted",
            Self::BudgetTooSmall => "budget_too_small",
            Self::PromptTooLong => "prompt_too_long",
            Self::WorkerFailed => "worker_failed",
            Self::LedgerFailed => "ledger_failed",
            Self::OwnerYield => "owner_yield",
            Self::VoucherMissing => "voucher_missing",
            Self::NoGuests => "no_guests",
            Self::GuestFailed => "guest_failed",
            Self::NotSupported => "not_supported",
            Self::SyncNeeded => "sync_needed",
            Self::Frozen => "frozen",
        }
    }
}
