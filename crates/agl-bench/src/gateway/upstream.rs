//! A model server that costs next to nothing: every answer is ready-made bytes in vLLM's shape, with as many tokens as
//! the plan says, and the token ids, log-probs and counts that the request asks for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::shape::{Length, Shape, TOKENS};
use crate::Outcome;

const ROOM: usize = 64 * 1024;

/// What an answer is to have beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) token_ids: bool,
    pub(crate) logprobs: bool,
    /// The counts at the end of a stream; whole answers always have them.
    pub(crate) usage: bool,
}

impl Asked {
    pub(crate) const NOTHING: Self = Self { token_ids: false, logprobs: false, usage: false };
    pub(crate) const ALL: Self = Self { token_ids: true, logprobs: true, usage: true };

    const EVERY: [Self; 8] = {
        let mut every = [Self::NOTHING; 8];
        let mut bits = 0;
        while bits < 8 {
            every[bits] = Self { token_ids: bits & 1 != 0, logprobs: bits & 2 != 0, usage: bits & 4 != 0 };
            bits += 1;
        }
        every
    };

    fn of(body: &[u8]) -> Self {
        Self {
            token_ids: says(body, br#""return_token_ids""#),
            logprobs: says(body, br#""logprobs""#),
            usage: says(body, br#""include_usage""#),
        }
    }
}

/// Whether a member of this name is `true` or a number that is not 0.
fn says(body: &[u8], name: &[u8]) -> bool {
    let Some(at) = memchr::memmem::find(body, name) else { return false };
    let mut rest = body.get(at + name.len()..).unwrap_or_default().iter();
    matches!(rest.find(|byte| !matches!(byte, b':' | b' ')), Some(b't' | b'1'..=b'9'))
}

/// The frames of an answer: one for each event of a stream, one for the whole answer otherwise.
pub(crate) fn frames(shape: Shape, asked: Asked) -> Vec<String> {
    if shape.stream { events(shape.prompt, asked) } else { vec![whole(shape.prompt, asked)] }
}

/// The body of an answer.
pub(crate) fn body(shape: Shape, asked: Asked) -> Vec<u8> {
    frames(shape, asked).concat().into_bytes()
}

fn word(number: usize) -> String {
    format!(" token{}", number % 97)
}

fn logprobs(numbers: impl Iterator<Item = usize>) -> String {
    let entry = |number: usize| {
        let (word, logprob) = (word(number), 0.013 * (number % 89) as f64);
        let bytes: Vec<u8> = word.clone().into_bytes();
        format!(r#"{{"token":"{word}","logprob":-{logprob:.6},"bytes":{},"top_logprobs":[]}}"#, list(bytes))
    };
    let entries: Vec<String> = numbers.map(entry).collect();
    format!(r#","logprobs":{{"content":[{}]}}"#, entries.join(","))
}

fn list(numbers: impl IntoIterator<Item = impl ToString>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

fn prompt_ids(prompt: Length, asked: Asked) -> String {
    if !asked.token_ids {
        return String::new();
    }
    format!(r#","prompt_token_ids":{}"#, list((0..prompt.tokens()).map(|at| 1000 + at * 7 % 100_000)))
}

fn token_ids(numbers: impl Iterator<Item = usize>, asked: Asked) -> String {
    if !asked.token_ids {
        return String::new();
    }
    format!(r#","token_ids":{}"#, list(numbers.map(|number| 5000 + number)))
}

fn usage(prompt: Length) -> String {
    let prompt = prompt.tokens();
    format!(
        r#""usage":{{"prompt_tokens":{prompt},"completion_tokens":{TOKENS},"total_tokens":{}}}"#,
        prompt + TOKENS
    )
}

fn start(object: &str) -> String {
    format!(r#"{{"id":"chatcmpl-0123456789abcdef","object":"{object}","created":1700000000,"model":"policy""#)
}

fn whole(prompt: Length, asked: Asked) -> String {
    let text: String = (0..TOKENS).map(word).collect();
    let logprobs = if asked.logprobs { logprobs(0..TOKENS) } else { String::new() };
    format!(
        r#"{},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}}{logprobs},"finish_reason":"stop"{}}}],{}{}}}"#,
        start("chat.completion"),
        token_ids(0..TOKENS, asked),
        usage(prompt),
        prompt_ids(prompt, asked),
    )
}

fn events(prompt: Length, asked: Asked) -> Vec<String> {
    let event = |rest: &str| format!("data: {}{rest}}}\n\n", start("chat.completion.chunk"));
    let mut events = vec![event(&format!(
        r#","choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]{}"#,
        prompt_ids(prompt, asked)
    ))];
    events.extend((0..TOKENS).map(|number| {
        let one = number..number + 1;
        let logprobs = if asked.logprobs { logprobs(one.clone()) } else { String::new() };
        event(&format!(
            r#","choices":[{{"index":0,"delta":{{"content":"{}"}}{logprobs},"finish_reason":null{}}}]"#,
            word(number),
            token_ids(one, asked),
        ))
    }));
    events.push(event(r#","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]"#));
    if asked.usage {
        events.push(event(&format!(r#","choices":[],{}"#, usage(prompt))));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

/// An answer as it goes over the wire, piece by piece.
type Wire = Vec<Vec<u8>>;

fn wire(shape: Shape, asked: Asked) -> Wire {
    if shape.stream {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |event: String| format!("{:x}\r\n{event}\r\n", event.len()).into_bytes();
        let mut wire: Wire = events(shape.prompt, asked).into_iter().map(chunk).collect();
        if let Some(first) = wire.first_mut() {
            first.splice(..0, head.bytes());
        }
        if let Some(last) = wire.last_mut() {
            last.extend_from_slice(b"0\r\n\r\n");
        }
        return wire;
    }
    vec![answer(&whole(shape.prompt, asked))]
}

fn answer(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Everything that it says.
struct Answers {
    wires: Vec<(Shape, Asked, Wire)>,
    models: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let every = || Shape::ALL.into_iter().flat_map(|shape| Asked::EVERY.map(|asked| (shape, asked)));
        let models = r#"{"object":"list","data":[{"id":"policy","object":"model","owned_by":"vllm"}]}"#;
        Self {
            wires: every().map(|(shape, asked)| (shape, asked, wire(shape, asked))).collect(),
            models: answer(models),
        }
    }

    fn to(&self, body: &[u8]) -> &[Vec<u8>] {
        if body.is_empty() {
            return std::slice::from_ref(&self.models);
        }
        let prompt = if body.len() > Length::Long.tokens() { Length::Long } else { Length::Short };
        let (shape, asked) = (Shape { prompt, stream: says(body, br#""stream""#) }, Asked::of(body));
        let found = self.wires.iter().find(|(its, has, _)| *its == shape && *has == asked);
        found.map(|(_, _, wire)| wire.as_slice()).unwrap_or_default()
    }
}

/// Serves on a thread of its own until the program ends.
pub(crate) fn serve() -> Outcome<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || runtime.block_on(accept(listener)));
    Ok(address)
}

async fn accept(listener: std::net::TcpListener) -> Outcome<()> {
    let listener = TcpListener::from_std(listener)?;
    let answers = Arc::new(Answers::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = Arc::clone(&answers);
        // It ends when the other side hangs up, in the middle of an answer or not.
        tokio::spawn(async move { converse(stream, &answers).await.is_ok() });
    }
}

async fn converse(mut stream: TcpStream, answers: &Answers) -> Outcome<()> {
    let mut received: Vec<u8> = Vec::with_capacity(ROOM);
    loop {
        let (start, end) = loop {
            if let Some(place) = body_of(&received)?
                && received.len() >= place.1
            {
                break place;
            }
            received.reserve(ROOM);
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        for piece in answers.to(received.get(start..end).unwrap_or_default()) {
            stream.write_all(piece).await?;
            // Another stream's turn, as with an engine that makes a token for each at a time.
            tokio::task::yield_now().await;
        }
        received.drain(..end);
    }
}

/// From where to where the body of the first request is; none while its head is not whole.
fn body_of(received: &[u8]) -> Outcome<Option<(usize, usize)>> {
    let Some(end) = memchr::memmem::find(received, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(received.get(..end).unwrap_or_default())?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
    Ok(Some((end + 4, end + 4 + length)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn answers_have_what_is_asked_for_and_every_token() {
        for prompt in [Length::Short, Length::Long] {
            let whole: Value = serde_json::from_str(&whole(prompt, Asked::ALL)).unwrap();
            assert_eq!(whole["prompt_token_ids"].as_array().unwrap().len(), prompt.tokens());
            assert_eq!(whole["choices"][0]["token_ids"].as_array().unwrap().len(), TOKENS);
            assert_eq!(whole["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), TOKENS);
            let events = events(prompt, Asked::ALL);
            assert_eq!(events.len(), TOKENS + 4);
            let data = events[1].strip_prefix("data: ").unwrap();
            let chunk: Value = serde_json::from_str(data).unwrap();
            assert_eq!(chunk["choices"][0]["token_ids"].as_array().unwrap().len(), 1);
        }
        let plain: Value = serde_json::from_str(&whole(Length::Short, Asked::NOTHING)).unwrap();
        assert!(plain["prompt_token_ids"].is_null() && plain["choices"][0]["logprobs"].is_null());
    }

    #[test]
    fn a_request_is_understood_however_it_is_written() {
        let asked = Asked::of(br#"{"logprobs": 1, "return_token_ids":true,"include_usage":false}"#);
        assert_eq!(asked, Asked { token_ids: true, logprobs: true, usage: false });
        assert_eq!(Asked::of(br#"{"logprobs":0,"stream":true}"#), Asked::NOTHING);
    }

    #[test]
    fn requests_are_told_apart() {
        let received = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET";
        assert_eq!(body_of(received).unwrap(), Some((38, 40)));
        assert_eq!(body_of(&received[..30]).unwrap(), None);
        assert_eq!(body_of(b"GET / HTTP/1.1\r\n\r\n").unwrap(), Some((18, 18)));
    }
}
