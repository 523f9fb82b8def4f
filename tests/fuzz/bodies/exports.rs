//! Any bytes as an export file, over one place of a true one, or as what its owner truly signed and sealed.
//!
//! Owns: the laws: reading never panics; what was changed is not whole; what is well sealed is whole,
//! whatever its statements say, and its audit ends. Never: a time limit (the fuzzer has one). Called by
//! the fuzz target `exports` and by `protocol/tests/exports.rs`.

use std::sync::LazyLock;

use potluck_protocol::balance::{Cancel, CancelReason, Countersign, Fold, PairState, Raise, Settle};
use potluck_protocol::export::audit::{Examiner, Report};
use potluck_protocol::export::{Entry, ExportError};
use potluck_protocol::id::Digest;
use potluck_protocol::settle::{Abandon, Contract, Meter, Receipt, Usage, Voucher};
use potluck_protocol::sign::{Signable, Signed};
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::{GpuMillis, NanoCredit, UnixMillis};

use super::books::{self, Job};

static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| books::file(books::entries()));

/// The first byte says as what.
pub(crate) fn examine(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 3 {
        0 => assert!(read(rest).is_err() || rest == WHOLE.as_slice(), "a seal was forged"),
        1 => changed(rest),
        _ => sealed(rest),
    }
}

fn read(bytes: &[u8]) -> Result<Report, ExportError> {
    let mut examiner = Examiner::default();
    for piece in bytes.chunks(1_000) {
        examiner.feed(piece, &mut |_| ())?;
    }
    examiner.finish()
}

/// `change` over the place that its first two bytes name.
fn changed(change: &[u8]) {
    let Some((at, change)) = change.split_first_chunk::<2>() else { return };
    let mut bytes = WHOLE.clone();
    let at = usize::from(u16::from_le_bytes(*at)) % bytes.len();
    let end = bytes.len().min(at + change.len());
    bytes[at..end].copy_from_slice(&change[..end - at]);
    assert!(read(&bytes).is_err() || bytes == *WHOLE, "a change passed");
}

/// Numbers out of the input, zeros behind its end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        let (mut bytes, taken) = ([0; 8], self.0.len().min(3));
        bytes[..taken].copy_from_slice(&self.0[..taken]);
        self.0 = &self.0[taken..];
        // Small numbers meet each other; the largest one is an edge.
        match u64::from_le_bytes(bytes) {
            0xff_ffff => u64::MAX,
            number => number % 4_096,
        }
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.next()).unwrap_or(u32::MAX)
    }

    fn digest(&mut self, of: &[Digest]) -> Digest {
        let at = usize::try_from(self.next()).unwrap_or(0);
        of.get(at % (of.len() + 1)).copied().unwrap_or(Digest::from_bytes([7; 32]))
    }
}

fn statement<T: Signable>(by: u8, body: T) -> Statement
where
    Statement: From<Signed<T>>,
{
    books::key(by).sign(body).expect("its own key").into_signed().into()
}

/// Statements with any fields, each truly signed, in the order of a file.
fn sealed(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let (mut statements, mut digests) = (Vec::new(), vec![books::pair().genesis()]);
    while !numbers.0.is_empty() && statements.len() < 24 {
        let next = any(&mut numbers, &digests);
        digests.extend(next.verify().map(|proven| proven.digest));
        statements.push(next);
    }
    let mut entries = books::ranked(statements);
    entries.dedup_by_key(|entry| Entry::rank(entry));
    let count = u64::try_from(entries.len()).expect("few");
    let report = read(&books::file(entries)).expect("it is well sealed");
    assert_eq!(report.statements, count);
    assert_eq!(report.faults.count > 0, report.faults.first.is_some());
}

fn any(numbers: &mut Numbers<'_>, digests: &[Digest]) -> Statement {
    let turned = numbers.next() % 2 == 1;
    let (renter, provider) = if turned { (2, 1) } else { (1, 2) };
    let job = Job {
        renter,
        provider,
        lane: numbers.next() % 3,
        created: numbers.next().min(1 << 48),
        meters: 0,
        closed: false,
    };
    let (lane, k) = (job.id(), numbers.small());
    let usage = Usage {
        load: GpuMillis::new(numbers.next()),
        run: GpuMillis::new(numbers.next()),
        guest: GpuMillis::new(numbers.next()),
    };
    let amount = match numbers.next() {
        0 => usage.amount(&books::terms()),
        other => NanoCredit::new(other),
    };
    let digest = numbers.digest(digests);
    let (pair, by) = (books::pair(), books::key(renter).peer());
    let (epoch, n) = (numbers.small() % 3, numbers.small() % 4);
    match numbers.next() % 10 {
        0 => {
            let body: Contract = job.contract().body().clone();
            statement(renter, Contract { max_total: amount, max_ms: usage.total(), ..body })
        }
        1 => statement(
            provider,
            Meter { lane, contract: digest, k, usage, tokens: k, commitment: digest, last: k % 2 == 1 },
        ),
        2 | 3 => statement(
            renter,
            Voucher { lane, k, usage, amount, meter: digest, previous: numbers.digest(digests) },
        ),
        4 => statement(provider, Receipt { lane, k, amount, voucher: digest }),
        5 => statement(renter, Abandon { lane, by, k, amount, voucher: digest }),
        6 => {
            let settle = Settle { payer: by, amount, reference: String::new() };
            let floor = UnixMillis::new(numbers.next());
            let fold = Fold::new(pair, floor);
            let state = PairState {
                pair,
                by,
                epoch,
                n,
                balance: i128::from(numbers.next()),
                floor,
                lanes: fold.lanes(),
                folded: fold.count(),
                settle: (k % 2 == 0).then_some(settle),
                previous: digest,
            };
            statement(renter, state)
        }
        7 => statement(renter, Countersign { pair, by, epoch, n, state: digest }),
        8 => statement(
            renter,
            Cancel { pair, by, epoch, n, proposal: digest, reason: CancelReason::Disagrees },
        ),
        _ => statement(renter, Raise { pair, by, epoch }),
    }
}
