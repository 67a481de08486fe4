use std::io;

/// Why data could not be exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] agl_store::Error),
    /// An option makes no sense.
    #[error(transparent)]
    Trace(#[from] agl_trace::Error),
    /// The data could not be written or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Arrow refused the data.
    #[error("the data do not fit into Arrow's columns: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
    /// Parquet refused the data.
    #[error("the Parquet file could not be written: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Something has no JSON.
    #[error("the data have no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// What is to be imported is not of the format named.
    #[error("line {line} is no {what}: {reason}")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What it should have been.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// What is to be imported is no OTLP.
    #[error("this is no OTLP export, neither protobuf nor JSON: {0}")]
    Otlp(String),
    /// This kind of data has no buffers.
    #[error("{kind} are words, which NumPy has no buffers for: use --format jsonl, parquet or arrow")]
    Format {
        /// The data.
        kind: &'static str,
    },
}
