use agl_store::SpanDraft;
use agl_types::{Page, SequenceIdRequest, Span, SpanQuery};
use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Reader, parse_value, query_object, require};
use crate::openapi::{Gone, NotFound, Once};

const SEQUENCE_ID: &str = "sequence_id";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(search))
        .routes(routes!(add_many))
        .routes(routes!(next))
        .routes(routes!(next_many))
}

/// Stores a span, which is also a sign of life of its attempt.
#[utoipa::path(
    post,
    path = "/spans",
    operation_id = "add_span",
    params(Once),
    request_body = Span,
    responses((status = 201, description = "The span, or null when it was there already.", body = Option<Span>), NotFound),
)]
async fn add(
    State(app): State<App>,
    reader: Reader,
    body: Body,
) -> Result<(StatusCode, Json<Option<Span>>), ApiError> {
    let stored = body.store(&app).add_span(body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(stored.map(|span| reader.told(span)))))
}

/// Spans to be stored.
#[derive(Deserialize, ToSchema)]
struct SpanBatch {
    /// The spans.
    #[schema(schema_with = drafts)]
    spans: Vec<Span>,
}

/// Spans whose sequence id may be null or absent.
fn drafts() -> RefOr<Schema> {
    let mut draft = Span::schema();
    if let RefOr::T(Schema::Object(fields)) = &mut draft {
        fields.required.retain(|field| field != SEQUENCE_ID);
        fields.properties.insert(SEQUENCE_ID.to_owned(), Option::<i64>::schema());
    }
    ArrayBuilder::new().items(draft).into()
}

/// Stores many spans at once.
///
/// A sequence id that is null or absent is issued.
#[utoipa::path(
    post,
    path = "/spans/batch",
    operation_id = "add_spans",
    params(Once),
    request_body = SpanBatch,
    responses((status = 201, description = "Those of the spans that were new.", body = Vec<Span>), NotFound),
)]
async fn add_many(
    State(app): State<App>,
    reader: Reader,
    body: Body,
) -> Result<(StatusCode, Json<Vec<Span>>), ApiError> {
    let mut value = body.value()?;
    let placed = fill_sequence_ids(&mut value);
    let SpanBatch { spans } = parse_value("body", &value)?;
    let drafts =
        spans.into_iter().zip(placed).map(|(span, has_sequence_id)| SpanDraft { span, has_sequence_id });
    let stored = body.store(&app).add_span_drafts(drafts.collect()).await?;
    Ok((StatusCode::CREATED, Json(stored.into_iter().map(|span| reader.told(span)).collect())))
}

/// Puts 0 where a span has no sequence id, and says of each span whether it had one.
fn fill_sequence_ids(batch: &mut Value) -> Vec<bool> {
    let Some(Value::Array(spans)) = batch.get_mut("spans") else { return Vec::new() };
    let fill = |span: &mut Value| {
        let Value::Object(fields) = span else { return true };
        let has_one = fields.get(SEQUENCE_ID).is_some_and(|id| !id.is_null());
        if !has_one {
            fields.insert(SEQUENCE_ID.to_owned(), 0.into());
        }
        has_one
    };
    spans.iter_mut().map(fill).collect()
}

/// Spans of a rollout, a page at a time.
#[utoipa::path(
    get,
    path = "/spans",
    operation_id = "query_spans",
    params(SpanQuery),
    responses((status = 200, description = "One page.", body = Page<Span>), Gone),
)]
async fn list(
    State(app): State<App>,
    reader: Reader,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, ApiError> {
    query(&app, reader, "query", &query_object(uri.query().unwrap_or_default())).await
}

/// Spans of a rollout, a page at a time, with the query in the body.
#[utoipa::path(
    post,
    path = "/spans/search",
    operation_id = "search_spans",
    request_body = SpanQuery,
    responses((status = 200, description = "One page.", body = Page<Span>), Gone),
)]
async fn search(State(app): State<App>, reader: Reader, body: Body) -> Result<Response, ApiError> {
    query(&app, reader, "body", &body.value()?).await
}

/// A page of spans, which nobody here has to read.
async fn query(app: &App, reader: Reader, source: &str, value: &Value) -> Result<Response, ApiError> {
    let query: SpanQuery = parse_value(source, value)?;
    require(source, value, &["rollout_id"])?;
    check_page(query.limit, query.offset)?;
    let Page { items, limit, offset, total } = app.store.query_raw_spans(query).await?;
    let mut json = br#"{"items":["#.to_vec();
    for (number, span) in items.iter().enumerate() {
        if number > 0 {
            json.push(b',');
        }
        reader.write(span, &mut json)?;
    }
    json.extend(format!(r#"],"limit":{limit},"offset":{offset},"total":{total}}}"#).into_bytes());
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

/// A sequence id.
#[derive(Serialize, ToSchema)]
struct SequenceId {
    /// The number; larger than all before it in the rollout.
    sequence_id: i64,
}

/// Issues the next span sequence id of a rollout.
#[utoipa::path(
    post,
    path = "/spans/next",
    operation_id = "next_span_sequence_id",
    params(Once),
    request_body = SequenceIdRequest,
    responses((status = 200, description = "The sequence id.", body = SequenceId), NotFound),
)]
async fn next(State(app): State<App>, body: Body) -> Answer<SequenceId> {
    let SequenceIdRequest { rollout_id, attempt_id } = body.parse()?;
    let sequence_id = body.store(&app).get_next_span_sequence_id(&rollout_id, &attempt_id).await?;
    Ok(Json(SequenceId { sequence_id }))
}

/// Asks for many sequence ids.
#[derive(Deserialize, ToSchema)]
struct SequenceIdRequests {
    /// What for; a rollout may be named more than once.
    requests: Vec<SequenceIdRequest>,
}

/// Many sequence ids.
#[derive(Serialize, ToSchema)]
struct SequenceIds {
    /// One for each request, in the same order.
    sequence_ids: Vec<i64>,
}

/// Issues many span sequence ids at once.
#[utoipa::path(
    post,
    path = "/spans/next/batch",
    operation_id = "next_span_sequence_ids",
    params(Once),
    request_body = SequenceIdRequests,
    responses((status = 200, description = "One for each request.", body = SequenceIds), NotFound),
)]
async fn next_many(State(app): State<App>, body: Body) -> Answer<SequenceIds> {
    let SequenceIdRequests { requests } = body.parse()?;
    let sequence_ids = body.store(&app).get_many_span_sequence_ids(requests).await?;
    Ok(Json(SequenceIds { sequence_ids }))
}
