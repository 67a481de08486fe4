//! Rows as flat arrays, which numeric libraries take as they are.

use agl_trace::{Report, Row, Tokens};
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

/// Takes in the tokens of the next rows; `share` is how much of the whole that makes, if all is alike.
pub(crate) fn append(whole: &mut Tokens, next: &Tokens, share: f64) {
    let base = whole.token_ids.len();
    let count = base + next.token_ids.len();
    if count > whole.token_ids.capacity() {
        // Room for all that is to come, with some to spare, so that nothing has to move.
        let all = (count as f64 / share * 1.0625) as usize;
        let more = all.clamp(count, count.saturating_mul(1 << 10)) - base;
        reserve(&mut whole.token_ids, more);
        reserve(&mut whole.mask, more);
        reserve(&mut whole.logprobs, more);
    }
    whole.append(next);
}

/// Makes room for so many more, in large pages where the system has them: most of what it costs to fill memory for the first
/// time is to get it, page by page.
fn reserve<T>(column: &mut Vec<T>, more: usize) {
    column.reserve(more);
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 2 << 20;
        // With the beginning of the page that it begins in: a large page begins where a mapping does, which is where the
        // allocator has its own note of it.
        let room = column.spare_capacity_mut();
        let before = room.as_ptr().addr() % rustix::param::page_size();
        let length = before + size_of_val(room);
        if length >= LARGE {
            let start = room.as_mut_ptr().cast::<u8>().wrapping_sub(before);
            #[expect(unsafe_code, reason = "advice on memory is given by address")]
            // SAFETY: each of the pages has some of the vector's own memory in it, so all are mapped, and what the advice asks
            // for changes nothing but how they are.
            let advised =
                unsafe { rustix::mm::madvise(start.cast(), length, rustix::mm::Advice::LinuxHugepage) };
            // Without, it only takes longer.
            let _ = advised;
        }
    }
}

impl Arrays {
    /// Lays rows out.
    ///
    /// # Errors
    /// [`Error::Json`] when the report has no JSON.
    pub fn of(mut rows: Vec<Row>, report: &Report) -> Result<Self, Error> {
        let mut tokens = Tokens::default();
        for row in &mut rows {
            tokens.token_ids.append(&mut row.token_ids);
            tokens.mask.append(&mut row.mask);
            tokens.logprobs.append(&mut row.logprobs);
            tokens.ends.push(tokens.token_ids.len());
        }
        let order: Vec<usize> = (0..rows.len()).collect();
        Self::with_tokens(rows, tokens, &order, report)
    }

    /// Lays rows out whose tokens were taken out of them when they were in another order: `order` has the place of each.
    pub(crate) fn with_tokens(
        rows: Vec<Row>,
        tokens: Tokens,
        order: &[usize],
        report: &Report,
    ) -> Result<Self, Error> {
        let Tokens { ends, token_ids, mask, logprobs } = tokens.in_order(order);
        let offsets = std::iter::once(0).chain(ends);
        let mut arrays = Self {
            offsets: offsets.map(|offset| i64::try_from(offset).unwrap_or(i64::MAX)).collect(),
            token_ids,
            mask,
            logprobs,
            report: serde_json::to_value(report)?,
            ..Self::default()
        };
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
