//! Trees, triplets and rewards on small traces with known answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use agl_trace::{
    Error, RewardMatchPolicy, TraceTree, TripletOptions, prompt_image_urls, spans_to_triplets, tree_to_json,
};
use agl_types::{Span, Triplet};
use serde_json::{Value, json};

const LLM: &str = "openai.chat.completion";

/// A span with an id, a parent ("" for none), a name, a time and attributes.
fn span(id: &str, parent: &str, name: &str, time: (f64, f64), attributes: Value) -> Span {
    let mut span = Span::new(name, "t".repeat(32), id.to_owned(), time.0, time.1);
    span.parent_id = (!parent.is_empty()).then(|| parent.to_owned());
    span.attributes = serde_json::from_value(attributes).unwrap();
    span
}

fn plain(id: &str, parent: &str, time: (f64, f64)) -> Span {
    span(id, parent, id, time, json!({}))
}

fn agent(id: &str, parent: &str, time: (f64, f64), name: &str) -> Span {
    span(id, parent, id, time, json!({"agent.name": name}))
}

fn call(id: &str, parent: &str, time: (f64, f64)) -> Span {
    span(id, parent, LLM, time, json!({"gen_ai.response.id": id}))
}

fn state(id: &str, at: f64, event: &str) -> Span {
    span(id, "", "agentlightning.state", (at, at), json!({"agentlightning.state.event": event}))
}

#[test]
fn what_a_runner_notes_of_the_attempt_is_in_no_tree() {
    let spans = [
        state("s", 0.5, "started"),
        call("a", "", (1.0, 2.0)),
        reward("r", "a", 3.0, 0.5),
        state("e", 4.0, "failed"),
    ];
    assert_eq!(shape(&spans, true), shape(&spans[1..3], true));
    assert_eq!(short(&spans, json!({})), short(&spans[1..3], json!({})));
    assert_eq!(TraceTree::from_spans(&spans[..1]).unwrap_err(), Error::NoSpans);
}

fn reward(id: &str, parent: &str, at: f64, value: f64) -> Span {
    let attributes =
        json!({"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value});
    span(id, parent, "agentlightning.annotation", (at, at), attributes)
}

fn triplets(spans: &[Span], options: Value) -> Vec<Triplet> {
    let options: TripletOptions = serde_json::from_value(options).unwrap();
    spans_to_triplets(spans, &options).unwrap()
}

/// (response id, reward, agent) of every triplet.
fn short(spans: &[Span], options: Value) -> Value {
    triplets(spans, options)
        .into_iter()
        .map(|triplet| {
            json!([triplet.metadata["response_id"], triplet.reward, triplet.metadata["agent_name"]])
        })
        .collect()
}

/// The shape of the tree: `{"id": [children]}`.
fn shape(spans: &[Span], repair: bool) -> Value {
    fn shape_of(node: &Value) -> Value {
        let children: Vec<Value> = node["children"].as_array().unwrap().iter().map(shape_of).collect();
        json!({ node["id"].as_str().unwrap(): children })
    }
    shape_of(&tree_to_json(spans, repair).unwrap())
}

#[test]
fn options_have_the_names_and_defaults_of_the_python_adapter() {
    let defaults: TripletOptions = serde_json::from_str("{}").unwrap();
    assert_eq!(defaults, TripletOptions::default());
    assert!(defaults.repair_hierarchy && defaults.exclude_llm_call_in_reward);
    assert_eq!(defaults.llm_call_match, r"openai\.chat\.completion");
    let options = json!({"_skip_empty_token_spans": true, "reward_match": "first_sibling"});
    let options: TripletOptions = serde_json::from_value(options).unwrap();
    assert!(options.skip_empty_token_spans);
    assert_eq!(options.reward_match, RewardMatchPolicy::FirstSibling);
    assert!(serde_json::from_value::<TripletOptions>(json!({"reward_match": "best"})).is_err());
    assert!(serde_json::from_value::<TripletOptions>(json!({"repair": true})).is_err());
}

#[test]
fn calls_made_while_computing_a_reward_are_left_out() {
    let spans = [
        plain("r", "", (0.0, 20.0)),
        span(
            "rw",
            "r",
            "agentlightning.operation",
            (1.0, 5.0),
            json!({"agentlightning.operation.name": "agentlightning.reward"}),
        ),
        call("l1", "rw", (2.0, 3.0)),
        call("l2", "r", (6.0, 7.0)),
        reward("an", "r", 8.0, 0.5),
    ];
    assert_eq!(short(&spans, json!({})), json!([["l2", 0.5, "*"]]));
    assert_eq!(
        short(&spans, json!({"exclude_llm_call_in_reward": false})),
        json!([["l1", null, "*"], ["l2", 0.5, "*"]])
    );
    assert_eq!(short(&spans, json!({"reward_match": "first_sibling"})), json!([["l2", 0.5, "*"]]));
}

#[test]
fn rewards_fill_calls_from_the_newest_back_and_the_surplus_is_dropped() {
    let mut spans = vec![
        plain("r", "", (0.0, 20.0)),
        call("l1", "r", (1.0, 2.0)),
        call("l2", "r", (3.0, 4.0)),
        reward("a", "r", 5.0, 0.1),
        reward("b", "r", 6.0, 0.2),
        reward("c", "r", 7.0, 0.3),
    ];
    assert_eq!(short(&spans, json!({})), json!([["l1", 0.2, "*"], ["l2", 0.1, "*"]]));
    // The order of arrival does not matter where time tells.
    spans[1..].reverse();
    assert_eq!(short(&spans, json!({})), json!([["l2", 0.1, "*"], ["l1", 0.2, "*"]]));
}

#[test]
fn without_times_the_sequence_decides() {
    let mut spans = vec![
        plain("r", "", (0.0, 20.0)),
        call("l1", "r", (1.0, 2.0)),
        reward("a", "r", 5.0, 0.1),
        call("l2", "r", (3.0, 4.0)),
        reward("b", "r", 6.0, 0.2),
    ];
    for (sequence_id, span) in (1..).zip(&mut spans) {
        span.sequence_id = sequence_id;
        span.start_time = None;
        span.end_time = None;
    }
    assert_eq!(short(&spans, json!({})), json!([["l1", 0.1, "*"], ["l2", 0.2, "*"]]));
}

#[test]
fn a_reward_given_during_a_call_is_not_the_calls() {
    let spans = [plain("r", "", (0.0, 9.0)), call("l", "r", (1.0, 5.0)), reward("a", "r", 3.0, 1.0)];
    assert_eq!(short(&spans, json!({})), json!([["l", null, "*"]]));
}

#[test]
fn a_sibling_policy_never_reaches_into_another_agent() {
    let spans = [
        plain("r", "", (0.0, 20.0)),
        call("far", "r", (1.0, 2.0)),
        agent("a", "r", (3.0, 6.0), "A"),
        call("near", "a", (4.0, 5.0)),
        reward("rw", "r", 7.0, 1.0),
    ];
    assert_eq!(
        short(&spans, json!({"reward_match": "first_sibling"})),
        json!([["far", 1.0, "*"], ["near", null, "A"]])
    );
    assert_eq!(short(&spans, json!({})), json!([["far", null, "*"], ["near", 1.0, "A"]]));
}

#[test]
fn a_call_within_a_call_needs_an_id_of_its_own() {
    let anonymous = |id: &str, parent: &str, time| span(id, parent, LLM, time, json!({}));
    let spans = [
        plain("r", "", (0.0, 20.0)),
        anonymous("o", "r", (1.0, 9.0)),
        anonymous("i", "o", (2.0, 3.0)),
        span("i2", "o", LLM, (4.0, 5.0), json!({"gen_ai.response.id": "z"})),
    ];
    assert_eq!(short(&spans, json!({})), json!([[null, null, "*"], ["z", null, "*"]]));
}

#[test]
fn a_response_counts_once_even_across_agents() {
    let twice =
        |id: &str, parent: &str, time| span(id, parent, LLM, time, json!({"gen_ai.response.id": "same"}));
    let spans = [
        plain("r", "", (0.0, 20.0)),
        agent("a", "r", (1.0, 5.0), "A"),
        twice("l1", "a", (2.0, 3.0)),
        agent("b", "r", (6.0, 9.0), "B"),
        twice("l2", "b", (7.0, 8.0)),
    ];
    assert_eq!(short(&spans, json!({})), json!([["same", null, "A"]]));
}

#[test]
fn lost_parents_come_under_a_virtual_root() {
    let spans = [call("l1", "g1", (1.0, 2.0)), call("l2", "g2", (4.0, 7.0))];
    assert_eq!(shape(&spans, false), json!({"virtual-root": [{"g1": [{"l1": []}]}, {"g2": [{"l2": []}]}]}));
    let tree = tree_to_json(&spans, false).unwrap();
    assert_eq!(tree["span"]["name"], "virtual-root");
    assert_eq!(tree["children"][1]["span"]["name"], "agentlightning.virtual");
    assert_eq!(tree["children"][1]["span"]["start_time"], 4.0);
    assert_eq!(tree["children"][1]["span"]["end_time"], 7.0);
    assert_eq!((&tree["span"]["start_time"], &tree["span"]["end_time"]), (&json!(1.0), &json!(7.0)));
    assert_eq!(triplets(&spans, json!({})).len(), 2);
}

#[test]
fn a_lone_lost_parent_is_the_root_and_keeps_its_id() {
    let spans = [call("child", "root", (2.0, 3.0)), plain("root", "lost", (1.0, 4.0))];
    assert_eq!(shape(&spans, false), json!({"lost": [{"root": [{"child": []}]}]}));
    let spans = [call("child", "root", (2.0, 3.0)), plain("root", "", (1.0, 4.0))];
    assert_eq!(shape(&spans, false), json!({"root": [{"child": []}]}));
}

#[test]
fn circles_beside_a_root_are_dropped_and_circles_alone_are_an_error() {
    let circle = [plain("a", "b", (0.0, 1.0)), plain("b", "a", (0.0, 1.0))];
    let error = TraceTree::from_spans(&circle).unwrap_err();
    assert_eq!(error, Error::NoRoot);
    assert_eq!(error.to_string(), "No root spans found in the trace.");
    let spans = [plain("r", "", (0.0, 1.0)), plain("self", "self", (0.0, 1.0))];
    assert_eq!(shape(&spans, true), json!({"r": []}));
    assert_eq!(TraceTree::from_spans(&[]).unwrap_err(), Error::NoSpans);
}

#[test]
fn of_spans_with_one_id_the_last_counts() {
    let spans = [plain("r", "", (0.0, 9.0)), call("l", "r", (1.0, 2.0)), agent("l", "r", (1.0, 2.0), "A")];
    assert_eq!(shape(&spans, false), json!({"r": [{"l": []}]}));
    assert!(triplets(&spans, json!({})).is_empty());
}

#[test]
fn repair_wants_slack() {
    let spans =
        [plain("root", "", (0.0, 20.0)), plain("p", "root", (1.0, 9.0)), call("q", "root", (1.0, 9.0))];
    assert_eq!(shape(&spans, true), json!({"root": [{"p": []}, {"q": []}]}));
}

#[test]
fn repair_finds_the_closest_container() {
    let spans = [
        plain("root", "", (0.0, 20.0)),
        plain("p", "root", (1.0, 9.0)),
        plain("pp", "p", (2.0, 8.0)),
        call("q", "root", (3.0, 4.0)),
    ];
    assert_eq!(shape(&spans, true), json!({"root": [{"p": [{"pp": [{"q": []}]}]}]}));
    assert_eq!(shape(&spans, false), json!({"root": [{"p": [{"pp": []}]}, {"q": []}]}));
}

#[test]
fn repair_goes_down_a_chain_of_only_children() {
    let spans = [
        plain("root", "", (0.0, 20.0)),
        plain("s", "root", (0.0, 19.0)),
        plain("p", "s", (1.0, 9.0)),
        call("q", "s", (3.0, 4.0)),
    ];
    assert_eq!(shape(&spans, true), json!({"root": [{"s": [{"p": [{"q": []}]}]}]}));
}

#[test]
fn repair_reaches_a_session_beside_a_reward_of_its_own_trace() {
    let spans = [
        span("s", "", "x.session", (0.0, 20.0), json!({"agentops.span.kind": "session"})),
        agent("a", "s", (1.0, 9.0), "A"),
        call("l", "s", (3.0, 4.0)),
        reward("rw", "", 21.0, 1.0),
    ];
    assert_eq!(short(&spans, json!({"agent_match": "^A$"})), json!([["l", 1.0, "A"]]));
    assert_eq!(short(&spans, json!({"agent_match": "^A$", "repair_hierarchy": false})), json!([]));
}

#[test]
fn repair_leaves_an_agent_its_own_children() {
    // Agent A calls the model itself while its sub-agent B is at work.
    let spans = [
        plain("root", "", (0.0, 20.0)),
        agent("ag", "root", (1.0, 9.0), "A"),
        agent("ag2", "ag", (2.0, 8.0), "B"),
        call("l", "ag2", (3.0, 4.0)),
        call("l2", "ag", (5.0, 6.0)),
    ];
    assert_eq!(short(&spans, json!({})), json!([["l", null, "B"], ["l2", null, "A"]]));
    assert_eq!(short(&spans, json!({"agent_match": "A"})), json!([["l2", null, "A"]]));
    assert_eq!(short(&spans, json!({"agent_match": "B"})), json!([["l", null, "B"]]));
}

#[test]
fn a_child_that_outlives_its_parent_captures_nothing() {
    let spans = [
        plain("root", "", (0.0, 20.0)),
        call("l", "root", (2.0, 4.0)),
        plain("tool", "l", (1.0, 9.0)),
        plain("other", "root", (10.0, 11.0)),
    ];
    assert_eq!(shape(&spans, true), json!({"root": [{"l": [{"tool": []}]}, {"other": []}]}));
    assert_eq!(triplets(&spans, json!({})).len(), 1);
}

#[test]
fn spans_without_times_are_left_where_they_are() {
    let mut spans =
        vec![plain("root", "", (0.0, 20.0)), plain("p", "root", (1.0, 9.0)), call("q", "root", (3.0, 4.0))];
    spans[0].start_time = None;
    spans[1].end_time = None;
    assert_eq!(shape(&spans, true), json!({"root": [{"p": []}, {"q": []}]}));
    assert_eq!(triplets(&spans, json!({})).len(), 1);
}

#[test]
fn a_deep_chain_does_not_overflow_the_stack() {
    let spans: Vec<Span> = (0..50_000)
        .map(|depth| {
            let parent = if depth == 0 { String::new() } else { format!("{}", depth - 1) };
            call(&depth.to_string(), &parent, (0.0, 1.0))
        })
        .collect();
    assert_eq!(triplets(&spans, json!({})).len(), 50_000);
}

#[test]
fn every_way_of_naming_an_agent_is_read() {
    let named = |name: &str, attributes: Value| {
        let span = span("x", "", name, (0.0, 1.0), attributes);
        agl_trace::agent_name(&span).map(str::to_owned)
    };
    let is = |name: &str| Some(name.to_owned());
    assert_eq!(named("x", json!({"agent.name": "a", "executor.id": "e"})), is("a"));
    assert_eq!(named("x", json!({"agentops.span.kind": "agent", "operation.name": "o"})), is("o"));
    assert_eq!(named("x", json!({"agentops.span.kind": "session", "operation.name": "o"})), None);
    assert_eq!(named("x", json!({"recipient_agent_type": "r"})), is("r"));
    assert_eq!(named("x", json!({"langchain.chain.type": "RunnableSequence"})), is("RunnableSequence"));
    assert_eq!(named("x", json!({"executor.id": "e"})), is("e"));
    assert_eq!(named("x", json!({"type": "agent", "agentlightning.operation.input.name": "w"})), is("w"));
    assert_eq!(named("x", json!({"agentlightning.operation.input.name": "w"})), None);
    assert_eq!(named("langchain.Chain.invoke", json!({"lc_name": "c"})), is("c"));
    assert_eq!(named("x", json!({"lc_name": "c"})), None);
}

#[test]
fn a_call_has_the_label_of_the_agent_around_it_not_its_own() {
    let mut own = call("l", "a", (2.0, 3.0));
    own.attributes.insert("agent.name".to_owned(), "own".into());
    let spans = [agent("a", "", (1.0, 9.0), "A"), own];
    assert_eq!(short(&spans, json!({})), json!([["l", null, "A"]]));
}

#[test]
fn patterns_are_those_of_python() {
    let spans = [agent("a", "", (1.0, 9.0), "writer"), call("l", "a", (2.0, 3.0))];
    assert_eq!(triplets(&spans, json!({"agent_match": "rite"})).len(), 1);
    assert_eq!(triplets(&spans, json!({"agent_match": "^(?!writer)"})).len(), 0);
    assert_eq!(triplets(&spans, json!({"llm_call_match": "chat"})).len(), 1);
    let options = TripletOptions { agent_match: Some("(".to_owned()), ..TripletOptions::default() };
    let error = spans_to_triplets(&spans, &options).unwrap_err();
    assert!(error.to_string().starts_with("agent_match is not a regular expression"), "{error}");
}

/// A chat call as an OpenAI instrumentation with token ids records it.
fn recorded_call() -> Span {
    span(
        "l",
        "s",
        LLM,
        (1.0, 2.0),
        json!({
            "gen_ai.request.type": "chat", "gen_ai.system": "OpenAI", "gen_ai.request.model": "smollm2",
            "gen_ai.request.temperature": 0.5, "gen_ai.request.streaming": false,
            "gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": "be brief",
            "gen_ai.prompt.1.role": "user", "gen_ai.prompt.1.content": "hi",
            "gen_ai.request.functions.0.name": "add", "gen_ai.request.functions.0.parameters": "{}",
            "gen_ai.response.id": "cmpl-1", "gen_ai.response.model": "smollm2",
            "gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 2, "gen_ai.usage.total_tokens": 5,
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "hello",
            "gen_ai.completion.0.finish_reason": "stop",
            "prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5],
            "logprobs.content": r#"[{"token":"hel","logprob":-0.5,"bytes":null,"top_logprobs":[]}]"#,
        }),
    )
}

#[test]
fn a_recorded_call_becomes_prompt_response_and_metadata() {
    let session = span("s", "", "x.session", (0.0, 9.0), json!({"agentops.span.kind": "session"}));
    let mut tool = plain("t", "l", (1.5, 1.6));
    tool.name = "tool_call.add".to_owned();
    let spans = [tool, recorded_call(), reward("rw", "s", 3.0, 0.5), session];
    let triplets = triplets(&spans, json!({}));
    assert_eq!(
        serde_json::to_value(&triplets).unwrap(),
        json!([{
            "prompt": {
                "token_ids": [1, 2, 3],
                "raw_content": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
                "image_urls": [],
            },
            "response": {
                "token_ids": [4, 5],
                "raw_content": [{"role": "assistant", "content": "hello", "finish_reason": "stop"}],
                "logprobs": [{"token": "hel", "logprob": -0.5, "bytes": null, "top_logprobs": []}],
            },
            "reward": 0.5,
            "metadata": {
                "request": {
                    "type": "chat", "model": "smollm2", "temperature": 0.5, "streaming": false,
                    "functions": [{"name": "add", "parameters": "{}"}],
                },
                "response": {"id": "cmpl-1", "model": "smollm2"},
                "response_id": "cmpl-1",
                "agent_name": "*",
            },
        }])
    );
}

#[test]
fn a_streamed_call_has_no_token_ids_and_is_skipped_only_when_asked() {
    let mut call = recorded_call();
    for key in ["prompt_token_ids", "response_token_ids", "logprobs.content"] {
        call.attributes.shift_remove(key);
    }
    let spans = [call];
    let kept = triplets(&spans, json!({}));
    assert_eq!(kept[0].prompt["token_ids"], json!([]));
    assert_eq!(kept[0].response["token_ids"], json!([]));
    assert!(kept[0].response.get("logprobs").is_none());
    assert!(triplets(&spans, json!({"skip_empty_token_spans": true})).is_empty());
}

#[test]
fn a_call_recorded_as_an_operation_is_read() {
    let spans = [span(
        "w",
        "",
        "openai.chat.completions.create",
        (1.0, 2.0),
        json!({
            "agentlightning.operation.input.messages.0.role": "user",
            "agentlightning.operation.input.messages.0.content": "hi",
            "agentlightning.operation.input.model": "m",
            "agentlightning.operation.output.id": "cmpl-2",
            "agentlightning.operation.output.prompt_token_ids": [1, 2],
            "agentlightning.operation.output.choices.0.message.content": "hello",
            "agentlightning.operation.output.choices.0.token_ids": [3],
            "weave.noise": 1,
        }),
    )];
    let triplets = triplets(&spans, json!({}));
    assert_eq!(
        serde_json::to_value(&triplets[0]).unwrap(),
        json!({
            "prompt": {"token_ids": [1, 2], "raw_content": [{"role": "user", "content": "hi"}], "image_urls": []},
            "response": {"token_ids": [3], "raw_content": [{"message": {"content": "hello"}, "token_ids": [3]}]},
            "reward": null,
            "metadata": {
                "request": {"model": "m"}, "response": {"id": "cmpl-2"}, "response_id": "cmpl-2", "agent_name": "*",
            },
        })
    );
}

#[test]
fn odd_attributes_cost_nothing() {
    let mut call = recorded_call();
    for (key, value) in [
        ("gen_ai.prompt.prompt_filter_results", json!("filtered")),
        ("gen_ai.completion", json!("odd")),
        ("agentlightning.reward_model", json!("m")),
        ("logprobs.content", json!("not json")),
        ("prompt_token_ids", json!(["x"])),
        ("agentlightning.operation.output.prompt_token_ids", json!([7])),
    ] {
        call.attributes.insert(key.to_owned(), value);
    }
    let triplets = triplets(&[call], json!({}));
    // Keys beside the numbers turn the list into an object.
    assert_eq!(triplets[0].prompt["raw_content"]["0"]["role"], "system");
    assert_eq!(triplets[0].prompt["raw_content"]["prompt_filter_results"], "filtered");
    assert_eq!(triplets[0].prompt["token_ids"], json!([7]));
    assert!(triplets[0].response.get("logprobs").is_none());
    assert_eq!(triplets[0].reward, None);
}

#[test]
fn a_final_reward_overrules_the_last_call() {
    let spans = [call("l1", "", (1.0, 2.0)), call("l2", "", (3.0, 4.0)), reward("rw", "", 5.0, 0.1)];
    assert_eq!(short(&spans, json!({"final_reward": 0.9})), json!([["l1", null, "*"], ["l2", 0.9, "*"]]));
}

#[test]
fn images_are_found_in_parts_that_are_lists_or_text() {
    let parts = json!([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "u1"}}]);
    let text = |url: &str| json!(json!([{"type": "image_url", "image_url": {"url": url}}]).to_string());
    assert_eq!(prompt_image_urls(&json!([{"content": parts}, {"content": text("u2")}])), ["u1", "u2"]);
    let numbered = json!({"10": {"content": text("u10")}, "2": {"content": text("u2")}, "x": 1});
    assert_eq!(prompt_image_urls(&numbered), ["u2", "u10"]);
    assert_eq!(prompt_image_urls(&json!({"role": "user", "content": parts})), ["u1"]);
    for other in [json!(null), json!("x"), json!([{"role": "user"}, {"content": "not json"}, 3]), json!({})] {
        assert!(prompt_image_urls(&other).is_empty());
    }
}

#[test]
fn a_chat_call_on_the_wire_is_recorded_as_adapters_read_it() {
    let request = json!({
        "model": "smollm2", "temperature": 0.5,
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}],
    });
    let response = json!({
        "id": "cmpl-1", "model": "smollm2-135m", "prompt_token_ids": [1, 2],
        "choices": [{
            "index": 0, "finish_reason": "tool_calls", "token_ids": [3, 4],
            "message": {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]},
            "logprobs": {"content": [{"token": "a", "logprob": -1.0}], "refusal": null},
        }],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    });
    let attributes = agl_trace::chat_attributes(&request, &response);
    assert_eq!(
        Value::Object(attributes.clone()),
        json!({
            "gen_ai.system": "OpenAI", "gen_ai.request.type": "chat", "gen_ai.request.streaming": false,
            "gen_ai.request.model": "smollm2", "gen_ai.request.temperature": 0.5,
            "gen_ai.request.functions.0.name": "add", "gen_ai.request.functions.0.description": "adds",
            "gen_ai.request.functions.0.parameters": r#"{"type":"object"}"#,
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": r#"[{"type":"image_url","image_url":{"url":"u"}}]"#,
            "gen_ai.prompt.1.role": "assistant", "gen_ai.prompt.1.tool_calls.0.id": "c1",
            "gen_ai.prompt.1.tool_calls.0.name": "add", "gen_ai.prompt.1.tool_calls.0.arguments": "{}",
            "gen_ai.prompt.2.role": "tool", "gen_ai.prompt.2.content": "3", "gen_ai.prompt.2.tool_call_id": "c1",
            "gen_ai.response.id": "cmpl-1", "gen_ai.response.model": "smollm2-135m",
            "gen_ai.usage.prompt_tokens": 2, "gen_ai.usage.completion_tokens": 2, "gen_ai.usage.total_tokens": 4,
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.finish_reason": "tool_calls",
            "gen_ai.completion.0.tool_calls.0.id": "c2", "gen_ai.completion.0.tool_calls.0.name": "add",
            "gen_ai.completion.0.tool_calls.0.arguments": "{\"a\": 1}",
            "prompt_token_ids": [1, 2], "response_token_ids": [3, 4],
            "logprobs.content": r#"[{"token":"a","logprob":-1.0}]"#,
        })
    );
    let tools = agl_trace::tool_call_attributes(&response);
    assert_eq!(tools[0].0, "tool_call.add");
    assert_eq!(
        Value::Object(tools[0].1.clone()),
        json!({"tool.name": "add", "tool.parameters": "{\"a\": 1}", "tool.call.id": "c2", "tool.call.type": "function"})
    );

    let spans = [span("l", "", agl_trace::LLM_CALL, (0.0, 1.0), Value::Object(attributes))];
    let triplets = triplets(&spans, json!({}));
    assert_eq!(triplets[0].prompt["image_urls"], json!(["u"]));
    assert_eq!(triplets[0].response["token_ids"], json!([3, 4]));
}

#[test]
fn odd_answers_make_attributes_that_a_store_takes() {
    let request =
        json!({"model": ["m"], "messages": [{"role": {"odd": 1}, "content": 3}], "temperature": {}});
    let response = json!({
        "id": {"nested": [1, "x"]}, "prompt_token_ids": [1, null],
        "choices": [{"message": {"tool_calls": [{"id": null, "function": {"name": "f", "arguments": {"a": 1}}}]}}],
    });
    let chat = agl_trace::chat_attributes(&request, &response);
    let (name, tool) = agl_trace::tool_call_attributes(&response).remove(0);
    assert_eq!(chat["gen_ai.response.id"], r#"{"nested":[1,"x"]}"#);
    assert_eq!(name, "tool_call.f");
    assert_eq!(tool["tool.parameters"], r#"{"a":1}"#);
    assert!(!tool.contains_key("tool.call.id"));
    for attributes in [chat, tool] {
        assert!(attributes.values().all(agl_types::is_plain_attribute), "{attributes:?}");
    }
}
