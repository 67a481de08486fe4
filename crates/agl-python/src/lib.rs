//! The Python extension module `agentlightning._core`: stores, the server, the readers of traces and the command
//! line, as bytes of JSON. The Python package beside it gives them their types.

mod command;
mod completion;
mod dispatch;
mod failure;
mod otlp;
mod runtime;
mod server;
mod spans;
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
    use crate::otlp::{otlp_refusal, otlp_rejected, otlp_request};
    #[pymodule_export]
    use crate::server::{GatewayHandle, ServerHandle, attempt_token, serve_gateway, serve_store};
    #[pymodule_export]
    use crate::spans::{
        agent_of_span, calls_of_tree, repaired_children, tree_of_spans, triplet_of_span, triplets_of_spans,
    };
    #[pymodule_export]
    use crate::store::{Store, Task};
    #[pymodule_export]
    use crate::subscription::Subscription;
    #[pymodule_export]
    use crate::trace::{
        Column, advantages, atif, auto_triplets, batches, call_as_chat, chat_attributes, conversations,
        find_final_reward, get_reward_value, get_rewards_from_span, pack, preference_pairs, python_value,
        read_calls, store_arrays, tool_call_attributes, trace_arrays, trace_to_messages, training_data,
    };
}
