//! The embedded language model: loading, batched inference and its OpenAI-compatible server.
//!
//! [`Engine::load`] loads a model and starts its worker thread, [`Engine::generate`] asks it in
//! process, [`serve`] puts it behind HTTP, [`pull::pull`] fetches the default model.

mod api;
mod config;
mod engine;
mod error;
mod gguf;
mod hf;
mod http;
mod kernels;
mod load;
mod model;
mod ops;
mod pages;
pub mod pull;
mod sampling;
mod scheduler;
mod template;
mod text;
mod tokenizer;

pub use config::{ModelConfig, RopeScaling};
pub use engine::{Answer, Engine, EngineOptions, Event, Finish, GenerateRequest, Generation};
pub use error::{Error, Result};
pub use http::{router, serve};
pub use load::{ModelFiles, resolve};
pub use model::{Llama, tensor_shapes};
pub use sampling::{Sampling, TokenOutput};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
