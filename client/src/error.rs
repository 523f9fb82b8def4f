//! What can go wrong for a renter, whose fault it is, and how the program exits.
//!
//! Owns: [`Failure`], the one error type that reaches a person, with its stable code, fault, hint and
//! exit status. Never: prints (see [`crate::output`]). Called by every file of this room.

use std::path::PathBuf;
use std::time::Duration;

use potluck_node::accounts::{AccountsError, SettleError, SyncError};
use potluck_node::books::BooksError;
use potluck_node::catalogue::UnknownModel;
use potluck_node::identity::IdentityError;
use potluck_node::ledger::{AppendError, LedgerError, ReadError};
use potluck_node::net::{JoinError, OtherVersion, StartError};
use potluck_node::state::StateError;
use potluck_protocol::fault::{Fault, RefusalCode};
use potluck_protocol::id::PeerId;
use potluck_protocol::job::JobError;
use potluck_protocol::lane::MeterRefused;
use potluck_protocol::offer::Protection;
use potluck_protocol::pair::{LaneRefused, NotNow};
use potluck_protocol::unit::{AmountError, NanoCredit, Rate};
use thiserror::Error;

use crate::command::new::NewError;

/// A failure as the renter sees it.
#[derive(Debug, Error)]
pub enum Failure {
    /// A flag or the prompt is not usable.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// No model of that name.
    #[error("{0}")]
    UnknownModel(#[from] UnknownModel),
    /// The job breaks a bound.
    #[error("{0}")]
    Job(#[from] JobError),
    /// An amount cannot be read.
    #[error("{0}")]
    Amount(#[from] AmountError),
    /// Nobody serves the model now.
    #[error(
        "nobody on the network serves {model} now (asked {asked} providers in {waited:.1?}{})",
        refusal.as_ref().map(|said| format!("; {said}")).unwrap_or_default()
    )]
    NoProvider {
        /// Which model.
        model: String,
        /// Providers that were asked for a quote.
        asked: usize,
        /// How long it was looked for.
        waited: Duration,
        /// Why one of them quoted no price: who, and its words.
        refusal: Option<String>,
    },
    /// No bootstrap answered.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// All quotes are dearer than allowed.
    #[error("the cheapest of {quotes} quotes asks {cheapest}; your limit is {limit}")]
    TooDear {
        /// The cheapest price.
        cheapest: Rate,
        /// The limit given.
        limit: Rate,
        /// How many quoted.
        quotes: usize,
    },
    /// All quotes are from machines with too little of a jail.
    #[error(
        "none of {quotes} quotes is behind a jail that is {}; the best is {}",
        least.name(),
        best.name()
    )]
    Unprotected {
        /// The best protection quoted.
        best: Protection,
        /// The least that was asked for.
        least: Protection,
        /// How many quoted.
        quotes: usize,
    },
    /// The component gave an error, trapped or broke a limit; its time is owed.
    #[error("the component failed: {reason}")]
    GuestFailed {
        /// In the component's or the runtime's words.
        reason: String,
    },
    /// A file that the person named.
    #[error("cannot use {}: {source}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The budget does not pay for one millisecond.
    #[error("a budget of {budget} does not pay for one millisecond at {rate}")]
    BudgetTooSmall {
        /// The budget given.
        budget: NanoCredit,
        /// The price.
        rate: Rate,
    },
    /// The provider lends us nothing any more.
    #[error(
        "{} lends us {credit} more, which does not pay for one millisecond at {rate}",
        provider.short()
    )]
    NoCredit {
        /// Who.
        provider: PeerId,
        /// What we may still come to owe it.
        credit: NanoCredit,
        /// The price.
        rate: Rate,
    },
    /// What the provider lends was used up before the answer was whole; the job's books are closed.
    #[error(
        "all that {} lends us, {credit}, was used up after {tokens} tokens; {paid_ms} ms paid, \
         nothing more is owed",
        provider.short()
    )]
    CreditReached {
        /// Who.
        provider: PeerId,
        /// What it lent for this job.
        credit: NanoCredit,
        /// Tokens that came.
        tokens: u32,
        /// Milliseconds paid.
        paid_ms: u64,
    },
    /// The budget was used up before the answer was whole; settled.
    #[error(
        "the budget of {budget} was reached after {tokens} tokens; {paid_ms} ms paid, nothing more is owed"
    )]
    BudgetReached {
        /// The budget given.
        budget: NanoCredit,
        /// Tokens that came.
        tokens: u32,
        /// Milliseconds paid.
        paid_ms: u64,
    },
    /// The job was as long as the provider takes; settled.
    #[error("the job's longest time was reached at {}: {paid_ms} ms paid, {tokens} tokens came", provider.short())]
    TimeReached {
        /// Who.
        provider: PeerId,
        /// Tokens that came.
        tokens: u32,
        /// Milliseconds paid.
        paid_ms: u64,
    },
    /// The provider would not run the job, or ended it.
    #[error("{} {}: {reason}", provider.short(), if *.started { "ended the job" } else { "refused the job" })]
    Refused {
        /// Who.
        provider: PeerId,
        /// Why, as a code.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
        /// Had it been accepted?
        started: bool,
    },
    /// The provider's owner needed the machine; settled, and nobody's fault.
    #[error(
        "the owner of {} needs the machine; it ended after {tokens} tokens; {paid_ms} ms ({amount}) paid, \
         nothing more is owed",
        provider.short()
    )]
    OwnerYielded {
        /// Whose.
        provider: PeerId,
        /// Tokens that came.
        tokens: u32,
        /// Milliseconds paid.
        paid_ms: u64,
        /// What they cost.
        amount: NanoCredit,
    },
    /// The provider was lost in the middle.
    #[error("{} was lost after {tokens} tokens: {why}", provider.short())]
    ProviderLost {
        /// Who.
        provider: PeerId,
        /// Tokens that came.
        tokens: u32,
        /// How it was noticed.
        why: String,
    },
    /// The provider cannot be reached.
    #[error("{} cannot be reached: {why}", provider.short())]
    Unreachable {
        /// Who.
        provider: PeerId,
        /// Why.
        why: String,
    },
    /// The provider speaks another version of Potluck: one of the two is too old.
    #[error("{} speaks version {} of Potluck, this program version {}", .0.peer.short(), .0.theirs, .0.ours)]
    OtherVersion(#[from] OtherVersion),
    /// The provider broke the protocol; nothing was paid for that.
    #[error("{} broke the protocol: {what}", provider.short())]
    Misbehaved {
        /// Who.
        provider: PeerId,
        /// What it did.
        what: String,
    },
    /// The provider signed two different things in one place; the proof is kept.
    #[error("{} signed two different things in one place: {what}", peer.short())]
    Equivocated {
        /// Who.
        peer: PeerId,
        /// In which place.
        what: String,
    },
    /// The two ledgers were not brought to the same: no contract is signed.
    #[error("{why}")]
    Sync {
        /// With whom.
        peer: PeerId,
        /// Why.
        why: SyncError,
    },
    /// The account with a peer takes no new job.
    #[error("no job can be opened with {}: {why}", peer.short())]
    NoLane {
        /// With whom.
        peer: PeerId,
        /// Which rule forbids it.
        why: LaneRefused,
    },
    /// The payment is not one, or cannot be entered.
    #[error("{why}")]
    Settle {
        /// Whom it is about.
        peer: PeerId,
        /// Why.
        why: SettleError,
    },
    /// The person pressed Ctrl-C while a payment was being entered.
    #[error("stopped by you")]
    SettleStopped,
    /// The other side refused a payment.
    #[error("{words}")]
    NotSettled {
        /// In words.
        words: String,
    },
    /// Our accounts cannot be opened.
    #[error("{0}")]
    Accounts(#[from] AccountsError),
    /// The provider claimed what we cannot pay for.
    #[error("{} asked for payment that is not due: {why}", provider.short())]
    Overclaimed {
        /// Who.
        provider: PeerId,
        /// Which law it broke.
        why: MeterRefused,
    },
    /// The person pressed Ctrl-C, or the reader of the output went away; settled.
    #[error("stopped by you after {tokens} tokens")]
    Cancelled {
        /// Tokens that came.
        tokens: u32,
    },
    /// The state folder.
    #[error("{0}")]
    State(#[from] StateError),
    /// The key file.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// A question to the ledger has no answer, or a file of it is not as it must be.
    #[error("{0}")]
    Books(#[from] BooksError),
    /// The ledger cannot be opened.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// The ledger's index cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// The ledger cannot be written: nothing is signed any more.
    #[error("{0}")]
    Append(#[from] AppendError),
    /// The network cannot be started.
    #[error("{0}")]
    Network(#[from] StartError),
    /// No folder for a new job.
    #[error("{0}")]
    New(#[from] NewError),
    /// A local file or stream.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A bug or an exhausted machine: signing or starting up failed.
    #[error("{what}")]
    Internal {
        /// What failed.
        what: String,
    },
}

impl Failure {
    /// The stable code, as in `--json`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Usage { .. } | Self::Job(_) | Self::Amount(_) => "usage",
            Self::UnknownModel(_) => "unknown_model",
            Self::NoProvider { .. } => "no_provider",
            Self::Join(_) => "no_bootstrap",
            Self::TooDear { .. } => "over_max_price",
            Self::Unprotected { .. } => "unprotected",
            Self::GuestFailed { .. } => "guest_failed",
            Self::Input { .. } => "input",
            Self::BudgetTooSmall { .. } => "budget_too_small",
            Self::BudgetReached { .. } => "budget_reached",
            Self::NoCredit { .. } => RefusalCode::CreditExhausted.name(),
            Self::CreditReached { .. } => "credit_reached",
            Self::TimeReached { .. } => "time_reached",
            Self::Refused { code, .. } => code.name(),
            Self::OwnerYielded { .. } => RefusalCode::OwnerYield.name(),
            Self::ProviderLost { .. } => "provider_lost",
            Self::Unreachable { .. } => "unreachable",
            Self::OtherVersion(_) => "other_version",
            Self::Misbehaved { .. } => "protocol_violation",
            Self::Equivocated { .. } => "equivocation",
            Self::Sync { why: SyncError::Frozen { .. }, .. }
            | Self::NoLane { why: LaneRefused::NotNow(NotNow::Frozen), .. } => RefusalCode::Frozen.name(),
            Self::Sync { .. } | Self::NoLane { .. } => RefusalCode::SyncNeeded.name(),
            Self::Settle { why: SettleError::Frozen { .. }, .. } => RefusalCode::Frozen.name(),
            Self::Settle { .. } | Self::NotSettled { .. } => "not_settled",
            Self::Accounts(_) => "state",
            Self::Overclaimed { .. } => "overclaimed",
            Self::Cancelled { .. } | Self::SettleStopped => "cancelled",
            Self::State(_) => "state",
            Self::Identity(_) => "identity",
            Self::Books(why) => why.code().name(),
            Self::Ledger(_) | Self::Read(_) | Self::Append(_) => "ledger",
            Self::Network(_) => "network",
            Self::New(why) => why.code(),
            Self::Io { .. } => "io",
            Self::Internal { .. } => "internal",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Usage { .. }
            | Self::UnknownModel(_)
            | Self::Job(_)
            | Self::Amount(_)
            | Self::TooDear { .. }
            | Self::Unprotected { .. }
            | Self::GuestFailed { .. }
            | Self::Input { .. }
            | Self::BudgetTooSmall { .. }
            | Self::BudgetReached { .. }
            | Self::NoCredit { .. }
            | Self::CreditReached { .. }
            | Self::TimeReached { .. }
            | Self::SettleStopped
            | Self::Cancelled { .. } => Fault::Renter,
            Self::NoProvider { .. } | Self::Join(_) | Self::Unreachable { .. } => Fault::Network,
            Self::OtherVersion(version) if version.is_theirs() => Fault::Provider,
            Self::OtherVersion(_) => Fault::Local,
            Self::New(why) => why.fault(),
            Self::Refused { code, .. } => code.fault(),
            Self::OwnerYielded { .. } => Fault::Nobody,
            Self::ProviderLost { .. }
            | Self::Misbehaved { .. }
            | Self::Equivocated { .. }
            | Self::Overclaimed { .. } => Fault::Provider,
            Self::Sync { why, .. } => why.fault(Fault::Provider),
            Self::Settle { why, .. } => match why.fault(Fault::Provider) {
                Fault::Local if !matches!(why, SettleError::Books(_)) => Fault::Renter,
                fault => fault,
            },
            Self::NotSettled { .. } => Fault::Provider,
            Self::NoLane { .. } => Fault::Nobody,
            Self::State(_)
            | Self::Identity(_)
            | Self::Accounts(_)
            | Self::Ledger(_)
            | Self::Books(_)
            | Self::Read(_)
            | Self::Append(_)
            | Self::Network(_)
            | Self::Io { .. }
            | Self::Internal { .. } => Fault::Local,
        }
    }

    /// The exit status: 1 job failed, 2 usage, 3 no provider, 4 price or budget, 5 local state, 130
    /// stopped by the person.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::UnknownModel(_) | Self::Job(_) | Self::Amount(_) => 2,
            Self::Input { .. } => 2,
            Self::NoProvider { .. } | Self::Join(_) | Self::Unprotected { .. } | Self::OtherVersion(_) => 3,
            Self::TooDear { .. } | Self::BudgetTooSmall { .. } | Self::BudgetReached { .. } => 4,
            Self::NoCredit { .. } | Self::CreditReached { .. } => 4,
            Self::Refused { code: RefusalCode::BudgetTooSmall | RefusalCode::CreditExhausted, .. } => 4,
            Self::State(_)
            | Self::Identity(_)
            | Self::Accounts(_)
            | Self::Ledger(_)
            | Self::Read(_)
            | Self::Append(_)
            | Self::Settle { why: SettleError::Books(_), .. }
            | Self::Sync { why: SyncError::Books(_), .. } => 5,
            Self::Books(why) => why.code().exit(),
            Self::New(NewError::Io { .. }) => 5,
            Self::New(_) => 2,
            Self::Cancelled { .. } | Self::SettleStopped => 130,
            _ => 1,
        }
    }

    /// What was lost and what to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Usage { hint, .. } => hint.clone(),
            Self::New(why) => why.hint(),
            Self::Books(why) => why.hint().into(),
            Self::UnknownModel(UnknownModel { closest, .. }) => {
                format!("known models: {}; any other by its hash, as blake3:<64 digits>", closest.join(", "))
            }
            Self::Job(_) | Self::Amount(_) => "nothing was spent; see potluck run --help".into(),
            Self::NoProvider { .. } => {
                "nothing was spent; try again later, or name --bootstrap of a network \
                                        that has providers"
                    .into()
            }
            Self::Join(_) => "nothing was spent; check --bootstrap and your connection".into(),
            Self::TooDear { .. } => "nothing was spent; raise --max-price or wait".into(),
            Self::Unprotected { .. } => {
                "nothing was spent; wait for a jailed provider, or accept the risk to \
                                         what you send with --protection none"
                    .into()
            }
            Self::GuestFailed { .. } => {
                "its log is above; only the time that was metered is owed: potluck ledger receipts".into()
            }
            Self::Input { .. } => "nothing was spent; check the path".into(),
            Self::BudgetTooSmall { .. } => "nothing was spent; raise --budget".into(),
            Self::BudgetReached { .. } => "raise --budget for a longer answer".into(),
            Self::TimeReached { .. } => {
                "what came is yours and paid; ask for the rest, or raise --max-seconds of a component".into()
            }
            Self::Sync { peer, why: SyncError::Frozen { .. } }
            | Self::NoLane { peer, why: LaneRefused::NotNow(NotNow::Frozen) }
            | Self::Refused { provider: peer, code: RefusalCode::Frozen, started: false, .. } => {
                format!(
                    "nothing was spent; potluck ledger proof {peer} shows why; choose another provider with \
                     --provider"
                )
            }
            Self::NoCredit { provider, .. }
            | Self::Refused { provider, code: RefusalCode::CreditExhausted, started: false, .. } => {
                format!("nothing was spent; {}", settle_first(provider))
            }
            Self::CreditReached { provider, .. } => {
                format!("what came is yours; for more, {}", settle_first(provider))
            }
            Self::Refused { started: false, .. } | Self::Unreachable { .. } => {
                "nothing was spent; run it again, or choose another provider with --provider".into()
            }
            Self::Refused { .. } => {
                "only the time that was metered is owed; see potluck ledger receipts".into()
            }
            Self::OtherVersion(version) if version.is_theirs() => {
                "nothing was spent; its owner must upgrade potluckd; choose another provider with --provider"
                    .into()
            }
            Self::OtherVersion(_) => {
                "nothing was spent; upgrade potluck: your version is the older one".into()
            }
            Self::OwnerYielded { .. } => {
                "the answer so far is yours and paid; run it again: another provider takes it".into()
            }
            Self::ProviderLost { .. } => {
                "the answer so far is yours; only vouched time is owed; run it again".into()
            }
            Self::Sync { why, .. } => format!("nothing was spent; {}", why.advice()),
            Self::NoLane { .. } => "nothing was spent; run it again".into(),
            Self::Settle { peer, why: SettleError::Frozen { .. } } => {
                format!("potluck ledger proof {peer} shows why; what is owed stays owed")
            }
            Self::SettleStopped => {
                "what was noted is proposed when the two next meet; the same verb shows how far it is".into()
            }
            Self::Settle { why, .. } => why.advice().into(),
            Self::NotSettled { .. } => {
                "speak with its owner, then enter the payment again under another reference".into()
            }
            Self::Equivocated { peer, .. } => {
                format!(
                    "the proof is kept and told to others (potluck ledger proof {peer}); nothing more is \
                     signed with it; choose another provider with --provider"
                )
            }
            Self::Misbehaved { .. } | Self::Overclaimed { .. } => {
                "nothing was paid for that; choose another provider with --provider".into()
            }
            Self::Cancelled { .. } => "only the time until then is owed; see potluck ledger receipts".into(),
            Self::State(_) => "nothing was spent; another potluck may be running here: wait for it, or use \
                               another --state-dir"
                .into(),
            Self::Identity(_)
            | Self::Accounts(_)
            | Self::Ledger(_)
            | Self::Read(_)
            | Self::Append(_)
            | Self::Io { .. } => "nothing more will be signed until this is mended".into(),
            Self::Network(_) | Self::Internal { .. } => "nothing was spent".into(),
        }
    }
}

/// The way out of a debt.
fn settle_first(provider: &PeerId) -> String {
    format!(
        "settle first: pay the owner, then potluck ledger settle {provider} --amount <$> --ref <what you \
         paid with>; or choose another provider with --provider"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_follow_the_contract() {
        let refused = |code| Failure::Refused {
            provider: PeerId::from_bytes([1; 32]),
            code,
            reason: String::new(),
            started: false,
        };
        assert_eq!(refused(RefusalCode::PromptTooLong).exit(), 1);
        assert_eq!(refused(RefusalCode::PromptTooLong).fault(), Fault::Renter);
        assert_eq!(refused(RefusalCode::BudgetTooSmall).exit(), 4);
        assert_eq!(Failure::Cancelled { tokens: 0 }.exit(), 130);
        let (provider, amount) = (PeerId::from_bytes([1; 32]), NanoCredit::new(9_333));
        let yielded = Failure::OwnerYielded { provider, tokens: 31, paid_ms: 840, amount };
        assert_eq!((yielded.exit(), yielded.code(), yielded.fault()), (1, "owner_yield", Fault::Nobody));
        assert!(yielded.to_string().contains("31 tokens; 840 ms ($0.000009333) paid"), "{yielded}");
        let none = Failure::NoProvider {
            model: "m".into(),
            asked: 0,
            waited: Duration::from_secs(1),
            refusal: None,
        };
        assert_eq!((none.exit(), none.code()), (3, "no_provider"));
    }
}
