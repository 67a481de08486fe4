use agl_types::{Llm, NamedResources, PromptTemplate, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, RolloutContext};

/// What an agent takes of its rollout's resources.
///
/// Implemented for `()`, [`NamedResources`] (all of them), [`Llm`] and [`PromptTemplate`] (the first of its kind),
/// [`Named`] (by their names), options, and pairs and triples of these.
///
/// ```
/// use agl_runner::{Error, FromResources, RolloutContext};
/// use agl_types::Resource;
///
/// /// How warm, of a resource type of one's own.
/// struct Temperature(f64);
///
/// impl FromResources for Temperature {
///     fn from_context(context: &RolloutContext) -> Result<Self, Error> {
///         match context.resources().get("temperature") {
///             Some(Resource::Custom(fields)) => Ok(Self(fields["value"].as_f64().unwrap_or(1.0))),
///             _ => Err(Error::Resources("there is no temperature".to_owned())),
///         }
///     }
/// }
/// ```
pub trait FromResources: Sized + Send {
    /// Takes it from the context's resources.
    ///
    /// # Errors
    /// [`Error::Resources`] saying what is missing.
    fn from_context(context: &RolloutContext) -> Result<Self, Error>;
}

impl FromResources for () {
    fn from_context(_: &RolloutContext) -> Result<Self, Error> {
        Ok(())
    }
}

impl FromResources for NamedResources {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        Ok(context.resources().clone())
    }
}

/// The first model endpoint. One behind a gateway has the attempt in its path, so that calls are recorded there.
impl FromResources for Llm {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        let found = context.resources().values().find_map(|resource| match resource {
            Resource::Llm(llm) => Some(llm.clone()),
            Resource::ProxyLlm(llm) => {
                Some(llm.for_attempt(&context.rollout().rollout_id, &context.attempt().attempt_id))
            }
            Resource::PromptTemplate(_) | Resource::Custom(_) => None,
        });
        found.ok_or_else(|| missing("LLM"))
    }
}

impl FromResources for PromptTemplate {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        context.prompt_template().cloned().ok_or_else(|| missing("prompt template"))
    }
}

fn missing(what: &str) -> Error {
    Error::Resources(format!("there is no {what} among the resources: add one before the rollout"))
}

impl<T: FromResources> FromResources for Option<T> {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        match T::from_context(context) {
            Err(Error::Resources(_)) => Ok(None),
            result => result.map(Some),
        }
    }
}

impl<A: FromResources, B: FromResources> FromResources for (A, B) {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        Ok((A::from_context(context)?, B::from_context(context)?))
    }
}

impl<A: FromResources, B: FromResources, C: FromResources> FromResources for (A, B, C) {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        Ok((A::from_context(context)?, B::from_context(context)?, C::from_context(context)?))
    }
}

/// Resources by their names: each is read into the field of a struct that is called like it.
///
/// ```
/// use agl_runner::{Agent, BoxError, Named, Outcome, RolloutContext};
/// use agl_types::{Llm, PromptTemplate};
/// use async_trait::async_trait;
/// use serde::Deserialize;
/// use serde_json::Value;
///
/// #[derive(Deserialize)]
/// struct Mine {
///     judge: Llm,
///     system_prompt: PromptTemplate,
/// }
///
/// struct Judged;
///
/// #[async_trait]
/// impl Agent for Judged {
///     type Task = Value;
///     type Resources = Named<Mine>;
///
///     async fn rollout(
///         &self,
///         _: Value,
///         Named(mine): Named<Mine>,
///         context: &RolloutContext,
///     ) -> Result<Outcome, BoxError> {
///         context.emit_message(&format!("{} {}", mine.judge.model, mine.system_prompt.template)).await?;
///         Ok(Outcome::Done)
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<T>(
    /// The struct.
    pub T,
);

impl<T: DeserializeOwned + Send> FromResources for Named<T> {
    fn from_context(context: &RolloutContext) -> Result<Self, Error> {
        let odd = |error: &dyn std::fmt::Display| Error::Resources(format!("resources: {error}"));
        let resources: Value = serde_json::to_value(context.resources()).map_err(|error| odd(&error))?;
        serde_path_to_error::deserialize(resources).map(Self).map_err(|error| odd(&error))
    }
}
