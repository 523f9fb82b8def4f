//! The journal: the ledger's only truth, an append-only chain of records in preallocated segments.
//!
//! Owns: the file format, the durable append (one `fdatasync` per group), and telling a torn tail
//! from damage. Never: knows what a record means, retries a failed sync, or deletes a damaged file.
//! Called by the writer thread, and by the ledger when it opens. Ends with the writer; there is
//! nothing to flush, as every append was synced before it returned.
//!
//! ```text
//! journal-0-00000001.seg:  header (128 bytes), records, zeros up to the preallocated size
//! header:  magic 8 | version 16 | segment u64 | owner 32 | hash of the record before 32 | zeros | crc32c u32
//! record:  len u32 | crc32c u32 | kind u8 | hash of the record before 32 | payload (len bytes)
//! ```
//!
//! Numbers are little-endian. The CRC covers `len` and everything after the CRC. The high bit of
//! `kind` marks the first record of a group. A group is written only after the one before it was
//! synced, so a whole first-of-group record *behind* a broken one proves that the broken one had
//! been durable: that is damage. Without such proof it is the tail of a write that a crash tore,
//! which nobody was promised.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use rustix::fs::FallocateFlags;

use super::LedgerError;

const MAGIC: &[u8; 8] = b"POTLUCK\0";
const VERSION: &[u8; 16] = b"journal-0\0\0\0\0\0\0\0";
const SEGMENT_PREFIX: &str = "journal-0-";
const SEGMENT_SUFFIX: &str = ".seg";
const HEADER_BYTES: usize = 128;
const RECORD_HEAD_BYTES: usize = 4 + 4 + 1 + 32;
const FIRST_OF_GROUP: u8 = 0x80;
/// The first segment; each is twice the one before, up to [`MAX_SEGMENT_BYTES`].
const MIN_SEGMENT_BYTES: usize = 1 << 20;
/// Bounds the memory that a scan takes and the pause that a new segment costs.
const MAX_SEGMENT_BYTES: usize = 8 << 20;
/// The most that one group may take: it must fit any segment.
pub(super) const MAX_GROUP_BYTES: usize = 512 << 10;

/// Bytes of the journal that a record with such a payload takes.
pub(super) fn record_bytes(payload: usize) -> usize {
    RECORD_HEAD_BYTES + payload
}

/// A place in the chain: how many records, and the hash of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// Records up to here.
    pub(super) records: u64,
    /// Hash of the last of them; zeros when there is none.
    pub(super) head: [u8; 32],
}

/// A record as it lies in the journal.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// In which file.
    pub(super) file: &'a Path,
    /// At which byte.
    pub(super) offset: u64,
    /// Its kind's number.
    pub(super) kind: u8,
    /// What was appended.
    pub(super) payload: &'a [u8],
    /// The place after it.
    pub(super) position: Position,
}

/// The journal, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    owner: PeerId,
    pub(super) file: File,
    path: PathBuf,
    segment: u64,
    size: usize,
    at: usize,
    position: Position,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one: checks every CRC and the whole chain, and cuts a
    /// torn tail. Gives the bytes cut, too.
    pub(super) fn open(dir: &Path, owner: PeerId) -> Result<(Self, u64), LedgerError> {
        let count = segments(dir)?;
        if count == 0 {
            let (file, path, size) = create_segment(dir, owner, 1, &Position::default())?;
            let at = HEADER_BYTES;
            let position = Position::default();
            return Ok((Self { dir: dir.to_owned(), owner, file, path, segment: 1, size, at, position }, 0));
        }
        let mut scanned = Scanned { position: Position::default(), end: HEADER_BYTES, tail: 0 };
        for segment in 1..=count {
            scanned = scan_segment(dir, owner, segment, scanned.position, segment == count, &mut |_| Ok(()))?;
        }
        let path = segment_path(dir, count);
        let file = open_rw(&path)?;
        if scanned.tail > 0 {
            cut(&file, &path, scanned.end, scanned.tail)?;
        }
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        // A file cut short by hand simply has no room left: the next group begins a new segment.
        let size = usize::try_from(length).unwrap_or(0);
        let journal = Self {
            dir: dir.to_owned(),
            owner,
            file,
            path,
            segment: count,
            size,
            at: scanned.end,
            position: scanned.position,
        };
        Ok((journal, u64::try_from(scanned.tail).unwrap_or(u64::MAX)))
    }

    /// Calls `visit` for each record after the first `skip`.
    pub(super) fn replay(
        &self,
        skip: u64,
        mut visit: impl FnMut(&Entry<'_>) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let mut position = Position::default();
        for segment in 1..=self.segment {
            let last = segment == self.segment;
            let mut visit_new =
                |entry: &Entry<'_>| if entry.position.records > skip { visit(entry) } else { Ok(()) };
            position = scan_segment(&self.dir, self.owner, segment, position, last, &mut visit_new)?.position;
        }
        Ok(())
    }

    /// Is `position` a place on the chain?
    pub(super) fn holds(&self, position: &Position) -> Result<bool, LedgerError> {
        let mut held = *position == Position::default() || *position == self.position;
        if !held && position.records < self.position.records {
            self.replay(position.records.saturating_sub(1), |entry| {
                held |= entry.position == *position;
                Ok(())
            })?;
        }
        Ok(held)
    }

    /// Where the journal ends.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The file that the next group goes to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a group of at most [`MAX_GROUP_BYTES`] and syncs it. After an error the journal's
    /// end is unknown: the caller must not append again (fsync reports a lost page only once).
    pub(super) fn append(&mut self, group: &[(u8, &[u8])]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut position = self.position;
        for (nth, (kind, payload)) in group.iter().enumerate() {
            let mark = if nth == 0 { FIRST_OF_GROUP } else { 0 };
            position = Position {
                records: position.records + 1,
                head: write_record(&mut bytes, kind | mark, &position.head, payload)?,
            };
        }
        if self.at + bytes.len() > self.size {
            self.roll()?;
        }
        self.file.write_all_at(&bytes, offset(self.at))?;
        rustix::fs::fdatasync(&self.file)?;
        self.at += bytes.len();
        self.position = position;
        Ok(())
    }

    fn roll(&mut self) -> io::Result<()> {
        let next = self.segment + 1;
        let (file, path, size) =
            create_segment(&self.dir, self.owner, next, &self.position).map_err(io::Error::other)?;
        (self.file, self.path, self.segment, self.size, self.at) = (file, path, next, size, HEADER_BYTES);
        Ok(())
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LedgerError + use<'a> {
    move |source| LedgerError::Io { doing, path: path.to_owned(), source }
}

fn offset(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}

fn open_rw(path: &Path) -> Result<File, LedgerError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(io_error("open", path))
}

pub(super) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{SEGMENT_PREFIX}{segment:08}{SEGMENT_SUFFIX}"))
}

/// The number of segments, which must be 1, 2, 3 … without a gap.
fn segments(dir: &Path) -> Result<u64, LedgerError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let name = entry.map_err(io_error("list", dir))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let Some(number) = name.strip_prefix(SEGMENT_PREFIX) else {
            if name.starts_with("journal-") && name.ends_with(SEGMENT_SUFFIX) {
                return Err(LedgerError::Version { file: dir.join(name) });
            }
            continue;
        };
        found.extend(number.strip_suffix(SEGMENT_SUFFIX).and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable();
    for (expected, number) in (1..).zip(&found) {
        if *number != expected {
            return Err(LedgerError::MissingSegment { file: segment_path(dir, expected) });
        }
    }
    Ok(offset(found.len()))
}

/// Makes a segment of zeros and its header, durable in file and folder before it has its name.
fn create_segment(
    dir: &Path,
    owner: PeerId,
    segment: u64,
    before: &Position,
) -> Result<(File, PathBuf, usize), LedgerError> {
    let path = segment_path(dir, segment);
    let draft = path.with_extension("new");
    let doubled = u32::try_from(segment - 1).ok().and_then(|n| MIN_SEGMENT_BYTES.checked_shl(n.min(8)));
    let size = doubled.unwrap_or(MAX_SEGMENT_BYTES).min(MAX_SEGMENT_BYTES);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io_error("create", &draft))?;
    // Space first, so that a full disk shows here. File systems without fallocate get it from the
    // zeros below; those zeros also spare each later sync the work of converting an extent.
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, offset(size)) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(io_error("make room for", &draft)(errno.into())),
    }
    let mut bytes = vec![0; size];
    bytes[..HEADER_BYTES].copy_from_slice(&header(owner, segment, &before.head));
    file.write_all_at(&bytes, 0).map_err(io_error("write", &draft))?;
    file.sync_all().map_err(io_error("sync", &draft))?;
    fs::rename(&draft, &path).map_err(io_error("rename", &draft))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))?;
    Ok((file, path, size))
}

fn header(owner: PeerId, segment: u64, before: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..24].copy_from_slice(VERSION);
    bytes[24..32].copy_from_slice(&segment.to_le_bytes());
    bytes[32..64].copy_from_slice(owner.as_bytes());
    bytes[64..96].copy_from_slice(before);
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn check_header(
    bytes: &[u8],
    file: &Path,
    owner: PeerId,
    segment: u64,
    before: &[u8; 32],
) -> Result<(), LedgerError> {
    let damaged = |what| LedgerError::Damaged { file: file.to_owned(), offset: 0, what };
    let found = bytes.get(..HEADER_BYTES).ok_or_else(|| damaged("it is too short for a header"))?;
    if found == header(owner, segment, before) {
        return Ok(());
    }
    let (body, crc) = found.split_at(HEADER_BYTES - 4);
    if crc32c::crc32c(body).to_le_bytes() != crc || &found[..8] != MAGIC {
        return Err(damaged("its header is broken"));
    }
    if &found[8..24] != VERSION {
        return Err(LedgerError::Version { file: file.to_owned() });
    }
    let named = <[u8; 32]>::try_from(&found[32..64]).map(PeerId::from_bytes).unwrap_or(owner);
    if named != owner {
        return Err(LedgerError::OtherOwner { file: file.to_owned(), owner: named, ours: owner });
    }
    Err(damaged("it does not continue the segment before it"))
}

/// Appends one record to `bytes`; gives its hash.
fn write_record(bytes: &mut Vec<u8>, kind: u8, before: &[u8; 32], payload: &[u8]) -> io::Result<[u8; 32]> {
    let len = u32::try_from(payload.len()).map_err(io::Error::other)?.to_le_bytes();
    let start = bytes.len();
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&[0; 4]);
    bytes.push(kind);
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(payload);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len), &bytes[start + 8..]);
    bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(*blake3::hash(&bytes[start..]).as_bytes())
}

/// A record whose CRC holds.
struct Frame<'a> {
    kind: u8,
    before: &'a [u8],
    payload: &'a [u8],
    bytes: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The record that begins at `at`, if a whole one does.
fn parse(bytes: &[u8], at: usize) -> Option<Frame<'_>> {
    let len = usize::try_from(word(bytes, at)?).ok()?;
    if len == 0 || len > MAX_FRAME_BYTES {
        return None;
    }
    let whole = bytes.get(at..at + RECORD_HEAD_BYTES + len)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&whole[..4]), &whole[8..]);
    (word(whole, 4)? == crc).then(|| Frame {
        kind: whole[8],
        before: &whole[9..RECORD_HEAD_BYTES],
        payload: &whole[RECORD_HEAD_BYTES..],
        bytes: whole,
    })
}

struct Scanned {
    position: Position,
    /// Where the next record goes.
    end: usize,
    /// Torn bytes from there on.
    tail: usize,
}

fn scan_segment(
    dir: &Path,
    owner: PeerId,
    segment: u64,
    before: Position,
    is_last: bool,
    visit: &mut impl FnMut(&Entry<'_>) -> Result<(), LedgerError>,
) -> Result<Scanned, LedgerError> {
    let path = segment_path(dir, segment);
    let bytes = fs::read(&path).map_err(io_error("read", &path))?;
    check_header(&bytes, &path, owner, segment, &before.head)?;
    let (mut position, mut end) = (before, HEADER_BYTES);
    while let Some(frame) = parse(&bytes, end).filter(|frame| frame.before == position.head) {
        position = Position { records: position.records + 1, head: *blake3::hash(frame.bytes).as_bytes() };
        let kind = frame.kind & !FIRST_OF_GROUP;
        visit(&Entry { file: &path, offset: offset(end), kind, payload: frame.payload, position })?;
        end += frame.bytes.len();
    }
    let rest = bytes.get(end..).unwrap_or_default();
    let tail = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if tail > 0 && (!is_last || was_durable(rest, tail)) {
        let what = "a record there is broken, and records after it are whole";
        return Err(LedgerError::Damaged { file: path, offset: offset(end), what });
    }
    Ok(Scanned { position, end, tail })
}

/// Does a later group prove that the broken record at the start of `rest` had been synced? (See the
/// head of this file.) A whole record that breaks the chain was synced, too, or is from elsewhere.
fn was_durable(rest: &[u8], tail: usize) -> bool {
    (0..tail).any(|at| parse(rest, at).is_some_and(|frame| at == 0 || frame.kind & FIRST_OF_GROUP != 0))
}

/// Writes zeros over a torn tail, so that what a crash left is never taken for part of a later one.
fn cut(file: &File, path: &Path, end: usize, tail: usize) -> Result<(), LedgerError> {
    file.write_all_at(&vec![0; tail], offset(end)).map_err(io_error("cut the torn tail of", path))?;
    rustix::fs::fdatasync(file).map_err(|errno| io_error("sync", path)(errno.into()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const OWNER: PeerId = PeerId::from_bytes([7; 32]);

    fn read(dir: &Path) -> Result<(Vec<Vec<u8>>, u64), LedgerError> {
        let mut payloads = Vec::new();
        let (journal, cut) = Journal::open(dir, OWNER)?;
        journal.replay(0, |entry| {
            payloads.push(entry.payload.to_vec());
            Ok(())
        })?;
        Ok((payloads, cut))
    }

    /// Groups that the journal in `dir` was written in: one sync each.
    pub(in super::super) fn groups(dir: &Path) -> usize {
        let bytes = fs::read(segment_path(dir, 1)).unwrap();
        let (mut at, mut groups) = (HEADER_BYTES, 0);
        while let Some(frame) = parse(&bytes, at) {
            groups += usize::from(frame.kind & FIRST_OF_GROUP != 0);
            at += frame.bytes.len();
        }
        groups
    }

    fn three(dir: &Path) -> (Vec<Vec<u8>>, usize) {
        let (mut journal, _) = Journal::open(dir, OWNER).unwrap();
        let payloads: Vec<Vec<u8>> = (1..=3).map(|n| vec![n; 40]).collect();
        for payload in &payloads {
            journal.append(&[(1, payload)]).unwrap();
        }
        (payloads, journal.at)
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let (payloads, end) = three(home.path());
        let file = segment_path(home.path(), 1);
        let whole = fs::read(&file).unwrap();
        let start = end - record_bytes(40);
        for torn in start..end {
            let mut bytes = whole.clone();
            bytes[torn..end].fill(0);
            fs::write(&file, &bytes).unwrap();
            let (read_back, cut) = read(home.path()).unwrap();
            assert_eq!(read_back, payloads[..2], "torn at {torn}");
            assert!(cut <= (torn - start) as u64);
            assert_eq!(cut == 0, bytes[start..end].iter().all(|b| *b == 0));
            // The cut is durable: the next open finds a clean end.
            assert_eq!(read(home.path()).unwrap(), (payloads[..2].to_vec(), 0));
        }
    }

    #[test]
    fn appends_go_on_after_a_cut() {
        let home = tempfile::tempdir().unwrap();
        let (payloads, end) = three(home.path());
        let file = segment_path(home.path(), 1);
        let mut bytes = fs::read(&file).unwrap();
        bytes[end - 1] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let (mut journal, cut) = Journal::open(home.path(), OWNER).unwrap();
        assert_eq!(cut, record_bytes(40) as u64);
        journal.append(&[(1, b"after")]).unwrap();
        let expected = vec![payloads[0].clone(), payloads[1].clone(), b"after".to_vec()];
        assert_eq!(read(home.path()).unwrap(), (expected, 0));
    }

    #[test]
    fn a_flipped_byte_before_a_later_group_is_damage_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let (_, end) = three(home.path());
        let file = segment_path(home.path(), 1);
        let whole = fs::read(&file).unwrap();
        for at in HEADER_BYTES..end - record_bytes(40) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&file, &bytes).unwrap();
            let bad = HEADER_BYTES + (at - HEADER_BYTES) / record_bytes(40) * record_bytes(40);
            let error = read(home.path()).unwrap_err();
            let LedgerError::Damaged { file: named, offset, .. } = &error else { panic!("{at}: {error}") };
            assert_eq!((named, *offset), (&file, bad as u64));
            assert_eq!(fs::read(&file).unwrap(), bytes, "a damaged file is left as it is");
        }
    }

    #[test]
    fn segments_follow_each_other_and_none_may_be_missing() {
        let home = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(home.path(), OWNER).unwrap();
        let payload = vec![5; 60_000];
        for _ in 0..60 {
            journal.append(&[(1, &payload)]).unwrap();
        }
        assert_eq!(journal.segment, 3);
        assert_eq!(read(home.path()).unwrap().0.len(), 60);
        let second = segment_path(home.path(), 2);
        fs::rename(&second, home.path().join("elsewhere")).unwrap();
        assert!(matches!(read(home.path()), Err(LedgerError::MissingSegment { file }) if file == second));
        fs::rename(segment_path(home.path(), 3), &second).unwrap();
        assert!(matches!(read(home.path()), Err(LedgerError::Damaged { offset: 0, .. })));
    }

    #[test]
    fn another_peers_journal_is_refused() {
        let home = tempfile::tempdir().unwrap();
        three(home.path());
        let other = PeerId::from_bytes([8; 32]);
        let error = Journal::open(home.path(), other).unwrap_err();
        assert!(matches!(error, LedgerError::OtherOwner { owner: OWNER, .. }), "{error}");
    }
}
