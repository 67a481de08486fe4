//! Every behaviour, on both backends.
#![expect(clippy::unwrap_used, reason = "a subject that cannot be made is a failed test")]

use std::sync::Arc;

use agl_conformance::{START, Subject};
use agl_store::{ManualClock, MemoryStore, RandomIds, SqliteOptions, SqliteStore};

mod memory {
    use super::*;

    fn subject() -> Subject {
        let clock = ManualClock::at(START);
        let store = MemoryStore::with(Arc::new(clock.clone()), Arc::new(RandomIds));
        Subject::new(Arc::new(store), clock, ())
    }

    agl_conformance::conformance_tests!(subject());
    agl_conformance::local_conformance_tests!(subject());
}

mod sqlite {
    use super::*;

    fn subject() -> Subject {
        let clock = ManualClock::at(START);
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions { clock: Arc::new(clock.clone()), ..SqliteOptions::default() };
        let store = SqliteStore::open(folder.path().join("agl.db"), options).unwrap();
        Subject::new(Arc::new(store), clock, folder)
    }

    agl_conformance::conformance_tests!(subject());
    agl_conformance::local_conformance_tests!(subject());
}
