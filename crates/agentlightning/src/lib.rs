//! Agent Lightning for Rust: Agent, Trainer, and everything they need.
