//! The Python extension module agentlightning._core.
