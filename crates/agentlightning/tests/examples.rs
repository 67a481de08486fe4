//! What the examples promise.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

#[path = "../examples/async_openai/agent.rs"]
mod async_openai_agent;
#[path = "../examples/best_prompt.rs"]
#[expect(dead_code, reason = "its main is not called")]
mod best_prompt;

use agentlightning::types::SpanQuery;
use agentlightning::{
    Llm, NamedResources, PromptTemplate, Resource, Trainer, TripletOptions, spans_to_triplets,
};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

/// Answers as vLLM does: with a call of the tool first, then with the last word that the tool has said.
async fn chat(Json(request): Json<Value>) -> Json<Value> {
    assert_eq!(request["return_token_ids"], true);
    let messages = request["messages"].as_array().unwrap();
    let last = messages.last().unwrap();
    let message = if last["role"] == "tool" {
        let said = last["content"].as_str().unwrap();
        json!({"role": "assistant", "content": said.rsplit(' ').next()})
    } else {
        let country = last["content"].as_str().unwrap().split(' ').nth(5).unwrap().trim_end_matches('?');
        let arguments = json!({"country": country}).to_string();
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": arguments}},
        ]})
    };
    let turn = messages.len() as u64;
    Json(json!({
        "id": format!("chatcmpl-{turn}"), "object": "chat.completion", "created": 1, "model": request["model"],
        "prompt_token_ids": [1, turn], "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
        "choices": [{
            "index": 0, "finish_reason": "stop", "message": message, "token_ids": [100 + turn],
            "logprobs": {"content": [{"token": "t", "logprob": -0.5, "bytes": null, "top_logprobs": []}]},
        }],
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_async_openai_is_captured() {
    // The provider of the whole program; other tests may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/chat/completions", post(chat));
    tokio::spawn(async move { axum::serve(listener, app).await });

    let llm = Resource::Llm(Llm::new(endpoint, "m"));
    let trainer = Trainer::builder()
        .agent(async_openai_agent::Geographer)
        .initial_resources(NamedResources::from_iter([("llm".to_owned(), llm)]))
        .build()
        .unwrap();
    let tasks = vec![
        json!({"country": "Japan", "capital": "Tokyo"}),
        json!({"country": "Peru", "capital": "Lima"}),
        json!({"country": "Atlantis", "capital": "Poseidonis"}),
    ];
    let summary = trainer.fit(tasks, Vec::new()).await.unwrap();
    assert_eq!(summary.train.succeeded, 3);
    assert!((summary.train.mean_reward.unwrap() - 2.0 / 3.0).abs() < 1e-9);
    assert_eq!((summary.counts.llm_calls, summary.counts.prompt_tokens), (6, 12));

    let rollouts = trainer.store().query_rollouts(Default::default()).await.unwrap();
    let rollout_id = rollouts.items[0].rollout.rollout_id.clone();
    let query = SpanQuery { rollout_id, ..SpanQuery::default() };
    let spans = trainer.store().query_spans(query).await.unwrap().items;
    let triplets = spans_to_triplets(&spans, &TripletOptions::default()).unwrap();
    let ids: Vec<Value> = triplets
        .iter()
        .map(|triplet| json!([triplet.prompt["token_ids"], triplet.response["token_ids"], triplet.reward]))
        .collect();
    assert_eq!(ids, [json!([[1, 1], [101], null]), json!([[1, 3], [103], 1.0])]);
    let tool = spans.iter().find(|span| span.name == "execute_tool look_up").unwrap();
    assert_eq!(tool.attributes["gen_ai.tool.call.arguments"], r#"{"country":"Japan"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_prompt_is_found() {
    let algorithm = best_prompt::BestPrompt(vec!["Do {task}!", "Do {task}, please.", "{task}"]);
    let trainer =
        Trainer::builder().agent(best_prompt::agent).n_runners(2).algorithm(algorithm).build().unwrap();
    let summary = trainer.fit(vec![json!(1), json!(2)], Vec::new()).await.unwrap();
    assert_eq!(summary.train.succeeded, 6);
    let latest = trainer.store().get_latest_resources().await.unwrap().unwrap();
    let Resource::PromptTemplate(PromptTemplate { template, .. }) = &latest.resources["prompt"] else {
        unreachable!("it is a prompt")
    };
    assert_eq!((template.as_str(), latest.version), ("Do {task}, please.", 4));
}
