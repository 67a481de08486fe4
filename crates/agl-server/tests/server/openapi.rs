//! The OpenAPI document: that it covers every route, that what is sent and answered is what it says, and that the
//! committed one is current.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use agl_gateway::{Gateway, GatewayOptions, ModelList};
use agl_server::ServerOptions;
use agl_store::MemoryStore;
use reqwest::header::ALLOW;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::common::Server;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
/// Set by `make openapi`.
const WRITE: &str = "AGL_WRITE_OPENAPI";
/// Routes for people, which the document leaves out.
/// `/metrics` is documented, and its names of 0.3 are the same.
const PAGES: [&str; 5] = ["/openapi.json", "/docs", "/redoc", "/v1/prometheus", "/v1/prometheus/"];
/// What the gateway also answers without the `/v1` before it.
const OF_MODELS: [&str; 8] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/messages",
    "/messages/count_tokens",
    "/models",
    "/models/{*model}",
    "/responses",
];
/// Below paths that name an attempt there is one operation for all that the gateway answers there.
const OF_ATTEMPTS: [&str; 2] = [
    "post /proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/{mode}/openai/v1/{endpoint}",
    "post /rollout/{rollout_id}/attempt/{attempt_id}/v1/{endpoint}",
];

/// A server with all the routes that there are.
fn whole() -> (Arc<MemoryStore>, ServerOptions) {
    let store = Arc::new(MemoryStore::new());
    let models = ModelList::default();
    let gateway = Gateway::new(store.clone(), models, GatewayOptions::default()).unwrap();
    (store, ServerOptions { gateway: Some(gateway), ..ServerOptions::default() })
}

async fn start() -> Server {
    let (store, options) = whole();
    Server::over(store, options).await
}

async fn served() -> Value {
    let server = start().await;
    reqwest::get(server.url("/openapi.json")).await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn the_committed_document_is_current() {
    let mut text = serde_json::to_string_pretty(&served().await).unwrap();
    text.push('\n');
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(Path::new(COMMITTED), &text).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(committed == text, "docs/openapi.json is stale: run `make openapi` and commit it");
}

/// Asks axum itself what there is: the paths stand in the router's debug output, the methods in the answer to one
/// that no path has.
#[tokio::test]
async fn every_route_is_documented() {
    let (store, options) = whole();
    let router = format!("{:?}", agl_server::router(store, &options));
    let paths: BTreeSet<&str> = router
        .split('"')
        .filter(|text| text.starts_with('/') && !PAGES.contains(text) && !OF_MODELS.contains(text))
        .collect();
    let server = start().await;
    let mut registered = BTreeSet::new();
    for path in paths {
        let method = Method::from_bytes(b"BREW").unwrap();
        let answer = reqwest::Client::new().request(method, server.url(path)).send().await.unwrap();
        if answer.status() == StatusCode::NOT_FOUND {
            continue; // where axum keeps the fallback, and the gateway asks for more than a pattern
        }
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let methods = answer.headers()[ALLOW].to_str().unwrap().to_ascii_lowercase();
        // Whatever answers GET answers HEAD.
        let methods = methods.split(',').filter(|method| *method != "head");
        let path = path.replace("{*", "{");
        registered.extend(methods.map(|method| format!("{method} {path}")));
    }
    assert!(registered.contains("get /v1/agl/rollouts/{rollout_id}"), "{registered:?}");

    let document = served().await;
    let mut documented = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.insert(format!("{method} {path}"));
            assert!(operation["summary"].is_string(), "{method} {path} has no doc comment");
            assert!(operation["tags"].is_array(), "{method} {path} has no tag");
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{id} is the id of two operations");
        }
    }
    let alone = Server::start().await;
    let of_store: Value = reqwest::get(alone.url("/openapi.json")).await.unwrap().json().await.unwrap();
    let has_calls = |document: &Value| document["paths"]["/v1/chat/completions"].is_object();
    assert!(has_calls(&document) && !has_calls(&of_store), "a store has no gateway");
    assert!(OF_ATTEMPTS.iter().all(|operation| documented.remove(*operation)), "{documented:?}");
    assert_eq!(registered, documented, "register routes with `routes!`, see CONTRIBUTING.md");
}

/// A gateway that is served alone describes itself as it does beside a store, whoever asks.
#[tokio::test]
async fn a_gateway_alone_describes_its_part() {
    let key = agl_types::ApiKey::new("k3y").unwrap();
    let store = Arc::new(MemoryStore::new());
    let options = GatewayOptions { key: Some(key.clone()), ..GatewayOptions::default() };
    let gateway = Gateway::new(store, ModelList::default(), options).unwrap();
    let options = ServerOptions { key: Some(key), ..ServerOptions::default() };
    let whole = served().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        agl_server::serve_gateway(listener, &gateway, &options, std::future::pending()).await
    });
    let get = async |path: &str| reqwest::get(format!("{root}{path}")).await.unwrap();
    let document: Value = get("/openapi.json").await.json().await.unwrap();
    references_lead_somewhere(&document, &document);
    assert_eq!(document["info"]["title"], "Agent Lightning gateway");
    let is_of_gateway = |item: &Value| {
        let operations = item.as_object().unwrap().values();
        operations.map(|operation| &operation["tags"][0]).all(|tag| tag == "gateway")
    };
    let mut expected = whole["paths"].as_object().unwrap().clone();
    expected.retain(|_, item| is_of_gateway(item));
    assert!(expected.contains_key("/v1/chat/completions") && expected.contains_key("/proxy/pause"));
    let mut paths = document["paths"].as_object().unwrap().clone();
    let health = paths.shift_remove("/health").unwrap();
    assert_eq!(health["get"]["responses"].as_object().unwrap().keys().collect::<Vec<_>>(), ["200"]);
    assert_eq!(paths, expected, "there is one source");
    for schema in document["components"]["schemas"].as_object().unwrap() {
        assert_eq!(&whole["components"]["schemas"][schema.0], schema.1);
    }
    for path in ["/docs", "/redoc"] {
        assert!(get(path).await.text().await.unwrap().contains("openapi.json"));
    }
    assert_eq!(get("/health").await.status(), StatusCode::OK);
    assert_eq!(get("/v1/models").await.status(), StatusCode::UNAUTHORIZED, "the rest asks for the key");
    assert_eq!(get("/nothing").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_reference_leads_somewhere() {
    let document = served().await;
    assert_eq!(document["openapi"], "3.1.0");
    references_lead_somewhere(&document, &document);
}

fn references_lead_somewhere(document: &Value, value: &Value) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
    }
    match value {
        Value::Object(fields) => {
            fields.values().for_each(|value| references_lead_somewhere(document, value));
        }
        Value::Array(items) => {
            items.iter().for_each(|value| references_lead_somewhere(document, value));
        }
        _ => {}
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::start().await;
    for path in ["/docs", "/redoc"] {
        let page = reqwest::get(server.url(path)).await.unwrap();
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        let text = page.text().await.unwrap();
        assert!(text.contains("openapi.json") && !text.contains("//cdn") && !text.contains("src=\"http"));
    }
}

/// Asserts that an exchange is as the committed document says; what was sent is checked only where it was taken.
pub(crate) fn check(method: &Method, path: &str, sent: Option<&Value>, status: StatusCode, answer: &Value) {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let text = std::fs::read_to_string(COMMITTED).unwrap();
        serde_json::from_str(&text).unwrap()
    });
    let path = path.split('?').next().unwrap_or_default();
    let Some(operation) = operation(&DOCUMENT, method, path) else { return };
    let place = format!("{method} {path} {}", status.as_u16());
    let documented = &operation["responses"][status.as_str()];
    assert!(documented.is_object(), "{place} is not documented: {answer}");
    let schema = documented.pointer("/content/application~1json/schema").unwrap();
    fits(&DOCUMENT, schema, answer).unwrap_or_else(|why| panic!("{place}: answer{why}"));
    if let Some(sent) = sent.filter(|_| status.is_success()) {
        let schema = operation.pointer("/requestBody/content/application~1json/schema").unwrap();
        fits(&DOCUMENT, schema, sent).unwrap_or_else(|why| panic!("{place}: request{why}"));
    }
}

/// The operation at a path; literal segments win over parameters, as they do in axum.
fn operation<'a>(document: &'a Value, method: &Method, path: &str) -> Option<&'a Value> {
    let parameters = |template: &str| template.matches('{').count();
    let leads_to = |template: &str| {
        let (mut left, mut right) = (template.split('/'), path.split('/'));
        loop {
            match (left.next(), right.next()) {
                (None, None) => return true,
                (Some(left), Some(right)) if left == right || left.starts_with('{') => {}
                _ => return false,
            }
        }
    };
    let items = document["paths"].as_object().unwrap().iter().filter(|(template, _)| leads_to(template));
    let (_, item) = items.min_by_key(|(template, _)| parameters(template))?;
    item.get(method.as_str().to_ascii_lowercase())
}

/// Whether a value is as a schema says; if not, where and why. Knows the keywords that the document uses.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let within = |place: String| move |why: String| format!("{place}{why}");
    for (keyword, wanted) in schema.as_object().unwrap() {
        let any = |wanted: &Value| {
            wanted.as_array().unwrap().iter().map(|one| fits(document, one, value)).collect::<Vec<_>>()
        };
        match keyword.as_str() {
            "$ref" => fits(document, document.pointer(&wanted.as_str().unwrap()[1..]).unwrap(), value)?,
            "type" => {
                let is = |name: &Value| match name.as_str().unwrap() {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    name => panic!("no such type: {name}"),
                };
                let known = wanted.as_array().map_or_else(|| is(wanted), |names| names.iter().any(is));
                if !known {
                    return Err(format!(": {value} is not of type {wanted}"));
                }
            }
            "enum" if !wanted.as_array().unwrap().contains(value) => {
                return Err(format!(": {value} is none of {wanted}"));
            }
            "minimum" if value.as_f64().is_some_and(|value| value < wanted.as_f64().unwrap()) => {
                return Err(format!(": {value} is below {wanted}"));
            }
            "allOf" => any(wanted).into_iter().collect::<Result<(), _>>()?,
            "anyOf" if any(wanted).iter().all(Result::is_err) => {
                return Err(format!(": {value} is nothing of what it may be"));
            }
            "oneOf" if any(wanted).iter().filter(|fit| fit.is_ok()).count() != 1 => {
                return Err(format!(": {value} is not one of what it may be"));
            }
            "required" => {
                for key in wanted.as_array().unwrap() {
                    if value.is_object() && value.get(key.as_str().unwrap()).is_none() {
                        return Err(format!(": {key} is missing in {value}"));
                    }
                }
            }
            "properties" => {
                for (key, schema) in wanted.as_object().unwrap() {
                    if let Some(field) = value.get(key) {
                        fits(document, schema, field).map_err(within(format!(".{key}")))?;
                    }
                }
            }
            "additionalProperties" if wanted.is_object() => {
                for (key, field) in value.as_object().into_iter().flatten() {
                    if schema["properties"].get(key).is_none() {
                        fits(document, wanted, field).map_err(within(format!(".{key}")))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    fits(document, wanted, item).map_err(within(format!("[{index}]")))?;
                }
            }
            "enum" | "minimum" | "anyOf" | "oneOf" | "format" | "description" | "default"
            | "propertyNames" => {}
            keyword => panic!("no check for {keyword}"),
        }
    }
    Ok(())
}
