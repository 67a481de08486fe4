//! The OpenAPI document, which the routes bring along, and the page that shows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use agl_types::EventKind;
use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, Info, OpenApi, Paths, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, PartialSchema as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;

/// Reads the document and shows it.
const PAGE: &str = include_str!("openapi.html");

/// The two headers in which a key may come.
const BEARER: &str = "bearer";
const API_KEY: &str = "x-api-key";

/// What a document is about: its title, and more about that.
pub(crate) type About = (&'static str, &'static str);

pub(crate) const STORE: About = (
    "Agent Lightning store",
    "Rollouts, attempts, spans, resources and workers of Agent Lightning. \
    All times are seconds since the Unix epoch. \
    A list answers one page of its items; `total` counts all that match, and a `limit` of -1 asks for all.",
);

pub(crate) const GATEWAY: About = (
    "Agent Lightning gateway",
    "The way to models. Every call is passed on, and kept as a span in a store elsewhere.",
);

/// The document without any routes.
pub(crate) fn blank((title, description): About) -> OpenApi {
    let mut info = Info::new(title, env!("CARGO_PKG_VERSION"));
    info.description = Some(description.to_owned());
    let mut document = OpenApi::new(info, Paths::new());
    let schemes = &mut document.components.get_or_insert_default().security_schemes;
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    schemes.insert(BEARER.to_owned(), RefOr::T(bearer));
    let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(API_KEY)));
    schemes.insert(API_KEY.to_owned(), RefOr::T(header));
    document
}

/// The document at `/openapi.json`, and the page that shows it at the two paths where 0.3 has one.
pub(crate) fn pages<S: Clone + Send + Sync + 'static>(document: OpenApi) -> Router<S> {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    tidy(&mut document);
    let document = Arc::new(document);
    Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/docs", get(async || Html(PAGE)))
        .route("/redoc", get(async || Html(PAGE)))
}

/// Takes out what is noise to a reader: defaults that are null, and the brackets of rustdoc's links.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| key != "default" || !value.is_null());
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::String(text) => *text = text.replace("[`", "`").replace("`]", "`"),
        _ => {}
    }
}

/// The same routes, under this heading of the document.
pub(crate) fn tagged<S>(tag: &str, mut router: OpenApiRouter<S>) -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    for operation in operations(router.get_openapi_mut()) {
        operation.tags.get_or_insert_default().push(tag.to_owned());
    }
    router
}

/// The same routes, which ask for the key if the server has one.
pub(crate) fn keyed<S>(mut router: OpenApiRouter<S>) -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let with = |scheme| SecurityRequirement::new::<&str, [&str; 0], &str>(scheme, []);
    let document = router.get_openapi_mut();
    for operation in operations(document) {
        operation.security = Some(vec![SecurityRequirement::default(), with(BEARER), with(API_KEY)]);
        for (status, description) in [
            ("401", "The key is missing or wrong."),
            ("403", "A token for an attempt was shown, which is not good for this."),
        ] {
            let refused = problem::<Problem>(description);
            operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(refused));
        }
    }
    let schemas = &mut document.components.get_or_insert_default().schemas;
    schemas.insert(Problem::name().into_owned(), Problem::schema());
    router
}

/// The same routes, with the answers that any route gives to a request it cannot serve. They follow from what the
/// route takes in.
pub(crate) fn with_problems<S>(mut router: OpenApiRouter<S>) -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let document = router.get_openapi_mut();
    for operation in operations(document) {
        let has_body = operation.request_body.is_some();
        let parameters = operation.parameters.as_deref().unwrap_or_default();
        let is_in = |place: ParameterIn| {
            parameters.iter().any(|one| matches!(one, RefOr::T(one) if one.parameter_in == place))
        };
        let (has_query, has_key) = (is_in(ParameterIn::Query), is_in(ParameterIn::Header));
        let mut add = |status: &str, response| {
            operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
        };
        if has_body || !parameters.is_empty() {
            add("400", problem::<Problem>("An argument makes no sense."));
        }
        if has_body || has_query {
            add("422", problem::<Malformed>("The request is not of the shape expected."));
        }
        if has_key {
            add("409", problem::<Problem>("The key was used for another request."));
            add(
                "410",
                problem::<Problem>("The key was used for this request, whose answer cannot be given again."),
            );
        }
        if has_body {
            add("413", problem::<Problem>("The body is larger than the server takes in."));
        }
        add("500", problem::<Problem>("The server failed; its log says how."));
        add("501", problem::<Problem>("The store behind this server cannot do that."));
        add("503", problem::<Problem>("The store or the server is not there just now: try again."));
    }
    let schemas = &mut document.components.get_or_insert_default().schemas;
    for (name, schema) in [
        (Problem::name(), Problem::schema()),
        (Malformed::name(), Malformed::schema()),
        (Issue::name(), Issue::schema()),
        // Named by a parameter only, of which the schemas are not gathered.
        (EventKind::name(), EventKind::schema()),
    ] {
        schemas.insert(name.into_owned(), schema);
    }
    router
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|item| {
        [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]
            .into_iter()
            .flatten()
    })
}

fn problem<T: ToSchema>(description: &str) -> Response {
    let content = Content::new(Some(Ref::from_schema_name(T::name())));
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// The header that lets a change be asked for again.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct Once {
    /// A key of the caller's own. The same request with the same key, within a day, is carried out once, and answered
    /// the same again.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// 404, for routes that are about one thing which may not be there.
pub(crate) struct NotFound;

impl IntoResponses for NotFound {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        one("404", "There is no such thing.")
    }
}

/// 409, for routes that not everything can go through; those with [`Once`] have it anyway.
pub(crate) struct Conflict;

impl IntoResponses for Conflict {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        one("409", "That does not go with what is there, or the key was used for another request.")
    }
}

/// 410, for routes about what may have been purged.
pub(crate) struct Gone;

impl IntoResponses for Gone {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        one("410", "It was there, and was removed for good.")
    }
}

fn one(status: &str, description: &str) -> BTreeMap<String, RefOr<Response>> {
    BTreeMap::from([(status.to_owned(), RefOr::T(problem::<Problem>(description)))])
}

/// Why a request was not served.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError` answers")]
pub(crate) struct Problem {
    /// What is wrong and how to mend it, for people to read.
    detail: String,
    /// What kind of problem it is, for programs.
    error_type: Option<String>,
    /// The argument that is wrong.
    field: Option<String>,
}

/// Where a request is not of the shape expected.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError` answers")]
struct Malformed {
    /// The places.
    detail: Vec<Issue>,
}

/// One place where a request is not of the shape expected.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError` answers")]
struct Issue {
    /// The kind of mistake, e.g. `missing`.
    r#type: String,
    /// The way to the place, from `body` or `query` inwards: keys and indices.
    loc: Vec<Value>,
    /// What is wrong.
    msg: String,
    /// What was found there.
    input: Value,
    /// Details.
    #[schema(value_type = Option<Object>, nullable = false)]
    ctx: Option<Value>,
}

/// A message of OTLP in protobuf's binary form.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes the bodies of OTLP")]
pub(crate) struct Protobuf(Vec<u8>);
