//! Bringing the index up to the journal's end when a ledger is opened.
//!
//! Owns: which part of the journal must be read, the rebuild, and its progress. Never: writes to the
//! journal. Called by [`super::Ledger::open`]. Ends with an index that reflects every record.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use potluck_protocol::id::PeerId;

use super::account::Part;
use super::apply::Numbered;
use super::check::decode;
use super::checkpoint::{self, Item};
use super::error::{LedgerError, ReadError};
use super::index::{Base, Index};
use super::journal::{End, Entry, Found, Place};
use super::lane::RetiredLane;
use super::read::{FileId, Spot};
use super::record::Checked;

/// Records that enter the index together when it is brought up to date.
const GROUP: usize = 1_024;
/// A rebuild that takes longer shows its progress.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

type Sums = BTreeMap<PeerId, Part>;

/// How far a ledger is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes to read.
    pub total: u64,
}

/// What opening found.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) end: End,
    pub(super) rebuilt: bool,
    pub(super) read_bytes: u64,
}

/// An index in `path` that reflects all of the journal: read on from the place it knows, or built anew.
pub(super) fn load(
    found: &Found,
    path: &Path,
    watch: &mut dyn FnMut(Progress),
) -> Result<Loaded, LedgerError> {
    let index = Index::open(path, found.owner)?;
    if let Some(place) = known(found, &index)? {
        let mut loader = Loader::new(&index, found.owner, found.bytes_from(Some(&place)), watch);
        let end = loader.scan(found, Some(&place))?;
        return Ok(Loaded { index, end, rebuilt: false, read_bytes: end.read });
    }
    drop(index);
    let index = Index::begin(path, found.owner)?;
    let base_bytes = match &found.base {
        Some((name, _)) => file_size(found, name)?,
        None => 0,
    };
    if found.begin().records > 0 || found.segments.len() > 1 {
        tracing::info!(path = %path.display(), "building the ledger's index anew from the journal");
    }
    let mut loader = Loader::new(&index, found.owner, base_bytes + found.bytes_from(None), watch);
    if let Some((name, _)) = &found.base {
        loader.checkpoint(found, name)?;
    }
    let end = loader.scan(found, None)?;
    Ok(Loaded { index, end, rebuilt: end.position.records > 0, read_bytes: base_bytes + end.read })
}

/// The place that `index` reflects, if it lies on this journal.
fn known(found: &Found, index: &Index) -> Result<Option<Place>, LedgerError> {
    let reflected = || -> Result<_, ReadError> { Ok((index.place()?, index.base()?)) };
    match reflected() {
        Ok((Some(place), base)) if base.through == found.through() => {
            Ok(found.confirms(&place)?.then_some(place))
        }
        Ok(_) => Ok(None),
        Err(error) => {
            tracing::warn!(%error, "the ledger's index is of no use");
            Ok(None)
        }
    }
}

fn file_size(found: &Found, name: &str) -> Result<u64, LedgerError> {
    let path = found.disk.path(name);
    let size = found.disk.open(name).and_then(|file| file.size());
    size.map_err(super::error::io_error("read", &path))
}

/// Fills an index, group by group.
struct Loader<'a> {
    index: &'a Index,
    me: PeerId,
    group: Vec<Numbered<Checked>>,
    place: Option<Place>,
    /// Bytes of files read before the present one.
    before: u64,
    progress: Progress,
    watch: &'a mut dyn FnMut(Progress),
}

impl<'a> Loader<'a> {
    fn new(index: &'a Index, me: PeerId, total: u64, watch: &'a mut dyn FnMut(Progress)) -> Self {
        let progress = Progress { done: 0, total };
        Self { index, me, group: Vec::new(), place: None, before: 0, progress, watch }
    }

    fn apply(&mut self) -> Result<(), LedgerError> {
        if !self.group.is_empty() {
            let applied = self.index.apply(self.group.iter().map(Numbered::as_ref), self.place);
            applied.map_err(unwritable)?;
            self.group.clear();
        }
        (self.watch)(self.progress);
        Ok(())
    }

    fn push(&mut self, record: Numbered<Checked>) -> Result<(), LedgerError> {
        self.group.push(record);
        if self.group.len() >= GROUP { self.apply() } else { Ok(()) }
    }

    fn scan(&mut self, found: &Found, place: Option<&Place>) -> Result<End, LedgerError> {
        let end = found.scan(place, u64::MAX, &mut |entry| self.entry(entry))?;
        self.progress.done = self.progress.total;
        self.apply()?;
        self.index.flush();
        Ok(end)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), LedgerError> {
        let record = decode(entry, self.me)?;
        if self.place.is_some_and(|place| place.segment != entry.place.segment) {
            self.before += self.place.map_or(0, |place| place.end);
        }
        self.progress.done = (self.before + entry.place.end).min(self.progress.total);
        self.place = Some(entry.place);
        self.push(record)
    }

    /// Takes in a checkpoint, and checks that its lanes add up to its balances.
    fn checkpoint(&mut self, found: &Found, name: &str) -> Result<(), LedgerError> {
        let (mut stated, mut sums) = (BTreeMap::new(), BTreeMap::new());
        let mut retired = Vec::new();
        let said = checkpoint::read(&*found.disk, name, found.owner, &mut |item, read| {
            self.progress.done = read;
            match item {
                Item::Object(number, offset, checked) => {
                    let file = FileId::Checkpoint(found.through());
                    return self.push(Numbered { number, spot: Spot { file, offset }, checked });
                }
                Item::Lane(lane) => retired.push(lane),
                Item::Pair(peer, pair) => _ = stated.insert(peer, pair),
            }
            if retired.len() >= GROUP { self.restore(&mut retired, &mut sums) } else { Ok(()) }
        })?;
        self.restore(&mut retired, &mut sums)?;
        self.before = self.progress.done;
        if sums != stated {
            let what = "its lanes do not add up to its balances";
            return Err(LedgerError::Damaged { file: found.disk.path(name), offset: 0, what });
        }
        let base = Base { through: said.through, dropped: said.dropped };
        let index = self.index;
        index.set_base(base).and_then(|()| index.set_horizon(said.position.records)).map_err(unwritable)
    }

    /// Puts retired lanes back, after the objects before them, and adds them to the sums.
    fn restore(&mut self, retired: &mut Vec<RetiredLane>, sums: &mut Sums) -> Result<(), LedgerError> {
        self.apply()?;
        for (peer, part) in self.index.restore(retired).map_err(unwritable)? {
            let sum = sums.entry(peer).or_default();
            *sum = sum.and(part);
        }
        retired.clear();
        Ok(())
    }
}

fn unwritable(ReadError { path, why }: ReadError) -> LedgerError {
    LedgerError::Index { path, why }
}

/// A bar on stderr for a person who waits; none when it is quick.
pub(super) fn bar() -> impl FnMut(Progress) {
    let started = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    move |progress| {
        if bar.is_none() && started.elapsed() > PROGRESS_AFTER && progress.done < progress.total {
            let style = ProgressStyle::with_template("ledger index {wide_bar} {bytes}/{total_bytes} {eta}");
            bar = Some(
                ProgressBar::new(progress.total)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
            );
        }
        if let Some(bar) = &bar {
            bar.set_position(progress.done);
            if progress.done >= progress.total {
                bar.finish_and_clear();
            }
        }
    }
}
