//! Any conversation of two peers, kept by a ledger and by a naive model of it. Owns: random statements and the
//! model. Never: asks whether a statement was right to make.

use std::collections::BTreeMap;

use potluck_protocol::balance::Settle;
use potluck_protocol::pair::{Head, PairBook};
use potluck_protocol::statement::{self, Statement};

use super::pairs::*;
use super::*;

/// A statement of one of two peers about their pair.
fn said() -> impl Strategy<Value = (u8, bool, u64, u32, u64)> {
    (0..12_u8, any::<bool>(), 0..5_u64, 1..4_u32, 0..3_u64)
}

/// What `said` stands for; a countersignature and a cancel answer the state of the other.
fn statement_of((kind, flip, lane, k, amount): (u8, bool, u64, u32, u64)) -> Statement {
    let sample = if flip { selling(lane) } else { buying_from_them(lane) };
    let (by, other) = if flip { (1, 2) } else { (2, 1) };
    let provider = key(sample.provider);
    match kind {
        0 => sample.contract().into(),
        1 => statement(sample.whole().swap_remove(2)),
        2 | 3 => statement(sample.voucher(k, amount)),
        4 => {
            let receipt = Receipt {
                lane: sample.lane(),
                k,
                amount: NanoCredit::ZERO,
                voucher: Digest::from_bytes([0; 32]),
            };
            sign(&provider, receipt).into()
        }
        5 => end(by, &sample),
        6 => abandon(&sample, by),
        7 | 8 => {
            let mut body = step(by, k, amount);
            body.floor = number(u8::try_from(lane).unwrap());
            body.settle = (amount == 1).then(|| Settle {
                payer: key(other).peer(),
                amount: NanoCredit::new(7),
                reference: "cash".into(),
            });
            sign(&key(by), body).into()
        }
        9 => countersign(by, k, &statement_of((7, !flip, lane, k, amount))),
        10 => cancel(by, k, &statement_of((7, !flip, lane, k, amount))),
        _ => raise(by, k),
    }
}

/// A naive ledger: everything that was kept, in order.
#[derive(Default)]
struct Naive {
    slots: BTreeMap<statement::Slot, Digest>,
    kept: Vec<Statement>,
}

impl Naive {
    /// Was it new? `None` when it is in conflict or alone.
    fn keep(&mut self, statement: &Statement) -> Option<bool> {
        let proven = statement.verify().unwrap();
        let slot = statement.slot().unwrap();
        if let Statement::Countersign(it) = statement
            && !self.kept.iter().any(|held| {
                matches!(held, Statement::State(state) if state.body.n == it.body.n)
                    && digest(held) == it.body.state
            })
        {
            return None;
        }
        match self.slots.get(&slot) {
            Some(held) => (*held == proven.commitment).then_some(false),
            None => {
                self.slots.insert(slot, proven.commitment);
                self.kept.push(statement.clone());
                Some(true)
            }
        }
    }

    /// What they owe us: the law's head, and lanes from its floor on.
    fn balance(&self) -> (i128, u64, Option<Head>) {
        let mut book = PairBook::new(us(), them()).unwrap();
        let mut settled = 0;
        for statement in &self.kept {
            match statement {
                Statement::State(it) => book.note_state(&it.as_ref().clone().verify().unwrap()),
                Statement::Cancel(it) => book.note_cancel(&it.as_ref().clone().verify().unwrap()),
                Statement::Raise(it) => book.note_raise(&it.as_ref().clone().verify().unwrap()),
                Statement::Countersign(it) => {
                    let state = self.kept.iter().find(|held| digest(held) == it.body.state).unwrap();
                    let Statement::State(state) = state else { unreachable!("a state's digest") };
                    let state = state.as_ref().clone().verify().unwrap();
                    if book.note_agreed(&state, &it.as_ref().clone().verify().unwrap()) {
                        let paid = state.body().settle.as_ref().filter(|it| it.payer == them());
                        settled += paid.map_or(0, |it| it.amount.get());
                    }
                }
                _ => {}
            }
        }
        let created = |lane: LaneId| {
            let contract = self.kept.iter().find_map(|it| match it {
                Statement::Contract(it) if it.body.lane == lane => Some(it.body.created),
                _ => None,
            });
            contract.unwrap_or(UnixMillis::ZERO)
        };
        let mut last = BTreeMap::new();
        for statement in &self.kept {
            let Statement::Voucher(it) = statement else { continue };
            let newest = last.entry(it.body.lane).or_insert((0, 0));
            *newest = (*newest).max((it.body.k, it.body.amount.get()));
        }
        let lanes = last.iter().filter(|(lane, _)| created(**lane) >= book.head().floor);
        let open = lanes.map(
            |(lane, (_, amount))| {
                if lane.provider == us() { i128::from(*amount) } else { -i128::from(*amount) }
            },
        );
        (pair().owed_to(us(), book.head().balance) + open.sum::<i128>(), settled, Some(book.head()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever two peers say, in whatever order: the ledger keeps and adds up as the law does, and an index
    /// that is built anew, from groups of another size, says the same.
    #[test]
    fn any_conversation_is_kept_as_the_law_reads_it(said in proptest::collection::vec((said(), 0..4_u8), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let home = tempfile::tempdir().unwrap();
        let mut ledger = open(home.path()).0;
        let (mut naive, mut batch) = (Naive::default(), Vec::new());
        for (said, pause) in said {
            batch.push(statement_of(said));
            if pause == 0 {
                continue;
            }
            let kept = runtime.block_on(ledger.keep_each(batch.clone())).unwrap();
            for (statement, kept) in batch.drain(..).zip(kept) {
                match naive.keep(&statement) {
                    Some(true) => prop_assert_eq!(kept, Kept::New),
                    Some(false) => prop_assert_eq!(kept, Kept::Known),
                    None => {
                        let refused = matches!(kept, Kept::Conflict(_) | Kept::Worthless(RecordError::StateMissing));
                        prop_assert!(refused, "{:?}", kept);
                    }
                }
            }
            if pause == 3 {
                drop(ledger);
                ledger = open(home.path()).0;
            }
        }
        let (balance, settled, head) = naive.balance();
        let standing = ledger.standing(them(), NOW).unwrap();
        prop_assert_eq!((standing.balance, standing.settled.get()), (balance, settled));
        prop_assert_eq!(ledger.book(them()).unwrap().map(|book| book.head()), head);
        prop_assert!(ledger.shared.index.is_sound());
        let all = everything(&ledger);
        let before = known(&ledger, &all);
        drop(ledger);
        fs::remove_dir_all(home.path().join("index")).unwrap();
        let (ledger, _) = open(home.path());
        prop_assert!(ledger.shared.index.is_sound());
        prop_assert_eq!(known(&ledger, &all), before);
        ledger.check().unwrap();
    }
}
