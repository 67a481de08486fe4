//! Records into a store in memory, and data out of it.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::io::{Cursor, Seek as _};
use std::sync::Arc;

use agl_export::{
    AnswerFormat, Arrays, Error, ExportOptions, ExportReport, FileFormat, ImportFormat, Kind, Selection,
    TrainingRequest, export, export_to_folder, import, read_arrays, training_arrays, training_arrow,
    training_data,
};
use agl_store::{Lean, MemoryStore, RawSpan, SqliteOptions, SqliteStore, Store};
use agl_trace::advantage::Estimator;
use agl_trace::trajectory::Mismatch;
use agl_trace::{
    LLM_CALL, Outcome, Reason, RolloutTrace, TrainingData, TrainingOptions, chat_attributes, read_rollout,
};
use agl_types::{
    AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, PurgeRequest, RolloutMode, RolloutQuery, Span,
    SpanQuery, StartRollout,
};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, UInt32Type};
use arrow_array::{Array as _, RecordBatch};
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
}

/// The rows of a file in Arrow's or Parquet's columns.
async fn batch(store: &Arc<dyn Store>, kind: Kind, format: FileFormat) -> RecordBatch {
    let options = ExportOptions { format, ..options(kind) };
    let mut file = tempfile::tempfile().unwrap();
    let report = export(Arc::clone(store), &options, &mut file).await.unwrap();
    file.rewind().unwrap();
    let batches: Vec<RecordBatch> = if format == FileFormat::Parquet {
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 1024);
        reader.unwrap().map(Result::unwrap).collect()
    } else {
        arrow_ipc::reader::StreamReader::try_new(file, None).unwrap().map(Result::unwrap).collect()
    };
    let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
    assert_eq!(batch.num_rows(), report.written);
    batch.clone()
}

#[tokio::test]
async fn every_kind_has_columns_that_say_what_its_lines_say() {
    let store = filled().await;
    for format in [FileFormat::Parquet, FileFormat::Arrow] {
        let texts = |batch: &RecordBatch, name: &str| -> Vec<Value> {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>();
            column
                .iter()
                .map(|text| text.map_or(Value::Null, |text| text.parse().unwrap_or_else(|_| text.into())))
                .collect()
        };
        let numbers = |batch: &RecordBatch, name: &str| -> Vec<Option<f64>> {
            batch.column_by_name(name).unwrap().as_primitive::<Float64Type>().iter().collect()
        };
        let ids = |batch: &RecordBatch, name: &str, row: usize| -> Vec<u32> {
            let lists = batch.column_by_name(name).unwrap().as_list::<i32>();
            lists.value(row).as_primitive::<UInt32Type>().values().to_vec()
        };
        // Each message as its role and content.
        let said = |batch: &RecordBatch, name: &str, row: usize| -> Vec<(String, String)> {
            let messages = batch.column_by_name(name).unwrap().as_list::<i32>().value(row);
            let text = |field: &str, at: usize| {
                messages.as_struct().column_by_name(field).unwrap().as_string::<i32>().value(at).to_owned()
            };
            (0..messages.len()).map(|at| (text("role", at), text("content", at))).collect()
        };
        let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());

        let (written, _) = lines(&store, &options(Kind::Triplets)).await;
        let triplets = batch(&store, Kind::Triplets, format).await;
        assert_eq!(ids(&triplets, "prompt_token_ids", 1), [1, 2]);
        assert_eq!(ids(&triplets, "response_token_ids", 1), [4, 5]);
        assert_eq!(texts(&triplets, "prompt")[0], written[0]["prompt"]["raw_content"]);
        assert_eq!(texts(&triplets, "metadata")[2], written[2]["metadata"]);
        assert_eq!(numbers(&triplets, "reward"), [Some(1.0), Some(0.0), Some(0.5)]);

        let transitions = batch(&store, Kind::Transitions, format).await;
        assert_eq!((ids(&transitions, "state", 2), ids(&transitions, "action", 2)), (vec![7], vec![8]));

        let messages = batch(&store, Kind::Messages, format).await;
        assert_eq!(said(&messages, "messages", 1), [pair("user", "hi"), pair("assistant", "ho 0")]);
        assert_eq!(texts(&messages, "tools"), [Value::Null, Value::Null, Value::Null]);

        let pairs = batch(&store, Kind::Pairs, format).await;
        assert_eq!(said(&pairs, "prompt", 0), [pair("user", "hi")]);
        assert_eq!(said(&pairs, "chosen", 0), [pair("assistant", "ho 1")]);
        assert_eq!(said(&pairs, "rejected", 0), [pair("assistant", "ho 0")]);
        assert_eq!(
            (numbers(&pairs, "chosen_reward")[0], numbers(&pairs, "rejected_reward")[0]),
            (Some(1.0), Some(0.0))
        );

        let (written, _) = lines(&store, &options(Kind::Atif)).await;
        let atif = batch(&store, Kind::Atif, format).await;
        assert_eq!(texts(&atif, "trajectory"), written);
        assert_eq!(numbers(&atif, "reward"), [Some(1.0), Some(0.0), Some(0.5)]);
    }
}

/// Reads the shape out of a header, and what is behind it.
fn npy(folder: &std::path::Path, name: &str) -> (String, Vec<u8>) {
    let mut bytes = std::fs::read(folder.join(name)).unwrap();
    let numbers = bytes.split_off(128);
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00\x76\x00{'descr': '") && bytes.ends_with(b" \n"));
    (String::from_utf8_lossy(&bytes[10..]).trim().to_owned(), numbers)
}

#[tokio::test]
async fn numbers_are_written_as_buffers() {
    let store = filled().await;
    let folder = tempfile::tempdir().unwrap();
    let report =
        export_to_folder(Arc::clone(&store), &options(Kind::Trajectories), folder.path()).await.unwrap();
    assert_eq!(report.written, 3);
    let (about, numbers) = npy(folder.path(), "token_ids.npy");
    assert_eq!(about, "{'descr': '<u4', 'fortran_order': False, 'shape': (9,), }");
    let ids: Vec<u32> = numbers.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    assert_eq!(ids, [1, 2, 3, 1, 2, 4, 5, 7, 8]);
    let (about, numbers) = npy(folder.path(), "token_ids_offsets.npy");
    assert_eq!(about, "{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }");
    let offsets: Vec<i64> = numbers.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    assert_eq!(offsets, [0, 3, 7, 9]);
    assert_eq!(npy(folder.path(), "mask.npy").1, [0, 0, 1, 0, 0, 1, 1, 0, 1]);
    let rows = std::fs::read_to_string(folder.path().join("rows.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["model"], "m");
    assert_eq!(rows[0]["call_span_ids"].as_array().unwrap().len(), 1);
    for kind in [Kind::Messages, Kind::Pairs] {
        let refused = export_to_folder(Arc::clone(&store), &options(kind), folder.path()).await.unwrap_err();
        assert!(refused.to_string().contains("--format jsonl"), "{refused}");
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
    let direct = Arrays::of(data.rows, &data.report).unwrap();
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

/// Spans are kept as JSON and read without most of it; what is made of them must be the same.
#[test]
fn spans_read_lean_say_what_they_say_whole() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../agl-trace/tests/fixtures");
    let mut calls = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        let recorded: Value = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let whole: Vec<Span> = serde_json::from_value(recorded["spans"].clone()).unwrap();
        let lean = whole
            .iter()
            .map(|span| RawSpan::try_from(span).unwrap().parse_lean(Lean::Words).unwrap())
            .collect();
        let read = |spans| {
            let trace = RolloutTrace { spans, ..RolloutTrace::default() };
            read_rollout(&trace, &TrainingOptions::default()).unwrap()
        };
        let (lean, whole) = (read(lean), read(whole));
        assert_eq!(lean, whole, "{}", path.display());
        calls += whole.calls.iter().filter(|judged| judged.call.has_token_ids()).count();
    }
    assert!(calls > 4, "{calls} calls with token ids");
}

/// A call of a session, as a log has it.
fn turn(session: &str, messages: &Value, prompt: &[u32], answer: &str, response: &[u32]) -> String {
    let message = json!({"role": "assistant", "content": answer});
    json!({
        "session_id": session, "request": {"model": "m", "temperature": 0.5, "messages": messages}, "reward": 1.0,
        "response": {
            "id": format!("{session}-{}", prompt.len()), "model": "m", "prompt_token_ids": prompt,
            "choices": [{"message": message, "token_ids": response}],
        },
    })
    .to_string()
}

/// What a store makes of its rollouts is what is made of their whole spans; so many rows, as training data and as arrays.
async fn assert_rows_are_of_whole_spans(store: &Arc<dyn Store>, options: &Value) -> TrainingData {
    let mut whole = Vec::new();
    for view in store.query_rollouts(RolloutQuery::default()).await.unwrap().items {
        let query = SpanQuery { rollout_id: view.rollout.rollout_id.clone(), ..SpanQuery::default() };
        let spans = store.query_spans(query).await.unwrap().items;
        let (rollout, attempt) = (Some(view.rollout), view.attempt);
        whole.push(RolloutTrace { rollout, attempt, spans, ..RolloutTrace::default() });
    }
    let options: TrainingOptions = serde_json::from_value(options.clone()).unwrap();
    let request = TrainingRequest { options: options.clone(), ..TrainingRequest::default() };
    let made = training_data(Arc::clone(store), &request).await.unwrap();
    let expected = agl_trace::training_data(&whole, &options).unwrap();
    assert_eq!(serde_json::to_value(&made).unwrap(), serde_json::to_value(&expected).unwrap());
    let arrays = training_arrays(Arc::clone(store), &request).await.unwrap();
    let expected = Arrays::of(expected.rows, &expected.report).unwrap();
    // Where nothing is known there is NaN, which equals nothing.
    assert_eq!(format!("{arrays:?}"), format!("{expected:?}"));
    made
}

/// A store of each kind, and the folder that has to last as long.
fn stores() -> (tempfile::TempDir, [Arc<dyn Store>; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let kept = SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap();
    (folder, [Arc::new(MemoryStore::new()), Arc::new(kept)])
}

/// Nobody judged it, and nothing is left of it, are two things.
#[tokio::test]
async fn purged_spans_are_no_missing_reward() {
    let (_folder, stores) = stores();
    for store in stores {
        let log = [logged(&[1], &[2], 1.0), logged(&[1], &[3], 0.0)].join("\n");
        let made = import(Arc::clone(&store), ImportFormat::OpenaiLog, None, Cursor::new(log)).await.unwrap();
        let unjudged = store.start_rollout(StartRollout::default()).await.unwrap().attempt.rollout_id;
        let failed = store.start_rollout(StartRollout::default()).await.unwrap().attempt.rollout_id;
        let restarted = store.start_rollout(StartRollout::default()).await.unwrap().attempt.rollout_id;
        for (rollout_id, status) in [
            (&unjudged, AttemptStatus::Succeeded),
            (&failed, AttemptStatus::Failed),
            (&restarted, AttemptStatus::Succeeded),
        ] {
            let update = AttemptUpdate { status: status.into(), ..AttemptUpdate::default() };
            store.update_attempt(rollout_id, "latest", update).await.unwrap();
        }
        let gone = vec![made.rollout_ids[1].clone(), failed.clone(), restarted.clone()];
        let purge = PurgeRequest { rollout_id_in: Some(gone.clone()), ended_before: None };
        store.purge(purge).await.unwrap();
        store.start_attempt(&restarted, None).await.unwrap();
        let everything = Selection {
            rollout_id_in: Some(
                [made.rollout_ids, vec![unjudged.clone(), failed.clone(), restarted.clone()]].concat(),
            ),
            ..Selection::default()
        };

        let request = TrainingRequest { select: everything.clone(), ..TrainingRequest::default() };
        let report = training_data(Arc::clone(&store), &request).await.unwrap().report;
        assert_eq!(report.rollouts_used, 1);
        let reasons: Vec<(&str, Reason)> =
            report.dropped.iter().map(|dropped| (dropped.rollout_id.as_str(), dropped.reason)).collect();
        let expected = [
            (gone[0].as_str(), Reason::SpansPurged),
            (&unjudged, Reason::MissingReward),
            (&failed, Reason::SpansPurged),
            (&restarted, Reason::Unfinished),
        ];
        assert_eq!(reasons, expected);
        assert_eq!(report.dropped[2].detail, "its spans were purged; its status is failed");
        assert_eq!(report.outcomes[&Outcome::SpansPurged], 2);

        // A record of what happened says what there is none of, too.
        let triplets = ExportOptions { select: everything, ..options(Kind::Triplets) };
        let (triplets, report) = lines(&store, &triplets).await;
        assert_eq!((triplets.len(), report.report.dropped_by_reason[&Reason::SpansPurged]), (1, 2));
    }
}

/// Rows are made of spans that are read without their prompts' words where those decide nothing: nobody must notice.
#[tokio::test]
async fn rows_out_of_a_store_are_those_of_the_whole_spans() {
    let asked = json!([{"role": "user", "content": "q"}]);
    let on = json!([
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "more"},
    ]);
    let picture =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://i"}}]}]);
    let log = [
        turn("goes on", &asked, &[1, 2], "a", &[3, 4]),
        turn("goes on", &on, &[1, 2, 3, 4, 5], "b", &[6]),
        turn("retokenized", &asked, &[1, 2], "a", &[3, 4, 5]),
        turn("retokenized", &on, &[1, 2, 3, 9, 5], "b", &[6]),
        turn("shows", &picture, &[7], "a", &[8]),
    ];
    let (_folder, stores) = stores();
    for store in stores {
        import(Arc::clone(&store), ImportFormat::OpenaiLog, None, Cursor::new(log.join("\n"))).await.unwrap();
        for (level, rows, mismatches) in [("trajectory", 4, 1), ("transition", 5, 0)] {
            let made = assert_rows_are_of_whole_spans(&store, &json!({"level": level})).await;
            assert_eq!((made.rows.len(), made.report.mismatched.len()), (rows, mismatches));
            let retokenized = made.report.mismatches.get(&Mismatch::Retokenized).copied();
            assert_eq!(retokenized.unwrap_or_default(), mismatches);
            assert_eq!(made.rows.last().unwrap().image_urls, ["http://i"]);
        }
    }
}

/// Groups whose rollouts do not come one after the other keep together, their tokens with them.
#[tokio::test]
async fn arrays_keep_groups_together() {
    let (_folder, stores) = stores();
    for store in stores {
        // More than are read at once.
        for number in 0..30 {
            let rollout = EnqueueRolloutRequest::new(format!("task {}", number % 3));
            let request = StartRollout { rollout, worker_id: None };
            let attempt = store.start_rollout(request).await.unwrap().attempt;
            let place =
                |span: Span, sequence_id| span.placed(&attempt.rollout_id, &attempt.attempt_id, sequence_id);
            let response =
                json!({"id": "c", "prompt_token_ids": [number, 1], "choices": [{"token_ids": [number]}]});
            let mut call = Span::new(LLM_CALL, "1".repeat(32), "1".repeat(16), 1.0, 2.0);
            call.attributes = chat_attributes(&json!({"messages": []}), &response);
            let reward = Span::new("reward", "1".repeat(32), "2".repeat(16), 3.0, 3.0)
                .with_attribute("agentlightning.reward", f64::from(number));
            store.add_many_spans(vec![place(call, 1), place(reward, 2)]).await.unwrap();
            let update =
                AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
            store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await.unwrap();
        }
        let made = assert_rows_are_of_whole_spans(&store, &json!({})).await;
        let first: Vec<u32> = made.rows.iter().map(|row| row.token_ids[0]).collect();
        let expected: Vec<u32> =
            (0..3).flat_map(|group| (0..10).map(move |member| 3 * member + group)).collect();
        assert_eq!(first, expected);
    }
}

/// A reward may link to its call by what rows are otherwise made without.
#[tokio::test]
async fn links_are_found_by_what_else_is_not_read() {
    let (_folder, stores) = stores();
    for store in stores {
        let attempt = store.start_rollout(StartRollout::default()).await.unwrap().attempt;
        let place =
            |span: Span, sequence_id| span.placed(&attempt.rollout_id, &attempt.attempt_id, sequence_id);
        let mut spans = Vec::new();
        for number in 1..=2 {
            let request = json!({"messages": [{"role": "user", "content": "q"}], "seed": number});
            let response = json!({"id": number.to_string(), "prompt_token_ids": [number], "choices": [{"token_ids": [3]}]});
            let mut call = Span::new(LLM_CALL, "1".repeat(32), format!("{number:016}"), 1.0, 2.0);
            call.attributes = chat_attributes(&request, &response);
            spans.push(place(call, number));
        }
        let reward = Span::new("reward", "1".repeat(32), "3".repeat(16), 3.0, 3.0)
            .with_attribute("agentlightning.reward", 1.0)
            .with_attribute("agentlightning.link.0.key_match", "gen_ai.request.seed")
            .with_attribute("agentlightning.link.0.value_match", "1");
        spans.push(place(reward, 3));
        store.add_many_spans(spans).await.unwrap();
        let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
        store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await.unwrap();
        let options = json!({"level": "transition", "assigner": "matched"});
        let made = assert_rows_are_of_whole_spans(&store, &options).await;
        let rewards: Vec<Option<f64>> = made.rows.iter().map(|row| row.calls[0].reward).collect();
        assert_eq!(rewards, [Some(1.0), None]);
    }
}

#[tokio::test]
async fn transitions_of_a_rollout_with_a_capture_gap_are_kept_back() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let asked = json!([{"role": "user", "content": "q"}]);
    let log = [
        turn("gap", &asked, &[1, 2], "a", &[3]),
        turn("gap", &asked, &[1, 2, 3], "b", &[]),
        turn("whole", &asked, &[1], "a", &[2]),
    ];
    import(Arc::clone(&store), ImportFormat::OpenaiLog, None, Cursor::new(log.join("\n"))).await.unwrap();
    let (written, report) = lines(&store, &options(Kind::Transitions)).await;
    assert_eq!((written.len(), &written[0]["state"]), (1, &json!([1])));
    let [dropped] = report.report.dropped.as_slice() else { panic!("{:?}", report.report.dropped) };
    assert_eq!((dropped.reason, dropped.span_id.as_ref(), dropped.tokens), (Reason::CaptureGap, None, 1));
    let mut lenient = options(Kind::Transitions);
    lenient.training.quarantine = false;
    let (written, report) = lines(&store, &lenient).await;
    assert_eq!((written.len(), report.report.dropped_by_reason[&Reason::NoTokenIds]), (2, 1));
}
