//! The HTTP client of the store server; implements Store.
