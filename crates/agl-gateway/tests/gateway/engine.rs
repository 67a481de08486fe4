//! A model server that behaves like vLLM: token ids, log-probs, streams, tools, usage, and whatever goes wrong.
//!
//! What it answers is a function of the request: the words of the last message in reverse order. It writes its JSON in
//! a way of its own (blanks, escapes, numbers), so that a test sees whether a byte was changed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A request as the engine got it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// The engine, until the test ends.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    owned_by: &'static str,
    seen: Mutex<Vec<Seen>>,
    tries: Mutex<HashMap<String, usize>>,
    /// Calls that were given up by the gateway before their end.
    dropped: tokio::sync::watch::Sender<usize>,
    /// Calls of the model `waits` go on when this is true.
    go: tokio::sync::watch::Sender<bool>,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        Self::owned_by("vllm").await
    }

    pub(crate) async fn owned_by(owned_by: &'static str) -> Self {
        let shared = Arc::new(Shared {
            owned_by,
            seen: Mutex::default(),
            tries: Mutex::default(),
            dropped: tokio::sync::watch::Sender::new(0),
            go: tokio::sync::watch::Sender::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, shared }
    }

    /// The calls that it got, without questions about its models.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().iter().filter(|seen| seen.path != "/v1/models").cloned().collect()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().unwrap()
    }

    /// Returns once as many calls were given up before their end.
    pub(crate) async fn until_dropped(&self, count: usize) {
        self.shared.dropped.subscribe().wait_for(|dropped| *dropped >= count).await.unwrap();
    }

    /// Lets calls of the model `waits` go on.
    pub(crate) fn go(&self) {
        self.shared.go.send_replace(true);
    }
}

pub(crate) fn ids_of(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|word| word.bytes().map(u32::from).sum()).collect()
}

pub(crate) fn reply_to(text: &str) -> String {
    text.split_whitespace().rev().collect::<Vec<_>>().join(" ")
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

/// Counts a call as given up unless it is told otherwise.
struct Watched(Arc<Shared>, bool);

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.send_modify(|count| *count += 1);
        }
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, bytes: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    shared.seen.lock().unwrap().push(Seen {
        path: uri.path_and_query().unwrap().to_string(),
        headers: headers.clone(),
        body: body.clone(),
    });
    if uri.path().ends_with("/models") {
        let card = json!({"id": "m", "object": "model", "owned_by": shared.owned_by});
        return axum::Json(json!({"object": "list", "data": [card]})).into_response();
    }
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    let tried = {
        let mut tries = shared.tries.lock().unwrap();
        let tried = tries.entry(model.clone()).or_default();
        *tried += 1;
        *tried
    };
    let error = |status: StatusCode, message: &str| {
        let body = json!({"error": {"message": message, "type": "x", "code": status.as_u16()}}).to_string();
        (status, [("content-type", "application/json"), ("x-engine", "yes")], body).into_response()
    };
    if let Some(answer) = body["answer_503"].as_str() {
        let facts = [("content-type", "text/plain"), ("retry-after", "0")];
        return (StatusCode::SERVICE_UNAVAILABLE, facts, answer.to_owned()).into_response();
    }
    match model.as_str() {
        "flaky" if tried <= 2 => return error(StatusCode::SERVICE_UNAVAILABLE, "busy"),
        "down" => return error(StatusCode::INTERNAL_SERVER_ERROR, "down"),
        "picky" => return error(StatusCode::BAD_REQUEST, "no such parameter"),
        "tells" => {
            let told = headers.get("authorization").map_or("none", |value| value.to_str().unwrap());
            let mut response = error(StatusCode::UNAUTHORIZED, &format!("wrong key: {told}"));
            response.headers_mut().insert("x-told", told.parse().unwrap());
            return response;
        }
        "garbage" => {
            return (StatusCode::OK, [("content-type", "application/json")], "<html>").into_response();
        }
        "late" if tried == 1 => {
            return (StatusCode::OK, [("content-type", "text/event-stream")], "").into_response();
        }
        _ if model.starts_with("once-") && tried == 1 => {
            let status = StatusCode::from_bytes(&model.as_bytes()["once-".len()..]).unwrap();
            let mut response = error(status, "not now");
            response.headers_mut().insert("retry-after", HeaderValue::from_static("0"));
            return response;
        }
        "redirects" => return (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]).into_response(),
        "waits" => {
            let mut watched = Watched(Arc::clone(&shared), false);
            shared.go.subscribe().wait_for(|go| *go).await.unwrap();
            watched.1 = true;
        }
        _ => {}
    }
    if shared.owned_by != "vllm" && !body["return_token_ids"].is_null() {
        return error(StatusCode::BAD_REQUEST, "unknown field return_token_ids");
    }
    let is_chat = uri.path().ends_with("/chat/completions");
    if uri.path().ends_with("/embeddings") {
        let answer = r#"{"object": "list", "data": [{"object":"embedding","index":0,"embedding":[0.10, 1e-3]}], "model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}}"#;
        return ([("content-type", "application/json")], answer).into_response();
    }
    if !is_chat && !uri.path().ends_with("/completions") {
        return error(StatusCode::NOT_FOUND, "nothing here");
    }
    let said = Said::new(&body, is_chat);
    let kind =
        ("content-type", if said.stream { "text/event-stream; charset=utf-8" } else { "application/json" });
    let facts = [
        kind,
        ("x-engine", "yes"),
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
        ("set-cookie", "a=b"),
    ];
    if !said.stream {
        return (facts, said.whole()).into_response();
    }
    let mut events: Vec<String> =
        said.chunks().into_iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    events.insert(1, ": ping\n\n".to_owned());
    let breaks = model == "breaks";
    if breaks || model == "stops" || model == "errs" {
        events.truncate(3);
    }
    if model == "errs" {
        events.push("data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n".to_owned());
    }
    if !breaks && model != "stops" {
        events.push("data: [DONE]\n\n".to_owned());
    }
    let hangs = model == "hangs";
    if hangs {
        events.truncate(3);
    }
    let watched = Watched(shared, !hangs);
    let pieces = stream::unfold((events.into_iter(), watched), move |(mut events, watched)| async move {
        // A pause, so that each goes out by itself.
        tokio::time::sleep(Duration::from_millis(1)).await;
        match events.next() {
            Some(event) => Some((Ok::<_, Infallible>(Bytes::from(event)), (events, watched))),
            None if hangs => std::future::pending().await,
            None if breaks => panic!("the engine dies in the middle of a stream"),
            None => None,
        }
    });
    (facts, Body::from_stream(pieces)).into_response()
}

/// What the engine says to a request.
struct Said {
    is_chat: bool,
    stream: bool,
    ids: bool,
    logprobs: bool,
    usage: bool,
    model: String,
    prompts: Vec<Vec<u32>>,
    replies: Vec<String>,
    tool: Option<String>,
    /// What the engine gets wrong: `completion`, `prompt`, `logprobs` or `ids`.
    wrong: String,
}

impl Said {
    fn new(body: &Value, is_chat: bool) -> Self {
        let prompts: Vec<String> = match &body["prompt"] {
            Value::Array(several) => several.iter().map(text_of).collect(),
            one if !is_chat => vec![text_of(one)],
            _ => {
                let messages = body["messages"].as_array().cloned().unwrap_or_default();
                vec![
                    messages.iter().map(|message| text_of(&message["content"])).collect::<Vec<_>>().join(" "),
                ]
            }
        };
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let last = messages.last().cloned().unwrap_or_default();
        let texts = if is_chat { vec![text_of(&last["content"])] } else { prompts.clone() };
        let n = body["n"].as_u64().unwrap_or(1);
        let replies = texts.iter().flat_map(|text| {
            let said = reply_to(text);
            (0..n).map(move |index| if index == 0 { said.clone() } else { format!("{said} {index}") })
        });
        let tool = body["tools"][0]["function"]["name"].as_str().filter(|_| last["role"] != "tool");
        Self {
            is_chat,
            stream: body["stream"] == true,
            ids: body["return_token_ids"] == true && body["model"] != "wrong-ids",
            logprobs: body["logprobs"] == true || body["logprobs"].is_u64(),
            usage: body["stream"] != true || body["stream_options"]["include_usage"] == true,
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            prompts: prompts.iter().map(|prompt| ids_of(prompt)).collect(),
            replies: replies.collect(),
            tool: tool.map(str::to_owned),
            wrong: body["model"]
                .as_str()
                .and_then(|name| name.strip_prefix("wrong-"))
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// The prompt that a reply is for.
    fn prompt(&self, index: usize) -> &[u32] {
        &self.prompts[index * self.prompts.len() / self.replies.len()]
    }

    fn completion_tokens(&self) -> usize {
        let counted: usize = match self.tool {
            Some(_) => 3 * self.replies.len(),
            None => self.replies.iter().map(|reply| ids_of(reply).len()).sum(),
        };
        counted + usize::from(self.wrong == "completion")
    }

    fn usage(&self) -> String {
        let prompt = self.prompts.iter().map(Vec::len).sum::<usize>() + usize::from(self.wrong == "prompt");
        let completion = self.completion_tokens();
        format!(
            r#"{{"prompt_tokens": {prompt}, "completion_tokens": {completion}, "total_tokens": {}}}"#,
            prompt + completion
        )
    }

    fn logprobs(&self, ids: &[u32]) -> String {
        if !self.logprobs {
            return String::new();
        }
        let logprob = |id: &u32| format!("-{id}.250e-3");
        let ids = if self.wrong == "logprobs" { &ids[1..] } else { ids };
        if self.is_chat {
            let tokens: Vec<String> = ids
                .iter()
                .map(|id| {
                    format!(r#"{{"token":"t{id}","logprob":{},"bytes":null,"top_logprobs":[]}}"#, logprob(id))
                })
                .collect();
            return format!(r#","logprobs":{{"content":[{}],"refusal":null}}"#, tokens.join(","));
        }
        let tokens: Vec<String> = ids.iter().map(|id| format!("\"t{id}\"")).collect();
        let numbers: Vec<String> = ids.iter().map(logprob).collect();
        format!(
            r#","logprobs":{{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":null}}"#,
            tokens.join(","),
            numbers.join(",")
        )
    }

    fn token_ids(&self, ids: &[u32]) -> String {
        if self.ids { format!(r#""token_ids": {ids:?}, "#) } else { String::new() }
    }

    fn head(&self, object: &str) -> String {
        format!(
            r#""id":"chatcmpl-{}","object":"{object}" , "created":1700000000,"model":"{}","caf\u00e9":1.50"#,
            self.prompts[0].iter().sum::<u32>(),
            self.model
        )
    }

    fn whole(&self) -> String {
        let choices: Vec<String> = self
            .replies
            .iter()
            .enumerate()
            .map(|(index, reply)| {
                let (ids, said, reason) = match &self.tool {
                    Some(name) => (
                        vec![1, 2, 3],
                        format!(r#""message":{{"role":"assistant","content":null,"tool_calls":[{{"id":"call-{index}","type":"function","function":{{"name":"{name}","arguments":"{{\"x\": 1}}"}}}}]}}"#),
                        "tool_calls",
                    ),
                    None if self.is_chat => (ids_of(reply), format!(r#""message":{{"role":"assistant","content":{}}}"#, json!(reply)), "stop"),
                    None => (ids_of(reply), format!(r#""text":{}"#, json!(reply)), "stop"),
                };
                let prompt = if self.ids && !self.is_chat { format!(r#", "prompt_token_ids":{:?}"#, self.prompt(index)) } else { String::new() };
                format!(r#"{{{}"index":{index},{said},"finish_reason":"{reason}"{}{prompt}}}"#, self.token_ids(&ids), self.logprobs(&ids))
            })
            .collect();
        let prompt = if self.ids && self.is_chat {
            format!(r#", "prompt_token_ids":{:?}"#, self.prompt(0))
        } else {
            String::new()
        };
        let object = if self.is_chat { "chat.completion" } else { "text_completion" };
        format!(
            "{{{}, \"choices\" : [{}],\"usage\":{}{prompt}}}\n",
            self.head(object),
            choices.join(", "),
            self.usage()
        )
    }

    fn chunk(&self, index: usize, said: &str, ids: &[u32], reason: &str, is_first: bool) -> String {
        let prompt = if is_first && self.ids {
            format!(r#""prompt_token_ids":{:?}, "#, self.prompt(index))
        } else {
            String::new()
        };
        let logprobs = if ids.is_empty() { String::new() } else { self.logprobs(ids) };
        let object = if self.is_chat { "chat.completion.chunk" } else { "text_completion" };
        let (outer, inner) = if self.is_chat { (prompt, String::new()) } else { (String::new(), prompt) };
        format!(
            r#"{{{outer}{},"choices":[{{{inner}{}"index":{index},{said}{logprobs},"finish_reason":{reason}}}]}}"#,
            self.head(object),
            self.token_ids(ids),
        )
    }

    fn chunks(&self) -> Vec<String> {
        let mut chunks = Vec::new();
        for (index, reply) in self.replies.iter().enumerate() {
            if self.is_chat {
                chunks.push(self.chunk(
                    index,
                    r#""delta":{"role":"assistant","content":""}"#,
                    &[],
                    "null",
                    index == 0,
                ));
            }
            if let Some(name) = &self.tool {
                let start = format!(
                    r#""delta":{{"tool_calls":[{{"index":0,"id":"call-{index}","type":"function","function":{{"name":"{name}","arguments":""}}}}]}}"#
                );
                chunks.push(self.chunk(index, &start, &[1], "null", false));
                for (id, part) in [(2, "{\\\"x\\\""), (3, ": 1}")] {
                    let piece = format!(
                        r#""delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"{part}"}}}}]}}"#
                    );
                    chunks.push(self.chunk(index, &piece, &[id], "null", false));
                }
                chunks.push(self.chunk(index, r#""delta":{}"#, &[], "\"tool_calls\"", false));
                continue;
            }
            for (number, word) in reply.split(' ').enumerate() {
                let piece = if number == 0 { word.to_owned() } else { format!(" {word}") };
                let said = if self.is_chat {
                    format!(r#""delta":{{"content":{}}}"#, json!(piece))
                } else {
                    format!(r#""text":{}"#, json!(piece))
                };
                chunks.push(self.chunk(index, &said, &ids_of(word), "null", !self.is_chat && number == 0));
            }
            let end = if self.is_chat { r#""delta":{}"# } else { r#""text":"""# };
            chunks.push(self.chunk(index, end, &[], "\"stop\"", false));
        }
        if self.usage {
            let object = if self.is_chat { "chat.completion.chunk" } else { "text_completion" };
            chunks.push(format!(r#"{{{},"choices":[],"usage":{}}}"#, self.head(object), self.usage()));
        }
        chunks
    }
}
