//! Records into a store in memory, and data out of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::io::Cursor;
use std::sync::Arc;

use agl_export::{
    AnswerFormat, Arrays, Error, ExportOptions, ExportReport, FileFormat, ImportFormat, Kind, Selection,
    TrainingRequest, export, import, read_arrays, training_arrow, training_data,
};
use agl_store::{MemoryStore, Store};
use agl_trace::advantage::Estimator;
use agl_trace::{Outcome, TrainingOptions};
use agl_types::RolloutMode;
use serde_json::{Value, json};

fn logged(prompt: &[u32], response: &[u32], reward: f64) -> String {
    json!({
        "request": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        "response": {
            "id": "x", "model": "m", "prompt_token_ids": prompt,
            "choices": [{"message": {"role": "assistant", "content": format!("ho {reward}")}, "token_ids": response}],
        },
        "reward": reward,
    })
    .to_string()
}

async fn filled() -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let log = [logged(&[1, 2], &[3], 1.0), logged(&[1, 2], &[4, 5], 0.0), logged(&[7], &[8], 0.5)].join("\n");
    let imported =
        import(Arc::clone(&store), ImportFormat::OpenaiLog, Some(RolloutMode::Train), Cursor::new(log))
            .await
            .unwrap();
    assert_eq!((imported.rollout_ids.len(), imported.spans), (3, 6));
    store
}

fn options(kind: Kind) -> ExportOptions {
    ExportOptions {
        kind,
        format: FileFormat::Jsonl,
        select: Selection::default(),
        training: TrainingOptions::default(),
        margin: 0.0,
    }
}

async fn lines(store: &Arc<dyn Store>, options: &ExportOptions) -> (Vec<Value>, ExportReport) {
    let mut out = Vec::new();
    let report = export(Arc::clone(store), options, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), report)
}

#[tokio::test]
async fn every_kind_is_written_as_lines() {
    let store = filled().await;
    let (rows, report) = lines(&store, &options(Kind::Trajectories)).await;
    assert_eq!((rows.len(), report.written, report.report.rollouts_used), (3, 3, 3));
    assert_eq!((&rows[1]["token_ids"], &rows[1]["mask"]), (&json!([1, 2, 4, 5]), &json!([0, 0, 1, 1])));
    // All have the same task, so they are one group.
    let advantage = |row: &Value| row["advantage"].as_f64().unwrap();
    assert!(advantage(&rows[0]) > 0.9 && advantage(&rows[1]) < -0.9 && advantage(&rows[2]).abs() < 1e-9);

    let (transitions, _) = lines(&store, &options(Kind::Transitions)).await;
    assert_eq!((&transitions[0]["state"], &transitions[0]["action"]), (&json!([1, 2]), &json!([3])));
    assert_eq!(transitions[0]["reward"], 1.0);
    let (triplets, _) = lines(&store, &options(Kind::Triplets)).await;
    assert_eq!(triplets[2]["prompt"]["raw_content"], json!([{"role": "user", "content": "hi"}]));
    let (chats, _) = lines(&store, &options(Kind::Messages)).await;
    assert_eq!(chats[0]["messages"][1], json!({"role": "assistant", "content": "ho 1"}));
    let (pairs, _) = lines(&store, &options(Kind::Pairs)).await;
    assert_eq!(pairs.len(), 3);
    let (wide, _) = lines(&store, &ExportOptions { margin: 0.75, ..options(Kind::Pairs) }).await;
    assert_eq!((wide.len(), &wide[0]["chosen"][0]["content"]), (1, &json!("ho 1")));
    let (atif, _) = lines(&store, &options(Kind::Atif)).await;
    assert_eq!(atif[0]["steps"][1]["metrics"]["completion_token_ids"], json!([3]));
}

#[tokio::test]
async fn filters_choose_and_the_report_tells_the_rest() {
    let store = filled().await;
    let chosen = |select: Value| ExportOptions {
        select: serde_json::from_value(select).unwrap(),
        ..options(Kind::Trajectories)
    };
    for (select, count) in [
        (json!({"min_reward": 0.5}), 2),
        (json!({"max_reward": 0.4}), 1),
        (json!({"mode_in": ["val"]}), 0),
        (json!({"status_in": ["failed"]}), 0),
        (json!({"since": 4e9}), 0),
        (json!({"until": 4e9}), 3),
        (json!({"rollout_id_in": []}), 0),
    ] {
        assert_eq!(lines(&store, &chosen(select.clone())).await.1.written, count, "{select}");
    }
    let mut none = options(Kind::Trajectories);
    none.training.agents = serde_json::from_value(json!({"include": ["writer"]})).unwrap();
    let (_, report) = lines(&store, &none).await;
    assert_eq!(
        (report.written, report.report.dropped.len()),
        (0, 6),
        "three calls, and the rollouts left without any"
    );
    none.training.agents = serde_json::from_value(json!({"include": ["re:("]})).unwrap();
    assert!(matches!(export(store, &none, Vec::new()).await, Err(Error::Trace(_))));
}

#[tokio::test]
async fn columns_are_written_and_read() {
    let store = filled().await;
    let columnar = |kind, format| ExportOptions { format, ..options(kind) };
    let mut file = tempfile::tempfile().unwrap();
    let parquet = columnar(Kind::Trajectories, FileFormat::Parquet);
    assert_eq!(export(Arc::clone(&store), &parquet, &mut file).await.unwrap().written, 3);
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 1024).unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(arrow_array::RecordBatch::num_rows).sum::<usize>(), 3);
    assert!(batches[0].column_by_name("token_ids").is_some());

    let mut ipc = Vec::new();
    export(Arc::clone(&store), &columnar(Kind::Trajectories, FileFormat::Arrow), &mut ipc).await.unwrap();
    let arrays = read_arrays(&ipc).unwrap();
    assert_eq!(arrays.offsets, [0, 3, 7, 9]);
    let mut out = Vec::new();
    export(Arc::clone(&store), &columnar(Kind::Transitions, FileFormat::Arrow), &mut out).await.unwrap();
    assert!(!out.is_empty());
    for kind in [Kind::Messages, Kind::Triplets, Kind::Pairs, Kind::Atif] {
        let refused = export(Arc::clone(&store), &columnar(kind, FileFormat::Parquet), Vec::new()).await;
        assert!(refused.unwrap_err().to_string().contains("--format jsonl"));
    }
}

#[tokio::test]
async fn arrow_says_what_json_says() {
    let store = filled().await;
    let request = TrainingRequest {
        options: TrainingOptions { estimator: Some(Estimator::Rloo), ..TrainingOptions::default() },
        format: AnswerFormat::Arrow,
        ..TrainingRequest::default()
    };
    let data = training_data(Arc::clone(&store), &request).await.unwrap();
    let arrays = read_arrays(&training_arrow(store, &request).await.unwrap()).unwrap();
    assert_eq!(arrays.token_ids, [1, 2, 3, 1, 2, 4, 5, 7, 8]);
    assert_eq!(arrays.rewards, [1.0, 0.0, 0.5]);
    assert_eq!(arrays.report, serde_json::to_value(&data.report).unwrap());
    let direct = Arrays::of(&data.rows, &data.report).unwrap();
    assert_eq!(
        (direct.offsets, direct.mask, direct.advantages),
        (arrays.offsets, arrays.mask, arrays.advantages)
    );
    assert!(read_arrays(b"something else").is_err());
}

#[tokio::test]
async fn conversations_and_otlp_become_rollouts() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let chat = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        .to_string();
    let imported =
        import(Arc::clone(&store), ImportFormat::ChatJsonl, None, Cursor::new(chat)).await.unwrap();
    let mut lenient = options(Kind::Messages);
    assert_eq!(
        lines(&store, &lenient).await.0[0]["messages"][0]["content"],
        "a",
        "nobody needs to have judged it"
    );
    lenient.select.rollout_id_in = Some(imported.rollout_ids);
    assert_eq!(lines(&store, &lenient).await.1.report.outcomes[&Outcome::MissingReward], 1);

    let span = |id: &str, trace: &str| {
        json!({"resourceSpans": [{"scopeSpans": [{"spans": [{
            "traceId": trace.repeat(32), "spanId": id.repeat(16), "name": "openai.chat.completion",
            "startTimeUnixNano": "1000000000", "endTimeUnixNano": "2000000000",
            "attributes": [
                {"key": "gen_ai.prompt.0.role", "value": {"stringValue": "user"}},
                {"key": "gen_ai.prompt.0.content", "value": {"stringValue": "over the wire"}},
                {"key": "gen_ai.completion.0.content", "value": {"stringValue": "yes"}},
            ],
        }]}]}]})
        .to_string()
    };
    let file = [span("1", "a"), span("2", "a"), span("3", "b")].join("\n");
    let imported = import(Arc::clone(&store), ImportFormat::Otlp, None, Cursor::new(file)).await.unwrap();
    assert_eq!((imported.rollout_ids.len(), imported.spans), (2, 3), "one rollout for each trace");
    lenient.select.rollout_id_in = Some(imported.rollout_ids[..1].to_vec());
    assert_eq!(lines(&store, &lenient).await.0[0]["messages"][0]["content"], "over the wire");
}

#[tokio::test]
async fn bad_records_are_told_by_their_line() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let bad = |format, text: &'static str| {
        let store = Arc::clone(&store);
        async move { import(store, format, None, Cursor::new(text)).await.unwrap_err().to_string() }
    };
    assert_eq!(
        bad(ImportFormat::ChatJsonl, "\n{}").await,
        "line 2 is no conversation: it has no list of messages"
    );
    assert!(bad(ImportFormat::OpenaiLog, "nonsense").await.starts_with("line 1 is no record of a call: "));
    assert!(bad(ImportFormat::Otlp, "nonsense").await.starts_with("this is no OTLP export"));
    assert!(bad(ImportFormat::Otlp, "{\"resourceSpans\": 3}").await.contains("line 1"));
}
