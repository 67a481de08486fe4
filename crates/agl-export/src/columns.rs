//! Rows as Arrow's columns.

use std::collections::HashMap;
use std::sync::Arc;

use agl_trace::{Conversation, PreferencePair, Report, Row, Transition};
use agl_types::Triplet;
use arrow_array::builder::{
    Float32Builder, Float64Builder, ListBuilder, StringBuilder, UInt8Builder, UInt32Builder,
};
use arrow_array::{ArrayRef, ListArray, RecordBatch, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Fields, Schema};
use serde_json::Value;

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

/// The columns of triplets: tokens and reward as numbers, what was said as JSON text.
pub(crate) fn triplet_schema() -> Schema {
    Schema::new(vec![
        list("prompt_token_ids", DataType::UInt32, false),
        list("response_token_ids", DataType::UInt32, false),
        Field::new("prompt", DataType::Utf8, false),
        Field::new("response", DataType::Utf8, false),
        list("image_urls", DataType::Utf8, false),
        Field::new("reward", DataType::Float64, true),
        Field::new("response_id", DataType::Utf8, true),
        Field::new("agent_name", DataType::Utf8, true),
        Field::new("rollout_id", DataType::Utf8, true),
        Field::new("metadata", DataType::Utf8, false),
    ])
}

/// Triplets as a batch of [`triplet_schema`].
pub(crate) fn triplet_batch(rows: &[Triplet]) -> Result<RecordBatch, Error> {
    let prompts: Vec<&Value> = rows.iter().map(|row| &row.prompt).collect();
    let responses: Vec<&Value> = rows.iter().map(|row| &row.response).collect();
    let ids = |parts: &[&Value]| {
        let of_part = |part: &&Value| -> Vec<u32> {
            let ids = items(&part["token_ids"]).iter();
            ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        };
        let ids: Vec<Vec<u32>> = parts.iter().map(of_part).collect();
        token_lists(ids.iter().map(Vec::as_slice))
    };
    let said = |parts: &[&Value]| json_texts(parts.iter().map(|part| part["raw_content"].clone()));
    let about = |key: &'static str| texts(rows.iter().map(move |row| row.metadata.get(key)?.as_str()));
    let columns: Vec<ArrayRef> = vec![
        ids(&prompts),
        ids(&responses),
        said(&prompts),
        said(&responses),
        text_lists(rows.iter().map(|row| items(&row.prompt["image_urls"]).iter().filter_map(Value::as_str))),
        numbers(rows.iter().map(|row| row.reward)),
        about("response_id"),
        about("agent_name"),
        about("rollout_id"),
        json_texts(rows.iter().map(|row| Value::Object(row.metadata.clone()))),
    ];
    Ok(RecordBatch::try_new(Arc::new(triplet_schema()), columns)?)
}

/// A list's items; none of anything else.
fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn json_texts(values: impl Iterator<Item = Value>) -> ArrayRef {
    column(StringBuilder::new(), |builder| values.for_each(|value| builder.append_value(value.to_string())))
}

fn function_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("arguments", DataType::Utf8, true),
    ])
}

fn tool_call_fields() -> Fields {
    Fields::from(vec![
        Field::new("id", DataType::Utf8, true),
        Field::new("type", DataType::Utf8, true),
        Field::new("function", DataType::Struct(function_fields()), false),
    ])
}

/// Messages of OpenAI's chat API. Content that is a list of parts is JSON text.
fn message_fields() -> Fields {
    let calls = DataType::List(item(DataType::Struct(tool_call_fields()), false));
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, true),
        Field::new("reasoning_content", DataType::Utf8, true),
        Field::new("tool_calls", calls, true),
        Field::new("tool_call_id", DataType::Utf8, true),
        Field::new("name", DataType::Utf8, true),
    ])
}

fn messages_field(name: &str) -> Field {
    list(name, DataType::Struct(message_fields()), false)
}

fn message_lists(rows: &[&[Value]]) -> Result<ArrayRef, Error> {
    let messages: Vec<&Value> = rows.iter().copied().flatten().collect();
    let calls: Vec<&[Value]> = messages.iter().map(|message| items(&message["tool_calls"])).collect();
    let of_calls = |of: fn(&Value) -> Option<&str>| texts(calls.iter().copied().flatten().map(of));
    let function = StructArray::try_new(
        function_fields(),
        vec![
            of_calls(|call| call["function"]["name"].as_str()),
            of_calls(|call| call["function"]["arguments"].as_str()),
        ],
        None,
    )?;
    let call = StructArray::try_new(
        tool_call_fields(),
        vec![
            of_calls(|call| call["id"].as_str()),
            of_calls(|call| call["type"].as_str()),
            Arc::new(function),
        ],
        None,
    )?;
    let has_calls: Vec<bool> = calls.iter().map(|calls| !calls.is_empty()).collect();
    let tool_calls = ListArray::try_new(
        item(DataType::Struct(tool_call_fields()), false),
        OffsetBuffer::from_lengths(calls.iter().map(|calls| calls.len())),
        Arc::new(call),
        Some(NullBuffer::from(has_calls)),
    )?;
    let content = column(StringBuilder::new(), |builder| {
        for message in &messages {
            match &message["content"] {
                Value::Null => builder.append_null(),
                Value::String(text) => builder.append_value(text),
                parts => builder.append_value(parts.to_string()),
            }
        }
    });
    let of_messages = |key: &'static str| texts(messages.iter().map(move |message| message[key].as_str()));
    let message = StructArray::try_new(
        message_fields(),
        vec![
            texts(messages.iter().map(|message| Some(message["role"].as_str().unwrap_or_default()))),
            content,
            of_messages("reasoning_content"),
            Arc::new(tool_calls),
            of_messages("tool_call_id"),
            of_messages("name"),
        ],
        None,
    )?;
    Ok(Arc::new(ListArray::try_new(
        item(DataType::Struct(message_fields()), false),
        OffsetBuffer::from_lengths(rows.iter().map(|messages| messages.len())),
        Arc::new(message),
        None,
    )?))
}

/// Tools as JSON text, null without any.
fn tool_texts<'r>(values: impl Iterator<Item = &'r Vec<Value>>) -> ArrayRef {
    column(StringBuilder::new(), |builder| {
        for tools in values {
            let text = (!tools.is_empty()).then(|| Value::Array(tools.clone()).to_string());
            builder.append_option(text);
        }
    })
}

/// The columns of conversations.
pub(crate) fn conversation_schema() -> Schema {
    Schema::new(vec![
        messages_field("messages"),
        Field::new("tools", DataType::Utf8, true),
        Field::new("rollout_id", DataType::Utf8, false),
        Field::new("agent", DataType::Utf8, true),
        Field::new("reward", DataType::Float64, true),
    ])
}

/// Conversations as a batch of [`conversation_schema`].
pub(crate) fn conversation_batch(rows: &[Conversation]) -> Result<RecordBatch, Error> {
    let messages: Vec<&[Value]> = rows.iter().map(|row| row.messages.as_slice()).collect();
    let columns: Vec<ArrayRef> = vec![
        message_lists(&messages)?,
        tool_texts(rows.iter().map(|row| &row.tools)),
        texts(rows.iter().map(|row| Some(row.rollout_id.as_str()))),
        texts(rows.iter().map(|row| row.agent.as_deref())),
        numbers(rows.iter().map(|row| row.reward)),
    ];
    Ok(RecordBatch::try_new(Arc::new(conversation_schema()), columns)?)
}

/// The columns of preference pairs.
pub(crate) fn pair_schema() -> Schema {
    Schema::new(vec![
        messages_field("prompt"),
        messages_field("chosen"),
        messages_field("rejected"),
        Field::new("tools", DataType::Utf8, true),
        Field::new("group", DataType::Utf8, false),
        Field::new("chosen_reward", DataType::Float64, false),
        Field::new("rejected_reward", DataType::Float64, false),
    ])
}

/// Preference pairs as a batch of [`pair_schema`].
pub(crate) fn pair_batch(rows: &[PreferencePair]) -> Result<RecordBatch, Error> {
    let messages =
        |of: fn(&PreferencePair) -> &[Value]| message_lists(&rows.iter().map(of).collect::<Vec<_>>());
    let columns: Vec<ArrayRef> = vec![
        messages(|row| &row.prompt)?,
        messages(|row| &row.chosen)?,
        messages(|row| &row.rejected)?,
        tool_texts(rows.iter().map(|row| &row.tools)),
        texts(rows.iter().map(|row| Some(row.group.as_str()))),
        numbers(rows.iter().map(|row| Some(row.chosen_reward))),
        numbers(rows.iter().map(|row| Some(row.rejected_reward))),
    ];
    Ok(RecordBatch::try_new(Arc::new(pair_schema()), columns)?)
}

/// The columns of trajectories in the Agent Trajectory Interchange Format: what they are looked up by, and the whole as JSON
/// text.
pub(crate) fn atif_schema() -> Schema {
    Schema::new(vec![
        Field::new("rollout_id", DataType::Utf8, true),
        Field::new("attempt_id", DataType::Utf8, true),
        Field::new("group", DataType::Utf8, true),
        Field::new("reward", DataType::Float64, true),
        Field::new("trajectory", DataType::Utf8, false),
    ])
}

/// Trajectories as a batch of [`atif_schema`].
pub(crate) fn atif_batch(rows: &[Value]) -> Result<RecordBatch, Error> {
    let about = |key: &'static str| texts(rows.iter().map(move |row| row["extra"][key].as_str()));
    let columns: Vec<ArrayRef> = vec![
        about("rollout_id"),
        about("attempt_id"),
        about("group"),
        numbers(rows.iter().map(|row| row["extra"]["reward"].as_f64())),
        json_texts(rows.iter().cloned()),
    ];
    Ok(RecordBatch::try_new(Arc::new(atif_schema()), columns)?)
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
