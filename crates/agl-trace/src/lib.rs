//! Reading spans: rewards, the trace tree, LLM calls and triplets.
