//! Traces made of bytes, and what holds for every trace. The property tests and the fuzz targets (`fuzz/`) share them.

#![expect(clippy::panic, reason = "a property that does not hold ends the test")]

use std::collections::BTreeMap;

use agl_trace::trajectory::{Sampled, merge, split};
use agl_trace::{
    Reason, RolloutTrace, TraceTree, TrainingOptions, TripletOptions, auto_triplets, read_calls,
    read_rollout, shapes_trace, spans_to_messages, training_data, tree_calls,
};
use agl_types::{Span, StatusCode};
use serde_json::{Value, json};

/// Numbers out of bytes; zeros once they are used up.
struct Source<'b>(&'b [u8]);

impl Source<'_> {
    fn below(&mut self, limit: u8) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first % limit
    }

    fn ids(&mut self, most: u8) -> Vec<u32> {
        let count = self.below(most + 1);
        (0..count).map(|_| u32::from(self.below(4))).collect()
    }
}

/// A trace: at most 24 spans with any parents, orders and times, some of them calls, rewards, agents. Some calls carry
/// on others exactly.
pub(crate) fn spans(bytes: &[u8]) -> Vec<Span> {
    let mut source = Source(bytes);
    let mut told: Vec<Vec<u32>> = vec![Vec::new()];
    let mut spans = Vec::new();
    while !source.0.is_empty() && spans.len() < 24 {
        let number = spans.len();
        let kind = source.below(12);
        let mut span = Span::new("step", "t".repeat(32), number.to_string(), 0.0, 0.0).placed("ro", "at", 0);
        span.parent_id =
            Some(source.below(32)).filter(|parent| *parent < 26).map(|parent| parent.to_string());
        span.sequence_id = i64::try_from(number).unwrap_or(0) + i64::from(source.below(3));
        span.start_time = Some(source.below(24)).filter(|time| *time > 3).map(f64::from);
        span.end_time = Some(source.below(24)).filter(|time| *time > 3).map(f64::from);
        let mut put = |key: &str, value: Value| {
            span.attributes.insert(key.to_owned(), value);
        };
        match kind {
            0..=5 => {
                let before = usize::from(source.below(u8::try_from(told.len()).unwrap_or(u8::MAX)));
                let mut prompt = told[before].clone();
                prompt.extend(source.ids(3));
                let response = source.ids(3);
                put("gen_ai.completion.0.role", "assistant".into());
                put("gen_ai.response.id", source.below(16).to_string().into());
                put("prompt_token_ids", prompt.clone().into());
                put("response_token_ids", response.clone().into());
                prompt.extend(response);
                told.push(prompt);
                if kind == 5 {
                    put("agentlightning.gateway.outcome", "answered".into());
                }
                span.name = "openai.chat.completion".to_owned();
                if source.below(8) == 7 {
                    span.status.status_code = StatusCode::Error;
                }
            }
            6 | 7 => put("agentlightning.reward.0.value", f64::from(source.below(3)).into()),
            8 => put("agent.name", ["A", "B"][usize::from(source.below(2))].into()),
            9 => put("agentops.span.kind", "session".into()),
            10 => put("agentlightning.reward", (0..source.below(4)).map(f64::from).collect()),
            _ => {
                put("agentlightning.reward.0.value", 1.0.into());
                put("agentlightning.link.0.key_match", "span_id".into());
                put("agentlightning.link.0.value_match", source.below(24).to_string().into());
            }
        }
        spans.push(span);
    }
    spans
}

/// Checks everything that holds for every trace.
pub(crate) fn check(spans: &[Span]) {
    for options in [
        json!({}),
        json!({"max_length": 4}),
        json!({"level": "transition"}),
        json!({"quarantine": false, "max_length": 2}),
    ] {
        let mut options: TrainingOptions = serde_json::from_value(options).unwrap_or_default();
        options
            .train_on
            .extend([agl_trace::Outcome::MissingReward, agl_trace::Outcome::InfrastructureFailure]);
        check_tokens(spans, &options);
    }
    let calls = read_calls(spans);
    let mut turned = spans.to_vec();
    turned.reverse();
    // Of spans with one id one counts, and which is decided by their places, not by who came first.
    assert_eq!(read_calls(&turned), calls, "the order of the spans does not matter");
    let twice: Vec<Span> = spans.iter().chain(spans).cloned().collect();
    assert_eq!(read_calls(&twice), calls, "a span that comes twice counts once");
    let _ = spans_to_messages(spans);
    let _ = auto_triplets(spans, &serde_json::from_value(json!({})).unwrap_or_default());
    check_shape(spans);
    if let Ok(tree) = TraceTree::of_all(spans) {
        let ids: std::collections::HashSet<&str> = spans.iter().map(|span| span.span_id.as_str()).collect();
        let kept = tree.traverse().filter(|span| ids.contains(span.span_id.as_str())).count();
        assert_eq!(kept, ids.len(), "no span is lost");
    }
}

/// What is said not to shape a trace does not.
fn check_shape(spans: &[Span]) {
    let mut bare = spans.to_vec();
    for span in &mut bare {
        span.attributes.retain(|key, _| shapes_trace(key));
    }
    let options = TripletOptions { llm_call_match: String::new(), ..TripletOptions::default() };
    let calls = |spans: &[Span]| {
        let mut tree = TraceTree::from_spans(spans).ok()?;
        tree.repair_hierarchy();
        let nodes: Vec<Vec<usize>> = (0..tree.len()).map(|node| tree.children(node).to_vec()).collect();
        Some((nodes, tree_calls(&tree, &options)))
    };
    assert_eq!(calls(&bare), calls(spans), "only what shapes a trace is looked at");
}

/// Every token that was sampled is trained on in one row, or said to be left out.
fn check_tokens(spans: &[Span], options: &TrainingOptions) {
    let trace = RolloutTrace { spans: spans.to_vec(), ..RolloutTrace::default() };
    let Ok(data) = training_data([&trace], options) else { panic!("the options make sense") };
    let Ok(read) = read_rollout(&trace, options) else { panic!("the options make sense") };
    let sampled: usize =
        read_calls(spans).iter().flat_map(|call| &call.choices).map(|choice| choice.token_ids.len()).sum();
    let trained: usize =
        data.rows.iter().map(|row| row.mask.iter().map(|mask| usize::from(*mask)).sum::<usize>()).sum();
    // Answers of which the prompt is not known are told one by one, and so are whole rollouts.
    let left_out: usize = data.report.dropped.iter().map(|dropped| dropped.tokens).sum();
    assert_eq!(trained + left_out, sampled, "every sampled token is accounted for: {:#?}", data.report);
    assert_eq!(trained, data.report.trained_tokens);

    let mut owners: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    for row in &data.rows {
        assert_eq!((row.token_ids.len(), row.token_ids.len()), (row.mask.len(), row.logprobs.len()));
        assert!(options.max_length.is_none_or(|max| row.token_ids.len() <= max), "rows fit");
        for call in &row.calls {
            *owners.entry((&call.span_id, call.choice)).or_default() += 1;
            let Some(judged) = read.calls.iter().find(|judged| judged.call.span_id == call.span_id) else {
                panic!("a row has a call that is not wanted")
            };
            assert_eq!(row.token_ids[call.start..call.end], judged.call.choices[call.choice].token_ids);
            let context = &row.token_ids[..call.start];
            let prompt = &judged.call.prompt_token_ids;
            assert!(prompt.ends_with(context), "what is before an answer is its prompt");
        }
    }
    assert!(owners.values().all(|count| *count == 1), "an answer is in one row: {owners:?}");
    let is_whole = |dropped: &agl_trace::Dropped| dropped.span_id.is_none();
    assert!(data.report.dropped.iter().filter(|dropped| is_whole(dropped)).count() <= 1);
    assert!(data.report.dropped.iter().all(|dropped| dropped.reason != Reason::Unfinished));
}

/// Checks the merge and the cuts of any answers.
pub(crate) fn check_merge(bytes: &[u8]) {
    let mut source = Source(bytes);
    let mut answers: Vec<(Vec<u32>, Vec<u32>, usize)> = Vec::new();
    while !source.0.is_empty() && answers.len() < 40 {
        let (prompt, response) = match answers.len() {
            0 => (source.ids(4), source.ids(4)),
            count => {
                let at = usize::from(source.below(u8::try_from(count).unwrap_or(u8::MAX)));
                let mut prompt = answers[at].0.clone();
                if source.below(4) > 0 {
                    prompt.extend(&answers[at].1);
                }
                prompt.extend(source.ids(2));
                (prompt, source.ids(3))
            }
        };
        answers.push((prompt, response, usize::from(source.below(2))));
    }
    let sampled: Vec<Sampled<'_>> = answers
        .iter()
        .map(|(prompt, response, key)| Sampled { prompt, response, logprobs: &[], key: *key })
        .collect();
    let sequences = merge(&sampled);
    let mut seen = vec![0; sampled.len()];
    for sequence in &sequences {
        let mut end = 0;
        for segment in &sequence.segments {
            seen[segment.sampled] += 1;
            let call = sampled[segment.sampled];
            assert_eq!(segment.context, end);
            assert_eq!(&sequence.token_ids[..segment.start], call.prompt);
            assert_eq!(&sequence.token_ids[segment.start..segment.end], call.response);
            end = segment.end;
        }
        assert_eq!(end, sequence.token_ids.len());
        for max in 0..8 {
            let (pieces, too_long) = split(sequence, max);
            let mut kept: Vec<usize> =
                pieces.iter().flat_map(|piece| piece.segments.clone()).chain(too_long).collect();
            kept.sort_unstable();
            assert_eq!(kept, (0..sequence.segments.len()).collect::<Vec<_>>());
            for piece in pieces {
                assert!(piece.end - piece.start <= max);
                assert!(piece.start <= sequence.segments[piece.segments.start].start, "answers are whole");
            }
        }
    }
    assert!(seen.iter().all(|count| *count == 1), "every answer is in one sequence");
}
