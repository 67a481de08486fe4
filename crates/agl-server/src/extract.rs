//! Requests into the request types of `agl-types`, with errors in the shape that 0.3 answers.

use std::convert::Infallible;
use std::sync::Arc;

use agl_store::{IdempotencyKey, RawSpan, Store};
use agl_types::{CLIENT_HEADER, Span};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::Segment;
use sha2::{Digest as _, Sha256};
use tower_http::timeout::TimeoutError;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::routes::App;

/// Query parameters that are whole numbers.
const WHOLE_NUMBERS: &[&str] = &["limit", "offset", "version"];
/// Query parameters that are yes or no.
const BOOLEANS: &[&str] = &["all_versions"];

/// How Python writes what JSON has no number for.
const NOT_NUMBERS: &[&[u8]] = &[b"NaN", b"Infinity", b"-Infinity"];

/// The parameters of a path, percent-decoded.
pub(crate) struct Path<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// The query of a URL. Of a repeated key the last value counts, unless the name ends in `_in`: that is a list.
pub(crate) struct Query<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: DeserializeOwned + Send,
    S: Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parse_value("query", &query_object(parts.uri.query().unwrap_or_default())).map(Self)
    }
}

/// The query of a URL as a JSON object.
pub(crate) fn query_object(query: &str) -> Value {
    let mut object = serde_json::Map::new();
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        if key.ends_with("_in") {
            let list = object.entry(key).or_insert_with(|| json!([]));
            if let Value::Array(items) = list {
                items.push(text.into());
            }
        } else {
            let value = scalar(&key, &text);
            object.insert(key.into_owned(), value);
        }
    }
    Value::Object(object)
}

/// What does not parse stays text, which the request type then refuses by name.
fn scalar(key: &str, text: &str) -> Value {
    if WHOLE_NUMBERS.contains(&key) {
        return text.parse::<i64>().map_or_else(|_| text.into(), Value::from);
    }
    if BOOLEANS.contains(&key) {
        return match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => true.into(),
            "false" | "0" | "no" | "off" => false.into(),
            _ => text.into(),
        };
    }
    text.into()
}

/// A JSON body, not yet parsed; empty when there was none.
pub(crate) struct Body {
    bytes: Bytes,
    /// What the request is to be carried out once under.
    once: Option<IdempotencyKey>,
}

/// The name under which a client sends a request again that it does not know the fate of.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of the longest idempotency key.
const LONGEST_KEY: usize = 255;

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_json = names_json(request.headers());
        let key = idempotency_key(request.headers())?;
        let target = key.as_ref().map(|_| format!("{} {}\n", request.method(), request.uri()));
        let limit = request.extensions().get::<BodyLimit>().map_or(usize::MAX, |limit| limit.0);
        let bytes = read_bytes(request, state, limit).await?;
        if !is_json && !bytes.is_empty() {
            let input = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            let message = "Input should be JSON with the header Content-Type: application/json";
            return Err(ApiError::validation(vec![
                json!({ "type": "model_attributes_type", "loc": ["body"], "msg": message, "input": input }),
            ]));
        }
        let once = key.zip(target).map(|(key, target)| {
            let digest = Sha256::new().chain_update(target).chain_update(&bytes).finalize();
            let mut fingerprint = [0; 16];
            fingerprint.copy_from_slice(&digest[..16]);
            IdempotencyKey { key, fingerprint }
        });
        Ok(Self { bytes, once })
    }
}

/// The idempotency key of a request, if it has one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) => Ok(Some(key.into())),
        _ => Err(ApiError::bad_request(format!(
            "the header Idempotency-Key must be 1 to {LONGEST_KEY} visible ASCII characters"
        ))),
    }
}

/// What whoever asks can read: a client of ours says so with [`CLIENT_HEADER`], any other has 0.3's models.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    is_ours: bool,
}

impl Reader {
    /// A span as this reader is told it.
    pub(crate) fn told(self, span: Span) -> Span {
        if self.is_ours { span } else { span.into_plain() }
    }

    /// Appends the JSON of a kept span as this reader is told it.
    pub(crate) fn write(self, span: &RawSpan, json: &mut Vec<u8>) -> Result<(), ApiError> {
        if self.is_ours || span.is_plain {
            span.write_to(json);
            return Ok(());
        }
        serde_json::to_writer(json, &span.parse()?.into_plain()).map_err(|_| ApiError::internal("span"))
    }
}

impl<S: Sync> FromRequestParts<S> for Reader {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self { is_ours: parts.headers.contains_key(CLIENT_HEADER) })
    }
}

/// How many bytes a body may have, after decompression too; set on every request by `admit`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit(pub(crate) usize);

/// Reads a whole body.
pub(crate) async fn read_bytes<S: Send + Sync>(
    request: Request,
    state: &S,
    limit: usize,
) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return ApiError::too_large(limit);
        }
        if is_timeout(&rejection) {
            return ApiError::too_slow();
        }
        tracing::debug!(status = %rejection.into_response().status(), "a request body broke off");
        ApiError::bad_request("the request body broke off")
    })
}

/// Whether an error comes from a body that stood still.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(<dyn std::error::Error>::is::<TimeoutError>)
}

/// Whether the body says that it is JSON, or says nothing.
fn names_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let Ok(text) = value.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

impl Body {
    /// The store as it is to be used for this request: where the request carries an idempotency key, once.
    pub(crate) fn store(&self, app: &App) -> Arc<dyn Store> {
        let once = self.once.clone().and_then(|key| app.store.once(key));
        once.unwrap_or_else(|| Arc::clone(&app.store))
    }

    /// The body as this type.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // Straight from the bytes when all is well; the detour through a value finds out what is not.
        if starts_like_object(&self.bytes)
            && let Ok(parsed) = serde_json::from_slice(&self.bytes)
        {
            return Ok(parsed);
        }
        parse_value("body", &self.value()?)
    }

    /// The body as a list of this type.
    pub(crate) fn parse_list<T: DeserializeOwned>(&self) -> Result<Vec<T>, ApiError> {
        let value = self.value()?;
        let Some(items) = value.as_array() else {
            return Err(ApiError::validation(vec![
                json!({ "type": "list_type", "loc": ["body"], "msg": "Input should be a valid list", "input": value }),
            ]));
        };
        if let Some(index) = items.iter().position(|item| !item.is_object()) {
            return Err(ApiError::validation(vec![no_object(&json!(["body", index]), &items[index])]));
        }
        deserialize("body", &value)
    }

    /// The body as this type, or its default where there is no body.
    pub(crate) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.is_empty() { Ok(T::default()) } else { self.parse() }
    }

    /// The body as this type, with none of `fields` being null.
    pub(crate) fn parse_without_nulls<T: DeserializeOwned>(&self, fields: &[&str]) -> Result<T, ApiError> {
        let value = self.value()?;
        if let Some(field) = fields.iter().find(|field| value.get(field).is_some_and(Value::is_null)) {
            let detail = format!("{field} is invalid; it cannot be a null value.");
            return Err(ApiError::bad_request(detail));
        }
        parse_value("body", &value)
    }

    /// Whether there is none, or null.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() || self.bytes.trim_ascii() == b"null"
    }

    /// The body as JSON. Numbers that JSON cannot write, but Python's `json.dumps` does, are null, as in 0.3.
    pub(crate) fn value(&self) -> Result<Value, ApiError> {
        if self.bytes.is_empty() {
            let issue = json!({ "type": "missing", "loc": ["body"], "msg": "Field required", "input": null });
            return Err(ApiError::validation(vec![issue]));
        }
        let parsed = serde_json::from_slice(&self.bytes);
        parsed
            .or_else(|error| {
                nulled(&self.bytes).and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(error)
            })
            .map_err(|error| {
                ApiError::validation(vec![json!({
                    "type": "json_invalid",
                    "loc": ["body", offset_of(&self.bytes, &error)],
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": { "error": error.to_string() },
                })])
            })
    }
}

/// A JSON text with null in place of each bare `NaN`, `Infinity` and `-Infinity`; none where there are none.
fn nulled(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let (mut in_string, mut escaped, mut found) = (false, false, false);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let bare = NOT_NUMBERS.iter().find_map(|name| rest.strip_prefix(*name)).filter(|_| !in_string);
        if let Some(after_name) = bare {
            replaced.extend_from_slice(b"null");
            found = true;
            rest = after_name;
            continue;
        }
        if byte == b'"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && byte == b'\\' && !escaped;
        replaced.push(byte);
        rest = after;
    }
    found.then_some(replaced)
}

/// Whether the first byte that counts opens an object. (A list would pass for a struct's fields in order.)
fn starts_like_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

/// The byte at which a JSON text stopped making sense.
fn offset_of(bytes: &[u8], error: &serde_json::Error) -> usize {
    let before: usize = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    before + error.column().saturating_sub(1)
}

/// A JSON value as this type; `source` is `body` or `query`.
pub(crate) fn parse_value<T: DeserializeOwned>(source: &str, value: &Value) -> Result<T, ApiError> {
    if !value.is_object() {
        return Err(ApiError::validation(vec![no_object(&json!([source]), value)]));
    }
    deserialize(source, value)
}

fn no_object(loc: &Value, input: &Value) -> Value {
    let message = "Input should be a valid dictionary or object to extract fields from";
    json!({ "type": "model_attributes_type", "loc": loc, "msg": message, "input": input })
}

fn deserialize<T: DeserializeOwned>(source: &str, value: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().iter().collect::<Vec<_>>();
        let mut message = error.inner().to_string();
        if message.ends_with("expected string or map") {
            // Something else than a word where one of a few is wanted: a word that is none makes serde name them.
            let mut probe = value.clone();
            if let Some(place) = probe.pointer_mut(&pointer(&path)) {
                *place = Value::String(String::new());
            }
            if let Err(error) = serde_path_to_error::deserialize::<_, T>(&probe) {
                message = error.inner().to_string();
            }
        }
        ApiError::validation(vec![issue(source, &path, &message, value)])
    })
}

/// The path as a JSON pointer.
fn pointer(path: &[&Segment]) -> String {
    let step = |segment: &&Segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } | Segment::Enum { variant: key } => {
            format!("/{}", key.replace('~', "~0").replace('/', "~1"))
        }
        Segment::Unknown => String::new(),
    };
    path.iter().map(step).collect()
}

/// The fields that a request cannot do without, where its type would fill them in.
pub(crate) fn require(source: &str, value: &Value, fields: &[&str]) -> Result<(), ApiError> {
    let missing: Vec<Value> = fields
        .iter()
        .filter(|field| value.get(field).is_none())
        .map(|field| json!({ "type": "missing", "loc": [source, field], "msg": "Field required", "input": value }))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(ApiError::validation(missing)) }
}

/// One entry of a 422 answer, from where a value was refused and what serde said about it.
fn issue(source: &str, path: &[&Segment], message: &str, root: &Value) -> Value {
    let mut loc = vec![Value::from(source)];
    let mut input = Some(root);
    for segment in path {
        match segment {
            Segment::Seq { index } => {
                loc.push((*index).into());
                input = input.and_then(|value| value.get(index));
            }
            Segment::Map { key } | Segment::Enum { variant: key } => {
                loc.push(key.as_str().into());
                input = input.and_then(|value| value.get(key));
            }
            Segment::Unknown => {}
        }
    }
    // What a tagged type says about a field of its own begins with the field.
    let message = match message.split_once(": ") {
        Some((field, about)) if input.is_some_and(|value| value.get(field).is_some()) => {
            loc.push(field.into());
            input = input.and_then(|value| value.get(field));
            about
        }
        _ => message,
    };
    let (kind, text) = if let Some(field) = quoted_after(message, "missing field `") {
        loc.push(field.into());
        ("missing", "Field required".to_owned())
    } else if let Some(field) = quoted_after(message, "unknown field `") {
        if loc.last().is_none_or(|last| last != field) {
            loc.push(field.into());
            input = input.and_then(|value| value.get(field));
        }
        ("extra_forbidden", "Extra inputs are not permitted".to_owned())
    } else if message.starts_with("unknown variant") {
        let expected = either(message.rsplit("expected ").next().unwrap_or_default());
        let text = format!("Input should be {expected}");
        return json!({
            "type": "literal_error", "loc": loc, "msg": text, "input": input, "ctx": { "expected": expected },
        });
    } else if message.starts_with("invalid value") && message.contains("nonzero") {
        if input.and_then(Value::as_u64).unwrap_or_default() > 0 {
            ("less_than_equal", format!("Input should be less than or equal to {}", u32::MAX))
        } else {
            ("greater_than_equal", "Input should be greater than or equal to 1".to_owned())
        }
    } else {
        match expected_type(source, message) {
            Some((kind, text)) => (kind, text.to_owned()),
            None => ("value_error", message.to_owned()),
        }
    };
    json!({ "type": kind, "loc": loc, "msg": text, "input": input })
}

/// The words in backquotes as a choice: `'a', 'b' or 'c'`.
fn either(options: &str) -> String {
    let words: Vec<String> = options.split('`').skip(1).step_by(2).map(|word| format!("'{word}'")).collect();
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => words.concat(),
    }
}

fn quoted_after<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    message.strip_prefix(prefix)?.split('`').next()
}

/// The words that 0.3 has for a value of the wrong type.
fn expected_type(source: &str, message: &str) -> Option<(&'static str, &'static str)> {
    let expected = message.strip_prefix("invalid type: ")?.rsplit("expected ").next()?;
    Some(match expected {
        "i64" | "u32" | "u64" | "usize" | "a nonzero u32" if source == "query" => {
            ("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
        }
        "i64" | "u32" | "u64" | "usize" | "a nonzero u32" => ("int_type", "Input should be a valid integer"),
        "f64" => ("float_type", "Input should be a valid number"),
        "a string" => ("string_type", "Input should be a valid string"),
        "a boolean" => ("bool_type", "Input should be a valid boolean"),
        "a sequence" => ("list_type", "Input should be a valid list"),
        "a map" => ("dict_type", "Input should be a valid dictionary"),
        other if other.starts_with("struct ") => {
            ("model_attributes_type", "Input should be a valid dictionary or object to extract fields from")
        }
        _ => return None,
    })
}

/// The version of a resources id that is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct VersionQuery {
    /// The version; the newest when absent.
    pub(crate) version: Option<u32>,
}
