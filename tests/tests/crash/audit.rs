//! What both ledgers say after a crash, and what each side lost.
//!
//! Owns: copies of the two journals, read alone (so that every audit also builds the index anew), and the
//! laws that they must keep. Never: touches the ledgers themselves, or asks the programs. Called after
//! each kill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use potluck_node::identity::Identity;
use potluck_node::ledger::{Filter, LaneSummary, Ledger};
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::settle::{Meter, Voucher};
use potluck_protocol::sign::Signed;
use potluck_protocol::statement::Statement;
use potluck_protocol::sync::{HeadsDigest, StepHead};
use potluck_protocol::unit::UnixMillis;
use tempfile::TempDir;

use crate::pair::{Pair, Seen, Who};

/// What the provider may lose besides window and quantum: one operation in flight. On a busy machine it takes
/// as long as the longest that was seen, and nobody sees all: in milliseconds, and as a factor of that.
const OPERATION_MS: u64 = 500;
const UNSEEN: u64 = 2;
/// Where the provider died its loss is only known from outside, with the time that programs take.
const OUTSIDE_MS: u64 = 2_000;

/// The largest losses, in milliseconds of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Paid, and no output came with it.
    pub(crate) renter: u64,
    /// Done, and not paid.
    pub(crate) provider: u64,
    /// The same where the provider died itself, at most: seen from outside, with what it did not work.
    pub(crate) outlived: u64,
}

impl Losses {
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            renter: self.renter.max(other.renter),
            provider: self.provider.max(other.provider),
            outlived: self.outlived.max(other.outlived),
        }
    }
}

/// A copy of a ledger.
pub(crate) struct Books {
    ledger: Ledger,
    me: PeerId,
    _home: TempDir,
}

/// The vouchers and meters of a lane, by number.
#[derive(Debug, Default, PartialEq)]
struct Paid {
    vouchers: BTreeMap<u32, Signed<Voucher>>,
    meters: BTreeMap<u32, Meter>,
}

impl Books {
    /// Copies the journal in the state folder `state`, whether or not a program has it open, and reads all
    /// of it: every CRC, the whole chain, every signature.
    pub(crate) fn copied(state: &Path) -> Result<Self, String> {
        let why = |what: &str, why: &dyn std::fmt::Display| format!("{}: {what}: {why}", state.display());
        let home = tempfile::tempdir().map_err(|error| why("copy", &error))?;
        let me = Identity::load_or_create(&state.join("identity.key"))
            .map_err(|error| why("identity", &error))?
            .peer();
        for file in fs::read_dir(state.join("ledger")).map_err(|error| why("list", &error))? {
            let file = file.map_err(|error| why("list", &error))?.path();
            if let (true, Some(name)) = (file.is_file(), file.file_name()) {
                fs::copy(&file, home.path().join(name)).map_err(|error| why("copy", &error))?;
            }
        }
        let (ledger, _) =
            Ledger::open_watched(home.path(), me, &mut |_| {}).map_err(|error| why("open", &error))?;
        ledger.check().map_err(|error| why("check", &error))?;
        Ok(Self { ledger, me, _home: home })
    }

    fn lanes(&self) -> Result<BTreeMap<LaneId, LaneSummary>, String> {
        let lanes = self.ledger.lanes(&Filter::default()).map_err(|error| error.to_string())?;
        Ok(lanes.into_iter().map(|lane| (lane.lane, lane)).collect())
    }

    fn paid(&self) -> Result<BTreeMap<LaneId, Paid>, String> {
        let mut lanes: BTreeMap<LaneId, Paid> = BTreeMap::new();
        let read = self.ledger.each_object(|record| match record.statement() {
            Some(Statement::Voucher(it)) => {
                lanes.entry(it.body.lane).or_default().vouchers.insert(it.body.k, *it);
            }
            Some(Statement::Meter(it)) => {
                lanes.entry(it.body.lane).or_default().meters.insert(it.body.k, it.body);
            }
            _ => {}
        });
        read.map_err(|error| error.to_string())?;
        Ok(lanes)
    }

    fn balance(&self, peer: PeerId) -> Result<i128, String> {
        let standing = self.ledger.standing(peer, now()).map_err(|error| error.to_string())?;
        Ok(standing.balance)
    }

    /// Everything held with `peer`, in one digest: what the two programs compare.
    fn digest(&self, peer: PeerId) -> Result<String, String> {
        let book = self.ledger.book(peer).map_err(|error| error.to_string())?.ok_or("no account")?;
        let mut digest = HeadsDigest::new(&StepHead::of(&book)).map_err(|error| error.to_string())?;
        self.ledger.each_head(peer, &mut |head| digest.add(head)).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", digest.get()))
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// One ledger alone: nothing that was written is damaged, whatever the other side holds.
pub(crate) fn alone(pair: &Pair, who: Who) -> Result<(), String> {
    Books::copied(if who == Who::Renter { pair.renter.state() } else { &pair.provider_state }).map(drop)
}

/// Both ledgers after the two were brought together: sound, and the same money on both; with the
/// largest losses so far.
pub(crate) fn together(pair: &Pair) -> Result<Losses, String> {
    let (renter, provider) = (Books::copied(pair.renter.state())?, Books::copied(&pair.provider_state)?);
    compared(&renter, &provider, &pair.seen)
}

fn compared(renter: &Books, provider: &Books, seen: &Seen) -> Result<Losses, String> {
    let (owed, due) = (-renter.balance(provider.me)?, provider.balance(renter.me)?);
    if owed != due {
        return Err(format!("the renter says it owes {owed}, the provider that {due} are due"));
    }
    let (lanes, mut paid, mut taken) = (provider.lanes()?, renter.paid()?, provider.paid()?);
    let mut losses = Losses::default();
    for lane in lanes.keys().chain(paid.keys()).copied().collect::<BTreeSet<_>>() {
        let (paid, taken) = (paid.remove(&lane).unwrap_or_default(), taken.remove(&lane).unwrap_or_default());
        if paid.vouchers != taken.vouchers {
            let (paid, taken) = (paid.vouchers, taken.vouchers);
            return Err(format!("{lane}: the renter holds vouchers {paid:?}, the provider {taken:?}"));
        }
        let terms = lanes.get(&lane).and_then(|lane| lane.terms).ok_or("meters without a contract")?;
        let lost = losses_in(&lane.to_string(), &paid, seen)?;
        let (quantum, window) = (terms.quantum.get(), terms.window.get());
        let operation = OPERATION_MS.max(UNSEEN * seen.operation);
        let most = quantum + window + operation;
        if lost.renter > quantum || lost.provider > most || lost.outlived > most + OUTSIDE_MS {
            return Err(format!("{lane}: {lost:?} is over the bound"));
        }
        losses = losses.max(lost);
    }
    Ok(losses)
}

/// As [`together`], once no job is open any more: then the two hold the very same, and the renter owes all
/// that is vouched, less its `payments`.
pub(crate) fn at_rest(pair: &Pair, payments: u64) -> Result<Losses, String> {
    let (renter, provider) = (Books::copied(pair.renter.state())?, Books::copied(&pair.provider_state)?);
    let losses = compared(&renter, &provider, &pair.seen)?;
    let vouched: u64 = provider.lanes()?.values().map(|lane| lane.amount.get()).sum();
    let due = provider.balance(renter.me)?;
    if due != i128::from(vouched) - i128::from(payments) {
        return Err(format!("{vouched} are vouched, {payments} are paid and {due} are due"));
    }
    let (ours, theirs) = (renter.digest(provider.me)?, provider.digest(renter.me)?);
    if ours != theirs {
        return Err(format!("the two hold other things: {ours} and {theirs}"));
    }
    match renter.lanes()?.values().chain(provider.lanes()?.values()).find(|lane| is_left_open(lane)) {
        Some(open) => Err(format!("{} is still open", open.lane)),
        None => Ok(losses),
    }
}

/// Was it accepted, and never ended?
fn is_left_open(lane: &LaneSummary) -> bool {
    lane.reason.is_none() && (lane.meters > 0 || lane.vouchers > 0)
}

fn losses_in(name: &str, held: &Paid, seen: &Seen) -> Result<Losses, String> {
    let (mut paid, mut productive, mut tokens) = (0, 0, 0);
    for (k, voucher) in &held.vouchers {
        let meter = held.meters.get(k).ok_or_else(|| format!("{name}: voucher {k} pays for no meter"))?;
        paid = voucher.body.usage.total().get();
        if meter.tokens > tokens {
            (productive, tokens) = (paid, meter.tokens);
        }
    }
    let printed = seen.printed.get(name).copied().unwrap_or(0);
    if tokens > printed {
        return Err(format!("{name}: {tokens} tokens are paid and {printed} came"));
    }
    let unpaid =
        |worked: &BTreeMap<String, u64>| worked.get(name).map_or(0, |worked| worked.saturating_sub(paid));
    let outlived = if seen.worked.contains_key(name) { 0 } else { unpaid(&seen.outlived) };
    Ok(Losses { renter: paid - productive, provider: unpaid(&seen.worked), outlived })
}
