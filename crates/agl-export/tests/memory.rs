//! However many rollouts are exported, only a few of them are in memory at once.

#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agl_export::{ExportOptions, FileFormat, ImportFormat, Kind, Selection, export, import};
use agl_store::{MemoryStore, Store};
use agl_trace::TrainingOptions;
use serde_json::json;

/// The system's allocator, with a count of what is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's doing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROLLOUTS: usize = 1024;
const WORDS: usize = 64 << 10;

#[tokio::test]
async fn an_export_holds_a_few_rollouts_at_a_time() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut random = 1_u64;
    for number in 0..ROLLOUTS {
        // Words that no compression makes small.
        let digits = (0..WORDS / 16).map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            format!("{random:016x}")
        });
        let words: String = digits.collect();
        let record = json!({
            "request": {"model": "m", "messages": [{"role": "user", "content": format!("{number} {words}")}]},
            "response": {
                "id": format!("chatcmpl-{number}"), "model": "m", "prompt_token_ids": [1, 2],
                "choices": [{"message": {"role": "assistant", "content": "ho"}, "token_ids": [3]}],
            },
            "reward": 1.0,
        });
        let line = Cursor::new(record.to_string());
        import(Arc::clone(&store), ImportFormat::OpenaiLog, None, line).await.unwrap();
    }
    for (kind, format) in [
        (Kind::Messages, FileFormat::Jsonl),
        (Kind::Messages, FileFormat::Parquet),
        (Kind::Triplets, FileFormat::Jsonl),
        (Kind::Trajectories, FileFormat::Jsonl),
    ] {
        let options = ExportOptions {
            kind,
            format,
            select: Selection::default(),
            training: TrainingOptions::default(),
            margin: 0.0,
        };
        let before = IN_USE.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let report = export(Arc::clone(&store), &options, std::io::sink()).await.unwrap();
        assert_eq!(report.written, ROLLOUTS);
        let most = MOST.load(Ordering::Relaxed) - before;
        // Each is there several times over while it is worked on, a few dozen of them and a row group at once.
        assert!(most < ROLLOUTS * WORDS / 4 * 3, "{kind:?} as {format:?} took {most} bytes");
    }
}
