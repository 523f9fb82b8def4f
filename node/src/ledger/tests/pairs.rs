//! Tests of what a ledger keeps of a pair: books, heads, proofs, single statements. Owns: two ledgers that
//! are each other's peers, and a naive model of one. Never: judges a statement.

use potluck_protocol::balance::{Cancel, CancelReason, Countersign, PairId, PairState, Raise, Settle};
use potluck_protocol::id::PeerId;
use potluck_protocol::life::LaneState;
use potluck_protocol::limits::LANE_LIFE_MS;
use potluck_protocol::pair::{Consent, Link, Verdict};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::Abandon;
use potluck_protocol::statement::{self, Place, Statement};
use potluck_protocol::sync::{HeadsDigest, LaneHead, StepHead};

use super::compaction::{AT_ONCE, compact, fill};
use super::*;

/// A day and more after the sample lanes were opened.
const LATER: UnixMillis = UnixMillis::new(200_000_000);

pub(super) fn us() -> PeerId {
    key(1).peer()
}

pub(super) fn them() -> PeerId {
    key(2).peer()
}

pub(super) fn pair() -> PairId {
    PairId::of(us(), them()).unwrap()
}

pub(super) fn statement(record: Record) -> Statement {
    record.statement().unwrap()
}

pub(super) fn step(by: u8, n: u32, amount: u64) -> PairState {
    PairState {
        pair: pair(),
        by: key(by).peer(),
        epoch: 0,
        n,
        balance: i128::from(amount),
        floor: UnixMillis::ZERO,
        lanes: Digest::from_bytes([0; 32]),
        folded: 0,
        settle: None,
        previous: pair().genesis(),
    }
}

fn state(by: u8, n: u32, amount: u64) -> Statement {
    sign(&key(by), step(by, n, amount)).into()
}

pub(super) fn digest(statement: &Statement) -> Digest {
    statement.verify().unwrap().digest
}

pub(super) fn countersign(by: u8, n: u32, state: &Statement) -> Statement {
    sign(&key(by), Countersign { pair: pair(), by: key(by).peer(), epoch: 0, n, state: digest(state) }).into()
}

pub(super) fn cancel(by: u8, n: u32, state: &Statement) -> Statement {
    let (by, proposal, reason) = (key(by), digest(state), CancelReason::Disagrees);
    sign(&by, Cancel { pair: pair(), by: by.peer(), epoch: 0, n, proposal, reason }).into()
}

pub(super) fn raise(by: u8, epoch: u32) -> Statement {
    sign(&key(by), Raise { pair: pair(), by: key(by).peer(), epoch }).into()
}

pub(super) fn abandon(lane: &Sample, by: u8) -> Statement {
    let voucher = Digest::from_bytes([0; 32]);
    let body = Abandon { lane: lane.lane(), by: key(by).peer(), k: 0, amount: NanoCredit::ZERO, voucher };
    sign(&key(by), body).into()
}

pub(super) fn end(by: u8, lane: &Sample) -> Statement {
    let Record::Close(mut close) = lane.close() else { unreachable!("made so") };
    close.body.by = key(by).peer();
    sign(&key(by), close.body).into()
}

pub(super) fn number(by: u8) -> UnixMillis {
    UnixMillis::new(1_000 + u64::from(by))
}

async fn keep(ledger: &Ledger, statement: Statement) -> Kept {
    let mut kept = ledger.keep_each(vec![statement]).await.unwrap();
    assert_eq!(kept.len(), 1);
    kept.pop().unwrap()
}

async fn conflict(ledger: &Ledger, statement: Statement) -> Equivocation {
    match keep(ledger, statement).await {
        Kept::Conflict(proof) => *proof,
        other => panic!("{other:?}"),
    }
}

/// Everything that a sync with `peer` compares, in one digest.
fn digest_of_all(ledger: &Ledger, peer: PeerId) -> Digest {
    let book = ledger.book(peer).unwrap().unwrap();
    let mut digest = HeadsDigest::new(&StepHead::of(&book)).unwrap();
    ledger.each_head(peer, &mut |head| digest.add(head)).unwrap();
    digest.get()
}

fn heads(ledger: &Ledger, peer: PeerId) -> Vec<LaneHead> {
    let (heads, more) = ledger.heads(peer, None, usize::MAX).unwrap();
    assert!(!more);
    heads
}

pub(super) fn everything(ledger: &Ledger) -> Vec<Record> {
    let mut all = Vec::new();
    ledger.each_object(|record| all.push(record)).unwrap();
    all
}

/// All that the law can ask about the pair; of every statement that is kept, what its slot holds.
pub(super) fn known(ledger: &Ledger, all: &[Record]) -> String {
    let book = ledger.book(them()).unwrap().unwrap();
    let lanes: Vec<_> =
        (0..6).flat_map(|number| [selling(number).lane(), buying_from_them(number).lane()]).collect();
    let facts = lanes.iter().map(|lane| {
        let facts = ledger.lane_facts(lane).unwrap();
        // When it was last heard of is not in the journal.
        let facts =
            facts.map(|it| LaneFactsAt { state: it.state(NOW), meters: it.meters, vouchers: it.vouchers });
        (facts, ledger.last_word(lane).unwrap(), ledger.objects(lane).unwrap())
    });
    let slots = all.iter().filter_map(Record::statement).filter_map(|it| it.slot());
    format!(
        "{:?}",
        (
            (book.link(), book.epoch(), book.used(), book.head(), book.open(), book.statements()),
            (heads(ledger, them()), ledger.fold(them(), number(3)).unwrap(), ledger.peers().unwrap()),
            (ledger.oldest_open(them(), NOW).unwrap(), ledger.open_lanes(None).unwrap()),
            (ledger.totals().unwrap(), ledger.pairs().unwrap(), ledger.standing(them(), NOW).unwrap()),
            (ledger.proofs().unwrap(), ledger.unknown_exposure(us(), NOW).unwrap()),
            facts.collect::<Vec<_>>(),
            slots.map(|slot| ledger.statement(&slot).unwrap()).collect::<Vec<_>>(),
        )
    )
}

#[derive(Debug)]
#[allow(dead_code, reason = "compared by what Debug shows")]
struct LaneFactsAt {
    state: LaneState,
    meters: u32,
    vouchers: u32,
}

/// As renter towards the peer to which we sell.
pub(super) fn buying_from_them(number: u64) -> Sample {
    Sample { renter: 1, provider: 2, number }
}

#[tokio::test]
async fn another_statement_in_a_slot_makes_a_proof_that_freezes_the_pair_for_good() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let voucher = |amount| statement(selling(1).voucher(1, amount));
    assert_eq!(keep(&ledger, voucher(5)).await, Kept::New);
    assert_eq!(keep(&ledger, voucher(5)).await, Kept::Known);
    let proof = conflict(&ledger, voucher(6)).await;
    assert_eq!(proof.verify().unwrap().signer, them());
    let refused = ledger.append(vec![selling(1).voucher(1, 6)]).await.unwrap_err();
    let AppendError::SlotTaken { proof: Some(same), .. } = refused else { panic!("{refused}") };
    assert_eq!(*same, proof);
    // The two need not have come one after the other.
    let both = vec![statement(selling(2).voucher(1, 1)), statement(selling(2).voucher(1, 2))];
    let kept = ledger.keep_each(both.clone()).await.unwrap();
    let Kept::Conflict(other) = &kept[1] else { panic!("{kept:?}") };
    assert_eq!((&kept[0], other.verify().unwrap().signer), (&Kept::New, them()));
    assert_eq!(ledger.book(them()).unwrap().unwrap().link(), Link::SyncNeeded);
    assert!(ledger.keep_proof(proof.clone()).await.unwrap());
    assert!(
        !ledger.keep_proof(proof.clone()).await.unwrap() && !ledger.keep_proof(*other.clone()).await.unwrap()
    );
    let forged = Equivocation { first: both[0].clone(), second: both[0].clone() };
    // Known is known before it is looked at; of somebody else it must prove something.
    let foreign = |amount| statement(Sample { renter: 3, provider: 4, number: 1 }.voucher(1, amount));
    assert!(!ledger.keep_proof(forged).await.unwrap());
    let forged = Equivocation { first: foreign(1), second: foreign(1) };
    let refused = ledger.keep_proof(forged).await;
    assert!(matches!(refused, Err(AppendError::Record(RecordError::Proof(_)))), "{refused:?}");
    let (foreign, _) = Equivocation::of(foreign(1), foreign(2)).unwrap();
    assert!(ledger.keep_proof(foreign.clone()).await.unwrap());
    drop(ledger);
    for index_lost in [false, true] {
        if index_lost {
            fs::remove_dir_all(home.path().join("index")).unwrap();
        }
        let (ledger, _) = open(home.path());
        assert_eq!(ledger.book(them()).unwrap().unwrap().link(), Link::Frozen);
        assert_eq!(ledger.book(key(3).peer()).unwrap().unwrap().link(), Link::Frozen);
        assert_eq!(ledger.book(key(4).peer()).unwrap().unwrap().link(), Link::SyncNeeded);
        assert!(ledger.standing(them(), NOW).unwrap().frozen);
        assert_eq!(ledger.proof_against(them()).unwrap(), Some(proof.clone()));
        assert_eq!(ledger.proofs().unwrap().len(), 2);
        assert_eq!(ledger.check().unwrap().objects, 4);
    }
}

#[tokio::test]
async fn states_countersignatures_and_cancels_of_one_signer_share_a_slot() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let (one, other) = (state(2, 1, 5), state(2, 1, 6));
    assert_eq!(keep(&ledger, one.clone()).await, Kept::New);
    conflict(&ledger, other).await;
    assert_eq!(keep(&ledger, countersign(1, 1, &one)).await, Kept::New);
    conflict(&ledger, cancel(1, 1, &one)).await;
    conflict(&ledger, state(1, 1, 5)).await;
    // To countersign one's own state says nothing new.
    assert_eq!(keep(&ledger, countersign(2, 1, &one)).await, Kept::Known);
    // One serial for two quotes is no lie: both bind.
    let mut quote = selling(1).quote();
    assert_eq!(keep(&ledger, quote.clone().into()).await, Kept::New);
    quote.body.ahead = 7;
    let quote = Statement::from(sign(&key(1), quote.body));
    assert_eq!(keep(&ledger, quote).await, Kept::Worthless(RecordError::SerialTaken));
}

#[tokio::test]
async fn a_countersignature_without_its_state_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let (one, other) = (state(2, 1, 5), state(2, 2, 6));
    let answer = countersign(1, 1, &one);
    assert_eq!(keep(&ledger, answer.clone()).await, Kept::Worthless(RecordError::StateMissing));
    let alone = ledger.append(vec![answer.clone().into()]).await;
    assert!(matches!(alone, Err(AppendError::Record(RecordError::StateMissing))));
    // Another state of the other side does not do, nor one in the wrong step.
    assert_eq!(keep(&ledger, other.clone()).await, Kept::New);
    let crossed = countersign(1, 1, &other);
    assert_eq!(keep(&ledger, crossed).await, Kept::Worthless(RecordError::StateMissing));
    // In one batch, in order, it does.
    let both = ledger.keep_each(vec![answer.clone(), one.clone(), answer.clone()]).await.unwrap();
    assert_eq!(both, [Kept::Worthless(RecordError::StateMissing), Kept::New, Kept::New]);
    assert_eq!(ledger.book(them()).unwrap().unwrap().head().n, 1);
}

#[tokio::test]
async fn what_is_forged_or_not_ours_is_worthless_and_harms_nothing_beside_it() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let Statement::State(mut forged) = state(2, 1, 5) else { unreachable!("made so") };
    forged.body.balance = 6;
    let foreign = statement(Sample { renter: 2, provider: 3, number: 1 }.voucher(1, 1));
    let mut stranger = end(1, &selling(1));
    let Statement::Close(close) = &mut stranger else { unreachable!("made so") };
    close.body.by = key(3).peer();
    let mut long = step(2, 3, 1);
    long.settle = Some(Settle { payer: them(), amount: NanoCredit::ZERO, reference: "x".repeat(500) });
    let offered =
        vec![Statement::State(forged), foreign, stranger, sign(&key(2), long).into(), state(2, 2, 5)];
    let kept = ledger.keep_each(offered).await.unwrap();
    assert!(matches!(kept[0], Kept::Worthless(RecordError::Signature(_))), "{kept:?}");
    assert!(matches!(kept[1], Kept::Worthless(RecordError::NotOurs { .. })), "{kept:?}");
    assert!(matches!(kept[2], Kept::Worthless(RecordError::Stranger { .. })), "{kept:?}");
    assert!(matches!(kept[3], Kept::Worthless(RecordError::Encoding(_))), "{kept:?}");
    assert_eq!(kept[4], Kept::New);
    assert_eq!(ledger.check().unwrap().objects, 1);
}

#[test]
fn ten_racers_for_one_slot_leave_one_statement_and_nine_proofs() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let race: Vec<_> = (0..10)
        .map(|amount| {
            let ledger = ledger.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(keep(&ledger, state(1, 1, amount)))
            })
        })
        .collect();
    let kept: Vec<_> = race.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(kept.iter().filter(|it| **it == Kept::New).count(), 1);
    for proof in kept.iter().filter(|it| **it != Kept::New) {
        let Kept::Conflict(proof) = proof else { panic!("{proof:?}") };
        assert_eq!(proof.verify().unwrap().signer, us());
    }
    drop(ledger);
    assert_eq!(open(home.path()).1.records, 1);
}

/// The two sides, each with a ledger of its own, holding the same lanes.
struct Two {
    _homes: [tempfile::TempDir; 2],
    ledgers: [Ledger; 2],
}

impl Two {
    async fn new(lanes: &[(Sample, u64)]) -> Self {
        let homes = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let ledgers = [0, 1].map(|at| {
            let seed = if at == 0 { 1 } else { 2 };
            Ledger::open(homes[at].path(), key(seed).peer()).unwrap().0
        });
        let two = Self { _homes: homes, ledgers };
        for (lane, amount) in lanes {
            let mut records = lane.whole();
            records.retain(|it| !matches!(it, Record::Voucher(_) | Record::Receipt(_)));
            records.push(lane.voucher(1, *amount));
            for ledger in &two.ledgers {
                ledger.append(records.clone()).await.unwrap();
            }
        }
        two
    }

    /// One side proposes, the other agrees, by the law.
    async fn agree(&self, by: usize, floor: UnixMillis, settle: Option<Settle>) {
        let [ours, theirs] = if by == 0 { [0, 1] } else { [1, 0] };
        let keys = [key(1), key(2)];
        let book = |at: usize| {
            let mut book = self.ledgers[at].book(keys[1 - at].peer()).unwrap().unwrap();
            book.synced();
            book
        };
        let fold = self.ledgers[ours].fold(keys[theirs].peer(), floor).unwrap();
        let state = keys[ours].sign(book(ours).propose(&fold, settle, LATER).unwrap()).unwrap();
        let fold = self.ledgers[theirs].fold(keys[ours].peer(), floor).unwrap();
        let verdict = book(theirs).judge(&state, &fold, None, LATER, Consent::Given).unwrap();
        let Verdict::Countersign(answer) = verdict else { panic!("{verdict:?}") };
        let answer = sign(&keys[theirs], answer);
        for ledger in &self.ledgers {
            let both = vec![state.signed().clone().into(), answer.clone().into()];
            assert_eq!(ledger.keep_each(both).await.unwrap(), [Kept::New, Kept::New]);
        }
    }

    fn balances(&self) -> [i128; 2] {
        [self.ledgers[0].pairs().unwrap()[0].balance, self.ledgers[1].pairs().unwrap()[0].balance]
    }

    fn assert_same(&self) {
        let [one, other] = &self.ledgers;
        assert_eq!(heads(one, them()), heads(other, us()));
        assert_eq!(digest_of_all(one, them()), digest_of_all(other, us()));
        assert_eq!(self.balances()[0], -self.balances()[1]);
    }
}

#[tokio::test]
async fn a_balance_is_what_was_agreed_and_the_lanes_after_it() {
    // They owe us 100, 20 and 3; we owe them 50.
    let lanes = [(selling(1), 100), (selling(2), 20), (buying_from_them(3), 50), (selling(4), 3)];
    let two = Two::new(&lanes).await;
    let ledger = &two.ledgers[0];
    assert_eq!(ledger.totals().unwrap(), Totals { owed_to_us: 123, we_owe: 50, balance: 73 });
    two.assert_same();
    // The first two lanes become a balance: nothing changes but that they are listed no more.
    two.agree(1, number(3), None).await;
    assert_eq!(two.balances(), [73, -73]);
    assert_eq!(ledger.totals().unwrap(), Totals { owed_to_us: 123, we_owe: 50, balance: 73 });
    assert_eq!(heads(ledger, them()).len(), 2);
    assert_eq!(ledger.fold(them(), UnixMillis::new(u64::MAX)).unwrap().count(), 2);
    // They pay 60 outside, and all lanes are taken in.
    let settle = Settle { payer: them(), amount: NanoCredit::new(60), reference: "cash".into() };
    two.agree(0, number(9), Some(settle)).await;
    assert_eq!(two.balances(), [13, -13]);
    assert_eq!(ledger.totals().unwrap(), Totals { owed_to_us: 13, we_owe: 0, balance: 13 });
    assert_eq!(two.ledgers[1].totals().unwrap(), Totals { owed_to_us: 0, we_owe: 13, balance: -13 });
    let standing = ledger.standing(them(), NOW).unwrap();
    assert_eq!((standing.balance, standing.settled.get(), standing.is_unknown()), (13, 60, false));
    assert_eq!(two.ledgers[1].standing(us(), NOW).unwrap().settled, NanoCredit::ZERO);
    // A lane below the floor is void, whatever comes of it; one from the floor on counts.
    assert_eq!(keep(ledger, statement(selling(2).voucher(2, 999))).await, Kept::New);
    let later = Sample { number: 9, ..selling(9) };
    for ledger in &two.ledgers {
        ledger.append(later.whole()).await.unwrap();
    }
    assert_eq!(two.balances(), [24, -24]);
    two.assert_same();
    // We pay more than we owe: they have the balance then, and our standing with them is earned.
    let settle = Settle { payer: us(), amount: NanoCredit::new(1_000), reference: "gift".into() };
    two.agree(1, number(9), Some(settle)).await;
    assert_eq!(two.balances(), [1_024, -1_024]);
    assert_eq!(two.ledgers[1].standing(us(), NOW).unwrap().settled.get(), 1_000);
    let before = known(ledger, &everything(ledger));
    let Two { _homes: homes, ledgers } = two;
    drop(ledgers);
    fs::remove_dir_all(homes[0].path().join("index")).unwrap();
    let (ledger, report) = open(homes[0].path());
    assert!(report.rebuilt_index);
    assert_eq!(known(&ledger, &everything(&ledger)), before);
}

#[tokio::test]
async fn heads_stay_as_they_were_when_one_side_puts_its_books_away() {
    let home = tempfile::tempdir().unwrap();
    let ledger = super::compaction::grown(home.path()).await;
    let agreed = state(2, 1, 5);
    let steps = vec![agreed.clone(), countersign(1, 1, &agreed), state(1, 2, 7), raise(2, 1)];
    ledger.keep_each(steps.clone()).await.unwrap();
    fill(&ledger, 300).await;
    let kept_before = everything(&ledger);
    let (before, heads_before) = (digest_of_all(&ledger, them()), heads(&ledger, them()));
    let gone = compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    assert!(gone.dropped > 0);
    assert_eq!((digest_of_all(&ledger, them()), heads(&ledger, them())), (before, heads_before.clone()));
    // Every object that is left is found where it lies now.
    let left = everything(&ledger);
    assert_eq!(u64::try_from(kept_before.len() - left.len()).unwrap(), gone.dropped);
    let found = known(&ledger, &left);
    for record in &left {
        let Some(slot) = record.statement().and_then(|it| it.slot()) else { continue };
        assert_eq!(ledger.statement(&slot).unwrap(), record.statement());
    }
    let nothing = [LaneHead::nothing(selling(1).lane())];
    let (rest, more) = ledger.beyond(them(), &nothing, 64).unwrap();
    assert!(!more);
    let lane = ledger.objects(&selling(1).lane()).unwrap();
    let lane: Vec<_> = lane.iter().filter_map(Record::statement).filter(|it| it.lane().is_some()).collect();
    assert_eq!(rest, lane);
    drop(ledger);
    for index_lost in [false, true] {
        if index_lost {
            fs::remove_dir_all(home.path().join("index")).unwrap();
        }
        let (ledger, report) = open(home.path());
        assert_eq!(report.rebuilt_index, index_lost);
        assert_eq!((digest_of_all(&ledger, them()), heads(&ledger, them())), (before, heads_before.clone()));
        assert_eq!(known(&ledger, &left), found);
        ledger.check().unwrap();
    }
}

#[tokio::test]
async fn a_lane_that_was_put_away_takes_what_it_never_held_and_adds_up_again() {
    let home = tempfile::tempdir().unwrap();
    let ledger = super::compaction::grown(home.path()).await;
    compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    let receipt = ledger.objects(&selling(1).lane()).unwrap();
    let receipt =
        receipt.iter().find_map(|it| if let Record::Receipt(it) = it { Some(it.body.clone()) } else { None });
    let mut receipt = receipt.unwrap();
    receipt.k = 4;
    let late = vec![
        statement(selling(1).voucher(4, 44)),
        sign(&key(1), receipt).into(),
        end(2, &selling(1)),
        abandon(&selling(1), 2),
    ];
    assert_eq!(ledger.keep_each(late.clone()).await.unwrap(), [Kept::New, Kept::New, Kept::New, Kept::New]);
    assert_eq!(keep(&ledger, statement(selling(1).voucher(2, 23))).await, Kept::Retired);
    let summary = |ledger: &Ledger| {
        let lanes = ledger.lanes(&Filter::default()).unwrap();
        lanes.into_iter().find(|it| it.lane == selling(1).lane()).unwrap()
    };
    assert_eq!((summary(&ledger).vouchers, summary(&ledger).amount.get()), (4, 44));
    // Once with the late objects outside of what is replaced, and once with them in it.
    for round in 0..3 {
        let before = (answers(&ledger), heads(&ledger, them()));
        fill(&ledger, 400 + 100 * round).await;
        compact(&ledger, AT_ONCE).await.unwrap();
        let (totals, _, _, _, _) = &before.0;
        assert_eq!((&ledger.totals().unwrap(), heads(&ledger, them())), (totals, before.1));
        assert_eq!(summary(&ledger).vouchers, 4);
        ledger.check().unwrap();
    }
    let (before, found) = (answers(&ledger), ledger.check().unwrap());
    drop(ledger);
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let (ledger, _) = open(home.path());
    assert_eq!((answers(&ledger), ledger.check().unwrap()), (before, found));
    assert_eq!(keep(&ledger, statement(selling(1).voucher(3, 23))).await, Kept::Retired);
    assert_eq!(keep(&ledger, late[0].clone()).await, Kept::Known);
}

#[tokio::test]
async fn heads_and_statements_beyond_them_come_in_pages() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    for lane in [selling(1), buying_from_them(2), selling(3), buying(4), buying_from_them(5)] {
        ledger.append(lane.whole()).await.unwrap();
    }
    // A contract alone is not listed.
    ledger.append(vec![Record::Contract(selling(6).contract())]).await.unwrap();
    let whole = heads(&ledger, them());
    assert_eq!(whole.len(), 4);
    assert!(whole.is_sorted_by(|one, next| one.lane < next.lane));
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let (page, more) = ledger.heads(them(), after, 1).unwrap();
        after = page.last().map(|head| head.lane);
        paged.extend(page);
        if !more {
            break;
        }
    }
    assert_eq!(paged, whole);
    // From nothing to everything, three at a time.
    let mut held: Vec<_> = whole.iter().map(|head| LaneHead::nothing(head.lane)).collect();
    let mut count = 0;
    loop {
        let (page, more) = ledger.beyond(them(), &held, 3).unwrap();
        count += page.len();
        for statement in &page {
            let head = held.iter_mut().find(|head| Some(head.lane) == statement.lane()).unwrap();
            assert!(head.lacks(statement));
            head.hold(statement, &statement.verify().unwrap());
        }
        if !more {
            break;
        }
    }
    assert_eq!((held, count), (whole, 4 * 6));
    // Another pair's lanes are not shown.
    let foreign = [LaneHead::nothing(buying(4).lane())];
    assert_eq!(ledger.beyond(them(), &foreign, 9).unwrap(), (Vec::new(), false));
}

#[tokio::test]
async fn a_lane_in_which_nothing_happens_for_a_day_weighs_no_more() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let lane = [Record::Contract(selling(2).contract()), selling(2).voucher(1, 100)];
    let lane: Vec<_> = lane.into_iter().map(statement).collect();
    // It came by a sync: what counts is when it was created.
    ledger.keep_each(lane.clone()).await.unwrap();
    let exposure = |ledger: &Ledger, now| {
        let standing = ledger.standing(them(), now).unwrap();
        (
            standing.open_caps.get(),
            ledger.unknown_exposure(us(), now).unwrap(),
            ledger.oldest_open(them(), now).unwrap(),
        )
    };
    assert_eq!(exposure(&ledger, NOW), (999_900, 1_000_000, Some(number(2))));
    let day = UnixMillis::new(NOW.get() + LANE_LIFE_MS * 2);
    assert_eq!(exposure(&ledger, day), (0, 100, None));
    assert_eq!(ledger.unknown_exposure(them(), NOW).unwrap(), 0);
    // What we heard of ourselves lives a day from then.
    ledger.append(vec![selling(2).voucher(2, 200)]).await.unwrap();
    assert_eq!(exposure(&ledger, day), (999_800, 1_000_000, Some(number(2))));
    assert_eq!(ledger.open_lanes(Some(them())).unwrap(), [selling(2).lane()]);
    assert_eq!(keep(&ledger, abandon(&selling(2), 1)).await, Kept::New);
    assert_eq!(exposure(&ledger, day), (0, 200, None));
    assert_eq!(ledger.open_lanes(None).unwrap(), []);
    assert_eq!(ledger.lane_facts(&selling(2).lane()).unwrap().unwrap().state(NOW), LaneState::Abandoned);
}

#[tokio::test]
async fn what_nobody_confirmed_is_known_after_a_start() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let paid = buying_from_them(1);
    ledger
        .append(vec![Record::Contract(paid.contract()), paid.voucher(1, 1), paid.voucher(2, 2)])
        .await
        .unwrap();
    ledger.append(buying_from_them(2).whole()).await.unwrap();
    // Our close without theirs, and theirs without ours.
    ledger.append(vec![Record::Contract(selling(3).contract()), selling(3).close()]).await.unwrap();
    let (refused, open_step) = (state(1, 1, 5), state(1, 2, 6));
    let steps = vec![refused.clone(), cancel(2, 1, &refused), open_step.clone(), raise(1, 1), raise(2, 1)];
    ledger.keep_each(steps).await.unwrap();
    let our_close = statement(selling(3).close());
    let expected = [statement(paid.voucher(2, 2)), our_close, raise(1, 1)];
    drop(ledger);
    let (ledger, _) = open(home.path());
    let found = ledger.unconfirmed(them()).unwrap();
    for statement in &expected {
        assert!(found.contains(statement), "{statement:?}");
    }
    // The open step was of an epoch that is over.
    assert_eq!(found.len(), expected.len(), "{found:?}");
    assert_eq!(ledger.unconfirmed(key(9).peer()).unwrap(), []);
}

#[test]
fn a_slot_has_its_own_signer_only() {
    let lane = selling(1).lane();
    let of = |signer, place| Slot::of(&statement::Slot { signer, place });
    assert!(of(them(), Place::Voucher(lane, 1)).is_some() && of(us(), Place::Voucher(lane, 1)).is_none());
    assert!(of(us(), Place::Meter(lane, 1)).is_some() && of(them(), Place::Meter(lane, 1)).is_none());
    assert!(of(key(3).peer(), Place::Close(lane)).is_none());
    assert!(of(key(3).peer(), Place::Step(pair(), 0, 1)).is_none());
    assert_ne!(of(us(), Place::Step(pair(), 0, 1)), of(them(), Place::Step(pair(), 0, 1)));
    assert_ne!(of(us(), Place::Step(pair(), 0, 1)), of(us(), Place::Step(pair(), 1, 1)));
}
