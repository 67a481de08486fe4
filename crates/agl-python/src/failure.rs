//! What goes wrong, on its way to Python.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

pyo3::create_exception!(
    agentlightning._core,
    CoreError,
    pyo3::exceptions::PyException,
    "A call failed; its arguments are kind, message and field."
);

/// A failed call. Python turns it into one of its own exceptions by `kind`.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: &'static str,
    message: String,
    /// The argument at fault.
    field: Option<String>,
}

impl Failure {
    /// An argument makes no sense.
    pub(crate) fn invalid(field: Option<String>, message: impl Into<String>) -> Self {
        Self { kind: "invalid", message: message.into(), field }
    }

    /// Something lacks a key.
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self { kind: "missing", message: message.into(), field: None }
    }

    /// Something failed that is not the caller's fault.
    pub(crate) fn backend(message: impl Into<String>) -> Self {
        Self { kind: "backend", message: message.into(), field: None }
    }

    /// As the tuple that Python sees.
    pub(crate) fn to_tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        (self.kind, &self.message, self.field.as_deref()).into_pyobject(py)
    }
}

impl From<agl_store::Error> for Failure {
    fn from(error: agl_store::Error) -> Self {
        let field = match &error {
            agl_store::Error::Invalid { field, .. } => Some(field.clone()),
            _ => None,
        };
        Self { kind: error.kind(), message: error.to_string(), field }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        CoreError::new_err((failure.kind, failure.message, failure.field))
    }
}
