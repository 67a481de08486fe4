//! The HTTP server on loopback, with a tiny model.

use crate::common;
use agl_rl::EngineOptions;
use reqwest::Client;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    _dir: TempDir,
    base: String,
    client: Client,
    stop: oneshot::Sender<()>,
    task: JoinHandle<agl_rl::Result<()>>,
}

impl Server {
    async fn start(options: EngineOptions) -> Self {
        // The HTTP client wants one even for plain HTTP; it fails where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (dir, engine) = common::engine(&options);
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, address) = oneshot::channel::<SocketAddr>();
        let task = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            agl_rl::serve(engine, "127.0.0.1", 0, |at| ready.send(at).unwrap(), shutdown).await
        });
        let base = format!("http://{}", address.await.unwrap());
        Self { _dir: dir, base, client: Client::new(), stop, task }
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response =
            self.client.post(format!("{}{path}", self.base)).body(body.to_string()).send().await.unwrap();
        (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    async fn chat(&self, extra: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &chat(extra)).await
    }

    /// The chunks of a stream; the last line must be `[DONE]`.
    async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let response =
            self.client.post(format!("{}{path}", self.base)).body(body.to_string()).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.unwrap();
        let mut lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(lines.pop(), Some("[DONE]"));
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn merged(mut body: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else { panic!("not an object") };
    for (key, value) in extra {
        body[key] = value;
    }
    body
}

fn chat(extra: Value) -> Value {
    merged(
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "seed": 3}),
        extra,
    )
}

#[tokio::test]
async fn a_chat_completion_has_openai_s_shape_and_token_ids() {
    let server = Server::start(EngineOptions::default()).await;
    let extra =
        json!({"n": 2, "logprobs": true, "top_logprobs": 3, "return_token_ids": true, "ignore_eos": true});
    let (status, body) = server.chat(extra).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "tiny");
    // <|im_start|> u s e r \n h i <|im_end|> \n <|im_start|> a s s i s t a n t \n
    let mut prompt: Vec<u32> = vec![256];
    prompt.extend(b"user\nhi".map(u32::from));
    prompt.extend([257, 10, 256]);
    prompt.extend(b"assistant\n".map(u32::from));
    assert_eq!(body["prompt_token_ids"], json!(prompt));
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": prompt.len(), "completion_tokens": 16, "total_tokens": prompt.len() + 16})
    );
    assert_eq!(body["choices"].as_array().unwrap().len(), 2);
    for (index, choice) in body["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["message"]["role"], "assistant");
        let ids = choice["token_ids"].as_array().unwrap();
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((ids.len(), content.len()), (8, 8));
        for (id, entry) in ids.iter().zip(content) {
            assert!(entry["logprob"].as_f64().unwrap() < 0.0);
            assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
            let id = id.as_u64().unwrap();
            if id < 256 {
                assert_eq!(entry["bytes"], json!([id]));
            }
        }
    }
    let (_, again) = server.chat(json!({"n": 2, "return_token_ids": true, "ignore_eos": true})).await;
    assert_eq!(again["choices"][0]["token_ids"], body["choices"][0]["token_ids"]);
    assert_eq!(again["choices"][0]["logprobs"], Value::Null);
    let (_, plain) = server.chat(json!({})).await;
    assert_eq!((plain.get("prompt_token_ids"), plain["choices"][0].get("token_ids")), (None, None));
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole() {
    let server = Server::start(EngineOptions::default()).await;
    let asked = json!({"n": 2, "logprobs": true, "return_token_ids": true, "max_tokens": 30});
    let (_, whole) = server.chat(asked.clone()).await;
    let streaming = merged(asked, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = server.stream("/v1/chat/completions", &chat(streaming)).await;
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));
    for expected in whole["choices"].as_array().unwrap() {
        let mine: Vec<&Value> = others
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == expected["index"])
            .collect();
        let text: String = mine.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        let join = |path: &str| -> Vec<Value> {
            mine.iter().filter_map(|choice| choice.pointer(path)?.as_array()).flatten().cloned().collect()
        };
        assert_eq!(text, expected["message"]["content"].as_str().unwrap());
        assert_eq!(join("/token_ids"), *expected["token_ids"].as_array().unwrap());
        assert_eq!(join("/logprobs/content"), *expected["logprobs"]["content"].as_array().unwrap());
        assert_eq!(mine.last().unwrap()["finish_reason"], expected["finish_reason"]);
        assert!(mine[..mine.len() - 1].iter().all(|choice| choice["finish_reason"].is_null()));
    }
}

#[tokio::test]
async fn completions_take_texts_and_ids_and_have_the_old_shape() {
    let server = Server::start(EngineOptions::default()).await;
    let base = json!({"model": "tiny", "max_tokens": 6, "seed": 1, "logprobs": 2, "return_token_ids": true, "ignore_eos": true});
    let ask = |prompt: Value| merged(base.clone(), json!({"prompt": prompt}));
    let (status, text) = server.post("/v1/completions", &ask(json!("ab"))).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(text["object"], "text_completion");
    let (_, ids) = server.post("/v1/completions", &ask(json!([97, 98]))).await;
    assert_eq!(ids["choices"], text["choices"]);
    assert_eq!(text["choices"][0]["prompt_token_ids"], json!([97, 98]));
    let logprobs = &text["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), 6, "{list}");
    }
    let (_, several) =
        server.post("/v1/completions", &merged(ask(json!(["ab", "c"])), json!({"n": 2}))).await;
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[0]["token_ids"], text["choices"][0]["token_ids"]);
    assert_eq!(choices[2]["prompt_token_ids"], json!([99]));
    assert_eq!(several["usage"]["prompt_tokens"], 3);
    let chunks = server
        .stream("/v1/completions", &merged(ask(json!([[97, 98], [99]])), json!({"stream": true})))
        .await;
    let streamed: Vec<Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .filter(|choice| choice["index"] == 0)
        .flat_map(|choice| choice["token_ids"].as_array().unwrap().clone())
        .collect();
    assert_eq!(streamed, *text["choices"][0]["token_ids"].as_array().unwrap());
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = Server::start(EngineOptions::default()).await;
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]);
    for (extra, param) in [
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1000}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_tokens": 1000}), "max_tokens"),
        (
            json!({"messages": [{"role": "user", "content": "x".repeat(300)}], "max_tokens": null}),
            "max_tokens",
        ),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": null}]}), "messages[0].content"),
        (json!({"messages": image}), "messages[0].content"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"colour": 1}}), "stream_options.colour"),
        (json!({"logprobs": 2}), "logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"logit_bias": {"5": 100}}), "logit_bias"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [{"type": "magic"}]}), "tools[0]"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"no_such_thing": 1}), "no_such_thing"),
    ] {
        let (status, body) = server.chat(extra.clone()).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!(400)), "{extra}: {body}");
        assert_eq!(body["error"]["param"], param, "{extra}: {body}");
        assert_eq!(body["error"]["type"], "BadRequestError");
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    }
    let (_, overflow) = server.chat(json!({"max_tokens": 1000})).await;
    let message = overflow["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("This model's maximum context length is 256 tokens. However, you requested"),
        "{message}"
    );
    let harmless = json!({
        "user": "me", "metadata": {"a": "b"}, "store": false, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": null, "response_format": {"type": "text"}, "parallel_tool_calls": true, "service_tier": "auto", "top_k": -1
    });
    let (status, body) = server.chat(harmless).await;
    assert_eq!(status, 200, "{body}");
    let (status, body) = server.chat(json!({"model": "gpt-4o"})).await;
    assert_eq!((status, &body["error"]["param"]), (404, &json!("model")));
    let (status, body) = server.post("/v1/nothing", &json!({})).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!(404)));
    let (status, body) = server.post("/v1/models", &json!({})).await;
    assert_eq!((status, &body["error"]["code"]), (405, &json!(405)));
    for body in ["{", "[]", ""] {
        let response = server
            .client
            .post(format!("{}/v1/chat/completions", server.base))
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 400);
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains("JSON"));
    }
}

#[tokio::test]
async fn tools_and_their_results_reach_the_prompt() {
    let server = Server::start(EngineOptions { max_context: Some(256), ..EngineOptions::default() }).await;
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"}
    ]);
    let (status, body) =
        server.chat(json!({"messages": messages, "max_tokens": 1, "return_token_ids": true})).await;
    assert_eq!(status, 200, "{body}");
    let prompt: Vec<u8> = body["prompt_token_ids"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|id| u8::try_from(id.as_u64().unwrap()).ok())
        .collect();
    let expected = "user\n1\n2\nassistant\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\nuser\n<tool_response>\n7\n</tool_response>\nassistant\n";
    assert_eq!(String::from_utf8(prompt).unwrap(), expected);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let (_, with_tools) = server.chat(json!({"tools": [tool], "max_tokens": 1})).await;
    // Describing tools takes more room than this model has.
    assert!(
        with_tools["error"]["message"].as_str().unwrap().contains("maximum context length"),
        "{with_tools}"
    );
    let (status, _) = server.chat(json!({"tools": [tool], "tool_choice": "none"})).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let options = EngineOptions { max_batch: Some(1), max_context: Some(4096), ..EngineOptions::default() };
    let server = Server::start(options).await;
    for stream in [true, false] {
        // Asks for as much as there is room for, many times over, and leaves.
        let mut leaving = Vec::new();
        for _ in 0..4 {
            let body = json!({
                "model": "tiny", "prompt": vec!["a"; 200], "max_tokens": 4000, "ignore_eos": true, "stream": stream
            });
            let request =
                server.client.post(format!("{}/v1/completions", server.base)).body(body.to_string()).send();
            leaving.push(tokio::spawn(request));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        for task in leaving {
            task.abort();
        }
        // One after the other, 800 answers of 4000 tokens take many minutes.
        let patience = std::time::Duration::from_secs(60);
        let (status, _) = tokio::time::timeout(patience, server.chat(json!({}))).await.unwrap();
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn models_health_and_shutdown() {
    let server = Server::start(EngineOptions::default()).await;
    let get = |path: &str| server.client.get(format!("{}{path}", server.base)).send();
    assert_eq!(get("/health").await.unwrap().status(), 200);
    let models: Value =
        serde_json::from_str(&get("/v1/models").await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("tiny"), &json!(256))
    );
    assert_eq!(get("/v1/models/tiny").await.unwrap().status(), 200);
    assert_eq!(get("/v1/models/other").await.unwrap().status(), 404);

    // A running stream ends properly after the server was told to stop.
    let body = chat(json!({"stream": true, "max_tokens": 200, "ignore_eos": true}));
    let response = server
        .client
        .post(format!("{}/v1/chat/completions", server.base))
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    server.stop.send(()).unwrap();
    assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (_dir, engine) = common::engine(&EngineOptions::default());
    let error = agl_rl::serve(engine, "127.0.0.1", port, |_| {}, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}
