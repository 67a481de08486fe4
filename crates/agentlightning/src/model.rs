use agl_rl::{Engine, EngineOptions};
use agl_runner::RolloutContext;
use agl_trace::{LLM_CALL, chat_attributes};
use agl_types::StatusCode;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::Error;

/// A language model in this process that speaks OpenAI's chat format. Cheap to clone.
///
/// Requests take the same way as over HTTP, without the socket, so that parameters, errors and answers are those of
/// the model server.
///
/// ```
/// use agentlightning::rl::EngineOptions;
/// use agentlightning::{BoxError, ChatModel, Outcome, RolloutContext};
/// use serde_json::{Value, json};
///
/// # async fn load() -> Result<(), BoxError> {
/// let model = ChatModel::load("smollm2", EngineOptions::default()).await?;
/// let agent = move |task: Value, context: RolloutContext| {
///     let model = model.clone();
///     async move {
///         let request = json!({"messages": [{"role": "user", "content": task}], "max_tokens": 16});
///         let answer = model.chat(&context, request).await?;
///         Ok::<_, BoxError>(Outcome::Reward(f64::from(answer["usage"]["completion_tokens"] == 1)))
///     }
/// };
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ChatModel {
    name: String,
    app: Router,
}

impl ChatModel {
    /// Loads a model: a `.gguf` file, a folder in Hugging Face's layout, or `smollm2`, which is fetched when it is
    /// not in the cache yet.
    ///
    /// # Errors
    /// [`Error::Model`] when that does not work.
    pub async fn load(model: &str, options: EngineOptions) -> Result<Self, Error> {
        let model = model.to_owned();
        let loaded = tokio::task::spawn_blocking(move || Engine::load(&model, &options)).await;
        let engine = loaded.map_err(|error| Error::Answer(format!("loading it panicked: {error}")))??;
        Ok(Self::over(engine))
    }

    /// A model that is loaded already.
    #[must_use]
    pub fn over(engine: Engine) -> Self {
        Self { name: engine.model_name().to_owned(), app: agl_rl::router(engine) }
    }

    /// The name that the model goes by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the model and records the call, with token ids and log-probs, as a span of the rollout.
    ///
    /// `request` is the body of an OpenAI chat completion (`messages`, `temperature`, `max_tokens`, `tools`, ...);
    /// `model` may be left out. Returns the body of the answer.
    ///
    /// # Errors
    /// [`Error::Refused`] for a request that the model does not take; the span then says so.
    pub async fn chat(&self, context: &RolloutContext, mut request: Value) -> Result<Value, Error> {
        if !request.is_object() || request["stream"] == true {
            let message = "the request must be an object without \"stream\": true".to_owned();
            return Err(Error::Refused { status: 400, message });
        }
        if request["model"].is_null() {
            request["model"] = self.name.clone().into();
        }
        request["return_token_ids"] = true.into();
        request["logprobs"] = true.into();
        let started = context.now();
        let answer = self.ask(&request).await;
        match &answer {
            Ok(answer) => context.record_chat(&request, answer, started).await?,
            Err(error) => {
                let mut span = context.new_span(LLM_CALL);
                span.start_time = Some(started);
                span.attributes = chat_attributes(&request, &json!({}));
                span.status.status_code = StatusCode::Error;
                span.status.description = Some(error.to_string());
                context.emit_span(span).await?;
            }
        }
        answer
    }

    async fn ask(&self, request: &Value) -> Result<Value, Error> {
        let odd = |error: &dyn std::fmt::Display| Error::Answer(error.to_string());
        let request = Request::post("/v1/chat/completions")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(request.to_string()))
            .map_err(|error| odd(&error))?;
        let response = self.app.clone().oneshot(request).await.map_err(|error| odd(&error))?;
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.map_err(|error| odd(&error))?;
        let body: Value = serde_json::from_slice(&body).map_err(|error| odd(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let message = body["error"]["message"].as_str().map_or_else(|| body.to_string(), str::to_owned);
        Err(Error::Refused { status: status.as_u16(), message })
    }
}
