//! Server-sent events as they come over the wire, each with the bytes that it is written in.

use std::borrow::Cow;

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes of the largest event. A model server sends a token or a few at a time.
const LARGEST: usize = 64 << 20;

/// A stream of events that grows.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: BytesMut,
    /// Up to where the buffer has been searched for the end of an event.
    seen: usize,
    /// Where the line that is being searched begins.
    line: usize,
}

/// An event, or bytes between events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// All of its bytes, the empty line at the end included.
    pub(crate) raw: Bytes,
}

/// An event that is too long to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Events {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event that is complete.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, TooLong> {
        while let Some(found) = memchr::memchr(b'\n', &self.buffer[self.seen..]) {
            let end = self.seen + found + 1;
            let is_blank = matches!(&self.buffer[self.line..end], b"\n" | b"\r\n");
            self.seen = end;
            self.line = end;
            if is_blank {
                let raw = self.buffer.split_to(end).freeze();
                (self.seen, self.line) = (0, 0);
                return Ok(Some(Event { raw }));
            }
        }
        self.seen = self.buffer.len();
        if self.seen > LARGEST { Err(TooLong) } else { Ok(None) }
    }

    /// What is left when the stream has ended: an event that was never finished.
    pub(crate) fn rest(&mut self) -> Bytes {
        (self.seen, self.line) = (0, 0);
        self.buffer.copy_to_bytes(self.buffer.len())
    }
}

impl Event {
    /// The lines with this field, each as the range of its value in `raw`.
    fn values<'e>(&'e self, field: &'e str) -> impl Iterator<Item = std::ops::Range<usize>> + 'e {
        let mut at = 0;
        self.raw.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
            let start = at;
            at += line.len();
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            let value = text.strip_prefix(field.as_bytes())?.strip_prefix(b":")?;
            let value = value.strip_prefix(b" ").unwrap_or(value);
            let end = start + text.len();
            Some(end - value.len()..end)
        })
    }

    /// The data; empty when there is none.
    pub(crate) fn data(&self) -> Cow<'_, [u8]> {
        let mut lines = self.values("data");
        match (lines.next(), lines.next()) {
            (None, _) => Cow::Borrowed(b""),
            (Some(one), None) => Cow::Borrowed(&self.raw[one]),
            (Some(one), Some(two)) => {
                let mut all = self.raw[one].to_vec();
                for line in std::iter::once(two).chain(lines) {
                    all.push(b'\n');
                    all.extend_from_slice(&self.raw[line]);
                }
                Cow::Owned(all)
            }
        }
    }

    /// The same event with other data. What is on lines of its own stays there.
    pub(crate) fn with_data(&self, data: &[u8]) -> Bytes {
        let mut lines = self.values("data");
        let Some(first) = lines.next() else { return self.raw.clone() };
        let last = lines.last().unwrap_or_else(|| first.clone());
        let mut raw = Vec::with_capacity(self.raw.len() + data.len());
        raw.extend_from_slice(&self.raw[..first.start]);
        for (number, line) in data.split(|byte| *byte == b'\n').enumerate() {
            if number > 0 {
                raw.extend_from_slice(b"\ndata: ");
            }
            raw.extend_from_slice(line);
        }
        raw.extend_from_slice(&self.raw[last.end..]);
        raw.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(events: &mut Events) -> Vec<Event> {
        std::iter::from_fn(|| events.next().unwrap()).collect()
    }

    #[test]
    fn events_are_whole_wherever_the_chunks_break() {
        let stream = b"data: {\"a\":1}\n\n: ping\n\nevent: x\r\ndata:2\r\n\r\ndata: 3\ndata: 4\n\n\ndata: [DONE]\n\ndata: cut";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let mut raw = Vec::new();
            let mut data = Vec::new();
            for chunk in stream.chunks(size) {
                events.feed(chunk);
                for event in all(&mut events) {
                    raw.extend_from_slice(&event.raw);
                    data.push(String::from_utf8(event.data().into_owned()).unwrap());
                }
            }
            assert_eq!(data, ["{\"a\":1}", "", "2", "3\n4", "", "[DONE]"], "chunks of {size}");
            let rest = events.rest();
            assert_eq!(rest, &b"data: cut"[..]);
            raw.extend_from_slice(&rest);
            assert_eq!(raw, stream);
        }
    }

    #[test]
    fn data_is_replaced_and_the_rest_stays() {
        let event = |raw: &'static [u8]| Event { raw: Bytes::from_static(raw) };
        assert_eq!(event(b"id: 1\r\ndata:x\r\n\r\n").with_data(b"yz"), &b"id: 1\r\ndata:yz\r\n\r\n"[..]);
        assert_eq!(event(b"data: 1\ndata: 2\n\n").with_data(b"3\n4"), &b"data: 3\ndata: 4\n\n"[..]);
        assert_eq!(event(b": ping\n\n").with_data(b"x"), &b": ping\n\n"[..]);
    }
}
