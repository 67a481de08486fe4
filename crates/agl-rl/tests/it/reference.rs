//! The default model against what transformers computes with the same weights.
//!
//! These tests fetch the model into the cache folder if it is not there.

use agl_rl::{Engine, EngineOptions, GenerateRequest, ModelFiles, Sampling};
use serde::Deserialize;
use std::sync::OnceLock;

const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    messages: Option<Vec<serde_json::Value>>,
    ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    logprobs: Vec<f32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let reference: Reference =
        serde_json::from_str(include_str!("../fixtures/smollm2_reference.json")).unwrap();
    assert!(reference.cases.len() >= 6);
    reference.cases
}

fn load() -> ModelFiles {
    ModelFiles::load(&agl_rl::resolve("smollm2", None).unwrap()).unwrap()
}

fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::load("smollm2", &EngineOptions::default()).unwrap()).clone()
}

#[test]
fn token_ids_are_equal_and_lead_back_to_the_text() {
    let engine = engine();
    for case in cases() {
        assert_eq!(engine.tokenizer().encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
        if let Some(messages) = &case.messages {
            assert_eq!(engine.template().render(messages, &[]).unwrap(), case.text);
        } else {
            assert_eq!(engine.tokenizer().decode(&case.ids), case.text);
        }
    }
}

#[test]
fn log_probabilities_agree_over_whole_sequences() {
    let model = load().model;
    for case in cases() {
        let tokens: Vec<u32> = case.ids.iter().chain(&case.greedy_ids).copied().collect();
        let whole = std::slice::from_ref(&(0..tokens.len())).to_vec();
        let logits = model.logits(&tokens, &whole, None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(case.logprobs.len(), tokens.len() - 1);
        for (position, expected) in case.logprobs.iter().enumerate() {
            let row = &logits[position];
            let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|logit| f64::from(logit - highest).exp()).sum();
            let logprob = row[tokens[position + 1] as usize] - highest - total.ln() as f32;
            assert!(
                (logprob - expected).abs() < TOLERANCE,
                "{:?}, token {position}: {logprob}, expected {expected}",
                case.text
            );
        }
    }
}

#[tokio::test]
async fn greedy_answers_agree_all_in_one_batch() {
    let engine = engine();
    let cases = cases();
    let running: Vec<_> = cases
        .iter()
        .map(|case| {
            let request = GenerateRequest {
                max_tokens: Some(case.greedy_ids.len()),
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                ignore_eos: true,
                top_logprobs: 5,
                ..GenerateRequest::new(case.ids.clone())
            };
            engine.submit(request).unwrap()
        })
        .collect();
    let mut compared = 0;
    for (case, generation) in cases.iter().zip(running) {
        let answer = generation.collect().await.unwrap().remove(0);
        for (output, step) in answer.tokens.iter().zip(&case.steps) {
            for (id, expected) in step.ids.iter().zip(&step.logprobs) {
                // Of two that are nearly equal, the fifth and the sixth may change places.
                let Some((_, logprob)) = output.top.iter().find(|(token, _)| token == id) else { continue };
                assert!((logprob - expected).abs() < TOLERANCE, "{logprob}, expected {expected}");
                compared += 1;
            }
            if output.token != step.ids[0] {
                let lead = step.logprobs[0] - step.logprobs[1];
                assert!(
                    lead < TOLERANCE,
                    "{:?}: {} instead of {} (ahead by {lead})",
                    case.text,
                    output.token,
                    step.ids[0]
                );
                // From here on the two continue different texts.
                break;
            }
        }
    }
    assert!(compared > 500, "only {compared} log-probabilities were compared");
}
