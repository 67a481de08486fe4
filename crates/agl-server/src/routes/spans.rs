use agl_store::SpanDraft;
use agl_types::{Page, SequenceIdRequest, Span, SpanQuery};
use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Reader, parse_value, query_object, require};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/spans", get(list).post(add))
        .route("/spans/search", post(search))
        .route("/spans/batch", post(add_many))
        .route("/spans/next", post(next))
        .route("/spans/next/batch", post(next_many))
}

async fn add(
    State(app): State<App>,
    reader: Reader,
    body: Body,
) -> Result<(StatusCode, Json<Option<Span>>), ApiError> {
    let stored = body.store(&app).add_span(body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(stored.map(|span| reader.told(span)))))
}

#[derive(Deserialize)]
struct Batch {
    spans: Vec<Span>,
}

/// Stores many spans and answers with those that were new. A sequence id that is null or absent is issued.
async fn add_many(
    State(app): State<App>,
    reader: Reader,
    body: Body,
) -> Result<(StatusCode, Json<Vec<Span>>), ApiError> {
    let mut value = body.value()?;
    let placed = fill_sequence_ids(&mut value);
    let Batch { spans } = parse_value("body", &value)?;
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
        let has_one = fields.get("sequence_id").is_some_and(|id| !id.is_null());
        if !has_one {
            fields.insert("sequence_id".to_owned(), 0.into());
        }
        has_one
    };
    spans.iter_mut().map(fill).collect()
}

async fn list(
    State(app): State<App>,
    reader: Reader,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, ApiError> {
    query(&app, reader, "query", &query_object(uri.query().unwrap_or_default())).await
}

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

#[derive(Serialize)]
struct SequenceId {
    sequence_id: i64,
}

async fn next(State(app): State<App>, body: Body) -> Answer<SequenceId> {
    let SequenceIdRequest { rollout_id, attempt_id } = body.parse()?;
    let sequence_id = body.store(&app).get_next_span_sequence_id(&rollout_id, &attempt_id).await?;
    Ok(Json(SequenceId { sequence_id }))
}

#[derive(Deserialize)]
struct SequenceIdRequests {
    requests: Vec<SequenceIdRequest>,
}

#[derive(Serialize)]
struct SequenceIds {
    sequence_ids: Vec<i64>,
}

async fn next_many(State(app): State<App>, body: Body) -> Answer<SequenceIds> {
    let SequenceIdRequests { requests } = body.parse()?;
    let sequence_ids = body.store(&app).get_many_span_sequence_ids(requests).await?;
    Ok(Json(SequenceIds { sequence_ids }))
}
