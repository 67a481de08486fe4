//! OTLP trace payloads to and from spans.
