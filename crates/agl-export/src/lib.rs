//! Training data out of a store, as JSON lines, Parquet, Arrow or buffers of NumPy's, and other people's records into one.
//!
//! What the data are is `agl-trace`'s business; here they are fetched, written and read, a rollout at a time, so that
//! memory does not grow with the number of rollouts.

mod arrays;
mod columns;
mod error;
mod export;
mod import;
mod npy;
mod select;
mod write;

pub use arrays::{Arrays, read_arrays};
pub use columns::{REPORT, rows_to_ipc};
pub use error::Error;
pub use export::{ExportOptions, ExportReport, Kind, export, export_to_folder};
pub use import::{ImportFormat, ImportReport, import};
pub use select::{AnswerFormat, Selection, TrainingRequest, training_arrays, training_arrow, training_data};
pub use write::FileFormat;
