//! The engine, with a tiny model: batching, repeatability, stops, limits, cancelling.

use crate::common;

use agl_rl::{Answer, EngineOptions, Error, Event, Finish, GenerateRequest, Llama, Sampling};

fn greedy(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        max_tokens: Some(max_tokens),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        ignore_eos: true,
        ..GenerateRequest::new(prompt.to_vec())
    }
}

fn prompt(length: usize, seed: u64) -> Vec<u32> {
    common::numbers(length, seed).iter().map(|x| ((x + 0.5) * 255.0) as u32).collect()
}

fn ids(answer: &Answer) -> Vec<u32> {
    answer.tokens.iter().map(|output| output.token).collect()
}

/// What the model itself says, without cache and batching.
fn expected(prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
    let config = common::config();
    let model = Llama::new(config.clone(), &common::tensors(&config)).unwrap();
    let mut tokens = prompt.to_vec();
    let mut logprobs = Vec::new();
    for _ in 0..count {
        let last = u32::try_from(tokens.len() - 1).unwrap();
        let whole = std::slice::from_ref(&(0..tokens.len())).to_vec();
        let logits =
            model.logits(&tokens, &whole, Some(&[last])).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let (best, &highest) = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        let total: f64 = logits.iter().map(|l| f64::from(l - highest).exp()).sum();
        logprobs.push(-total.ln() as f32);
        tokens.push(u32::try_from(best).unwrap());
    }
    (tokens.split_off(prompt.len()), logprobs)
}

#[tokio::test]
async fn answers_are_the_model_s_own_however_they_are_scheduled() {
    // A chunk smaller than the prompts, and so little cache that sequences are sent back.
    let cramped = EngineOptions {
        prefill_chunk: Some(5),
        max_context: Some(96),
        cache_tokens: Some(160),
        max_batch: Some(6),
        threads: Some(2),
        ..EngineOptions::default()
    };
    for options in [EngineOptions::default(), cramped] {
        let (_dir, engine) = common::engine(&options);
        let lengths = [1, 2, 15, 16, 17, 33, 40, 50];
        let prompts: Vec<Vec<u32>> = lengths.iter().map(|&length| prompt(length, length as u64)).collect();
        let running: Vec<_> = prompts.iter().map(|p| engine.submit(greedy(p, 40)).unwrap()).collect();
        for (prompt, generation) in prompts.iter().zip(running) {
            let answer = generation.collect().await.unwrap().remove(0);
            let (tokens, logprobs) = expected(prompt, 40);
            assert_eq!(ids(&answer), tokens, "prompt of {} tokens", prompt.len());
            for (output, logprob) in answer.tokens.iter().zip(logprobs) {
                assert!((output.logprob - logprob).abs() < 1e-4, "{} against {logprob}", output.logprob);
            }
            assert_eq!(answer.finish, Finish::Length);
        }
    }
}

#[tokio::test]
async fn a_seed_repeats_an_answer_alone_and_in_company() {
    let (_dir, engine) = common::engine(&EngineOptions::default());
    let request = |seed: u64, n: usize| GenerateRequest {
        n,
        seed: Some(seed),
        max_tokens: Some(24),
        ignore_eos: true,
        ..GenerateRequest::new(prompt(21, 4))
    };
    let alone = engine.generate(request(1, 3)).await.unwrap();
    assert_ne!(ids(&alone[0]), ids(&alone[1]));
    assert_ne!(ids(&alone[1]), ids(&alone[2]));
    let company: Vec<_> = (2..12).map(|seed| engine.submit(request(seed, 2)).unwrap()).collect();
    let again = engine.generate(request(1, 3)).await.unwrap();
    assert_eq!(again, alone);
    // The first choices do not depend on how many there are.
    assert_eq!(engine.generate(request(1, 1)).await.unwrap()[0], alone[0]);
    for generation in company {
        assert_eq!(generation.collect().await.unwrap().len(), 2);
    }
    let unseeded = GenerateRequest { seed: None, ..request(0, 2) };
    assert_ne!(engine.generate(unseeded.clone()).await.unwrap(), engine.generate(unseeded).await.unwrap());
}

#[tokio::test]
async fn answers_end_at_stop_strings_end_tokens_and_limits() {
    let (_dir, engine) = common::engine(&EngineOptions::default());
    // Sampling gives readable and unreadable bytes; any text of the answer can be a stop.
    let free = GenerateRequest {
        seed: Some(5),
        max_tokens: Some(100),
        ignore_eos: true,
        ..GenerateRequest::new(vec![65])
    };
    let whole = engine.generate(free.clone()).await.unwrap().remove(0);
    assert_eq!(whole.tokens.len(), 100);
    assert_eq!(whole.text, engine.tokenizer().decode(&ids(&whole)));
    let middle: String = whole.text.chars().skip(20).take(2).collect();
    let at = whole.text.find(&middle).unwrap();
    let stopped = GenerateRequest { stop: vec!["never in there".into(), middle.clone()], ..free.clone() };
    let answer = engine.generate(stopped).await.unwrap().remove(0);
    assert_eq!(answer.text, whole.text[..at]);
    assert_eq!(answer.finish, Finish::StopString(middle));
    assert_eq!(answer.tokens[..], whole.tokens[..answer.tokens.len()]);

    // With many short draws, the end token comes up.
    let many = GenerateRequest { n: 60, max_tokens: Some(150), ..GenerateRequest::new(vec![65]) };
    let answers = engine.generate(GenerateRequest { seed: Some(1), ..many }).await.unwrap();
    let ended: Vec<&Answer> = answers.iter().filter(|a| a.finish == Finish::EndToken(common::END)).collect();
    assert!(!ended.is_empty());
    assert!(ended.iter().all(|answer| answer.tokens.last().unwrap().token == common::END));
    assert!(answers.iter().all(|a| ids(a).iter().filter(|&&id| id == common::END).count() <= 1));
}

#[tokio::test]
async fn the_likeliest_tokens_are_reported() {
    let (_dir, engine) = common::engine(&EngineOptions::default());
    let request = GenerateRequest { top_logprobs: 4, ..greedy(&prompt(9, 9), 3) };
    let answer = engine.generate(request).await.unwrap().remove(0);
    for output in &answer.tokens {
        assert_eq!(output.top.len(), 4);
        assert_eq!(output.top[0], (output.token, output.logprob));
        assert!(output.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[tokio::test]
async fn a_dropped_request_makes_room_for_others() {
    let options = EngineOptions { max_batch: Some(1), max_waiting: Some(2), ..EngineOptions::default() };
    let (_dir, engine) = common::engine(&options);
    let long = GenerateRequest { max_tokens: None, ..greedy(&[65], 1) };
    let mut first = engine.submit(long.clone()).unwrap();
    assert!(matches!(first.next().await.unwrap(), Some(Event::Token { .. })));
    let second = engine.submit(long.clone()).unwrap();
    let third = engine.submit(greedy(&[66], 2)).unwrap();
    // One runs, two wait, a fourth is too many; unless the first has already ended.
    if let Err(error) = engine.submit(long) {
        assert!(matches!(error, Error::QueueFull(2)), "{error}");
    }
    drop(first);
    drop(second);
    assert_eq!(third.collect().await.unwrap()[0].tokens.len(), 2);
}

#[tokio::test]
async fn impossible_requests_name_the_field() {
    let (_dir, engine) = common::engine(&EngineOptions::default());
    let base = greedy(&[65; 250], 4);
    let sampling = |temperature, top_p| Sampling { temperature, top_p, top_k: 0 };
    for (request, field) in [
        (GenerateRequest { prompt: vec![], ..base.clone() }, "prompt"),
        (GenerateRequest { prompt: vec![9_999], ..base.clone() }, "prompt"),
        (GenerateRequest { n: 0, ..base.clone() }, "n"),
        (GenerateRequest { n: 65, ..base.clone() }, "n"),
        (GenerateRequest { max_tokens: Some(0), ..base.clone() }, "max_tokens"),
        (GenerateRequest { max_tokens: Some(7), ..base.clone() }, "max_tokens"),
        (GenerateRequest { prompt: vec![65; 256], max_tokens: None, ..base.clone() }, "max_tokens"),
        (GenerateRequest { sampling: sampling(f32::NAN, 1.0), ..base.clone() }, "temperature"),
        (GenerateRequest { sampling: sampling(1.0, 0.0), ..base.clone() }, "top_p"),
        (GenerateRequest { stop: vec![String::new()], ..base.clone() }, "stop"),
    ] {
        match engine.submit(request) {
            Err(Error::BadRequest { param, .. }) => assert_eq!(param.as_deref(), Some(field)),
            other => panic!("{field}: {other:?}"),
        }
    }
    let full = GenerateRequest { max_tokens: Some(6), ..base };
    assert_eq!(engine.generate(full).await.unwrap()[0].tokens.len(), 6);
}

#[test]
fn files_that_are_no_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &std::path::Path| {
        agl_rl::Engine::load(path.to_str().unwrap(), &EngineOptions::default()).unwrap_err()
    };
    let text = dir.path().join("model.gguf");
    std::fs::write(&text, "not a model").unwrap();
    let error = load(&text).to_string();
    assert!(error.contains("model.gguf") && error.contains("not a GGUF file"), "{error}");
    std::fs::write(&text, b"GGUF\x03\0\0\0\xff\xff").unwrap();
    let error = load(&text).to_string();
    assert!(error.contains("model.gguf") && error.contains("damaged"), "{error}");
    assert!(matches!(load(&dir.path().join("absent.gguf")), Error::Io { .. }));
    assert!(load(dir.path()).to_string().contains("config.json"));
    assert!(matches!(load(std::path::Path::new("gpt-9")), Error::UnknownModel(_)));
    common::write_model(dir.path());
    std::fs::write(dir.path().join("model.safetensors"), "nothing").unwrap();
    let error = load(dir.path()).to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}
