//! The Python extension module `agentlightning._core`: stores, the server, the readers of traces and the command
//! line, as bytes of JSON. The Python package beside it gives them their types.

mod command;
mod completion;
mod dispatch;
mod failure;
mod runtime;
mod server;
mod store;
mod subscription;
mod trace;

/// The extension module.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::command::cli_main;
    #[pymodule_export]
    use crate::completion::CompletionQueue;
    #[pymodule_export]
    use crate::failure::CoreError;
    #[pymodule_export]
    use crate::server::{GatewayHandle, ServerHandle, serve_gateway, serve_store};
    #[pymodule_export]
    use crate::store::{Store, Task};
    #[pymodule_export]
    use crate::subscription::Subscription;
    #[pymodule_export]
    use crate::trace::{
        chat_attributes, find_final_reward, get_reward_value, get_rewards_from_span, tool_call_attributes,
        trace_to_tree, trace_to_triplets,
    };
}
