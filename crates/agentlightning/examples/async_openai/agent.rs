//! An agent on async-openai that looks things up with a tool before it answers.

use agentlightning::{Agent, BoxError, Llm, Outcome, RolloutContext, async_trait};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use serde::Deserialize;
use serde_json::{Value, json};

/// How often the model may ask for the tool before it has to answer.
const MOST_CALLS: usize = 3;

/// A task.
#[derive(Debug, Deserialize)]
pub(crate) struct Question {
    pub(crate) country: String,
    pub(crate) capital: String,
}

/// Asks the model that the resources name.
pub(crate) struct Geographer;

#[async_trait]
impl Agent for Geographer {
    type Task = Question;
    type Resources = Llm;

    async fn rollout(&self, task: Question, llm: Llm, context: &RolloutContext) -> Result<Outcome, BoxError> {
        let config = OpenAIConfig::new()
            .with_api_base(&llm.endpoint)
            .with_api_key(llm.api_key.as_deref().unwrap_or("none"));
        let client = Client::with_config(config);
        let text = format!("What is the capital of {}? Answer in one word.", task.country);
        let mut messages = vec![json!({"role": "user", "content": text})];
        for _ in 0..MOST_CALLS {
            let request = json!({
                "model": llm.model, "messages": messages, "tools": [tool()], "logprobs": true, "return_token_ids": true,
            });
            let started = context.now();
            // JSON instead of the client's own types, which know nothing of token ids.
            let response: Value = client.chat().create_byot(&request).await?;
            context.record_chat(&request, &response, started).await?;
            let message = &response["choices"][0]["message"];
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            if calls.is_empty() {
                let right = message["content"].as_str().is_some_and(|answer| answer.contains(&task.capital));
                return Ok(Outcome::Reward(f64::from(u8::from(right))));
            }
            messages.push(message.clone());
            for call in calls {
                let arguments: Value =
                    serde_json::from_str(call["function"]["arguments"].as_str().unwrap_or("{}"))?;
                let result = look_up(arguments["country"].as_str().unwrap_or_default());
                context.emit_tool_call("look_up", &arguments, &result).await?;
                messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": result}));
            }
        }
        Err("the model only asks, and never answers".into())
    }
}

fn tool() -> Value {
    json!({"type": "function", "function": {
        "name": "look_up",
        "description": "Tells what an atlas says about a country.",
        "parameters": {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]},
    }})
}

/// The atlas.
fn look_up(country: &str) -> Value {
    match country {
        "Japan" => "An island country in East Asia; capital: Tokyo.".into(),
        "Peru" => "A country in South America; capital: Lima.".into(),
        _ => "Not in this atlas.".into(),
    }
}
