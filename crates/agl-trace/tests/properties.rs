//! What holds for every trace, however odd.

mod common;

use std::collections::HashSet;

use agl_trace::{Error, RewardMatchPolicy, TraceTree, TripletOptions, spans_to_triplets};
use agl_types::Span;
use proptest::option;
use proptest::prelude::*;

/// Spans with ids 0..n whose parents may be missing, lost or in circles, and whose times may be anything.
fn traces() -> impl Strategy<Value = Vec<Span>> {
    let span = (option::weighted(0.8, 0_u8..24), option::of(0_u8..20), option::of(0_u8..20), 0_u8..6);
    proptest::collection::vec(span, 1..20).prop_map(|spans| {
        let numbered = (0_i64..).zip(spans);
        numbered
            .map(|(number, (parent, start, end, kind))| {
                let name = if kind < 2 { "openai.chat.completion" } else { "step" };
                let mut span = Span::new(name, "t".repeat(32), number.to_string(), 0.0, 0.0);
                span.parent_id = parent.map(|parent| parent.to_string());
                span.start_time = start.map(f64::from);
                span.end_time = end.map(f64::from);
                span.sequence_id = number + 1;
                match kind {
                    0 => span.with_attribute("gen_ai.response.id", number.to_string()),
                    2 => span.with_attribute("agentlightning.reward.0.value", 0.5),
                    3 => span.with_attribute("agent.name", "A"),
                    4 => span.with_attribute("agentops.span.kind", "session"),
                    _ => span,
                }
            })
            .collect()
    })
}

fn ids(tree: &TraceTree<'_>) -> Vec<String> {
    tree.traverse().map(|span| span.span_id.clone()).collect()
}

proptest! {
    #[test]
    fn repair_loses_no_span_and_doubles_none(spans in traces()) {
        let mut tree = match TraceTree::from_spans(&spans) {
            Err(Error::NoRoot) => return Ok(()),
            tree => tree?,
        };
        let before = ids(&tree);
        let known: HashSet<&String> = before.iter().collect();
        prop_assert_eq!(known.len(), before.len());
        tree.repair_hierarchy();
        let after = ids(&tree);
        prop_assert_eq!(after.len(), before.len());
        prop_assert_eq!(after.iter().collect::<HashSet<_>>(), known);
    }

    #[test]
    fn every_reward_goes_to_one_call_at_most(spans in traces(), sibling: bool) {
        let reward_match =
            if sibling { RewardMatchPolicy::FirstSibling } else { RewardMatchPolicy::FirstOccurrence };
        let options = TripletOptions { reward_match, ..TripletOptions::default() };
        match spans_to_triplets(&spans, &options) {
            Err(error) => prop_assert_eq!(error, Error::NoRoot),
            Ok(triplets) => {
                let calls = spans.iter().filter(|span| span.name == "openai.chat.completion").count();
                let rewards = spans.iter().filter(|span| agl_trace::is_reward_span(span)).count();
                prop_assert!(triplets.len() <= calls);
                prop_assert!(triplets.iter().filter(|triplet| triplet.reward.is_some()).count() <= rewards);
            }
        }
    }

    #[test]
    fn every_trace_keeps_what_it_has(bytes in proptest::collection::vec(any::<u8>(), 0..240)) {
        common::check(&common::spans(&bytes));
    }

    #[test]
    fn every_answer_is_merged_once(bytes in proptest::collection::vec(any::<u8>(), 0..240)) {
        common::check_merge(&bytes);
    }
}

#[test]
fn what_the_fuzzer_begins_with_holds() {
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).unwrap() {
        let recorded: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        let spans: Vec<Span> = serde_json::from_value(recorded["spans"].clone()).unwrap();
        common::check(&spans);
    }
}

/// Found by the fuzzer: one id, two records of it that differ only in what they say.
#[test]
fn of_two_records_of_one_span_the_same_one_counts() {
    let span = |model: &str| {
        Span::new("openai.chat.completion", "1".repeat(32), "2".repeat(16), 1.0, 2.0)
            .with_attribute("gen_ai.request.model", model)
    };
    let one_way = [span("a"), span("b")];
    let the_other = [span("b"), span("a")];
    assert_eq!(agl_trace::read_calls(&one_way), agl_trace::read_calls(&the_other));
    common::check(&one_way);
}
