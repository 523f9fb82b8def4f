//! The wire of `/potluck/quote/1` and `/potluck/pair/1`: one question, one answer, each one frame.
//!
//! Owns: the request-response codec of both, and the one convention on top of frames: an answer of
//! length zero says "busy, ask another". Never: looks into a question or an answer, or waits without
//! the behaviour's own timeout. Called by libp2p's request-response behaviours, one a topic.

use std::io;

use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use potluck_protocol::version::{PAIR_PROTOCOL, QUOTE_PROTOCOL};

use super::error::FrameError;
use super::framing::{length_of, put_frame};

/// What questions are about. Each topic has a protocol, a behaviour and a queue of its own, so that a
/// flood of one holds up none of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// What would it cost?
    Quote,
    /// What do we owe each other?
    Pair,
}

impl Topic {
    /// The protocol's name and version.
    pub(super) fn protocol(self) -> StreamProtocol {
        StreamProtocol::new(match self {
            Self::Quote => QUOTE_PROTOCOL,
            Self::Pair => PAIR_PROTOCOL,
        })
    }
}

/// What a peer says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has no capacity for the question now.
    Busy,
    /// Its answer: 1 to `MAX_FRAME_BYTES` bytes.
    Bytes(Vec<u8>),
}

/// Reads and writes questions and answers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuestionCodec;

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn read_head<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<[u8; 4]> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    Ok(head)
}

async fn read_body<T: AsyncRead + Unpin>(io: &mut T, head: [u8; 4]) -> io::Result<Vec<u8>> {
    let mut body = vec![0; length_of(head).map_err(invalid)?];
    io.read_exact(&mut body).await?;
    Ok(body)
}

async fn write_frame<T: AsyncWrite + Unpin>(io: &mut T, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::new();
    put_frame(&mut frame, payload).map_err(invalid)?;
    io.write_all(&frame).await
}

impl Codec for QuestionCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let head = read_head(io).await?;
        read_body(io, head).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read_head(io).await? {
            [0, 0, 0, 0] => Ok(Answer::Busy),
            head => Ok(Answer::Bytes(read_body(io, head).await?)),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(io, &request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match answer {
            Answer::Busy => io.write_all(&[0; 4]).await,
            Answer::Bytes(bytes) => write_frame(io, &bytes).await,
        }
    }
}
