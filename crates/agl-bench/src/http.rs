//! As little HTTP/1.1 as measuring takes, so that the load costs little beside the server under it: requests are
//! ready-made bytes, of an answer only the status and the length are read.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Outcome;

/// How much room there is for reading at least.
const ROOM: usize = 64 * 1024;

/// A connection that is kept alive.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(ROOM) })
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Outcome<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = loop {
            self.receive().await?;
            if let Some(head) = Head::parse(&self.received)? {
                break head;
            }
        };
        let end = head.length + head.body_length;
        self.received.reserve(end.saturating_sub(self.received.len()));
        while self.received.len() < end {
            self.receive().await?;
        }
        Ok(Answer { status: head.status, body: self.received.get(head.length..end).unwrap_or_default() })
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

/// What is said before the body.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// With the empty line at its end.
    length: usize,
    body_length: usize,
}

impl Head {
    /// None while it is not whole yet.
    fn parse(bytes: &[u8]) -> Outcome<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status line")?.parse()?;
        let body_length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .ok_or("an answer without content-length cannot be measured")?
            .1
            .trim()
            .parse()?;
        Ok(Some(Self { status, length: end + 4, body_length }))
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
        assert_eq!(Head::parse(whole).unwrap(), Some(Head { status: 201, length, body_length: 4 }));
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }
}
