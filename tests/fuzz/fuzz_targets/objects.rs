//! Any bytes as any object of the protocol: decoding never panics, one value has one encoding, and what
//! decodes can be checked.
//!
//! Owns: the list of decoded types. Never: needs a valid signature to get somewhere: the laws of a pair
//! are driven with objects that it signs itself. Run by `make fuzz`.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use potluck_protocol::balance::{Cancel, CancelReason, Countersign, Fold, PairId, PairState, Raise, Settle};
use potluck_protocol::codec::{Bounded, decode, decode_bounded, encode};
use potluck_protocol::id::PeerId;
use potluck_protocol::job::Job;
use potluck_protocol::offer::{Offer, Quote};
use potluck_protocol::outbox::Outbox;
use potluck_protocol::pair::{Consent, PairBook};
use potluck_protocol::proof::{Convictions, Equivocation};
use potluck_protocol::settle::{Abandon, Accept, Close, Contract, Meter, Receipt, Voucher};
use potluck_protocol::sign::{Signable, Signed, SigningKey};
use potluck_protocol::statement::Statement;
use potluck_protocol::sync::{Heads, LaneHead, compare};
use potluck_protocol::unit::UnixMillis;
use potluck_protocol::wire::{
    PairRequest, PairResponse, ProviderFrame, QuoteRequest, QuoteResponse, RenterFrame,
};

/// Decodes; what decodes is written the same way.
fn plain<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = decode(bytes).ok()?;
    assert_eq!(encode(&value).ok().as_deref(), Some(bytes));
    Some(value)
}

fn bounded<T: serde::Serialize + serde::de::DeserializeOwned + Bounded>(bytes: &[u8]) -> Option<T> {
    let value: T = decode_bounded(bytes).ok()?;
    assert_eq!(encode(&value).ok().as_deref(), Some(bytes));
    Some(value)
}

/// No fuzzer forges a signature.
fn signed<T: Signable + Debug>(bytes: &[u8]) {
    if let Some(signed) = plain::<Signed<T>>(bytes) {
        assert!(signed.verify().is_err(), "a signature was forged");
    }
}

fn statement(bytes: &[u8]) {
    let Some(statement) = bounded::<Statement>(bytes) else { return };
    assert!(statement.verify().is_err(), "a signature was forged");
    let (slot, lane) = (statement.slot(), statement.lane());
    assert_eq!(slot.is_none(), matches!(statement, Statement::Quote(_)));
    if let Some(lane) = lane {
        let _ = LaneHead::nothing(lane).lacks(&statement);
    }
    let mut outbox = Outbox::default();
    outbox.sent(&statement, std::time::Duration::ZERO);
    outbox.answered(&statement);
}

fn heads(bytes: &[u8]) {
    let Some((ours, theirs)) = plain::<(Heads, Heads)>(bytes) else { return };
    if ours.check_bounds().is_err() || theirs.check_bounds().is_err() {
        return;
    }
    let lane = ours.lanes.first().or(theirs.lanes.first()).map(|head| head.lane);
    let Some(pair) = lane.and_then(|lane| PairId::of(lane.renter, lane.provider)) else { return };
    let difference = compare(pair, &ours, &theirs);
    let turned = compare(pair, &theirs, &ours);
    assert_eq!(difference.next, turned.next);
    assert_eq!(difference.fetch.len(), turned.push.len());
    assert_eq!(compare(pair, &ours, &ours).fetch, []);
}

/// Any body, truly signed, against a book of the same pair: it never panics, and never signs beyond it.
fn law(bytes: &[u8]) {
    type Bodies = (u8, u32, u32, i128, u64, u32, Option<(bool, u64)>, bool);
    let Some(bodies) = plain::<Vec<Bodies>>(bytes) else { return };
    let mut keys = [SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32])];
    keys.sort_by_key(SigningKey::peer);
    let [low, high] = [keys[0].peer(), keys[1].peer()];
    let (Some(pair), Some(mut book)) = (PairId::of(low, high), PairBook::new(low, high)) else { return };
    book.synced();
    let mut last = None;
    for (kind, epoch, n, balance, floor, folded, settle, side) in bodies.into_iter().take(16) {
        let (key, floor) = (&keys[usize::from(side)], UnixMillis::new(floor));
        let (by, fold) = (key.peer(), Fold::new(pair, floor));
        let settle = settle.map(|(payer, amount)| Settle {
            payer: if payer { low } else { PeerId::from_bytes([9; 32]) },
            amount: potluck_protocol::unit::NanoCredit::new(amount),
            reference: String::new(),
        });
        let previous = book.head().digest;
        let before = (book.head().epoch, book.head().n);
        match kind % 4 {
            0 => {
                let lanes = fold.lanes();
                let state = PairState { pair, by, epoch, n, balance, floor, lanes, folded, settle, previous };
                let Ok(state) = key.sign(state) else { return };
                let _ = book.judge(&state, &fold, None, UnixMillis::new(u64::MAX), Consent::Given);
                book.note_state(&state);
                last = Some(state);
            }
            1 => {
                let Some(state) = &last else { continue };
                let body = Countersign { pair, by, epoch, n, state: state.digest() };
                let Ok(countersign) = key.sign(body) else { return };
                let became = book.note_agreed(state, &countersign);
                assert_eq!(became, (book.head().epoch, book.head().n) > before);
            }
            2 => {
                let proposal = last.as_ref().map_or(previous, |state| state.digest());
                let body = Cancel { pair, by, epoch, n, proposal, reason: CancelReason::Disagrees };
                let Ok(cancel) = key.sign(body) else { return };
                book.note_cancel(&cancel);
            }
            _ => {
                let Ok(raise) = key.sign(Raise { pair, by, epoch }) else { return };
                book.note_raise(&raise);
            }
        }
        assert!((book.head().epoch, book.head().n) >= before && book.open().len() <= 2);
        let _ = book.propose(&fold, None, book.safe_floor(UnixMillis::new(u64::MAX), None));
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 26 {
        0 => signed::<Offer>(bytes),
        1 => signed::<Quote>(bytes),
        2 => signed::<Contract>(bytes),
        3 => signed::<Accept>(bytes),
        4 => signed::<Meter>(bytes),
        5 => signed::<Voucher>(bytes),
        6 => signed::<Receipt>(bytes),
        7 => signed::<Close>(bytes),
        8 => signed::<Abandon>(bytes),
        9 => signed::<PairState>(bytes),
        10 => signed::<Countersign>(bytes),
        11 => signed::<Cancel>(bytes),
        12 => signed::<Raise>(bytes),
        13 => statement(bytes),
        14 => {
            if let Some(proof) = bounded::<Equivocation>(bytes) {
                assert!(Convictions::default().hear(proof, |_| true).is_err(), "a proof was forged");
            }
        }
        15 => drop(bounded::<Heads>(bytes)),
        16 => heads(bytes),
        17 => drop(bounded::<RenterFrame>(bytes)),
        18 => drop(bounded::<ProviderFrame>(bytes)),
        19 => drop(plain::<QuoteRequest>(bytes)),
        20 => drop(plain::<QuoteResponse>(bytes)),
        21 => drop(bounded::<PairRequest>(bytes)),
        22 => drop(bounded::<PairResponse>(bytes)),
        23 => {
            if let Ok(job) = Job::from_bytes(bytes) {
                assert_eq!(job.to_bytes().ok().as_deref(), Some(bytes));
            }
        }
        24 => drop(plain::<PairId>(bytes)),
        _ => law(bytes),
    }
});
