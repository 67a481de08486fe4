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
    pub fn of(rows: Vec<Row>, report: &Report) -> Result<Self, Error> {
        let mut arrays = Self { offsets: vec![0], report: serde_json::to_value(report)?, ..Self::default() };
        let mut tokens = 0;
        for row in &rows {
            tokens += row.token_ids.len();
            arrays.offsets.push(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
        // Most of the work is to fill fresh memory: two do it faster than one.
        std::thread::scope(|scope| {
            let ids = scope.spawn(|| flat(&rows, tokens, |row| &row.token_ids));
            arrays.mask = flat(&rows, tokens, |row| &row.mask);
            arrays.logprobs = flat(&rows, tokens, |row| &row.logprobs);
            arrays.token_ids = ids.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        for row in rows {
            arrays.rewards.push(row.reward.unwrap_or(f64::NAN));
            arrays.advantages.push(row.advantage.unwrap_or(f64::NAN));
            arrays.weights.push(row.weight);
            arrays.rollout_ids.push(row.rollout_id);
            arrays.attempt_ids.push(row.attempt_id);
            arrays.groups.push(row.group);
            arrays.agents.push(row.agent);
            arrays.models.push(row.model);
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

/// What rows have `tokens` of in all, one row after the other.
fn flat<T: Copy>(rows: &[Row], tokens: usize, of: impl Fn(&Row) -> &Vec<T>) -> Vec<T> {
    let mut all = Vec::with_capacity(tokens);
    rows.iter().for_each(|row| all.extend_from_slice(of(row)));
    all
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
