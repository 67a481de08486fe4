use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::JsonMap;

/// Resources by name, in the order given.
///
/// ```
/// use agl_types::{Llm, NamedResources, Resource};
///
/// let llm = Resource::Llm(Llm::new("http://127.0.0.1:8000/v1", "smollm2"));
/// let resources = NamedResources::from_iter([("main".to_owned(), llm)]);
/// assert_eq!(resources["main"].resource_type(), "llm");
/// ```
pub type NamedResources = IndexMap<String, Resource>;

/// One version of a set of named resources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesUpdate {
    /// `rs-` and 12 hexadecimal digits, or a name chosen by the caller.
    pub resources_id: String,
    /// When the first version of this id was made.
    pub create_time: f64,
    /// When this version was made.
    pub update_time: f64,
    /// 1 for the first version of an id, 2 for the second, and so on.
    pub version: u32,
    /// The resources themselves.
    #[schema(value_type = HashMap<String, Resource>)]
    pub resources: NamedResources,
}

/// Something that an algorithm improves and an agent uses. On the wire, an object told apart by `resource_type`.
///
/// ```
/// use agl_types::{Llm, Resource};
///
/// let resource = Resource::ProxyLlm(Llm::new("http://gateway/v1", "m"));
/// assert_eq!(serde_json::to_value(&resource).unwrap()["resource_type"], "proxy_llm");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// `llm`: a model endpoint.
    Llm(Llm),
    /// `proxy_llm`: a model endpoint behind a gateway that wants rollout and attempt in the path.
    ProxyLlm(Llm),
    /// `prompt_template`: a prompt with holes.
    PromptTemplate(PromptTemplate),
    /// A user's own type: kept and given back as it came.
    Custom(JsonMap),
}

const LLM: &str = "llm";
const PROXY_LLM: &str = "proxy_llm";
const PROMPT_TEMPLATE: &str = "prompt_template";
const RESOURCE_TYPE: &str = "resource_type";

impl Resource {
    /// The tag that tells resources apart.
    #[must_use]
    pub fn resource_type(&self) -> &str {
        match self {
            Self::Llm(_) => LLM,
            Self::ProxyLlm(_) => PROXY_LLM,
            Self::PromptTemplate(_) => PROMPT_TEMPLATE,
            Self::Custom(fields) => fields.get(RESOURCE_TYPE).and_then(Value::as_str).unwrap_or_default(),
        }
    }
}

impl PartialSchema for Resource {
    fn schema() -> RefOr<Schema> {
        let tagged = |tag| ObjectBuilder::new().property(RESOURCE_TYPE, tag).required(RESOURCE_TYPE);
        let known = |tags: &[&str], fields| {
            let tag = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(tags.iter().copied()));
            AllOfBuilder::new().item(tagged(tag)).item(Ref::from_schema_name(fields))
        };
        AnyOfBuilder::new()
            .description(Some("Something that an algorithm improves and an agent uses. Types that are not known are kept as they came."))
            .item(known(&[LLM, PROXY_LLM], Llm::name()))
            .item(known(&[PROMPT_TEMPLATE], PromptTemplate::name()))
            .item(tagged(ObjectBuilder::new().schema_type(Type::String)))
            .into()
    }
}

impl ToSchema for Resource {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Llm::name().into_owned(), Llm::schema()));
        Llm::schemas(schemas);
        schemas.push((PromptTemplate::name().into_owned(), PromptTemplate::schema()));
        PromptTemplate::schemas(schemas);
    }
}

/// A model endpoint.
///
/// ```
/// use agl_types::Llm;
///
/// let llm = Llm { api_key: Some("secret".to_owned()), ..Llm::new("http://gateway/v1", "m") };
/// assert_eq!(llm.for_attempt("ro-1", "at-1").endpoint, "http://gateway/rollout/ro-1/attempt/at-1/v1");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Llm {
    /// Base URL of an OpenAI-compatible server.
    pub endpoint: String,
    /// The model to ask for.
    pub model: String,
    /// The key to send.
    #[serde(default)]
    pub api_key: Option<String>,
    /// Temperature and so on, as the endpoint takes them.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub sampling_parameters: JsonMap,
    /// Further keys of a subclass, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

impl Llm {
    /// An endpoint without key or sampling parameters.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            model: model.into(),
            api_key: None,
            sampling_parameters: JsonMap::new(),
            extra: JsonMap::new(),
        }
    }

    /// The endpoint behind a gateway with the attempt in its path: `/v1` at its end stays there.
    #[must_use]
    pub fn for_attempt(&self, rollout_id: &str, attempt_id: &str) -> Self {
        let base = self.endpoint.strip_suffix('/').unwrap_or(&self.endpoint);
        let (base, version) = base.strip_suffix("/v1").map_or((base, ""), |base| (base, "/v1"));
        Self {
            endpoint: format!("{base}/rollout/{rollout_id}/attempt/{attempt_id}{version}"),
            ..self.clone()
        }
    }
}

/// What fills the holes of a prompt template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum TemplateEngine {
    /// Jinja.
    #[serde(rename = "jinja")]
    Jinja,
    /// Python's `str.format`.
    #[serde(rename = "f-string")]
    FString,
    /// POML.
    #[serde(rename = "poml")]
    Poml,
}

/// A prompt with holes.
///
/// ```
/// use agl_types::{JsonMap, PromptTemplate, TemplateEngine};
///
/// let template = "Answer in one word: {question}".to_owned();
/// let prompt = PromptTemplate { template, engine: TemplateEngine::FString, extra: JsonMap::new() };
/// assert_eq!(serde_json::to_value(&prompt).unwrap()["engine"], "f-string");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromptTemplate {
    /// The text with its holes.
    pub template: String,
    /// What fills them.
    pub engine: TemplateEngine,
    /// Further keys of a subclass, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    resource_type: &'a str,
    #[serde(flatten)]
    fields: &'a T,
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let resource_type = self.resource_type();
        match self {
            Self::Llm(fields) | Self::ProxyLlm(fields) => {
                Tagged { resource_type, fields }.serialize(serializer)
            }
            Self::PromptTemplate(fields) => Tagged { resource_type, fields }.serialize(serializer),
            Self::Custom(fields) => fields.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = JsonMap::deserialize(deserializer)?;
        let Some(Value::String(resource_type)) = fields.get(RESOURCE_TYPE) else {
            return Err(de::Error::missing_field(RESOURCE_TYPE));
        };
        // The known types are read from the object without its tag, so that `extra` does not repeat it.
        let known = match resource_type.as_str() {
            LLM => Self::Llm,
            PROXY_LLM => Self::ProxyLlm,
            PROMPT_TEMPLATE => {
                fields.shift_remove(RESOURCE_TYPE);
                return named(fields).map(Self::PromptTemplate);
            }
            _ => return Ok(Self::Custom(fields)),
        };
        fields.shift_remove(RESOURCE_TYPE);
        named(fields).map(known)
    }
}

/// The fields as this type, with an error that begins with the field that it is about.
fn named<T: de::DeserializeOwned, E: de::Error>(fields: JsonMap) -> Result<T, E> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner();
        // A dot stands for the whole.
        if path == "." { E::custom(message) } else { E::custom(format_args!("{path}: {message}")) }
    })
}
