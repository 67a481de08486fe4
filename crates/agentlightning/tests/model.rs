//! Calls of the embedded model, recorded as spans. The model comes from the cache; without it, it is fetched.

use std::sync::Arc;

use agentlightning::trace::{TripletOptions, spans_to_triplets};
use agentlightning::types::{SpanQuery, StartRollout, StatusCode, semconv};
use agentlightning::{
    ChatModel, MemoryStore, Outcome, RolloutContext, RolloutStatus, Runner, RunnerOptions, StopSignal, Store,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_recorded_with_its_token_ids_and_log_probs() {
    let model = ChatModel::load("smollm2", agentlightning::rl::EngineOptions::default()).await.unwrap();
    let store = Arc::new(MemoryStore::new());
    let agent = move |_: Value, context: RolloutContext| {
        let model = model.clone();
        async move {
            let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
            let request = json!({"messages": messages, "max_tokens": 12, "temperature": 0});
            let reply = model.chat(&context, request).await?;
            let content = reply["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
            let refused = model.chat(&context, json!({"messages": "no list"})).await;
            assert!(matches!(refused, Err(agentlightning::Error::Refused { status: 400, .. })));
            Ok(Outcome::Reward(f64::from(u8::from(content.contains("Paris")))))
        }
    };
    let runner = Runner::new(Arc::new(agent), store.clone(), RunnerOptions::new("Worker-0"));
    let view = runner.step(StartRollout::default(), &StopSignal::new()).await.unwrap();
    assert_eq!(view.rollout.status, RolloutStatus::Succeeded, "{view:?}");

    let query = SpanQuery { rollout_id: view.rollout.rollout_id, ..SpanQuery::default() };
    let mut spans = store.query_spans(query).await.unwrap().items;
    spans.retain(|span| span.name != semconv::AGL_STATE);
    assert_eq!(spans.len(), 3);
    assert_eq!(spans[1].status.status_code, StatusCode::Error);
    let options = TripletOptions { skip_empty_token_spans: true, ..TripletOptions::default() };
    let triplets = spans_to_triplets(&spans, &options).unwrap();
    assert_eq!(triplets.len(), 1);
    let triplet = &triplets[0];
    assert_eq!(triplet.reward, Some(1.0), "{triplet:?}");
    assert_eq!(triplet.metadata["request"]["model"], "smollm2");
    assert_eq!(triplet.prompt["raw_content"][0]["role"], "user");
    let count = |value: &Value| value.as_array().unwrap().len();
    assert!(count(&triplet.prompt["token_ids"]) > 7);
    assert_eq!(count(&triplet.response["token_ids"]), count(&triplet.response["logprobs"]));
    let log_prob = triplet.response["logprobs"][0]["logprob"].as_f64().unwrap();
    assert!((-20.0..=0.0).contains(&log_prob));
}
