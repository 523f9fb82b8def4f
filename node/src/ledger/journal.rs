//! The journal: the ledger's only truth, an append-only chain of records in preallocated segments.
//!
//! Owns: which files make the chain, the durable append (one sync per group), and finding the chain's
//! end again. Never: knows what a record means, retries a failed sync, or deletes a damaged file.
//! Called by the writer, and by the ledger when it opens. Ends with the writer; there is
//! nothing to flush, as every append was synced before it returned.
//!
//! ```text
//! checkpoint-1-00000007.ckp   stands for segments 1 to 7 (see checkpoint.rs); at most one counts
//! journal-1-00000008.seg      header (128 bytes), records, zeros up to the preallocated size
//! journal-1-00000009.seg      the last one: the next group goes here
//! *.new                       what a crash left of a file that never got its name
//! ```
//!
//! Whoever knows a place on the chain (the index does) need not read what lies before it: the record
//! at that place must have the hash that the place names, and the chain is read on from there.

use std::sync::Arc;

use potluck_protocol::id::PeerId;
use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile, length, read_full_at, write_all_at};
use super::error::{LedgerError, io_error};
use super::fault;
use super::frame::{
    FIRST_OF_GROUP, Format, HEADER_BYTES, Header, MAX_RECORD_BYTES, Position, parse, record_bytes, used,
    was_durable, write_record,
};

use super::read::{FileId, Spot};

/// The first segment; each is twice the one before, up to [`MAX_SEGMENT_BYTES`].
const MIN_SEGMENT_BYTES: usize = 1 << 20;
/// Bounds the memory that a scan takes and the pause that a new segment costs.
const MAX_SEGMENT_BYTES: usize = 8 << 20;
/// The most that one group may take: it must fit any segment.
pub(super) const MAX_GROUP_BYTES: usize = 512 << 10;

/// A place in the chain, and where the record before it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// How far along the chain.
    pub(super) position: Position,
    /// In which segment its last record lies.
    pub(super) segment: u64,
    /// At which byte that record begins.
    pub(super) start: u64,
    /// And ends.
    pub(super) end: u64,
}

/// A record as it lies in the journal.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// In which file.
    pub(super) file: &'a Path,
    /// Its kind's number.
    pub(super) kind: u8,
    /// What was appended.
    pub(super) payload: &'a [u8],
    /// The place after it.
    pub(super) place: Place,
}

/// A segment that is there.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// Which.
    pub(super) number: u64,
    /// Its file.
    pub(super) name: String,
    /// What it says of itself.
    pub(super) header: Header,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// The files of a journal, before its end is known.
#[derive(Debug)]
pub(super) struct Found {
    /// Where they lie.
    pub(super) disk: Arc<dyn Disk>,
    /// Whose they are.
    pub(super) owner: PeerId,
    /// The checkpoint that counts: its file and header.
    pub(super) base: Option<(String, Header)>,
    /// The segments after it, in order, without a gap.
    pub(super) segments: Vec<Segment>,
    /// Files that count no more: drafts, and what the checkpoint stands for.
    pub(super) leftovers: Vec<String>,
}

/// Where a scan came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// How far along the chain.
    pub(super) position: Position,
    /// In the last segment: where the next record goes.
    pub(super) at: usize,
    /// Bytes of a torn write from there on.
    pub(super) torn: usize,
    /// Where the last group begins, if it was read: it may never have been synced.
    pub(super) last_group: Option<usize>,
    /// Bytes read.
    pub(super) read: u64,
}

/// Where bytes of a segment come from, and what came before them.
pub(super) struct Start<'a> {
    /// In which file.
    pub(super) file: &'a Path,
    /// Which segment that is.
    pub(super) segment: u64,
    /// At which byte of it.
    pub(super) from: u64,
    /// The end of what was read before.
    pub(super) before: End,
}

/// Follows the chain through `bytes`, up to record `until`; in the last segment it may end in a torn
/// write.
pub(super) fn scan_bytes(
    bytes: &[u8],
    start: &Start<'_>,
    (until, is_last): (u64, bool),
    visit: &mut dyn FnMut(&Entry<'_>) -> Result<(), LedgerError>,
) -> Result<End, LedgerError> {
    let Start { file, segment, from, before } = *start;
    let (mut position, mut at, mut last_group) = (before.position, 0, None);
    while position.records < until
        && let Some(frame) = parse(bytes, at).filter(|frame| frame.before == position.head)
    {
        position = Position { records: position.records + 1, head: frame.hash() };
        let start = from + length(at);
        if frame.kind & FIRST_OF_GROUP != 0 {
            last_group = usize::try_from(start).ok();
        }
        at += frame.bytes.len();
        let place = Place { position, segment, start, end: from + length(at) };
        visit(&Entry { file, kind: frame.kind & !FIRST_OF_GROUP, payload: frame.payload, place })?;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    // Who reads up to a record does not judge what is being written behind it.
    let torn = if position.records < until { used(rest) } else { 0 };
    if torn > 0 && (!is_last || was_durable(rest)) {
        let what = "a record there is broken, and records after it are whole";
        return Err(LedgerError::Damaged { file: file.to_owned(), offset: from + length(at), what });
    }
    let end = usize::try_from(from).unwrap_or(usize::MAX).saturating_add(at);
    Ok(End { position, at: end, torn, last_group, read: before.read + length(bytes.len()) })
}

/// `journal-1-00000003.seg`: the version and the number of a file named like `stem`.
fn numbered(name: &str, stem: &str, suffix: &str) -> Option<(String, u64)> {
    let (version, number) = name.strip_prefix(stem)?.strip_suffix(suffix)?.split_once('-')?;
    Some((version.to_owned(), number.parse().ok()?))
}

/// The file of a new segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("journal-1-{number:08}.seg")
}

/// The file of a segment of Potluck 0.1.
pub(super) fn old_segment_name(number: u64) -> String {
    format!("journal-0-{number:08}.seg")
}

/// The file of a checkpoint that stands for all segments up to `through`.
pub(super) fn checkpoint_name(through: u64) -> String {
    format!("checkpoint-1-{through:08}.ckp")
}

impl End {
    /// Where the records of the first segment after `position` begin.
    pub(super) fn at_header(position: Position) -> Self {
        Self { position, at: HEADER_BYTES, torn: 0, last_group: None, read: 0 }
    }
}

impl Place {
    /// Where the record before it lies.
    pub(super) fn spot(&self) -> Spot {
        Spot { file: FileId::Segment(self.segment), offset: self.start }
    }
}

impl Found {
    /// Looks which files are there and what their headers say.
    pub(super) fn survey(disk: Arc<dyn Disk>, owner: PeerId) -> Result<Self, LedgerError> {
        let dir = disk.path("");
        let (mut segments, mut checkpoints, mut leftovers) = (Vec::new(), Vec::new(), Vec::new());
        for name in disk.list().map_err(io_error("list", &dir))? {
            let segment = numbered(&name, "journal-", ".seg");
            let checkpoint = numbered(&name, "checkpoint-", ".ckp");
            match (segment, checkpoint) {
                (Some((version, number)), _) if version == "0" || version == "1" => {
                    segments.push((number, name));
                }
                (_, Some((version, through))) if version == "1" => checkpoints.push((through, name)),
                (None, None) if name.ends_with(".new") => leftovers.push(name),
                (None, None) => {}
                _ => return Err(LedgerError::Version { file: disk.path(&name) }),
            }
        }
        segments.sort_unstable();
        checkpoints.sort_unstable();
        let base = checkpoints.pop();
        leftovers.extend(checkpoints.into_iter().map(|(_, name)| name));
        let through = base.as_ref().map_or(0, |(through, _)| *through);
        let live = segments.iter().position(|(number, _)| *number > through).unwrap_or(segments.len());
        leftovers.extend(segments.drain(..live).map(|(_, name)| name));
        let mut found = Self { disk, owner, base: None, segments: Vec::new(), leftovers };
        if let Some((number, name)) = base {
            let (header, _) = found.header(&name, &[Format::Checkpoint1], number)?;
            found.base = Some((name, header));
        }
        found.follow(through, segments)?;
        Ok(found)
    }

    /// Takes the segments after number `through`, which must follow each other.
    fn follow(&mut self, through: u64, segments: Vec<(u64, String)>) -> Result<(), LedgerError> {
        let missing = |number| LedgerError::MissingSegment { file: self.disk.path(&segment_name(number)) };
        let mut live = Vec::new();
        for (expected, (number, name)) in (through + 1..).zip(segments) {
            if number != expected {
                return Err(missing(expected));
            }
            let (header, size) = self.header(&name, &[Format::Journal0, Format::Journal1], number)?;
            live.push(Segment { number, name, header, size });
        }
        // A checkpoint stands for segments that were full, so one more had been begun.
        if live.is_empty() && through > 0 {
            return Err(missing(through + 1));
        }
        self.segments = live;
        Ok(())
    }

    fn header(&self, name: &str, formats: &[Format], number: u64) -> Result<(Header, u64), LedgerError> {
        let path = self.disk.path(name);
        let file = self.disk.open(name).map_err(io_error("open", &path))?;
        let size = file.size().map_err(io_error("read", &path))?;
        let mut bytes = [0; HEADER_BYTES];
        let read = read_full_at(&*file, &mut bytes, 0).map_err(io_error("read", &path))?;
        let header = Header::parse(bytes.get(..read).unwrap_or_default(), &path, self.owner)?;
        if header.number != number || !formats.contains(&header.format) {
            let what = "it does not continue the segment before it";
            return Err(LedgerError::Damaged { file: path, offset: 0, what });
        }
        Ok((header, size))
    }

    /// Where the segments begin: after what the checkpoint stands for.
    pub(super) fn begin(&self) -> Position {
        self.base.as_ref().map_or_else(Position::default, |(_, header)| Position {
            records: header.records.unwrap_or(0),
            head: header.before,
        })
    }

    /// The last segment that the checkpoint stands for; 0 without one.
    pub(super) fn through(&self) -> u64 {
        self.base.as_ref().map_or(0, |(_, header)| header.number)
    }

    /// Is `place` on the chain? Reads one record.
    pub(super) fn confirms(&self, place: &Place) -> Result<bool, LedgerError> {
        if place.position == self.begin() {
            return Ok(true);
        }
        let Some(segment) = self.segments.iter().find(|it| it.number == place.segment) else {
            return Ok(false);
        };
        let wanted = place.end.saturating_sub(place.start);
        if wanted > length(MAX_RECORD_BYTES) {
            return Ok(false);
        }
        let bytes = self.read(segment, place.start, wanted)?;
        let frame = parse(&bytes, 0).filter(|frame| frame.bytes.len() == bytes.len());
        Ok(frame.is_some_and(|frame| frame.hash() == place.position.head))
    }

    /// Bytes that a scan from there on would read.
    pub(super) fn bytes_from(&self, place: Option<&Place>) -> u64 {
        let (segment, end) = self.after(place);
        let rest = self.segments.iter().filter(|it| it.number >= segment).map(|it| it.size).sum::<u64>();
        rest.saturating_sub(end)
    }

    /// The segment and the byte after `place`.
    fn after(&self, place: Option<&Place>) -> (u64, u64) {
        match place.filter(|place| place.position != self.begin()) {
            Some(place) => (place.segment, place.end),
            None => (self.through() + 1, length(HEADER_BYTES)),
        }
    }

    /// Calls `visit` for each record after `place` (of all segments when there is none), up to record
    /// `until`, and checks the chain on the way. Nothing is changed.
    pub(super) fn scan(
        &self,
        place: Option<&Place>,
        until: u64,
        visit: &mut dyn FnMut(&Entry<'_>) -> Result<(), LedgerError>,
    ) -> Result<End, LedgerError> {
        let (first, from) = self.after(place);
        let position = place.map_or_else(|| self.begin(), |place| place.position);
        let mut end = End::at_header(position);
        let last = self.segments.last().map_or(0, |it| it.number);
        for segment in self.segments.iter().filter(|it| it.number >= first) {
            if end.position.records >= until {
                break;
            }
            let from = if segment.number == first { from } else { length(HEADER_BYTES) };
            end = self.scan_segment(segment, from, end, (until, segment.number == last), visit)?;
        }
        Ok(end)
    }

    fn scan_segment(
        &self,
        segment: &Segment,
        from: u64,
        before: End,
        (until, is_last): (u64, bool),
        visit: &mut dyn FnMut(&Entry<'_>) -> Result<(), LedgerError>,
    ) -> Result<End, LedgerError> {
        let path = self.disk.path(&segment.name);
        if from == length(HEADER_BYTES) && !segment.header.follows(&before.position) {
            let what = "it does not continue the segment before it";
            return Err(LedgerError::Damaged { file: path, offset: 0, what });
        }
        let bytes = self.read(segment, from, segment.size.saturating_sub(from))?;
        let start = Start { file: &path, segment: segment.number, from, before };
        scan_bytes(&bytes, &start, (until, is_last), visit)
    }

    fn read(&self, segment: &Segment, from: u64, len: u64) -> Result<Vec<u8>, LedgerError> {
        let path = self.disk.path(&segment.name);
        let file = self.disk.open(&segment.name).map_err(io_error("open", &path))?;
        let room = len.min(segment.size.saturating_sub(from));
        let mut bytes = vec![0; usize::try_from(room).unwrap_or(0)];
        let read = read_full_at(&*file, &mut bytes, from).map_err(io_error("read", &path))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Makes sure of the names that count, then deletes what counts no more. (A crash may have come
    /// between a rename and the sync of the folder.)
    pub(super) fn sweep(&mut self) -> Result<(), LedgerError> {
        self.disk.sync().map_err(io_error("sync", &self.disk.path("")))?;
        for name in self.leftovers.drain(..) {
            let path = self.disk.path(&name);
            self.disk.remove(&name).map_err(io_error("delete", &path))?;
        }
        Ok(())
    }

    /// Opens the journal for appending at its end, whose torn tail is cut; begins one where there is
    /// none.
    pub(super) fn into_journal(self, end: End, now: UnixMillis) -> Result<Journal, LedgerError> {
        let Self { disk, owner, segments, .. } = self;
        let Some(last) = segments.last() else {
            let file = create_segment(&*disk, owner, 1, &Position::default(), now)?;
            let size = segment_size(1);
            let position = Position::default();
            let name = segment_name(1);
            return Ok(Journal { disk, owner, file, name, segment: 1, size, at: HEADER_BYTES, position });
        };
        let path = disk.path(&last.name);
        let file = disk.open(&last.name).map_err(io_error("open", &path))?;
        secure(&*file, &path, end)?;
        let file = disk.open_to_append(&last.name).map_err(io_error("open", &path))?;
        // A file cut short by hand simply has no room left: the next group begins a new segment.
        let size = usize::try_from(last.size).unwrap_or(0);
        let (name, segment) = (last.name.clone(), last.number);
        Ok(Journal { disk, owner, file, name, segment, size, at: end.at, position: end.position })
    }
}

/// Makes the end that was found the durable one.
///
/// The last group may be there only because the system still had it in memory: its writer was killed
/// before the sync, or the sync failed, after which no other sync writes those pages. It is written
/// once more, for whoever offers one of its records again is told that it is kept. Zeros go over a
/// torn tail, so that what a crash left is never taken for part of a later write.
fn secure(file: &dyn DiskFile, path: &Path, end: End) -> Result<(), LedgerError> {
    let start = end.last_group.unwrap_or(end.at);
    let mut bytes = vec![0; end.at.saturating_sub(start)];
    let read = read_full_at(file, &mut bytes, length(start)).map_err(io_error("read", path))?;
    bytes.truncate(read);
    bytes.resize(read + end.torn, 0);
    if bytes.is_empty() {
        return Ok(());
    }
    write_all_at(file, &bytes, length(start)).map_err(io_error("secure the end of", path))?;
    fault::point(fault::END_WRITTEN);
    file.sync_data().map_err(io_error("sync", path))?;
    fault::point(fault::END_SECURED);
    Ok(())
}

/// The journal, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    owner: PeerId,
    file: Box<dyn DiskFile>,
    name: String,
    segment: u64,
    size: usize,
    at: usize,
    position: Position,
}

impl Journal {
    /// The file that the next group goes to.
    pub(super) fn path(&self) -> PathBuf {
        self.disk.path(&self.name)
    }

    /// How far along the chain it is.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The segment that the next group goes to, if it fits.
    pub(super) fn segment(&self) -> u64 {
        self.segment
    }

    /// Do so many bytes fit the segment that is open?
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.at + bytes <= self.size
    }

    /// Appends a group of at least one record and at most [`MAX_GROUP_BYTES`], and syncs it; gives the
    /// place after it, and at which byte of that segment each record begins. After an error the journal's
    /// end is unknown: the caller must not append again (a sync reports a lost page only once).
    pub(super) fn append<'a>(
        &mut self,
        group: impl IntoIterator<Item = (u8, &'a [u8]), IntoIter: Clone>,
        now: UnixMillis,
    ) -> io::Result<(Place, Vec<u64>)> {
        let group = group.into_iter();
        let (count, size) = group
            .clone()
            .fold((0, 0), |(count, size), (_, payload)| (count + 1, size + record_bytes(payload.len())));
        let mut bytes = Vec::with_capacity(size);
        let mut position = self.position;
        let mut starts = Vec::with_capacity(count);
        for (nth, (kind, payload)) in group.enumerate() {
            let mark = if nth == 0 { FIRST_OF_GROUP } else { 0 };
            starts.push(length(bytes.len()));
            position = Position {
                records: position.records + 1,
                head: write_record(&mut bytes, kind | mark, &position.head, payload)?,
            };
        }
        if !self.has_room(bytes.len()) {
            self.roll(now)?;
        }
        write_all_at(&*self.file, &bytes, length(self.at))?;
        fault::point(fault::GROUP_WRITTEN);
        self.file.sync_data()?;
        fault::point(fault::GROUP_SYNCED);
        starts.iter_mut().for_each(|start| *start += length(self.at));
        let start = starts.last().copied().unwrap_or_else(|| length(self.at));
        self.at += bytes.len();
        self.position = position;
        Ok((Place { position, segment: self.segment, start, end: length(self.at) }, starts))
    }

    fn roll(&mut self, now: UnixMillis) -> io::Result<()> {
        let next = self.segment + 1;
        self.file = create_segment(&*self.disk, self.owner, next, &self.position, now).map_err(|error| {
            // The system's own reason tells a full disk from a broken one.
            match error {
                LedgerError::Io { source, .. } => source,
                other => io::Error::other(other),
            }
        })?;
        (self.name, self.segment, self.size) = (segment_name(next), next, segment_size(next));
        self.at = HEADER_BYTES;
        Ok(())
    }
}

fn segment_size(number: u64) -> usize {
    let doublings = u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX).min(8);
    MIN_SEGMENT_BYTES.checked_shl(doublings).map_or(MAX_SEGMENT_BYTES, |size| size.min(MAX_SEGMENT_BYTES))
}

/// Makes a segment of zeros and its header, durable in file and folder before anything is in it.
fn create_segment(
    disk: &dyn Disk,
    owner: PeerId,
    number: u64,
    before: &Position,
    now: UnixMillis,
) -> Result<Box<dyn DiskFile>, LedgerError> {
    let name = segment_name(number);
    let draft = format!("{name}.new");
    let draft_path = disk.path(&draft);
    let size = segment_size(number);
    let file = disk.create(&draft).map_err(io_error("create", &draft_path))?;
    // Space first, so that a full disk shows here. The zeros spare each later sync the work of
    // converting an extent.
    file.reserve(length(size)).map_err(io_error("make room for", &draft_path))?;
    let header = Header {
        format: Format::Journal1,
        number,
        owner,
        before: before.head,
        records: Some(before.records),
        made: Some(now),
    };
    let mut bytes = vec![0; size];
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    write_all_at(&*file, &bytes, 0).map_err(io_error("write", &draft_path))?;
    fault::point(fault::SEGMENT_CREATED);
    file.sync_all().map_err(io_error("sync", &draft_path))?;
    fault::point(fault::SEGMENT_SYNCED);
    disk.rename(&draft, &name).map_err(io_error("rename", &draft_path))?;
    fault::point(fault::SEGMENT_NAMED);
    disk.sync().map_err(io_error("sync", &disk.path("")))?;
    fault::point(fault::SEGMENT_DURABLE);
    let path = disk.path(&name);
    disk.open_to_append(&name).map_err(io_error("open", &path))
}
