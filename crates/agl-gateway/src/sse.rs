//! Server-sent events as they come over the wire, each with the bytes that it is written in.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::json::Edits;

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
    fn values<'e>(&'e self, field: &'e [u8]) -> impl Iterator<Item = Range<usize>> + 'e {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at;
            let rest = self.raw.get(start..).filter(|rest| !rest.is_empty())?;
            let length = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            at = start + length + 1;
            let text = &rest[..length];
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            Some((start + text.len(), text))
        })
        .filter_map(move |(end, text)| {
            let value = text.strip_prefix(field)?.strip_prefix(b":")?;
            let value = value.strip_prefix(b" ").unwrap_or(value);
            Some(end - value.len()..end)
        })
    }

    /// Where the data is, when it is on one line.
    pub(crate) fn line(&self) -> Option<Range<usize>> {
        let mut lines = self.values(b"data");
        lines.next().filter(|_| lines.next().is_none())
    }

    /// The data; empty when there is none.
    pub(crate) fn data(&self) -> Cow<'_, [u8]> {
        let mut lines = self.values(b"data");
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

    /// Appends the event with changes made to its data, which is `data`. What is on lines of its own stays there.
    pub(crate) fn write_with(&self, data: &[u8], edits: Edits, to: &mut BytesMut) {
        if let Some(line) = self.line() {
            to.extend_from_slice(&self.raw[..line.start]);
            edits.write(data, to);
            to.extend_from_slice(&self.raw[line.end..]);
            return;
        }
        let mut lines = self.values(b"data");
        let Some(first) = lines.next() else { return to.extend_from_slice(&self.raw) };
        let last = lines.last().unwrap_or_else(|| first.clone());
        to.extend_from_slice(&self.raw[..first.start]);
        for (number, line) in edits.apply(data).split(|byte| *byte == b'\n').enumerate() {
            if number > 0 {
                to.extend_from_slice(b"\ndata: ");
            }
            to.extend_from_slice(line);
        }
        to.extend_from_slice(&self.raw[last.end..]);
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
    fn data_is_changed_and_the_rest_stays() {
        let changed = |raw: &'static [u8], from: Range<usize>, to: &'static str| {
            let event = Event { raw: Bytes::from_static(raw) };
            let mut edits = Edits::default();
            edits.replace(from, to);
            let mut changed = BytesMut::new();
            event.write_with(&event.data(), edits, &mut changed);
            String::from_utf8(changed.to_vec()).unwrap()
        };
        assert_eq!(changed(b"id: 1\r\ndata:x\r\n\r\n", 0..1, "yz"), "id: 1\r\ndata:yz\r\n\r\n");
        assert_eq!(changed(b"data: 1\ndata: 2\n\n", 0..1, "3"), "data: 3\ndata: 2\n\n");
        assert_eq!(changed(b"data: 1\nid: 7\ndata: 2\n\n", 0..2, ""), "data: 2\n\n");
        assert_eq!(changed(b": ping\n\n", 0..0, "x"), ": ping\n\n");
    }
}
