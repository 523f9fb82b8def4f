//! Frames on a worker's socket: a u32 length, little endian, and that many bytes.
//!
//! Owns: the form, and the blocking read of one. Never: knows what is inside, nor allocates by a length
//! that was not checked. Called by the two dialects ([`super`] and [`crate::guest::wire`]) and by
//! [`super::channel`].

use std::io::{self, ErrorKind, Read};

use super::IpcError;

/// Bytes before a frame's body.
pub(crate) const LENGTH_BYTES: usize = 4;

/// A body as a frame.
pub(crate) fn frame(body: &[u8]) -> Result<Vec<u8>, IpcError> {
    let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
    let too_long = IpcError::FrameTooLong { len: body.len(), max: most };
    let len = u32::try_from(body.len()).map_err(|_| too_long)?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}

/// The body's length that a frame declares, which may be at most `max`.
pub(crate) fn checked_len(head: [u8; LENGTH_BYTES], max: usize) -> Result<usize, IpcError> {
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(IpcError::FrameTooLong { len, max });
    }
    Ok(len)
}

/// Reads the next body; `None` when the socket closed between two. `most` says how long a body may be
/// whose first byte is known, or, before it is, how long any may be.
pub(crate) fn read_body(
    reader: &mut impl Read,
    most: fn(Option<&u8>) -> usize,
    longest: usize,
) -> Result<Option<Vec<u8>>, IpcError> {
    let mut head = [0; LENGTH_BYTES];
    let mut have = 0;
    while have < head.len() {
        match reader.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(IpcError::Cut),
            Ok(count) => have += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let cut = |e: io::Error| match e.kind() {
        ErrorKind::UnexpectedEof => IpcError::Cut,
        _ => e.into(),
    };
    let len = checked_len(head, longest)?;
    let mut tag = [0; 1];
    let tag = &mut tag[..len.min(1)];
    reader.read_exact(tag).map_err(cut)?;
    let mut body = vec![0; checked_len(head, most(tag.first()))?];
    let (first, rest) = body.split_at_mut(tag.len());
    first.copy_from_slice(tag);
    reader.read_exact(rest).map_err(cut)?;
    Ok(Some(body))
}
