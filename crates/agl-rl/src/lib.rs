//! The embedded language model: loading, batched inference and its OpenAI-compatible server.
