//! Rows as Arrow's columns.

use std::collections::HashMap;
use std::sync::Arc;

use agl_trace::{Report, Row, Transition};
use arrow_array::builder::{
    Float32Builder, Float64Builder, ListBuilder, StringBuilder, UInt8Builder, UInt32Builder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};

use crate::Error;

/// Key of the schema's metadata under which the report is, as JSON.
pub const REPORT: &str = "agl.report";

fn list(name: &str, item: DataType, has_nulls: bool) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new("item", item, has_nulls))), false)
}

/// The columns of rows.
pub(crate) fn row_schema() -> Schema {
    Schema::new(vec![
        Field::new("rollout_id", DataType::Utf8, false),
        Field::new("attempt_id", DataType::Utf8, false),
        Field::new("group", DataType::Utf8, false),
        Field::new("agent", DataType::Utf8, true),
        Field::new("model", DataType::Utf8, true),
        Field::new("sequence", DataType::UInt32, false),
        Field::new("part", DataType::UInt32, false),
        list("token_ids", DataType::UInt32, false),
        list("mask", DataType::UInt8, false),
        list("logprobs", DataType::Float32, false),
        list("call_span_ids", DataType::Utf8, false),
        list("call_starts", DataType::UInt32, false),
        list("call_ends", DataType::UInt32, false),
        list("call_rewards", DataType::Float64, true),
        list("image_urls", DataType::Utf8, false),
        Field::new("reward", DataType::Float64, true),
        Field::new("advantage", DataType::Float64, true),
        Field::new("weight", DataType::Float64, false),
    ])
}

/// Places in a row, which has less than 2^32 tokens.
fn place(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Builds one column.
fn column<B: arrow_array::builder::ArrayBuilder>(mut builder: B, fill: impl FnOnce(&mut B)) -> ArrayRef {
    fill(&mut builder);
    builder.finish()
}

fn texts<'r>(values: impl Iterator<Item = Option<&'r str>>) -> ArrayRef {
    column(StringBuilder::new(), |builder| values.for_each(|value| builder.append_option(value)))
}

fn numbers(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    column(Float64Builder::new(), |builder| values.for_each(|value| builder.append_option(value)))
}

fn item(data_type: DataType, has_nulls: bool) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, has_nulls))
}

fn token_lists<'r>(values: impl Iterator<Item = &'r [u32]>) -> ArrayRef {
    let builder = ListBuilder::new(UInt32Builder::new()).with_field(item(DataType::UInt32, false));
    column(builder, |builder| {
        for value in values {
            builder.values().append_slice(value);
            builder.append(true);
        }
    })
}

fn logprob_lists<'r>(values: impl Iterator<Item = &'r [f32]>) -> ArrayRef {
    let builder = ListBuilder::new(Float32Builder::new()).with_field(item(DataType::Float32, false));
    column(builder, |builder| {
        for value in values {
            builder.values().append_slice(value);
            builder.append(true);
        }
    })
}

fn text_lists<'r, I: Iterator<Item = &'r str>>(values: impl Iterator<Item = I>) -> ArrayRef {
    let builder = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8, false));
    column(builder, |builder| {
        for value in values {
            value.for_each(|text| builder.values().append_value(text));
            builder.append(true);
        }
    })
}

/// Rows as a batch of [`row_schema`].
pub(crate) fn row_batch(rows: &[Row]) -> Result<RecordBatch, Error> {
    let places = |of: fn(&agl_trace::RowCall) -> usize| -> ArrayRef {
        let builder = ListBuilder::new(UInt32Builder::new()).with_field(item(DataType::UInt32, false));
        column(builder, |builder| {
            for row in rows {
                row.calls.iter().for_each(|call| builder.values().append_value(place(of(call))));
                builder.append(true);
            }
        })
    };
    let masks = ListBuilder::new(UInt8Builder::new()).with_field(item(DataType::UInt8, false));
    let rewards = ListBuilder::new(Float64Builder::new()).with_field(item(DataType::Float64, true));
    let counts = |of: fn(&Row) -> usize| {
        column(UInt32Builder::new(), |builder| {
            rows.iter().for_each(|row| builder.append_value(place(of(row))));
        })
    };
    let columns: Vec<ArrayRef> = vec![
        texts(rows.iter().map(|row| Some(row.rollout_id.as_str()))),
        texts(rows.iter().map(|row| Some(row.attempt_id.as_str()))),
        texts(rows.iter().map(|row| Some(row.group.as_str()))),
        texts(rows.iter().map(|row| row.agent.as_deref())),
        texts(rows.iter().map(|row| row.model.as_deref())),
        counts(|row| row.sequence),
        counts(|row| row.part),
        token_lists(rows.iter().map(|row| row.token_ids.as_slice())),
        column(masks, |builder| {
            for row in rows {
                builder.values().append_slice(&row.mask);
                builder.append(true);
            }
        }),
        logprob_lists(rows.iter().map(|row| row.logprobs.as_slice())),
        text_lists(rows.iter().map(|row| row.calls.iter().map(|call| call.span_id.as_str()))),
        places(|call| call.start),
        places(|call| call.end),
        column(rewards, |builder| {
            for row in rows {
                row.calls.iter().for_each(|call| builder.values().append_option(call.reward));
                builder.append(true);
            }
        }),
        text_lists(rows.iter().map(|row| row.image_urls.iter().map(String::as_str))),
        numbers(rows.iter().map(|row| row.reward)),
        numbers(rows.iter().map(|row| row.advantage)),
        numbers(rows.iter().map(|row| Some(row.weight))),
    ];
    Ok(RecordBatch::try_new(Arc::new(row_schema()), columns)?)
}

/// A transition, and whose it is.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct OwnedTransition {
    #[serde(flatten)]
    pub(crate) transition: Transition,
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
    pub(crate) group: String,
}

/// The columns of transitions.
pub(crate) fn transition_schema() -> Schema {
    Schema::new(vec![
        list("state", DataType::UInt32, false),
        list("action", DataType::UInt32, false),
        Field::new("response_id", DataType::Utf8, true),
        Field::new("agent_name", DataType::Utf8, false),
        Field::new("reward", DataType::Float64, true),
        Field::new("rollout_id", DataType::Utf8, false),
        Field::new("attempt_id", DataType::Utf8, false),
        Field::new("group", DataType::Utf8, false),
    ])
}

/// Transitions as a batch of [`transition_schema`].
pub(crate) fn transition_batch(rows: &[OwnedTransition]) -> Result<RecordBatch, Error> {
    let columns: Vec<ArrayRef> = vec![
        token_lists(rows.iter().map(|row| row.transition.state.as_slice())),
        token_lists(rows.iter().map(|row| row.transition.action.as_slice())),
        texts(rows.iter().map(|row| row.transition.response_id.as_deref())),
        texts(rows.iter().map(|row| Some(row.transition.agent_name.as_str()))),
        numbers(rows.iter().map(|row| row.transition.reward)),
        texts(rows.iter().map(|row| Some(row.rollout_id.as_str()))),
        texts(rows.iter().map(|row| Some(row.attempt_id.as_str()))),
        texts(rows.iter().map(|row| Some(row.group.as_str()))),
    ];
    Ok(RecordBatch::try_new(Arc::new(transition_schema()), columns)?)
}

/// Rows and the report as a stream in Arrow's IPC format; the report is in the schema's metadata.
///
/// # Errors
/// [`Error::Arrow`] when the rows hold more than 2^31 tokens.
pub fn rows_to_ipc(rows: &[Row], report: &Report) -> Result<Vec<u8>, Error> {
    let metadata = HashMap::from([(REPORT.to_owned(), serde_json::to_string(report)?)]);
    let schema = Arc::new(row_schema().with_metadata(metadata));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    let batch = row_batch(rows)?;
    writer.write(&RecordBatch::try_new(schema, batch.columns().to_vec())?)?;
    Ok(writer.into_inner()?)
}
