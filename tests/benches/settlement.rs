//! What keeping the books costs: voucher rounds per second against SQLite, a quantum's bookkeeping
//! against the quantum, and opening, rebuilding and compacting a ledger of many receipts.
//!
//! Owns: the measurements of the areas settlement and store, and the ledgers they are made on, which
//! lie in the target folder, so that both stores use one disk. Never: compares figures of different
//! runs or machines. Run by `make bench [ONLY=settlement|store]`. Exit status 1 when a target is missed.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use potluck_node::ledger::{Ledger, Retention, VerifiedRecord};
use potluck_protocol::id::{ContentHash, Digest, LaneId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::{Hardware, Protection, Quote, Terms};
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Meter, Receipt, Usage, Voucher};
use potluck_protocol::sign::{Signed, SigningKey, Verified};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};
use potluck_tests::figures::{self, Figure, median};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Signatures, and quanta of a lane, that are timed one by one.
const QUANTA: u32 = 100;
/// Rounds of one lane in one turn; the two stores take turns, short ones, as the disk has its moods.
const ROUNDS: u32 = 20;
const TURNS: usize = 301;
/// Lanes that are served at once, and rounds of each.
const LANES: u32 = 100;
const ROUNDS_EACH: u32 = 200;
/// Receipts in a ledger that is opened, and rounds of a lane in it.
const SIZES: [u32; 2] = [100_000, 1_000_000];
const ROUNDS_A_LANE: u32 = 20;
/// With this argument the program opens a ledger, says what that took, and ends.
const PROBE: &str = "--probe-open";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.as_slice() {
        [_, probe, dir] if probe == PROBE => probe_open(Path::new(dir)).map(|()| true),
        _ => measure(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<bool> {
    let areas = figures::wanted(&["settlement", "store"])?;
    if areas.is_empty() {
        return Ok(true);
    }
    let mut all = Vec::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if areas.contains(&"settlement") {
        signing(&mut all)?;
        runtime.block_on(quanta(&mut all))?;
        one_lane(&runtime, &mut all)?;
        many_lanes(&runtime, &mut all)?;
        one_side(&runtime, &mut all)?;
    }
    if areas.contains(&"store") {
        for receipts in SIZES {
            grown(&runtime, receipts, &mut all)?;
        }
    }
    Ok(figures::report(&all)?)
}

/// A folder on the disk that the build is on.
fn folder() -> Outcome<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("bench-ledger-")
        .tempdir_in(potluck_tests::programs::build_folder()?)?)
}

fn renter() -> SigningKey {
    SigningKey::from_seed([21; 32])
}

fn provider() -> SigningKey {
    SigningKey::from_seed([22; 32])
}

/// Lane `number` between the two. Making a key costs as much as a signature: nothing that is timed calls it.
fn lane(number: u32) -> LaneId {
    LaneId { renter: renter().peer(), provider: provider().peer(), epoch: 0, lane: u64::from(number) }
}

fn terms() -> Terms {
    Terms {
        run: Rate::new(11_111),
        load: Rate::new(3_000),
        guest: Rate::ZERO,
        quantum: GpuMillis::new(1_000),
        window: GpuMillis::new(2_000),
    }
}

fn usage(k: u32) -> Usage {
    Usage { load: GpuMillis::new(300), run: GpuMillis::new(u64::from(k) * 1_000), ..Usage::default() }
}

/// One side's key, and what it signs in lane `number`.
struct Signer {
    renter: SigningKey,
    provider: SigningKey,
}

impl Signer {
    fn new() -> Self {
        Self { renter: renter(), provider: provider() }
    }

    fn voucher(&self, lane: LaneId, k: u32, previous: Digest) -> Outcome<Verified<Voucher>> {
        let amount = usage(k).amount(&terms());
        let meter = Digest::from_bytes([6; 32]);
        Ok(self.renter.sign(Voucher { lane, k, usage: usage(k), amount, meter, previous })?)
    }

    fn meter(&self, lane: LaneId, k: u32) -> Outcome<Verified<Meter>> {
        let (contract, commitment) = (Digest::from_bytes([5; 32]), Digest::from_bytes([8; 32]));
        let (tokens, last) = (k * 20, false);
        Ok(self.provider.sign(Meter { lane, contract, k, usage: usage(k), tokens, commitment, last })?)
    }

    fn receipt(&self, voucher: &Verified<Voucher>) -> Outcome<Verified<Receipt>> {
        let Voucher { lane, k, amount, .. } = *voucher.body();
        Ok(self.provider.sign(Receipt { lane, k, amount, voucher: voucher.digest() })?)
    }

    /// What a lane begins with.
    fn opening(&self, number: u32) -> Outcome<Vec<VerifiedRecord>> {
        let lane = lane(number);
        let quote = self.provider.sign(Quote {
            provider: lane.provider,
            renter: lane.renter,
            serial: lane.lane,
            model: ContentHash::from_bytes([3; 32]),
            guest: None,
            terms: terms(),
            max_ms: GpuMillis::new(600_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1_024 },
            protection: Protection::None,
            expires: UnixMillis::new(9),
        })?;
        let contract = self.renter.sign(Contract {
            lane,
            job: Digest::from_bytes([4; 32]),
            quote: quote.digest(),
            terms: terms(),
            max_total: NanoCredit::new(1_000_000_000),
            max_ms: GpuMillis::new(600_000),
            created: UnixMillis::new(1_000 + u64::from(number)),
            start_by: UnixMillis::new(2_000),
        })?;
        let accept = Accept { lane, contract: contract.digest(), at: UnixMillis::new(1_500) };
        Ok(vec![quote.into(), contract.into(), self.provider.sign(accept)?.into()])
    }

    /// A whole lane of so many rounds.
    fn whole(&self, number: u32, rounds: u32) -> Outcome<Vec<VerifiedRecord>> {
        let mut records = self.opening(number)?;
        let lane = lane(number);
        let mut previous = Digest::from_bytes([7; 32]);
        for k in 1..=rounds {
            let voucher = self.voucher(lane, k, previous)?;
            previous = voucher.digest();
            let receipt = self.receipt(&voucher)?;
            records.extend([self.meter(lane, k)?.into(), voucher.into(), receipt.into()]);
        }
        let close = self.provider.sign(Close {
            lane,
            by: lane.provider,
            k: rounds,
            amount: usage(rounds).amount(&terms()),
            reason: CloseReason::Completed,
            finish: FinishReason::Stop,
            prompt_tokens: 12,
            completion_tokens: rounds * 20,
            result: Digest::from_bytes([9; 32]),
            at: UnixMillis::new(5_000),
        })?;
        records.push(close.into());
        Ok(records)
    }
}

fn signing(all: &mut Vec<Figure>) -> Outcome<()> {
    let (signer, lane) = (Signer::new(), lane(0));
    let (mut sign, mut verify) = (Vec::new(), Vec::new());
    for turn in 0..QUANTA {
        let started = Instant::now();
        let signed = signer.voucher(lane, turn + 1, Digest::from_bytes([7; 32]))?.into_signed();
        sign.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        signed.verify()?;
        verify.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let (sign, verify) = (median(sign), median(verify));
    all.push(Figure::plain("settlement", "sign one voucher", sign, "us"));
    all.push(Figure::plain("settlement", "verify one voucher", verify, "us"));
    Ok(())
}

/// All that both sides do for one quantum of work, one after the other, in the time of that quantum.
async fn quanta(all: &mut Vec<Figure>) -> Outcome<()> {
    let (books, signer) = (Books::new()?, Signer::new());
    let lane = lane(0);
    let mut spent = Vec::new();
    let mut previous = Digest::from_bytes([7; 32]);
    for k in 1..=QUANTA {
        let started = Instant::now();
        let meter = signer.meter(lane, k)?;
        books.provider.append_verified(vec![meter.clone().into()]).await?;
        let meter = meter.into_signed().verify()?;
        let voucher = signer.voucher(lane, k, previous)?;
        previous = voucher.digest();
        books.renter.append_verified(vec![meter.into(), voucher.clone().into()]).await?;
        let voucher = voucher.into_signed().verify()?;
        let receipt = signer.receipt(&voucher)?;
        books.provider.append_verified(vec![voucher.into(), receipt.clone().into()]).await?;
        let receipt = receipt.into_signed().verify()?;
        books.renter.append_verified(vec![receipt.into()]).await?;
        spent.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let spent = median(spent);
    let quantum_ms = 1_000.0;
    all.push(Figure::plain("settlement", "both sides' books for one quantum", spent, "ms"));
    all.push(
        Figure::plain(
            "settlement",
            "of a job's time, at the default quantum",
            spent / quantum_ms * 100.0,
            "%",
        )
        .below(0.5, "at most 0.5 %"),
    );
    Ok(())
}

/// Both sides' ledgers, in folders of their own.
struct Books {
    renter: Ledger,
    provider: Ledger,
    _folders: [TempDir; 2],
}

impl Books {
    fn new() -> Outcome<Self> {
        let folders = [folder()?, folder()?];
        let (ours, _) = Ledger::open(folders[0].path(), renter().peer())?;
        let (theirs, _) = Ledger::open(folders[1].path(), provider().peer())?;
        Ok(Self { renter: ours, provider: theirs, _folders: folders })
    }

    /// Signed, durable with the renter, verified, durable with the provider.
    async fn round(&self, signer: &Signer, lane: LaneId, k: u32, previous: Digest) -> Outcome<Digest> {
        let voucher = signer.voucher(lane, k, previous)?;
        self.renter.append_verified(vec![voucher.clone().into()]).await?;
        let voucher = voucher.into_signed().verify()?;
        let digest = voucher.digest();
        self.provider.append_verified(vec![voucher.into()]).await?;
        Ok(digest)
    }
}

/// What a database keeps of a voucher, besides its place.
fn row(voucher: &Verified<Voucher>) -> (Digest, Vec<u8>) {
    (voucher.digest(), voucher.bytes().to_vec())
}

/// Both sides' databases, which keep the same rows and nothing besides.
struct Databases {
    renter: Mutex<Connection>,
    provider: Mutex<Connection>,
    _folders: [TempDir; 2],
}

impl Databases {
    fn new() -> Outcome<Self> {
        let folders = [folder()?, folder()?];
        let open = |folder: &TempDir| -> Outcome<Mutex<Connection>> {
            let connection = Connection::open(folder.path().join("ledger.sqlite"))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(
                "CREATE TABLE record (lane BLOB, kind INTEGER, k INTEGER, digest BLOB, object BLOB,
                 PRIMARY KEY (lane, kind, k)) WITHOUT ROWID",
            )?;
            Ok(Mutex::new(connection))
        };
        Ok(Self { renter: open(&folders[0])?, provider: open(&folders[1])?, _folders: folders })
    }

    fn keep(connection: &Mutex<Connection>, lane: LaneId, k: u32, row: &(Digest, Vec<u8>)) -> Outcome<()> {
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut insert = connection.prepare_cached("INSERT INTO record VALUES (?1, 5, ?2, ?3, ?4)")?;
        let number = lane.lane.to_be_bytes();
        let name = [&lane.renter.as_bytes()[..], &lane.provider.as_bytes()[..], &number[..]].concat();
        insert.execute((name, k, row.0.as_bytes(), &row.1))?;
        Ok(())
    }

    /// As [`Databases::round`], from async code, which may not wait for a disk itself.
    async fn round_async(
        self: &Arc<Self>,
        signer: &Signer,
        lane: LaneId,
        k: u32,
        previous: Digest,
    ) -> Outcome<Digest> {
        let voucher = signer.voucher(lane, k, previous)?;
        let kept = row(&voucher);
        let at = self.clone();
        tokio::task::spawn_blocking(move || Self::keep(&at.renter, lane, k, &kept)).await??;
        let voucher = voucher.into_signed().verify()?;
        let kept = row(&voucher);
        let at = self.clone();
        tokio::task::spawn_blocking(move || Self::keep(&at.provider, lane, k, &kept)).await??;
        Ok(voucher.digest())
    }

    /// As [`Books::round`].
    fn round(&self, signer: &Signer, lane: LaneId, k: u32, previous: Digest) -> Outcome<Digest> {
        let voucher = signer.voucher(lane, k, previous)?;
        Self::keep(&self.renter, lane, k, &row(&voucher))?;
        let voucher = voucher.into_signed().verify()?;
        Self::keep(&self.provider, lane, k, &row(&voucher))?;
        Ok(voucher.digest())
    }
}

fn per_second(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64()
}

fn one_lane(runtime: &tokio::runtime::Runtime, all: &mut Vec<Figure>) -> Outcome<()> {
    let (books, databases, signer) = (Books::new()?, Databases::new()?, Signer::new());
    let called = Arc::new(Databases::new()?);
    let lane = lane(0);
    let (mut ours, mut theirs, mut from_async) = (Vec::new(), Vec::new(), Vec::new());
    let mut heads = [Digest::from_bytes([7; 32]); 3];
    for turn in 0..TURNS {
        let first = u32::try_from(turn)? * ROUNDS;
        let turn = first + 1..=first + ROUNDS;
        let started = Instant::now();
        heads[0] = runtime.block_on(async {
            let mut head = heads[0];
            for k in turn.clone() {
                head = books.round(&signer, lane, k, head).await?;
            }
            Outcome::Ok(head)
        })?;
        ours.push(started.elapsed());
        let started = Instant::now();
        for k in turn.clone() {
            heads[1] = databases.round(&signer, lane, k, heads[1])?;
        }
        theirs.push(started.elapsed());
        let started = Instant::now();
        heads[2] = runtime.block_on(async {
            let mut head = heads[2];
            for k in turn {
                head = called.round_async(&signer, lane, k, head).await?;
            }
            Outcome::Ok(head)
        })?;
        from_async.push(started.elapsed());
    }
    // All of the time counts: also what either store does only now and then (new segments, checkpoints).
    let rate = |turns: &[Duration]| {
        Outcome::Ok(per_second(u32::try_from(turns.len())? * ROUNDS, turns.iter().sum()))
    };
    let each = |turns: &[Duration]| turns.iter().map(|took| per_second(ROUNDS, *took)).collect::<Vec<_>>();
    all.push(
        Figure::plain("settlement", "voucher rounds, one lane", rate(&ours)?, "1/s")
            .beside("SQLite, WAL, synchronous=FULL", rate(&theirs)?)
            .at_least(1.2, "at least 1.2 x"),
    );
    all.push(
        Figure::plain("settlement", "voucher rounds, one lane, the usual turn", median(each(&ours)), "1/s")
            .beside_in_turns("SQLite, WAL, synchronous=FULL", &each(&ours), &each(&theirs)),
    );
    all.push(
        Figure::plain("settlement", "voucher rounds, one lane, from async code", rate(&ours)?, "1/s")
            .beside("SQLite as above, by spawn_blocking", rate(&from_async)?),
    );
    Ok(())
}

fn many_lanes(runtime: &tokio::runtime::Runtime, all: &mut Vec<Figure>) -> Outcome<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.push(runtime.block_on(lanes_of_books())?);
        theirs.push(lanes_of_databases()?);
    }
    all.push(
        Figure::plain("settlement", "voucher rounds, 100 lanes at once", median(ours), "1/s")
            .beside("SQLite, WAL, synchronous=FULL", median(theirs))
            .at_least(5.0, "at least 5 x"),
    );
    Ok(())
}

async fn lanes_of_books() -> Outcome<f64> {
    let (books, signer) = (Arc::new(Books::new()?), Arc::new(Signer::new()));
    let started = Instant::now();
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            let (books, signer) = (books.clone(), signer.clone());
            let lane = lane(number);
            tokio::spawn(async move {
                let mut head = Digest::from_bytes([7; 32]);
                for k in 1..=ROUNDS_EACH {
                    head = books.round(&signer, lane, k, head).await?;
                }
                Outcome::Ok(())
            })
        })
        .collect();
    for lane in lanes {
        lane.await??;
    }
    Ok(per_second(LANES * ROUNDS_EACH, started.elapsed()))
}

fn lanes_of_databases() -> Outcome<f64> {
    let (databases, signer) = (Databases::new()?, Signer::new());
    let started = Instant::now();
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|number| {
                let (databases, signer, lane) = (&databases, &signer, lane(number));
                scope.spawn(move || {
                    let mut head = Digest::from_bytes([7; 32]);
                    for k in 1..=ROUNDS_EACH {
                        head = databases.round(signer, lane, k, head)?;
                    }
                    Outcome::Ok(())
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| "a lane of SQLite's panicked")?)
    })?;
    Ok(per_second(LANES * ROUNDS_EACH, started.elapsed()))
}

/// What a provider of many lanes does, whose renters have machines of their own: verified and durable.
fn one_side(runtime: &tokio::runtime::Runtime, all: &mut Vec<Figure>) -> Outcome<()> {
    let signer = Signer::new();
    let lane_of = |number| -> Outcome<Vec<Signed<Voucher>>> {
        let (lane, mut head) = (lane(number), Digest::from_bytes([7; 32]));
        let vouchers = (1..=ROUNDS_EACH).map(|k| {
            let voucher = signer.voucher(lane, k, head)?;
            head = voucher.digest();
            Ok(voucher.into_signed())
        });
        vouchers.collect()
    };
    let lanes = (0..LANES).map(lane_of).collect::<Outcome<Vec<_>>>()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.push(runtime.block_on(taken_by_books(lanes.clone()))?);
        theirs.push(taken_by_database(&lanes)?);
    }
    all.push(
        Figure::plain(
            "settlement",
            "vouchers that one side takes in, 100 lanes at once",
            median(ours),
            "1/s",
        )
        .beside("SQLite, WAL, synchronous=FULL", median(theirs)),
    );
    Ok(())
}

async fn taken_by_books(lanes: Vec<Vec<Signed<Voucher>>>) -> Outcome<f64> {
    let folder = folder()?;
    let (ledger, _) = Ledger::open(folder.path(), provider().peer())?;
    let started = Instant::now();
    let lanes: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for voucher in lane {
                    ledger.append_verified(vec![voucher.verify()?.into()]).await?;
                }
                Outcome::Ok(())
            })
        })
        .collect();
    for lane in lanes {
        lane.await??;
    }
    Ok(per_second(LANES * ROUNDS_EACH, started.elapsed()))
}

fn taken_by_database(lanes: &[Vec<Signed<Voucher>>]) -> Outcome<f64> {
    let databases = Databases::new()?;
    let started = Instant::now();
    thread::scope(|scope| {
        let lanes: Vec<_> = lanes
            .iter()
            .map(|lane| {
                let provider = &databases.provider;
                scope.spawn(move || {
                    for voucher in lane {
                        let voucher = voucher.clone().verify()?;
                        let Voucher { lane, k, .. } = *voucher.body();
                        let kept = row(&voucher);
                        Databases::keep(provider, lane, k, &kept)?;
                    }
                    Outcome::Ok(())
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| "a lane of SQLite's panicked")?)
    })?;
    Ok(per_second(LANES * ROUNDS_EACH, started.elapsed()))
}

/// What opening a ledger took, as the program that did it says.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    seconds: f64,
    /// The most memory that was resident, in MiB.
    memory_mib: f64,
    read_mib: f64,
    rebuilt: bool,
}

fn probe_open(dir: &Path) -> Outcome<()> {
    let started = Instant::now();
    let (ledger, report) = Ledger::open_watched(dir, provider().peer(), &mut |_| {})?;
    let seconds = started.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = peak.split_whitespace().next().ok_or("no VmHWM")?.parse()?;
    let read_mib = f64::from(u32::try_from(report.read_bytes >> 10)?) / 1_024.0;
    let opened = Opened { seconds, memory_mib: kib / 1_024.0, read_mib, rebuilt: report.rebuilt_index };
    println!("{}", serde_json::to_string(&opened)?);
    drop(ledger);
    Ok(())
}

/// Opens the ledger in a process of its own.
fn open(dir: &Path) -> Outcome<Opened> {
    let output = Command::new(std::env::current_exe()?).arg(PROBE).arg(dir).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Bytes that the files in `dir` take, or those in its folders.
fn disk_bytes(dir: &Path, in_folders: bool) -> Outcome<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() && !in_folders {
            // No file here has 4 TiB.
            bytes += f64::from(u32::try_from(entry.metadata()?.len() / 1_024)?) * 1_024.0;
        } else if entry.file_type()?.is_dir() && in_folders {
            bytes += disk_bytes(&entry.path(), false)?;
        }
    }
    Ok(bytes)
}

/// A provider's ledger of so many receipts: its size, and what opening it takes.
fn grown(runtime: &tokio::runtime::Runtime, receipts: u32, all: &mut Vec<Figure>) -> Outcome<()> {
    let home = folder()?;
    let dir = home.path();
    eprintln!("filling a ledger with {receipts} receipts: minutes");
    let started = Instant::now();
    runtime.block_on(fill(dir, receipts))?;
    let each = |bytes: f64| bytes / f64::from(receipts);
    let mut note = |what: &str, value, unit| {
        all.push(Figure::plain("store", format!("{receipts} receipts: {what}"), value, unit));
    };
    note("filled in", started.elapsed().as_secs_f64(), "s");
    note("journal, a receipt with its meter and voucher", each(disk_bytes(dir, false)?), "B");
    note("index, a receipt with its meter and voucher", each(disk_bytes(dir, true)?), "B");
    for (what, gone) in
        [("open", None), ("open, after a crash", Some("index.seal")), ("rebuild", Some("index"))]
    {
        match gone {
            Some("index") => fs::remove_dir_all(dir.join("index"))?,
            Some(file) => fs::remove_file(dir.join(file))?,
            None => {}
        }
        let opened = open(dir)?;
        if opened.rebuilt != (gone == Some("index")) {
            return Err(format!("{what}: {opened:?}").into());
        }
        note(what, opened.seconds, "s");
        note(&format!("{what}: resident at most"), opened.memory_mib, "MiB");
        note(&format!("{what}: journal read"), opened.read_mib, "MiB");
    }
    let (ledger, _) = Ledger::open_watched(dir, provider().peer(), &mut |_| {})?;
    let started = Instant::now();
    let everything = Retention { keep: Duration::ZERO, worth_bytes: 0 };
    ledger.compact(&provider(), everything)?.ok_or("nothing was compacted")?;
    note("compaction", started.elapsed().as_secs_f64(), "s");
    drop(ledger);
    note("journal, after compaction", each(disk_bytes(dir, false)?), "B");
    note("open, after compaction", open(dir)?.seconds, "s");
    fs::remove_dir_all(dir.join("index"))?;
    note("rebuild, after compaction", open(dir)?.seconds, "s");
    Ok(())
}

async fn fill(dir: &Path, receipts: u32) -> Outcome<()> {
    let (ledger, _) = Ledger::open(dir, provider().peer())?;
    let signer = Arc::new(Signer::new());
    let lanes = receipts / ROUNDS_A_LANE;
    let halves = [0..lanes / 2, lanes / 2..lanes].map(|half| {
        let (ledger, signer) = (ledger.clone(), signer.clone());
        tokio::spawn(async move {
            // Many lanes an append: filling is not what is measured.
            let half: Vec<u32> = half.collect();
            for some in half.chunks(16) {
                let mut records = Vec::new();
                for number in some {
                    records.extend(signer.whole(*number, ROUNDS_A_LANE)?);
                }
                ledger.append_verified(records).await?;
            }
            Outcome::Ok(())
        })
    });
    for half in halves {
        half.await??;
    }
    Ok(())
}
