//! The store server: 0.3 REST routes and OTLP over any Store.
