//! Server-sent events as the feed sends them (WHATWG HTML, section 9.2), put together from chunks.

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
    pub(crate) data: String,
}

/// Reads events out of a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct SseReader {
    /// What has come of a line that has not ended.
    line: Vec<u8>,
    event: SseEvent,
}

impl SseReader {
    /// Takes bytes in and returns the events that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    events.push(event);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.event.id = Some(value.to_owned()),
                "event" => value.clone_into(&mut self.event.name),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, and fields that we do not use.
                _ => {}
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_wherever_the_chunks_break() {
        let text = b": hello\n\nid: 1\nevent: span\ndata: {\"a\":\ndata: 1}\n\ndata: x\r\n\r\n";
        for size in 1..text.len() {
            let mut reader = SseReader::default();
            let events: Vec<SseEvent> = text.chunks(size).flat_map(|chunk| reader.feed(chunk)).collect();
            assert_eq!(events.len(), 2, "chunks of {size}");
            assert_eq!(events[0].id.as_deref(), Some("1"));
            assert_eq!((events[0].name.as_str(), events[0].data.as_str()), ("span", "{\"a\":\n1}"));
            assert_eq!(events[1], SseEvent { data: "x".to_owned(), ..SseEvent::default() });
        }
    }
}
