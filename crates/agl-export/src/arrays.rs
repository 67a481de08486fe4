//! Rows as flat arrays, which numeric libraries take as they are.

use agl_trace::{Report, Row};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Float64Type, UInt8Type, UInt32Type};
use arrow_ipc::reader::StreamReader;
use serde_json::Value;

use crate::Error;
use crate::columns::REPORT;

/// Rows one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arrays {
    /// Where each row's tokens begin, and where the last one's end.
    pub offsets: Vec<i64>,
    /// All tokens.
    pub token_ids: Vec<u32>,
    /// 1 for those that are trained on.
    pub mask: Vec<u8>,
    /// Their log-probs; NaN where they are not known.
    pub logprobs: Vec<f32>,
    /// Each row's reward; NaN where there is none.
    pub rewards: Vec<f64>,
    /// Each row's advantage; NaN where there is none.
    pub advantages: Vec<f64>,
    /// Each row's weight.
    pub weights: Vec<f64>,
    /// Each row's rollout.
    pub rollout_ids: Vec<String>,
    /// Each row's attempt.
    pub attempt_ids: Vec<String>,
    /// Each row's group.
    pub groups: Vec<String>,
    /// Each row's agent.
    pub agents: Vec<Option<String>>,
    /// Each row's model.
    pub models: Vec<Option<String>>,
    /// The report.
    pub report: Value,
}

impl Arrays {
    /// Lays rows out.
    ///
    /// # Errors
    /// [`Error::Json`] when the report has no JSON.
    pub fn of(rows: &[Row], report: &Report) -> Result<Self, Error> {
        let mut arrays = Self { offsets: vec![0], report: serde_json::to_value(report)?, ..Self::default() };
        let tokens = rows.iter().map(|row| row.token_ids.len()).sum();
        arrays.token_ids.reserve_exact(tokens);
        arrays.mask.reserve_exact(tokens);
        arrays.logprobs.reserve_exact(tokens);
        for row in rows {
            arrays.token_ids.extend_from_slice(&row.token_ids);
            arrays.mask.extend_from_slice(&row.mask);
            arrays.logprobs.extend_from_slice(&row.logprobs);
            arrays.offsets.push(i64::try_from(arrays.token_ids.len()).unwrap_or(i64::MAX));
            arrays.rewards.push(row.reward.unwrap_or(f64::NAN));
            arrays.advantages.push(row.advantage.unwrap_or(f64::NAN));
            arrays.weights.push(row.weight);
            arrays.rollout_ids.push(row.rollout_id.clone());
            arrays.attempt_ids.push(row.attempt_id.clone());
            arrays.groups.push(row.group.clone());
            arrays.agents.push(row.agent.clone());
            arrays.models.push(row.model.clone());
        }
        Ok(arrays)
    }

    fn add(&mut self, batch: &RecordBatch) {
        let column = |name: &str| batch.column_by_name(name);
        if let Some(tokens) = column("token_ids").and_then(|column| column.as_list_opt::<i32>()) {
            let base = self.offsets.last().copied().unwrap_or(0);
            self.offsets.extend(tokens.value_offsets().iter().skip(1).map(|end| base + i64::from(*end)));
            self.token_ids.extend_from_slice(tokens.values().as_primitive::<UInt32Type>().values());
        }
        if let Some(mask) = column("mask").and_then(|column| column.as_list_opt::<i32>()) {
            self.mask.extend_from_slice(mask.values().as_primitive::<UInt8Type>().values());
        }
        if let Some(logprobs) = column("logprobs").and_then(|column| column.as_list_opt::<i32>()) {
            self.logprobs.extend_from_slice(logprobs.values().as_primitive::<Float32Type>().values());
        }
        let numbers = |name: &str| -> Vec<f64> {
            let column = column(name).and_then(|column| column.as_primitive_opt::<Float64Type>());
            column
                .into_iter()
                .flat_map(|column| column.iter().map(|value| value.unwrap_or(f64::NAN)))
                .collect()
        };
        let texts = |name: &str| -> Vec<Option<String>> {
            let column = column(name).and_then(|column| column.as_string_opt::<i32>());
            column.into_iter().flat_map(|column| column.iter().map(|text| text.map(str::to_owned))).collect()
        };
        let known = |name: &str| texts(name).into_iter().map(Option::unwrap_or_default);
        self.rewards.extend(numbers("reward"));
        self.advantages.extend(numbers("advantage"));
        self.weights.extend(numbers("weight"));
        self.rollout_ids.extend(known("rollout_id"));
        self.attempt_ids.extend(known("attempt_id"));
        self.groups.extend(known("group"));
        self.agents.extend(texts("agent"));
        self.models.extend(texts("model"));
    }
}

/// Reads what [`crate::rows_to_ipc`] wrote.
///
/// # Errors
/// [`Error::Arrow`] when it is something else.
pub fn read_arrays(ipc: &[u8]) -> Result<Arrays, Error> {
    let reader = StreamReader::try_new(ipc, None)?;
    let report =
        reader.schema().metadata().get(REPORT).map(|report| serde_json::from_str(report)).transpose()?;
    let mut arrays = Arrays { offsets: vec![0], report: report.unwrap_or_default(), ..Arrays::default() };
    for batch in reader {
        arrays.add(&batch?);
    }
    Ok(arrays)
}
