//! Frames on a stream: `u32 BE length | payload`, 1 to `MAX_FRAME_BYTES` payload bytes.
//!
//! Owns: cutting a byte stream into frames and back, with every wait bounded and no allocation
//! before a length is checked. Never: looks into a payload, retries, or decides what a silence
//! means. Called by both ends of a job ([`JobStream`]) and by the codec of questions ([`super::question`]).
//! Ends when either side closes or drops its half.

use std::fmt;
use std::io;
use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use futures::io::{ReadHalf, WriteHalf};
use libp2p::Stream;
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use tokio::time::timeout;

use super::error::FrameError;

/// Bytes of a frame's length.
const HEAD_BYTES: usize = 4;

/// The length in `head`, when it is one that a frame may have.
pub(super) fn length_of(head: [u8; HEAD_BYTES]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(head);
    match usize::try_from(len) {
        Ok(0) => Err(FrameError::Empty),
        Ok(fits) if fits <= MAX_FRAME_BYTES => Ok(fits),
        _ => Err(FrameError::TooLarge { len: u64::from(len) }),
    }
}

/// Puts the length and `payload` into `frame`, replacing what is there.
pub(super) fn put_frame(frame: &mut Vec<u8>, payload: &[u8]) -> Result<(), FrameError> {
    let too_large = || FrameError::TooLarge { len: u64::try_from(payload.len()).unwrap_or(u64::MAX) };
    if payload.is_empty() {
        return Err(FrameError::Empty);
    }
    if payload.len() > MAX_FRAME_BYTES {
        return Err(too_large());
    }
    let len = u32::try_from(payload.len()).map_err(|_| too_large())?;
    frame.clear();
    frame.reserve(HEAD_BYTES + payload.len());
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(())
}

fn gone(source: io::Error) -> FrameError {
    FrameError::PeerGone { source }
}

/// A stream of frames with one peer, for one job. Dropping it resets the stream.
pub struct JobStream {
    peer: PeerId,
    pub(super) stream: Stream,
}

impl JobStream {
    pub(super) fn new(peer: PeerId, stream: Stream) -> Self {
        Self { peer, stream }
    }

    /// Who is at the other end; its key was proven by the connection's handshake.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The two directions, for two tasks or one `select!`.
    #[must_use]
    pub fn split(self) -> (FrameReader, FrameWriter) {
        let (read, write) = self.stream.split();
        (FrameReader::new(read), FrameWriter::new(write))
    }
}

impl fmt::Debug for JobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobStream(with {})", self.peer)
    }
}

/// The reading half.
pub struct FrameReader<R = ReadHalf<Stream>> {
    io: R,
    head: [u8; HEAD_BYTES],
    body: Vec<u8>,
    /// Bytes of the current frame that came, its length's four included.
    got: usize,
}

impl<R> fmt::Debug for FrameReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameReader({} bytes into a frame)", self.got)
    }
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, head: [0; HEAD_BYTES], body: Vec::new(), got: 0 }
    }

    /// The next frame, waiting at most `within`. `None`: the peer closed its half between two
    /// frames. That is an orderly end of the *stream* only; whether the job is over is for its own
    /// frames to say.
    ///
    /// Cancel-safe: what came of a frame is kept in the reader, so that the future may be dropped in
    /// a `select!` and asked for again, and after [`FrameError::TimedOut`] as well.
    ///
    /// # Errors
    /// Any [`FrameError`] but `Torn`.
    pub async fn read(&mut self, within: Duration) -> Result<Option<Vec<u8>>, FrameError> {
        match timeout(within, self.next_frame()).await {
            Ok(frame) => frame,
            Err(_) => Err(FrameError::TimedOut { within }),
        }
    }

    /// Every await is one read into the kept state, so a dropped future loses nothing.
    async fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        while self.got < HEAD_BYTES {
            match self.io.read(&mut self.head[self.got..]).await.map_err(gone)? {
                0 if self.got == 0 => return Ok(None),
                0 => return Err(FrameError::CutShort { got: self.got, want: HEAD_BYTES }),
                more => self.got += more,
            }
        }
        let len = length_of(self.head)?;
        if self.body.len() != len {
            self.body = vec![0; len];
        }
        while self.got < HEAD_BYTES + len {
            match self.io.read(&mut self.body[self.got - HEAD_BYTES..]).await.map_err(gone)? {
                0 => return Err(FrameError::CutShort { got: self.got, want: HEAD_BYTES + len }),
                more => self.got += more,
            }
        }
        self.got = 0;
        Ok(Some(std::mem::take(&mut self.body)))
    }
}

/// The writing half.
pub struct FrameWriter<W = WriteHalf<Stream>> {
    io: W,
    frame: Vec<u8>,
    /// A write began and did not end: another frame would be read as the rest of that one.
    torn: bool,
}

impl<W> fmt::Debug for FrameWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.torn { "FrameWriter(torn)" } else { "FrameWriter" })
    }
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(io: W) -> Self {
        Self { io, frame: Vec::new(), torn: false }
    }

    /// Writes one frame and hands it to the transport, waiting at most `within` for the peer to make
    /// room. Not cancel-safe: a writer whose future was dropped half-way refuses further frames.
    ///
    /// # Errors
    /// `TooLarge` and `Empty` (nothing was written), `TimedOut` and `PeerGone` (something may have
    /// been), `Torn`.
    pub async fn write(&mut self, payload: &[u8], within: Duration) -> Result<(), FrameError> {
        if self.torn {
            return Err(FrameError::Torn);
        }
        put_frame(&mut self.frame, payload)?;
        self.torn = true;
        let sending = async {
            self.io.write_all(&self.frame).await?;
            self.io.flush().await
        };
        match timeout(within, sending).await {
            Ok(sent) => sent.map_err(gone)?,
            Err(_) => return Err(FrameError::TimedOut { within }),
        }
        self.torn = false;
        Ok(())
    }

    /// Says that no frame follows, waiting at most `within`. The reading half stays open.
    ///
    /// # Errors
    /// `TimedOut` and `PeerGone`.
    pub async fn close(&mut self, within: Duration) -> Result<(), FrameError> {
        self.torn = true;
        match timeout(within, self.io.close()).await {
            Ok(closed) => closed.map_err(gone),
            Err(_) => Err(FrameError::TimedOut { within }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    const SOON: Duration = Duration::from_secs(5);

    /// Gives one byte per poll, and is not ready every other time: every await point is met.
    struct Dribble {
        bytes: Vec<u8>,
        at: usize,
        ready: bool,
    }

    impl AsyncRead for Dribble {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.ready = !self.ready;
            if !self.ready {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(byte) = self.bytes.get(self.at).copied() else {
                return Poll::Ready(Ok(0));
            };
            buf[0] = byte;
            self.at += 1;
            Poll::Ready(Ok(1))
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime").block_on(future)
    }

    fn framed(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut frame = Vec::new();
        for payload in payloads {
            put_frame(&mut frame, payload).expect("fits");
            bytes.extend_from_slice(&frame);
        }
        bytes
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_its_bytes() {
        let head = u32::try_from(MAX_FRAME_BYTES + 1).expect("fits").to_be_bytes();
        let mut reader = FrameReader::new(Cursor::new(head.to_vec()));
        let first = block_on(reader.read(SOON));
        assert!(matches!(first, Err(FrameError::TooLarge { len: 65_537 })), "{first:?}");
        assert_eq!(reader.body.capacity(), 0);
        // It stays refused: the bytes that follow are nobody's frame.
        assert!(matches!(block_on(reader.read(SOON)), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn the_largest_frame_passes_and_one_byte_more_is_not_written() {
        let mut writer = FrameWriter::new(Vec::new());
        let mut payload = vec![7; MAX_FRAME_BYTES];
        block_on(writer.write(&payload, SOON)).expect("fits");
        payload.push(7);
        let refused = block_on(writer.write(&payload, SOON));
        assert!(matches!(refused, Err(FrameError::TooLarge { .. })), "{refused:?}");
        assert!(matches!(block_on(writer.write(&[], SOON)), Err(FrameError::Empty)));
        assert_eq!(writer.io.len(), HEAD_BYTES + MAX_FRAME_BYTES);
        // A refusal wrote nothing, so the stream is still whole.
        block_on(writer.write(&[1], SOON)).expect("whole");
    }

    #[test]
    fn an_end_inside_a_frame_is_no_clean_close() {
        for cut in 1..HEAD_BYTES + 3 {
            let mut bytes = framed(&[vec![1, 2, 3]]);
            bytes.truncate(cut);
            let mut reader = FrameReader::new(Cursor::new(bytes));
            let end = block_on(reader.read(SOON));
            assert!(matches!(end, Err(FrameError::CutShort { got, .. }) if got == cut), "{end:?}");
        }
    }

    #[test]
    fn a_write_that_was_given_up_half_way_tears_the_writer() {
        struct Stuck;
        impl AsyncWrite for Stuck {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Pending
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
        }
        let mut writer = FrameWriter::new(Stuck);
        let late = block_on(writer.write(&[1], Duration::from_millis(1)));
        assert!(matches!(late, Err(FrameError::TimedOut { .. })), "{late:?}");
        assert!(matches!(block_on(writer.write(&[1], SOON)), Err(FrameError::Torn)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_panic_and_what_is_read_was_framed(
            bytes in prop::collection::vec(any::<u8>(), 0..96),
        ) {
            let mut reader = FrameReader::new(Cursor::new(bytes.clone()));
            let mut read = Vec::new();
            while let Ok(Some(frame)) = block_on(reader.read(SOON)) {
                read.push(frame);
            }
            prop_assert!(bytes.starts_with(&framed(&read)));
        }

        #[test]
        fn a_read_may_be_dropped_at_any_point(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..24), 0..6),
        ) {
            let dribble = Dribble { bytes: framed(&payloads), at: 0, ready: false };
            let mut reader = FrameReader::new(dribble);
            let mut read = Vec::new();
            // `within` of zero polls once and drops the future: the harshest `select!`.
            loop {
                match block_on(reader.read(Duration::ZERO)) {
                    Ok(Some(frame)) => read.push(frame),
                    Ok(None) => break,
                    Err(FrameError::TimedOut { .. }) => {}
                    Err(other) => prop_assert!(false, "{other}"),
                }
            }
            prop_assert_eq!(read, payloads);
        }
    }
}
