//! Where exported data go, as they come.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::Schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::npy::Folder;

/// The form of an exported file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// Apache Parquet.
    Parquet,
    /// A stream in Apache Arrow's IPC format.
    Arrow,
}

/// Rows of one type, on their way out.
pub(crate) struct Sink<T, W: Write + Send> {
    out: Out<W>,
    waiting: Vec<T>,
    to_batch: fn(&[T]) -> Result<RecordBatch, Error>,
}

enum Out<W: Write + Send> {
    Jsonl(W),
    Parquet(Box<ArrowWriter<W>>),
    Arrow(Box<StreamWriter<W>>),
    Npy(Folder),
}

/// Where data go.
pub(crate) enum Target<'t, W> {
    /// Into a stream of bytes, in this form.
    Stream(W, FileFormat),
    /// Into a folder, as buffers of NumPy's.
    Folder(&'t Path),
}

/// The form that items of a kind have in columns.
pub(crate) struct Columns<T> {
    pub(crate) kind: &'static str,
    pub(crate) schema: Schema,
    pub(crate) to_batch: fn(&[T]) -> Result<RecordBatch, Error>,
}

/// How many rows are written at once. Trajectories have thousands of tokens each.
const BATCH: usize = 64;

/// How many bytes of Parquet's row groups are gathered in memory before one is written.
const ROW_GROUP: usize = 8 << 20;

impl<T: Serialize, W: Write + Send> Sink<T, W> {
    pub(crate) fn new(target: Target<'_, W>, columns: Columns<T>) -> Result<Self, Error> {
        let Columns { kind, schema, to_batch } = columns;
        let schema = Arc::new(schema);
        let out = match target {
            Target::Folder(path) => Out::Npy(Folder::create(path, &schema, kind)?),
            Target::Stream(out, FileFormat::Jsonl) => Out::Jsonl(out),
            Target::Stream(out, FileFormat::Arrow) => {
                Out::Arrow(Box::new(StreamWriter::try_new(out, &schema)?))
            }
            Target::Stream(out, FileFormat::Parquet) => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_max_row_group_row_count(Some(16 * BATCH))
                    .build();
                Out::Parquet(Box::new(ArrowWriter::try_new(out, schema, Some(properties))?))
            }
        };
        Ok(Self { out, waiting: Vec::new(), to_batch })
    }

    pub(crate) fn write(&mut self, row: T) -> Result<(), Error> {
        if let Out::Jsonl(out) = &mut self.out {
            return write_line(out, &row);
        }
        self.waiting.push(row);
        if self.waiting.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let batch = (self.to_batch)(&self.waiting)?;
        self.waiting.clear();
        match &mut self.out {
            Out::Jsonl(_) => {}
            Out::Parquet(writer) => {
                writer.write(&batch)?;
                if writer.memory_size() > ROW_GROUP {
                    writer.flush()?;
                }
            }
            Out::Arrow(writer) => writer.write(&batch)?,
            Out::Npy(folder) => folder.write(&batch)?,
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.flush()?;
        match self.out {
            Out::Jsonl(mut out) => out.flush()?,
            Out::Parquet(writer) => {
                writer.close()?;
            }
            Out::Arrow(mut writer) => writer.finish()?,
            Out::Npy(folder) => folder.finish()?,
        }
        Ok(())
    }
}

/// Writes a JSON object and ends its line.
pub(crate) fn write_line<W: Write, T: Serialize + ?Sized>(out: &mut W, row: &T) -> Result<(), Error> {
    serde_json::to_writer(&mut *out, row)?;
    out.write_all(b"\n")?;
    Ok(())
}
