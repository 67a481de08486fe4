//! What the document says of the gateway, whose routes answer for themselves.
#![expect(dead_code, reason = "describes what the gateway's router answers")]

use agl_gateway::{PauseRequest, PauseState};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::openapi::OpenApi;
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The gateway's operations, without handlers.
pub(super) fn documented<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::with_openapi(document())
}

/// Told to everybody by a gateway that is served without a store beside it.
pub(super) fn probe() -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(health))
}

/// Says that the gateway is there.
#[utoipa::path(get, path = "/health", operation_id = "gateway_health", responses((status = 200, description = "It is.")))]
async fn health() -> StatusCode {
    StatusCode::OK
}

fn document() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(
        paths(
            chat_completions,
            completions,
            responses,
            embeddings,
            messages,
            count_tokens,
            models,
            model,
            of_attempt,
            of_claim,
            pause,
            resume,
            state
        ),
        components(schemas(Refused, RefusedMessage))
    )]
    struct Document;
    Document::openapi()
}

/// Why a call was not answered, as OpenAI's SDKs read it.
#[derive(Serialize, ToSchema)]
struct Refused {
    error: Reason,
    /// The message again, where clients of 1.0 look.
    detail: String,
}

#[derive(Serialize, ToSchema)]
struct Reason {
    /// What is wrong and how to mend it. Where a model server failed: which one, after how many tries, and why.
    message: String,
    /// The kind of error, such as `invalid_request_error`.
    r#type: String,
    /// The parameter that is wrong.
    param: Option<String>,
    /// The status.
    code: String,
}

/// Why a call was not answered, as Anthropic's SDKs read it.
#[derive(Serialize, ToSchema)]
struct RefusedMessage {
    /// `error`.
    r#type: String,
    error: MessageReason,
}

#[derive(Serialize, ToSchema)]
struct MessageReason {
    /// The kind of error, such as `invalid_request_error`.
    r#type: String,
    /// What is wrong and how to mend it.
    message: String,
}

/// Declares the operations of model calls, which differ in what is asked for alone.
macro_rules! call {
    ($name:ident, $id:literal, $path:literal, $refused:ty, $doc:literal) => {
        #[doc = $doc]
        ///
        /// The request and the answer are those of the dialect; whatever else is in them is passed on as it is. Without a
        /// path or headers (`x-rollout-id`, `x-attempt-id`) that name an attempt, the call is booked to the one that the
        /// token is for, or else to a session.
        #[utoipa::path(
            post,
            path = $path,
            operation_id = $id,
            request_body(description = "As the dialect has it.", content = Object),
            responses(
                (status = 200, description = "The model's answer, as a whole or as a stream.", content(
                    (Object = "application/json"),
                    (String = "text/event-stream"),
                )),
                (status = 400, description = "The request makes no sense, or there is no such model.", body = $refused),
                (status = 401, description = "The key is missing or wrong.", body = $refused),
                (status = 403, description = "The token is for another attempt, or for one that has ended.", body = $refused),
                (status = 404, description = "There is no such rollout or attempt.", body = $refused),
                (status = 413, description = "The request is larger than the gateway takes in.", body = $refused),
                (status = 429, description = "The gateway is paused, and no more calls may wait.", body = Object),
                (status = 502, description = "The model server could not be reached, or its answer not be read.", body = $refused),
                (status = 503, description = "There is no model yet, or the store is not there just now.", body = $refused),
            ),
        )]
        fn $name() {}
    };
}

call!(chat_completions, "chat_completions", "/v1/chat/completions", Refused, "OpenAI's chat completions.");
call!(completions, "completions", "/v1/completions", Refused, "OpenAI's completions.");
call!(responses, "responses", "/v1/responses", Refused, "OpenAI's responses.");
call!(embeddings, "embeddings", "/v1/embeddings", Refused, "OpenAI's embeddings.");
call!(messages, "messages", "/v1/messages", RefusedMessage, "Anthropic's messages.");
call!(
    count_tokens,
    "count_tokens",
    "/v1/messages/count_tokens",
    RefusedMessage,
    "How many tokens a message would have. It is not recorded."
);

/// The models that can be asked for.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "served_models",
    responses(
        (status = 200, description = "A list, as OpenAI has it.", body = Object),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
    ),
)]
fn models() {}

/// A model that can be asked for.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "served_model",
    params(("model" = String, Path, description = "Its name; slashes may be in it.")),
    responses(
        (status = 200, description = "The model, as OpenAI has it.", body = Object),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 404, description = "There is no such model.", body = Refused),
    ),
)]
fn model() {}

/// Any of the gateway's calls, booked to an attempt as 0.3 names it.
///
/// A base URL for SDKs is `/rollout/{rollout_id}/attempt/{attempt_id}/v1`; the `v1` may be left out.
#[utoipa::path(
    post,
    path = "/rollout/{rollout_id}/attempt/{attempt_id}/v1/{endpoint}",
    operation_id = "call_of_attempt",
    params(
        ("rollout_id" = String, Path, description = "The rollout."),
        ("attempt_id" = String, Path, description = "The attempt."),
        ("endpoint" = String, Path, description = "What is below `/v1`, such as `chat/completions`."),
    ),
    request_body(description = "As the dialect has it.", content = Object),
    responses(
        (status = 200, description = "As without the path before it."),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 403, description = "The token is for another attempt, or for one that has ended.", body = Refused),
        (status = 404, description = "There is no such rollout, attempt or endpoint.", body = Refused),
    ),
)]
fn of_attempt() {}

/// Any of the gateway's calls, booked to an attempt as 1.0 names it.
///
/// A base URL for SDKs is `/proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/{mode}/openai/v1`.
#[utoipa::path(
    post,
    path = "/proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/{mode}/openai/v1/{endpoint}",
    operation_id = "call_of_claim",
    params(
        ("rollout_id" = String, Path, description = "The rollout."),
        ("attempt_id" = String, Path, description = "The attempt; `0` is the latest."),
        ("mode" = String, Path, description = "`train` or `val`; the model list may have sampling for each."),
        ("endpoint" = String, Path, description = "What is below `/v1`, such as `chat/completions`."),
    ),
    request_body(description = "As the dialect has it.", content = Object),
    responses(
        (status = 200, description = "As without the path before it."),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 403, description = "The token is for another attempt, or for one that has ended.", body = Refused),
        (status = 404, description = "There is no such rollout, attempt, mode or endpoint.", body = Refused),
        (status = 409, description = "Nobody has claimed the rollout yet.", body = Refused),
    ),
)]
fn of_claim() {}

/// Holds new calls back. Those under way go on.
///
/// With `drain_seconds` it answers when no call is under way, or the time is up.
#[utoipa::path(
    post,
    path = "/proxy/pause",
    operation_id = "pause_gateway",
    request_body = Option<PauseRequest>,
    responses(
        (status = 200, description = "How things stand.", body = PauseState),
        (status = 400, description = "`drain_seconds` makes no sense.", body = Refused),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 403, description = "A token for an attempt does not let one do that.", body = Refused),
        (status = 422, description = "The request is not of the shape expected.", body = Refused),
    ),
)]
fn pause() {}

/// Lets calls through again, those first that came first.
#[utoipa::path(
    post,
    path = "/proxy/resume",
    operation_id = "resume_gateway",
    responses(
        (status = 200, description = "How things stand.", body = PauseState),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 403, description = "A token for an attempt does not let one do that.", body = Refused),
    ),
)]
fn resume() {}

/// How the gateway stands between pause and resume.
#[utoipa::path(
    get,
    path = "/proxy/state",
    operation_id = "gateway_state",
    responses(
        (status = 200, description = "How things stand.", body = PauseState),
        (status = 401, description = "The key is missing or wrong.", body = Refused),
        (status = 403, description = "A token for an attempt does not let one do that.", body = Refused),
    ),
)]
fn state() {}
