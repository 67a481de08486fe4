//! Rollouts as training data, on small traces with known answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use agl_trace::{
    Dialect, Message, Outcome, Reason, RolloutTrace, TrainingData, TrainingOptions, TripletOptions,
    auto_triplets, conversations, preference_pairs, read_calls, read_rollout, spans_to_triplets,
    training_data,
};
use agl_types::{Span, StatusCode};
use serde_json::{Value, json};

const LLM: &str = "openai.chat.completion";

/// A span with an id, a parent ("" for none), a name, its place and attributes.
fn span(id: &str, parent: &str, name: &str, place: i64, attributes: Value) -> Span {
    let mut span = Span::new(name, "t".repeat(32), id.to_owned(), 0.0, 0.0).placed("ro", "at", place);
    span.parent_id = (!parent.is_empty()).then(|| parent.to_owned());
    span.attributes = serde_json::from_value(attributes).unwrap();
    // No clock decides anything here.
    span.start_time = None;
    span.end_time = None;
    span
}

fn call(id: &str, parent: &str, place: i64, prompt: &[u32], response: &[u32]) -> Span {
    let attributes = json!({
        "gen_ai.response.id": id, "gen_ai.response.model": "m", "gen_ai.completion.0.role": "assistant",
        "prompt_token_ids": prompt, "response_token_ids": response,
    });
    span(id, parent, LLM, place, attributes)
}

fn agent(id: &str, parent: &str, place: i64, name: &str) -> Span {
    span(id, parent, "agent", place, json!({"agent.name": name}))
}

fn reward(id: &str, parent: &str, place: i64, value: f64) -> Span {
    let attributes =
        json!({"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value});
    span(id, parent, "agentlightning.annotation", place, attributes)
}

fn trace(spans: Vec<Span>) -> RolloutTrace {
    RolloutTrace { spans, ..RolloutTrace::default() }
}

/// A trace whose rollout has this id, input and status.
fn ended(id: &str, input: &str, rollout: &str, attempt: &str, spans: Vec<Span>) -> RolloutTrace {
    let rollout = json!({"rollout_id": id, "input": input, "start_time": 0.0, "status": rollout});
    let attempt =
        json!({"rollout_id": id, "attempt_id": "at", "sequence_id": 1, "start_time": 0.0, "status": attempt});
    RolloutTrace {
        rollout: Some(serde_json::from_value(rollout).unwrap()),
        attempt: Some(serde_json::from_value(attempt).unwrap()),
        spans: spans.into_iter().zip(1..).map(|(span, place)| span.placed(id, "at", place)).collect(),
        ..RolloutTrace::default()
    }
}

fn options(options: Value) -> TrainingOptions {
    serde_json::from_value(options).unwrap()
}

fn made(traces: &[RolloutTrace], given: Value) -> TrainingData {
    training_data(traces, &options(given)).unwrap()
}

/// (span id, reward) of every call.
fn earned(spans: Vec<Span>, given: Value) -> Vec<(String, Option<f64>)> {
    let data = read_rollout(&trace(spans), &options(given)).unwrap();
    data.calls.into_iter().map(|judged| (judged.call.span_id, judged.reward)).collect()
}

fn pairs(expected: &[(&str, Option<f64>)]) -> Vec<(String, Option<f64>)> {
    expected.iter().map(|(id, reward)| ((*id).to_owned(), *reward)).collect()
}

#[test]
fn a_conversation_is_one_row_with_its_answers_unmasked() {
    let spans = vec![
        call("a", "", 1, &[1, 2], &[3, 4]),
        call("b", "", 2, &[1, 2, 3, 4, 5], &[6]),
        reward("r", "", 3, 0.5),
    ];
    let data = made(&[trace(spans)], json!({}));
    let [row] = data.rows.as_slice() else { panic!("{} rows", data.rows.len()) };
    assert_eq!(row.token_ids, [1, 2, 3, 4, 5, 6]);
    assert_eq!(row.mask, [0, 0, 1, 1, 0, 1]);
    assert!(row.logprobs[2].is_nan() && row.logprobs[0] == 0.0, "what is not known is not 0");
    assert_eq!((row.reward, row.advantage, row.weight), (Some(0.5), Some(0.0), 1.0 / 3.0));
    assert_eq!((row.calls[1].start, row.calls[1].end, row.calls[1].span_id.as_str()), (5, 6, "b"));
    assert_eq!((data.report.rollouts_used, data.report.calls, data.report.trained_tokens), (1, 2, 3));
    assert_eq!(row.model.as_deref(), Some("m"));

    let data = made(
        &[trace(vec![
            call("a", "", 1, &[1], &[2]),
            call("b", "", 2, &[1, 2], &[3]),
            reward("r", "", 3, 1.0),
        ])],
        json!({"level": "transition"}),
    );
    let rows: Vec<&[u32]> = data.rows.iter().map(|row| row.token_ids.as_slice()).collect();
    assert_eq!(rows, [&[1, 2][..], &[1, 2, 3]]);
}

#[test]
fn sub_agents_keep_their_own_rows() {
    let spans = vec![
        agent("A", "", 1, "A"),
        agent("B", "A", 2, "B"),
        call("a1", "A", 3, &[1], &[2]),
        call("b1", "B", 4, &[1, 2, 7], &[8]),
        call("a2", "A", 5, &[1, 2, 3], &[4]),
        reward("r", "", 6, 1.0),
    ];
    let data = made(&[trace(spans.clone())], json!({}));
    let rows: Vec<(Option<&str>, &[u32])> =
        data.rows.iter().map(|row| (row.agent.as_deref(), row.token_ids.as_slice())).collect();
    assert_eq!(rows, [(Some("A"), &[1, 2, 3, 4][..]), (Some("B"), &[1, 2, 7, 8])]);

    let data = made(&[trace(spans)], json!({"agents": {"include": [{"matches": "A", "label": "policy"}]}}));
    assert_eq!(data.rows.len(), 1);
    assert_eq!(data.rows[0].agent.as_deref(), Some("policy"));
    let [dropped] = data.report.dropped.as_slice() else { panic!() };
    assert_eq!(
        (dropped.reason, dropped.span_id.as_deref(), dropped.tokens),
        (Reason::AgentNotWanted, Some("b1"), 1)
    );
}

#[test]
fn failures_are_told_apart_and_are_no_zeros() {
    let one = || vec![call("a", "", 1, &[1], &[2])];
    let judged = || vec![call("a", "", 1, &[1], &[2]), reward("r", "", 2, 1.0)];
    let mut unreachable = vec![span("a", "", LLM, 1, json!({"gen_ai.request.model": "m"}))];
    unreachable[0].status.status_code = StatusCode::Error;
    unreachable[0].status.description = Some("503".to_owned());
    let traces = [
        ended("good", "x", "succeeded", "succeeded", judged()),
        ended("unjudged", "x", "succeeded", "succeeded", one()),
        ended("failed", "x", "failed", "failed", judged()),
        ended("late", "x", "failed", "timeout", one()),
        ended("silent", "x", "failed", "unresponsive", one()),
        ended("lost", "x", "failed", "failed", unreachable),
        ended("off", "x", "cancelled", "running", judged()),
        ended("on", "x", "running", "running", one()),
    ];
    let data = made(&traces, json!({}));
    let outcomes: Vec<(&str, Reason)> = data
        .report
        .dropped
        .iter()
        .filter(|dropped| dropped.span_id.is_none())
        .map(|dropped| (dropped.rollout_id.as_str(), dropped.reason))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("unjudged", Reason::MissingReward),
            ("failed", Reason::AgentFailure),
            ("late", Reason::InfrastructureFailure),
            ("silent", Reason::InfrastructureFailure),
            ("lost", Reason::InfrastructureFailure),
            ("off", Reason::InfrastructureFailure),
            ("on", Reason::Unfinished),
        ]
    );
    assert_eq!(data.report.outcomes[&Outcome::InfrastructureFailure], 4);
    // The one with a reward is alone in its group: nobody else counted as 0.
    assert_eq!((data.rows.len(), data.rows[0].advantage), (1, Some(0.0)));

    let data = made(&traces, json!({"agent_failure_reward": -1.0, "estimator": "dr_grpo"}));
    let rewards: Vec<(&str, Option<f64>, Option<f64>)> =
        data.rows.iter().map(|row| (row.rollout_id.as_str(), row.reward, row.advantage)).collect();
    assert_eq!(rewards, [("good", Some(1.0), Some(1.0)), ("failed", Some(-1.0), Some(-1.0))]);

    let data = made(&traces, json!({"train_on": ["missing_reward"]}));
    assert_eq!(data.rows.iter().map(|row| row.rollout_id.as_str()).collect::<Vec<_>>(), ["unjudged"]);
    let good = data.report.dropped.iter().find(|dropped| dropped.rollout_id == "good").unwrap();
    assert_eq!(good.reason, Reason::NotTrainedOn, "it misses no reward");
}

#[test]
fn groups_keep_together_and_carry_their_advantages() {
    let rollout = |id: &str, input: &str, value| {
        ended(
            id,
            input,
            "succeeded",
            "succeeded",
            vec![call("a", "", 1, &[1], &[2]), reward("r", "", 2, value)],
        )
    };
    let traces =
        [rollout("1", "x", 1.0), rollout("2", "y", 4.0), rollout("3", "x", 0.0), rollout("4", "y", 2.0)];
    let data = made(&traces, json!({"estimator": "rloo"}));
    let rows: Vec<(&str, Option<f64>)> =
        data.rows.iter().map(|row| (row.rollout_id.as_str(), row.advantage)).collect();
    assert_eq!(rows, [("1", Some(1.0)), ("3", Some(-1.0)), ("2", Some(2.0)), ("4", Some(-2.0))]);
    assert_eq!(data.rows[0].group, data.rows[1].group);
    let mut named = traces.clone();
    named[0].rollout.as_mut().unwrap().metadata =
        serde_json::from_value(json!({"data_id": "d", "mine": 7})).unwrap();
    assert_eq!(made(&named, json!({})).rows[0].group, "d");
    assert_eq!(made(&named, json!({"group_by": "mine"})).rows[0].group, "7");
}

#[test]
fn a_capture_gap_quarantines_the_rollout() {
    let good = call("a", "", 1, &[1], &[2]);
    let gap = |attributes: Value| {
        let bad = span("b", "", LLM, 2, attributes);
        made(&[trace(vec![good.clone(), bad, reward("r", "", 3, 1.0)])], json!({}))
    };
    for attributes in [
        json!({"gen_ai.response.id": "b", "gen_ai.completion.0.content": "hi"}),
        json!({"prompt_token_ids": [1], "gen_ai.completion.0.content": "hi"}),
        json!({"prompt_token_ids": [1], "response_token_ids": [2], "gen_ai.usage.completion_tokens": 3}),
        json!({"prompt_token_ids": [1], "response_token_ids": [2], "gen_ai.completion.0.content": "hi",
               "agentlightning.gateway.outcome": "broken_off",
               "agentlightning.gateway.untrainable": "the stream broke off"}),
    ] {
        let data = gap(attributes.clone());
        assert!(data.rows.is_empty(), "{attributes}");
        let dropped = data.report.dropped.last().unwrap();
        assert_eq!((dropped.reason, dropped.span_id.as_ref()), (Reason::CaptureGap, None), "{attributes}");
        assert!(dropped.detail.starts_with("span b: "), "{}", dropped.detail);
    }
    let lenient = [trace(vec![
        good.clone(),
        span("b", "", LLM, 2, json!({"gen_ai.completion.0.content": "hi"})),
        reward("r", "", 3, 1.0),
    ])];
    let data = made(&lenient, json!({"quarantine": false}));
    assert_eq!(data.rows.len(), 1);
    assert_eq!(data.report.dropped_by_reason[&Reason::NoTokenIds], 1);
    // What was cut off before the first token is one too, for the agent may have seen some of it; what failed is none.
    let cut = |outcome: &str| {
        let told = json!({"agentlightning.gateway.outcome": outcome, "gen_ai.request.type": "chat",
            "agentlightning.gateway.untrainable": outcome});
        let mut cut = span("b", "", "litellm_request", 2, told);
        cut.status.status_code = StatusCode::Error;
        made(&[trace(vec![good.clone(), cut, reward("r", "", 3, 1.0)])], json!({})).rows.len()
    };
    assert_eq!((cut("disconnected"), cut("failed")), (0, 1));
    // A call that failed and gave the agent nothing is no gap.
    let mut failed = span("b", "", LLM, 2, json!({"gen_ai.request.model": "m"}));
    failed.status.status_code = StatusCode::Error;
    let data = made(
        &[trace(vec![good.clone(), failed, call("c", "", 3, &[1], &[3]), reward("r", "", 4, 1.0)])],
        json!({}),
    );
    assert_eq!((data.rows.len(), data.report.dropped[0].reason), (2, Reason::CallFailed));
}

#[test]
fn repeated_identical_calls_are_kept() {
    let spans = vec![
        call("same", "", 1, &[1], &[2]),
        span(
            "again",
            "",
            LLM,
            2,
            json!({"gen_ai.response.id": "same", "prompt_token_ids": [1], "response_token_ids": [2]}),
        ),
        reward("r", "", 3, 1.0),
    ];
    assert_eq!(made(&[trace(spans)], json!({})).rows.len(), 2);
}

#[test]
fn rewards_find_their_calls_by_link_then_parent_then_order() {
    let calls = || {
        vec![
            agent("A", "", 1, "A"),
            agent("B", "", 2, "B"),
            call("a1", "A", 3, &[1], &[2]),
            call("b1", "B", 4, &[3], &[4]),
            call("b2", "B", 5, &[5], &[6]),
        ]
    };
    let with = |more: Vec<Span>| {
        let mut spans = calls();
        spans.extend(more);
        earned(spans, json!({"assigner": "matched"}))
    };
    let linked = |key: &str, value: &str| {
        let mut span = reward("r", "", 6, 0.5);
        span.attributes.insert("agentlightning.link.0.key_match".to_owned(), key.into());
        span.attributes.insert("agentlightning.link.0.value_match".to_owned(), value.into());
        span
    };
    let a1 = pairs(&[("a1", Some(0.5)), ("b1", None), ("b2", None)]);
    let b1 = pairs(&[("a1", None), ("b1", Some(0.5)), ("b2", None)]);
    let b2 = pairs(&[("a1", None), ("b1", None), ("b2", Some(0.5))]);
    assert_eq!(with(vec![linked("gen_ai.response.id", "b1")]), b1);
    assert_eq!(with(vec![linked("span_id", "A")]), a1, "the last call of what is linked");
    assert_eq!(with(vec![reward("r", "A", 6, 0.5)]), a1, "the agent that it was given in");
    assert_eq!(with(vec![reward("r", "b1", 6, 0.5)]), b1, "the call that it was given in");
    assert_eq!(with(vec![reward("r", "", 6, 0.5)]), b2, "the newest");
    assert_eq!(with(vec![reward("r", "", 5, 0.25), reward("s", "", 6, 0.5)]), b2, "the last of several");

    let mut spans = calls();
    spans.extend([linked("span_id", "nobody"), reward("early", "", 0, 1.0)]);
    let data = read_rollout(&trace(spans), &options(json!({}))).unwrap();
    let reasons: Vec<(&str, &str)> =
        data.reward_report.unmatched.iter().map(|u| (u.span_id.as_str(), u.reason.as_str())).collect();
    assert_eq!(reasons, [("early", "no call came before it"), ("r", "no call is what it links to")]);
}

#[test]
fn a_sequence_of_rewards_goes_to_the_steps_and_a_mismatch_is_told() {
    let steps = |rewards: Value| {
        vec![
            call("a", "", 1, &[1], &[2]),
            call("b", "", 2, &[3], &[4]),
            span("r", "", "agentlightning.annotation", 3, json!({"agentlightning.reward": rewards})),
        ]
    };
    let matched = json!({"assigner": "matched"});
    assert_eq!(
        earned(steps(json!([0.1, 0.2])), matched.clone()),
        pairs(&[("a", Some(0.1)), ("b", Some(0.2))])
    );
    assert_eq!(earned(steps(json!([0.1])), matched.clone()), pairs(&[("a", Some(0.1)), ("b", None)]));
    let named = json!({
        "agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.75,
        "agentlightning.reward.1.name": "step.0", "agentlightning.reward.1.value": 0.5,
        "agentlightning.reward.2.name": "step.1", "agentlightning.reward.2.value": 0.25,
    });
    let mut spans = steps(json!([]));
    spans[2] = span("r", "", "agentlightning.annotation", 3, named);
    assert_eq!(earned(spans.clone(), matched.clone()), pairs(&[("a", Some(0.5)), ("b", Some(0.25))]));
    assert_eq!(made(&[trace(spans)], json!({})).rows[0].reward, Some(0.75), "what counts of all is the sum");
    let data = read_rollout(&trace(steps(json!([0.1, 0.2, 0.3]))), &options(matched)).unwrap();
    assert_eq!(data.calls[1].reward, Some(0.2));
    let mismatch = &data.reward_report.mismatches[0];
    assert_eq!((mismatch.rewards, mismatch.steps), (3, 2));
    assert_eq!(data.reward_report.unmatched[0].value, 0.3);

    let one = json!({"agentlightning.reward.0.name": "step.1", "agentlightning.reward.0.value": 0.5});
    let mut spans = steps(json!([]));
    spans[2] = span("r", "", "agentlightning.annotation", 3, one);
    let data = read_rollout(&trace(spans), &options(json!({"assigner": "matched"}))).unwrap();
    let rewards: Vec<Option<f64>> = data.calls.iter().map(|judged| judged.reward).collect();
    assert_eq!(rewards, [None, Some(0.5)], "a step is meant by its number, whatever others have none");
    let mismatch = &data.reward_report.mismatches[0];
    assert_eq!((mismatch.rewards, mismatch.steps), (1, 2));
}

#[test]
fn what_is_no_finite_number_is_no_reward() {
    let judged = |attributes: Value| {
        vec![
            call("a", "", 1, &[1], &[2]),
            reward("early", "", 2, 1.0),
            call("b", "", 3, &[3], &[4]),
            span("r", "", "agentlightning.annotation", 4, attributes),
        ]
    };
    let primary = |value: &str| json!({"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value});
    for (attributes, value) in [
        (primary("NaN"), "NaN"),
        (primary(" nan "), "NaN"),
        (primary("Infinity"), "inf"),
        (primary("-inf"), "-inf"),
        (primary("1e999"), "inf"),
        (json!({"reward": "nan"}), "NaN"),
        (json!({"agentops.task.output": r#"{"type": "reward", "value": "nan"}"#}), "NaN"),
    ] {
        let spans = judged(attributes);
        for assigner in ["matched", "identical", "per_agent", "last_call"] {
            let earned = earned(spans.clone(), json!({"assigner": assigner}));
            // An earlier reward is not the final one because the final one is spoilt.
            let first = if matches!(assigner, "matched" | "per_agent") { Some(1.0) } else { None };
            let second = first.filter(|_| assigner == "per_agent");
            assert_eq!(earned, pairs(&[("a", first), ("b", second)]), "{value} {assigner}");
        }
        let data = made(&[ended("ro", "x", "succeeded", "succeeded", spans.clone())], json!({}));
        let [dropped] = data.report.dropped.as_slice() else { panic!("{:?}", data.report) };
        let detail = format!("its reward cannot be used: {value} is no finite number");
        assert_eq!((data.rows.len(), dropped.reason, &dropped.detail), (0, Reason::UnusableReward, &detail));
        let [unusable] = data.report.rewards["ro"].unusable.as_slice() else { panic!("{:?}", data.report) };
        assert_eq!((unusable.span_id.as_str(), unusable.dimension.as_str()), ("r", "primary"));
        let options: TripletOptions = serde_json::from_value(json!({})).unwrap();
        let triplets = spans_to_triplets(&spans, &options).unwrap();
        assert_eq!(triplets.iter().map(|triplet| triplet.reward).collect::<Vec<_>>(), [Some(1.0), None]);
        let mut again = spans;
        again.push(reward("last", "", 5, 0.5));
        assert_eq!(
            made(&[trace(again)], json!({})).rows[0].reward,
            Some(0.5),
            "one that is given after it counts"
        );
    }

    // What is usable of a reward stays so.
    let mixed = json!({
        "agentlightning.reward.0.name": "total", "agentlightning.reward.0.value": "NaN",
        "agentlightning.reward.1.name": "style", "agentlightning.reward.1.value": 0.25,
    });
    let data = |given: Value| made(&[trace(judged(mixed.clone()))], given);
    assert_eq!(data(json!({"dimension": "style"})).rows[0].reward, Some(0.25));
    assert_eq!(
        data(json!({})).report.dropped[0].reason,
        Reason::UnusableReward,
        "it is not another dimension's"
    );
    let steps = json!({
        "agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": "NaN",
        "agentlightning.reward.1.name": "step.0", "agentlightning.reward.1.value": 0.5,
        "agentlightning.reward.2.name": "step.1", "agentlightning.reward.2.value": "NaN",
    });
    let data = read_rollout(&trace(judged(steps)), &options(json!({"assigner": "matched"}))).unwrap();
    assert_eq!(data.identity.outcome, Outcome::UnusableReward);
    assert_eq!(data.calls.iter().map(|judged| judged.reward).collect::<Vec<_>>(), [Some(0.5), None]);
    assert_eq!(data.reward_report.unusable.len(), 2);
    let of_calls = data.calls.iter().flat_map(|judged| &judged.rewards).flat_map(|reward| &reward.dimensions);
    assert!(
        of_calls.chain(&data.identity.dimensions).all(|dimension| dimension.value.is_finite()),
        "{data:?}"
    );
}

#[test]
fn a_dimension_of_rewards_can_be_chosen() {
    let judged = json!({
        "agentlightning.reward.0.name": "total", "agentlightning.reward.0.value": 1.0,
        "agentlightning.reward.1.name": "style", "agentlightning.reward.1.value": 0.25,
    });
    let spans = vec![call("a", "", 1, &[1], &[2]), span("r", "", "agentlightning.annotation", 2, judged)];
    let of = |given: Value| made(&[trace(spans.clone())], given).rows.first().and_then(|row| row.reward);
    assert_eq!(of(json!({})), Some(1.0));
    assert_eq!(of(json!({"dimension": "style"})), Some(0.25));
    let data = made(&[trace(spans.clone())], json!({"dimension": "taste"}));
    assert_eq!((data.rows.len(), data.report.dropped[0].reason), (0, Reason::MissingReward));
}

#[test]
fn the_gateway_s_tokens_count_and_the_tracer_s_agent() {
    let tracer = span(
        "t",
        "A",
        LLM,
        3,
        json!({
            "gen_ai.response.id": "x", "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "hi",
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "ho",
            "prompt_token_ids": [9], "response_token_ids": [9],
        }),
    );
    let gateway = json!({
        "agentlightning.gateway.outcome": "answered", "gen_ai.operation.name": "chat",
        "gen_ai.response.id": "x", "prompt_token_ids": [1, 2], "response_token_ids": [3],
        "gen_ai.completion.0.role": "assistant", "gen_ai.completion.1.role": "assistant",
        "agentlightning.gateway.choices.0.token_ids": [3], "agentlightning.gateway.choices.0.logprobs": [-0.5],
        "agentlightning.gateway.choices.1.token_ids": [4, 5],
    });
    // Whoever of the two comes first.
    for (place, outermost) in [(1, "g"), (4, "t")] {
        let gateway = span("g", "", "litellm_request", place, gateway.clone());
        let calls = read_calls(&[agent("A", "", 2, "A"), tracer.clone(), gateway]);
        let [call] = calls.as_slice() else { panic!("{} calls", calls.len()) };
        assert_eq!((call.dialect, call.agent.as_deref()), (Dialect::Gateway, Some("A")));
        assert_eq!((call.prompt_token_ids.as_slice(), call.response_token_ids()), (&[1, 2][..], &[3][..]));
        assert_eq!(call.choices[0].logprobs, [-0.5]);
        assert_eq!(call.choices[1].token_ids, [4, 5], "of every choice");
        assert_eq!(call.messages, [Message::text("user", "hi")]);
        assert_eq!((call.span_id.as_str(), call.joined.len()), (outermost, 1));
    }
}

#[test]
fn calls_made_to_judge_are_left_out_and_told() {
    let spans =
        vec![call("a", "", 1, &[1], &[2]), reward("r", "", 2, 1.0), call("judge", "r", 3, &[3], &[4, 5])];
    let data = made(&[trace(spans.clone())], json!({}));
    let [dropped] = data.report.dropped.as_slice() else { panic!("{:?}", data.report.dropped) };
    assert_eq!(
        (data.rows.len(), dropped.reason, dropped.span_id.as_deref(), dropped.tokens),
        (1, Reason::ForReward, Some("judge"), 2)
    );
    let data = made(&[trace(spans)], json!({"exclude_llm_call_in_reward": false}));
    assert_eq!((data.rows.len(), data.report.dropped.len()), (2, 0));
}

#[test]
fn a_call_that_parts_with_the_one_before_is_counted_and_told() {
    let spans = vec![
        call("a", "", 1, &[1, 2], &[3, 4]),
        call("b", "", 2, &[1, 2, 3, 9, 5], &[6]),
        reward("r", "", 3, 1.0),
    ];
    let report = made(&[trace(spans)], json!({})).report;
    let [mismatched] = report.mismatched.as_slice() else { panic!("{:?}", report.mismatched) };
    assert_eq!((mismatched.span_id.as_str(), mismatched.after.as_str(), mismatched.common), ("b", "a", 3));
    assert_eq!(report.mismatches, [(mismatched.kind, 1)].into());
}

#[test]
fn odd_traces_never_fail() {
    let circle =
        vec![call("a", "b", 1, &[1], &[2]), call("b", "a", 2, &[1, 2, 3], &[4]), reward("r", "r", 3, 1.0)];
    let data = made(&[trace(circle)], json!({}));
    assert_eq!(data.report.calls, 2);
    let data = made(&[trace(Vec::new())], json!({}));
    assert_eq!((data.report.rollouts, data.report.dropped[0].reason), (1, Reason::MissingReward));
    let orphans = vec![call("a", "lost", 1, &[1], &[2]), reward("r", "gone", 2, 1.0)];
    assert_eq!(made(&[trace(orphans)], json!({})).rows.len(), 1);
}

#[test]
fn conversations_and_pairs() {
    let chat = |id: &str, place, said: &[(&str, &str)], answer: &str| {
        let mut attributes =
            json!({"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": answer});
        for (at, (role, text)) in said.iter().enumerate() {
            attributes[format!("gen_ai.prompt.{at}.role")] = (*role).into();
            attributes[format!("gen_ai.prompt.{at}.content")] = (*text).into();
        }
        span(id, "", LLM, place, attributes)
    };
    let rollout = |id: &str, answer: &str, value| {
        let spans = vec![
            chat("1", 1, &[("user", "q")], answer),
            chat("2", 2, &[("user", "q"), ("assistant", answer), ("user", "sure?")], "yes"),
            reward("r", "", 3, value),
        ];
        read_rollout(&ended(id, "q", "succeeded", "succeeded", spans), &options(json!({}))).unwrap()
    };
    let (good, bad) = (rollout("good", "right", 1.0), rollout("bad", "wrong", 0.0));
    let told = conversations(&good);
    assert_eq!(told.len(), 1, "the first call is carried on by the second");
    let contents: Vec<&Value> = told[0].messages.iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, ["q", "right", "sure?", "yes"]);
    let both = [bad, good];
    let found = preference_pairs(&both, 0.5);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].prompt, [json!({"role": "user", "content": "q"})]);
    assert_eq!(
        (&found[0].chosen[0]["content"], &found[0].rejected[0]["content"]),
        (&json!("right"), &json!("wrong"))
    );
    assert!(preference_pairs(&both, 2.0).is_empty());
}

#[test]
fn whatever_has_a_prompt_and_a_response_is_read_where_nothing_else_is() {
    let spans = [span("x", "", "step", 1, json!({"input": "q", "output": "a"})), reward("r", "", 2, 0.5)];
    let found = auto_triplets(&spans, &serde_json::from_value(json!({})).unwrap()).unwrap();
    assert!(found.dialects.is_empty());
    assert_eq!(found.triplets.len(), 1);
    assert_eq!(found.triplets[0].prompt["raw_content"], json!([{"role": "user", "content": "q"}]));
    assert_eq!(found.triplets[0].reward, Some(0.5));
}

#[test]
fn agents_are_chosen_by_role_and_labelled_by_the_rule_of_the_highest_priority() {
    let with_role = |id: &str, place, name: &str, role: &str| {
        span(id, "", "agent", place, json!({"agent.name": name, "agent.role": role}))
    };
    let spans = || {
        vec![
            with_role("A", 1, "writer", "author"),
            with_role("B", 2, "reader", "critic"),
            with_role("C", 3, "editor", "critic"),
            call("a", "A", 4, &[1], &[2]),
            call("b", "B", 5, &[3], &[4]),
            call("c", "C", 6, &[5], &[6]),
            reward("r", "", 7, 1.0),
        ]
    };
    let labels = |agents: Value| -> Vec<(String, Option<String>)> {
        let data = made(&[trace(spans())], json!({"agents": agents}));
        data.rows.into_iter().map(|row| (row.calls[0].span_id.clone(), row.agent)).collect()
    };
    let pair = |id: &str, label: &str| (id.to_owned(), Some(label.to_owned()));
    assert_eq!(labels(json!({"include": ["role:critic"]})), [pair("b", "reader"), pair("c", "editor")]);
    assert_eq!(labels(json!({"include": ["role:critic"], "exclude": ["re:^edit"]})), [pair("b", "reader")]);
    let rules = json!({"include": [
        {"matches": "role:critic", "label": "judge"},
        {"matches": "edit*", "label": "policy", "priority": 1},
    ]});
    assert_eq!(labels(rules), [pair("b", "judge"), pair("c", "policy")]);
}

#[test]
fn a_row_that_is_too_long_is_cut_between_calls_and_opens_with_masked_context() {
    let spans = vec![
        call("a", "", 1, &[1, 2, 3], &[4, 5]),
        call("b", "", 2, &[1, 2, 3, 4, 5, 6], &[7, 8]),
        call("c", "", 3, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10; 6]),
        reward("r", "", 4, 1.0),
    ];
    let data = made(&[trace(spans)], json!({"max_length": 5}));
    let rows: Vec<(&[u32], &[u8], usize)> =
        data.rows.iter().map(|row| (row.token_ids.as_slice(), row.mask.as_slice(), row.part)).collect();
    let first: (&[u32], &[u8], usize) = (&[1, 2, 3, 4, 5], &[0, 0, 0, 1, 1], 0);
    let second: (&[u32], &[u8], usize) = (&[4, 5, 6, 7, 8], &[0, 0, 0, 1, 1], 1);
    assert_eq!(rows, [first, second]);
    let [dropped] = data.report.dropped.as_slice() else { panic!("{:?}", data.report.dropped) };
    assert_eq!(
        (dropped.reason, dropped.span_id.as_deref(), dropped.tokens),
        (Reason::ResponseTooLong, Some("c"), 6)
    );
    assert_eq!(data.report.dropped_by_reason[&Reason::ResponseTooLong], 1);
}

#[test]
fn rewards_of_agents_go_to_their_calls() {
    let spans = || {
        vec![
            agent("A", "", 1, "A"),
            agent("B", "", 2, "B"),
            call("a1", "A", 3, &[1], &[2]),
            call("b1", "B", 4, &[3], &[4]),
            call("a2", "A", 5, &[5], &[6]),
            call("x", "", 6, &[7], &[8]),
            reward("ra", "A", 7, 0.25),
            reward("rb", "B", 8, 0.5),
            reward("r", "", 9, 1.0),
        ]
    };
    let expected = pairs(&[("a1", Some(0.25)), ("b1", Some(0.5)), ("a2", Some(0.25)), ("x", Some(1.0))]);
    assert_eq!(earned(spans(), json!({"assigner": "per_agent"})), expected);
    let expected = pairs(&[("a1", Some(0.125)), ("b1", Some(0.25)), ("a2", Some(0.5)), ("x", Some(1.0))]);
    assert_eq!(earned(spans(), json!({"assigner": {"discounted": {"gamma": 0.5}}})), expected);
    let expected = pairs(&[("a1", None), ("b1", None), ("a2", None), ("x", Some(1.0))]);
    assert_eq!(earned(spans(), json!({"assigner": "last_call"})), expected);
}

#[test]
fn a_reward_may_be_yes_or_no() {
    let judged = |value: Value| {
        let given =
            span("r", "", "agentlightning.annotation", 2, json!({"agentlightning.reward.0.value": value}));
        made(&[trace(vec![call("a", "", 1, &[1], &[2]), given])], json!({})).rows[0].reward
    };
    assert_eq!((judged(json!(true)), judged(json!(false))), (Some(1.0), Some(0.0)));
}
