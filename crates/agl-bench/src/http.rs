//! As little HTTP/1.1 as measuring takes, so that the load costs little beside the server under it: requests are
//! ready-made bytes, of an answer only the status, the length and the body are read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Outcome;

/// How much room there is for reading at least.
const ROOM: usize = 64 * 1024;

/// A connection that is kept alive.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// A body that came in chunks, put together.
    joined: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
    /// How long it took until there was something of the body.
    pub(crate) first: Duration,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(ROOM), joined: Vec::new() })
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Outcome<Answer<'_>> {
        let asked = Instant::now();
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = loop {
            self.receive().await?;
            if let Some(head) = Head::parse(&self.received)? {
                break head;
            }
        };
        let mut first = None;
        let mut see = |is_there: bool| {
            if is_there && first.is_none() {
                first = Some(asked.elapsed());
            }
        };
        let body = match head.body {
            Body::Length(length) => {
                let end = head.length + length;
                self.received.reserve(end.saturating_sub(self.received.len()));
                see(self.received.len() > head.length);
                while self.received.len() < end {
                    self.receive().await?;
                    see(true);
                }
                self.received.get(head.length..end).unwrap_or_default()
            }
            Body::Chunked => {
                self.joined.clear();
                let mut at = head.length;
                while !join(&self.received, &mut at, &mut self.joined)? {
                    see(!self.joined.is_empty());
                    // What has been joined is done with.
                    self.received.drain(..at);
                    at = 0;
                    self.receive().await?;
                }
                see(true);
                &self.joined
            }
        };
        Ok(Answer { status: head.status, body, first: first.unwrap_or_else(|| asked.elapsed()) })
    }

    async fn receive(&mut self) -> Outcome<()> {
        if self.received.capacity() - self.received.len() < ROOM / 4 {
            self.received.reserve(ROOM);
        }
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }
}

/// Appends the chunks from `at` on that are whole, and moves `at` behind them. Returns whether the last was among them.
fn join(bytes: &[u8], at: &mut usize, joined: &mut Vec<u8>) -> Outcome<bool> {
    loop {
        let rest = bytes.get(*at..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(false) };
        let size = std::str::from_utf8(rest.get(..end).unwrap_or_default())?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        let Some(chunk) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(false) };
        joined.extend_from_slice(chunk.get(..size).unwrap_or_default());
        *at += end + 2 + size + 2;
        if size == 0 {
            return Ok(true);
        }
    }
}

/// What is said before the body.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// With the empty line at its end.
    length: usize,
    body: Body,
}

/// How long a body is.
#[derive(Debug, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
}

impl Head {
    /// None while it is not whole yet.
    fn parse(bytes: &[u8]) -> Outcome<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status line")?.parse()?;
        let mut fields = lines.filter_map(|line| line.split_once(':'));
        let body = fields.find_map(|(name, value)| {
            if name.eq_ignore_ascii_case("content-length") {
                return value.trim().parse().ok().map(Body::Length);
            }
            let is_chunked = name.eq_ignore_ascii_case("transfer-encoding") && value.trim() == "chunked";
            is_chunked.then_some(Body::Chunked)
        });
        let body = body.ok_or("an answer of unknown length cannot be measured")?;
        Ok(Some(Self { status, length: end + 4, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_once_they_are_whole() {
        let whole = b"HTTP/1.1 201 Created\r\ncontent-type: x\r\nContent-Length: 4\r\n\r\nnull";
        assert_eq!(Head::parse(&whole[..40]).unwrap(), None);
        let length = whole.len() - 4;
        assert_eq!(Head::parse(whole).unwrap(), Some(Head { status: 201, length, body: Body::Length(4) }));
        let chunked = Head::parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert_eq!(chunked.unwrap().body, Body::Chunked);
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_are_joined_as_they_come() {
        let whole = b"3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\n\r\n";
        for cut in 0..whole.len() {
            let (mut at, mut joined) = (0, Vec::new());
            assert!(!join(&whole[..cut], &mut at, &mut joined).unwrap(), "{cut}");
            assert!(join(whole, &mut at, &mut joined).unwrap(), "{cut}");
            assert_eq!(joined, b"abc0123456789", "{cut}");
        }
        assert!(join(b"x\r\n", &mut 0, &mut Vec::new()).is_err());
    }
}
