//! Columns as files of NumPy's, so that a trainer maps them into its memory.
//!
//! Each column of numbers is a file `NAME.npy`, of lists of numbers a file `NAME.npy` with all of them in a row and a file
//! `NAME_offsets.npy`, in which row `i` is from `offsets[i]` to `offsets[i + 1]`. Columns of words are in `rows.jsonl`, an
//! object a row. The format is NumPy's own (NEP 1), version 1.0.

use std::fs::{self, File};
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Float64Type, UInt8Type, UInt32Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use serde_json::{Map, Value};

use crate::Error;
use crate::write::write_line;

/// Bytes before the numbers. How many there are is written last, into room that is left for it.
const HEADER: u16 = 128;

/// Files of columns, in a folder.
pub(crate) struct Folder {
    columns: Vec<Column>,
    words: BufWriter<File>,
}

enum Column {
    Numbers(Npy),
    Lists { values: Npy, offsets: Npy, end: i64 },
    Words(String),
}

struct Npy {
    out: BufWriter<File>,
    descr: &'static str,
    count: usize,
}

/// NumPy's name of a type of numbers; none of anything else.
fn descr(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::UInt8 => Some("|u1"),
        DataType::UInt32 => Some("<u4"),
        DataType::Float32 => Some("<f4"),
        DataType::Float64 => Some("<f8"),
        _ => None,
    }
}

impl Folder {
    /// Makes the folder and its files, which replace those that are there.
    pub(crate) fn create(path: &Path, schema: &Schema, kind: &'static str) -> Result<Self, Error> {
        let mut columns = Vec::new();
        for field in schema.fields() {
            let item = match field.data_type() {
                DataType::List(item) => Some(item.data_type()),
                _ => None,
            };
            // What has no numbers is told before anything is written.
            let is_known = matches!(item.unwrap_or(field.data_type()), DataType::Utf8)
                || descr(item.unwrap_or(field.data_type())).is_some();
            if !is_known {
                return Err(Error::Format { kind });
            }
            columns.push((field.name(), field.data_type(), item));
        }
        fs::create_dir_all(path)?;
        let file = |name: String| -> Result<PathBuf, Error> { Ok(path.join(format!("{name}.npy"))) };
        let columns = columns.into_iter().map(|(name, data_type, item)| {
            Ok(match (descr(data_type), item.and_then(descr)) {
                (Some(descr), _) => Column::Numbers(Npy::create(&file(name.clone())?, descr)?),
                (None, Some(descr)) => {
                    let mut offsets = Npy::create(&file(format!("{name}_offsets"))?, "<i8")?;
                    offsets.put(&[0_i64], i64::to_le_bytes)?;
                    Column::Lists { values: Npy::create(&file(name.clone())?, descr)?, offsets, end: 0 }
                }
                (None, None) => Column::Words(name.clone()),
            })
        });
        let columns = columns.collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { columns, words: BufWriter::new(File::create(path.join("rows.jsonl"))?) })
    }

    /// Adds rows, which have the columns of the schema.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let mut words: Vec<Map<String, Value>> = vec![Map::new(); batch.num_rows()];
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            match column {
                Column::Numbers(npy) => npy.add(array.as_ref())?,
                Column::Lists { values, offsets, end } => {
                    let lists = array.as_list::<i32>();
                    values.add(lists.values().as_ref())?;
                    for row in 0..lists.len() {
                        *end += i64::from(lists.value_length(row));
                        offsets.put(&[*end], i64::to_le_bytes)?;
                    }
                }
                Column::Words(name) => {
                    for (row, words) in words.iter_mut().enumerate() {
                        words.insert(name.clone(), word(array.as_ref(), row));
                    }
                }
            }
        }
        words.iter().try_for_each(|words| write_line(&mut self.words, words))
    }

    /// Writes down how many numbers each file has.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.words.flush()?;
        for column in self.columns {
            match column {
                Column::Numbers(npy) => npy.finish()?,
                Column::Lists { values, offsets, .. } => {
                    values.finish()?;
                    offsets.finish()?;
                }
                Column::Words(_) => {}
            }
        }
        Ok(())
    }
}

/// Text, or a list of texts, as JSON.
fn word(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.as_list_opt::<i32>() {
        Some(lists) => {
            let texts = lists.value(row);
            texts.as_string::<i32>().iter().map(|text| text.map_or(Value::Null, Value::from)).collect()
        }
        None => array.as_string::<i32>().value(row).into(),
    }
}

impl Npy {
    fn create(path: &Path, descr: &'static str) -> Result<Self, Error> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&vec![b' '; usize::from(HEADER)])?;
        Ok(Self { out, descr, count: 0 })
    }

    fn put<const N: usize, T: Copy>(
        &mut self,
        values: &[T],
        to_bytes: fn(T) -> [u8; N],
    ) -> Result<(), Error> {
        self.count += values.len();
        values.iter().try_for_each(|value| self.out.write_all(&to_bytes(*value)))?;
        Ok(())
    }

    /// Adds the numbers of an array; NaN for those that are missing.
    fn add(&mut self, array: &dyn Array) -> Result<(), Error> {
        match array.data_type() {
            DataType::UInt8 => self.put(array.as_primitive::<UInt8Type>().values(), u8::to_le_bytes),
            DataType::UInt32 => self.put(array.as_primitive::<UInt32Type>().values(), u32::to_le_bytes),
            DataType::Float32 => self.put(array.as_primitive::<Float32Type>().values(), f32::to_le_bytes),
            _ => {
                let numbers = array.as_primitive::<Float64Type>().iter();
                let numbers: Vec<f64> = numbers.map(|number| number.unwrap_or(f64::NAN)).collect();
                self.put(&numbers, f64::to_le_bytes)
            }
        }
    }

    fn finish(mut self) -> Result<(), Error> {
        let Self { descr, count, .. } = self;
        let about = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({count},), }}");
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        // Less the ten bytes up to here.
        header.extend_from_slice(&(HEADER - 10).to_le_bytes());
        header.extend_from_slice(about.as_bytes());
        header.resize(usize::from(HEADER) - 1, b' ');
        header.push(b'\n');
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()?;
        Ok(())
    }
}
