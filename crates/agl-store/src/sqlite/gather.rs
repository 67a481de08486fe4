//! Writes what a commit adds to the write-ahead log in one piece.
//!
//! SQLite writes a log frame by frame, and of each frame its header and its page: a commit of a dozen pages asks the system two
//! dozen times, which takes a quarter of the processor time that a small operation needs. The log of the writer's connection is
//! opened by a VFS of our own, which is SQLite's in everything but that: frames are held back until the last one of the commit,
//! whose header says that it is the last one, and then written at once. Where that fails, the writing of the last one does,
//! and SQLite rolls back. Nobody else looks at a frame before SQLite has told of the commit, which comes after.
//!
//! Sources: <https://www.sqlite.org/vfs.html>, <https://www.sqlite.org/fileformat2.html#walformat>.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use rusqlite::ffi;

type File = ffi::sqlite3_file;
type Methods = ffi::sqlite3_io_methods;
type Vfs = ffi::sqlite3_vfs;

const NAME: &CStr = c"agl-gathering";

/// Bytes of a log's header, of a frame's, and of a page. Databases of ours have pages of this size; the frames of others are not
/// recognized, and are written one by one.
const LOG_HEADER: i64 = 32;
const HEADER: usize = 24;
const PAGE: usize = 4096;
const FRAME: usize = HEADER + PAGE;

/// Bytes that are held back at most: SQLite's VFS writes no more at once.
const MOST: usize = (128 << 10) - 1;

/// What is to be done with a piece that SQLite writes.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: it is held back.
    Wait,
    /// What is held back is to be written, which the piece is a part of.
    Write,
    /// What is held back is to be written, and then the piece.
    Apart,
}

/// Frames that are held back.
#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Where in the log they begin.
    start: i64,
    /// Whether the last one ends a commit.
    is_commit: bool,
    /// The end of all that was written in this log. What is written before it changes a frame that is there already, and
    /// nothing more need come after that.
    end: i64,
}

impl Gathered {
    fn add(&mut self, piece: &[u8], offset: i64) -> Next {
        let length = |bytes: &[u8]| i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let after = offset.saturating_add(length(piece));
        let is_next = offset == self.start + length(&self.bytes);
        let is_page = piece.len() == PAGE && is_next && self.bytes.len() % FRAME == HEADER;
        if is_page {
            self.bytes.extend_from_slice(piece);
            self.end = after;
            let is_enough = self.is_commit || self.bytes.len() + FRAME > MOST;
            return if is_enough { Next::Write } else { Next::Wait };
        }
        if let Some(pages) = pages_after(piece, offset)
            && offset >= self.end
            && (is_next || self.bytes.is_empty())
        {
            if self.bytes.is_empty() {
                self.start = offset;
            }
            self.bytes.extend_from_slice(piece);
            self.is_commit = pages > 0;
            self.end = after;
            return Next::Wait;
        }
        let is_new_log = offset == 0;
        self.end = if is_new_log { after } else { self.end.max(after) };
        Next::Apart
    }
}

/// Of the header of a frame, the size of the database after the commit that it is the last one of, else 0; none for other
/// pieces.
fn pages_after(piece: &[u8], offset: i64) -> Option<u32> {
    let frame = i64::try_from(FRAME).ok()?;
    let is_there = offset >= LOG_HEADER && (offset - LOG_HEADER) % frame == 0;
    let [_, _, _, _, a, b, c, d, ..] = *piece else { return None };
    (is_there && piece.len() == HEADER).then(|| u32::from_be_bytes([a, b, c, d]))
}

/// An open log. SQLite finds it by its first member.
#[repr(C)]
struct Log {
    methods: Methods,
    /// Those of SQLite's own VFS.
    original: &'static Methods,
    gathered: Gathered,
}

/// SQLite's own VFS.
static ORIGINAL: AtomicPtr<Vfs> = AtomicPtr::new(ptr::null_mut());

/// The name of the VFS; none where there is none.
pub(super) fn vfs() -> Option<&'static CStr> {
    static IS_THERE: LazyLock<bool> = LazyLock::new(register);
    IS_THERE.then_some(NAME)
}

#[expect(unsafe_code, reason = "SQLite is told of a VFS by address")]
fn register() -> bool {
    if !cfg!(unix) {
        return false;
    }
    // SAFETY: the default VFS is there for as long as the program, and so is the copy. Its other functions do the same for both:
    // all that they know of a VFS is what the copy has too.
    unsafe {
        let original = ffi::sqlite3_vfs_find(ptr::null());
        if original.is_null() {
            return false;
        }
        ORIGINAL.store(original, Ordering::Release);
        let own = Vfs { pNext: ptr::null_mut(), zName: NAME.as_ptr(), xOpen: Some(open), ..*original };
        ffi::sqlite3_vfs_register(Box::leak(Box::new(own)), 0) == ffi::SQLITE_OK
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn open(
    _: *mut Vfs,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let original = ORIGINAL.load(Ordering::Acquire);
    // SAFETY: what SQLite hands over is handed on, to the VFS that it is meant for. Afterwards `file` is an open file of that one,
    // whose methods are there for as long as the program.
    unsafe {
        let Some(opens) = (*original).xOpen else { return ffi::SQLITE_CANTOPEN };
        let code = opens(original, name, file, flags, out_flags);
        let is_log = flags & ffi::SQLITE_OPEN_WAL != 0;
        if code == ffi::SQLITE_OK
            && is_log
            && let Some(original) = (*file).pMethods.as_ref()
        {
            let methods = Methods {
                xClose: Some(close),
                xRead: Some(read),
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                xFileSize: Some(file_size),
                ..*original
            };
            let log = Box::new(Log { methods, original, gathered: Gathered::default() });
            (*file).pMethods = Box::into_raw(log).cast();
        }
        code
    }
}

/// A log that SQLite calls for.
struct Called<'f> {
    file: *mut File,
    original: &'static Methods,
    gathered: &'f mut Gathered,
}

impl Called<'_> {
    /// # Safety
    /// The file has to be one that [`open`] has made a [`Log`] of, with nobody else at it.
    #[expect(unsafe_code, reason = "SQLite hands over addresses")]
    unsafe fn by(file: *mut File) -> Self {
        // SAFETY: its methods are the first member of its log, which is there until it is closed.
        unsafe {
            let log = (*file).pMethods.cast::<Log>().cast_mut();
            Self { file, original: (*log).original, gathered: &mut (*log).gathered }
        }
    }

    /// Writes what is held back.
    fn write_gathered(&mut self) -> c_int {
        let Gathered { bytes, start, .. } = &*self.gathered;
        if bytes.is_empty() {
            return ffi::SQLITE_OK;
        }
        let code = self.write(bytes, *start);
        let gathered = &mut *self.gathered;
        if code == ffi::SQLITE_OK {
            gathered.bytes.clear();
        } else if gathered.is_commit && gathered.bytes.len().is_multiple_of(FRAME) {
            // The commit has failed, and nothing of it may ever come to be there.
            gathered.bytes.clear();
            gathered.end = gathered.start;
        }
        code
    }

    #[expect(unsafe_code, reason = "SQLite is handed addresses")]
    fn write(&self, bytes: &[u8], offset: i64) -> c_int {
        let (Some(writes), Ok(length)) = (self.original.xWrite, c_int::try_from(bytes.len())) else {
            return ffi::SQLITE_IOERR_WRITE;
        };
        // SAFETY: the file is open, and the bytes are only read.
        unsafe { writes(self.file, bytes.as_ptr().cast(), length, offset) }
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn write(file: *mut File, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: so SQLite calls it: for an open log, with so many bytes.
    let (mut called, piece) = unsafe {
        let length = usize::try_from(amount).unwrap_or_default();
        (Called::by(file), std::slice::from_raw_parts(data.cast::<u8>(), length))
    };
    match called.gathered.add(piece, offset) {
        Next::Wait => ffi::SQLITE_OK,
        Next::Write => called.write_gathered(),
        Next::Apart => match called.write_gathered() {
            ffi::SQLITE_OK => called.write(piece, offset),
            code => code,
        },
    }
}

/// Writes what is held back, and then has SQLite's own VFS do what is asked; `missing` is the error if it cannot.
///
/// # Safety
/// As for [`Called::by`].
#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe fn then(file: *mut File, missing: c_int, ask: impl FnOnce(&mut Called<'_>) -> Option<c_int>) -> c_int {
    // SAFETY: so the caller says.
    let mut called = unsafe { Called::by(file) };
    match called.write_gathered() {
        ffi::SQLITE_OK => ask(&mut called).unwrap_or(missing),
        code => code,
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn read(file: *mut File, data: *mut c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: so SQLite calls it, and what it hands over is handed on.
    unsafe {
        let ask = |called: &mut Called<'_>| Some(called.original.xRead?(file, data, amount, offset));
        then(file, ffi::SQLITE_IOERR_READ, ask)
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn truncate(file: *mut File, size: i64) -> c_int {
    // SAFETY: so SQLite calls it, and what it hands over is handed on.
    unsafe {
        let ask = |called: &mut Called<'_>| {
            let truncates = called.original.xTruncate?;
            called.gathered.end = called.gathered.end.min(size);
            Some(truncates(file, size))
        };
        then(file, ffi::SQLITE_IOERR_TRUNCATE, ask)
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: so SQLite calls it, and what it hands over is handed on.
    unsafe {
        let ask = |called: &mut Called<'_>| Some(called.original.xSync?(file, flags));
        then(file, ffi::SQLITE_IOERR_FSYNC, ask)
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn file_size(file: *mut File, size: *mut i64) -> c_int {
    // SAFETY: so SQLite calls it, and what it hands over is handed on.
    unsafe {
        let ask = |called: &mut Called<'_>| Some(called.original.xFileSize?(file, size));
        then(file, ffi::SQLITE_IOERR_FSTAT, ask)
    }
}

#[expect(unsafe_code, reason = "SQLite hands over addresses")]
unsafe extern "C" fn close(file: *mut File) -> c_int {
    // SAFETY: so SQLite calls it, once, and never again for this log, which `open` has put into a box.
    unsafe {
        let mut called = Called::by(file);
        // No commit is among it.
        let _ = called.write_gathered();
        let log = Box::from_raw((*file).pMethods.cast::<Log>().cast_mut());
        (*file).pMethods = log.original;
        log.original.xClose.map_or(ffi::SQLITE_OK, |closes| closes(file))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::{Sync, schema};

    fn header(pages: u32) -> [u8; HEADER] {
        let mut header = [7; HEADER];
        header[4..8].copy_from_slice(&pages.to_be_bytes());
        header
    }

    fn place(frame: usize) -> i64 {
        LOG_HEADER + i64::try_from(frame * FRAME).unwrap()
    }

    fn page_of(frame: usize) -> i64 {
        place(frame) + i64::try_from(HEADER).unwrap()
    }

    #[test]
    fn a_commit_waits_for_its_last_frame() {
        let mut gathered = Gathered::default();
        let page = [1; PAGE];
        assert_eq!(gathered.add(&[0; 32], 0), Next::Apart);
        for (frame, pages) in [(0, 0), (1, 0), (2, 9)] {
            assert_eq!(gathered.add(&header(pages), place(frame)), Next::Wait);
            let next = if pages > 0 { Next::Write } else { Next::Wait };
            assert_eq!(gathered.add(&page, page_of(frame)), next);
        }
        assert_eq!((gathered.start, gathered.bytes.len()), (LOG_HEADER, 3 * FRAME));
    }

    /// What changes frames that are there already may be the last that is written before the commit is told of.
    #[test]
    fn what_changes_a_frame_does_not_wait() {
        let mut gathered = Gathered::default();
        for frame in 0..2 {
            gathered.add(&header(0), place(frame));
            gathered.add(&[1; PAGE], page_of(frame));
        }
        assert_eq!(gathered.add(&[2; PAGE], page_of(0)), Next::Apart);
        gathered.bytes.clear();
        for piece in [header(0), header(5)] {
            assert_eq!(gathered.add(&piece, place(0)), Next::Apart);
            assert_eq!(gathered.add(&piece, place(1)), Next::Apart);
        }
        assert_eq!(gathered.add(&header(0), place(2) + 1), Next::Apart, "where no frame begins");
        assert_eq!(gathered.add(&header(0)[1..], place(3)), Next::Apart);
        assert_eq!(gathered.add(&[0; 32], 0), Next::Apart);
        assert_eq!(gathered.add(&header(0), place(0)), Next::Wait, "in a log that is begun anew");
    }

    #[test]
    fn only_so_much_waits() {
        let mut gathered = Gathered::default();
        let enough = (0..).find(|frame| {
            gathered.add(&header(0), place(*frame));
            gathered.add(&[1; PAGE], page_of(*frame)) == Next::Write
        });
        assert_eq!((enough, gathered.bytes.len()), (Some(30), 31 * FRAME));
    }

    /// What a program finds that starts after this one was killed.
    fn survivors(path: &Path) -> Vec<(i64, String)> {
        let folder = tempfile::tempdir().unwrap();
        for end in ["", "-wal"] {
            let copy = folder.path().join(format!("agl.db{end}"));
            fs::copy(format!("{}{end}", path.display()), copy).unwrap();
        }
        let survivor = Connection::open(folder.path().join("agl.db")).unwrap();
        let sound: String = survivor.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        rows(&survivor)
    }

    fn rows(connection: &Connection) -> Vec<(i64, String)> {
        let mut statement = connection.prepare("SELECT id, text FROM t ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(i64, u8, usize),
        Savepoint,
        Back,
        Commit,
        RollBack,
        Look,
        Die,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..40_i64, any::<u8>(), 0..60_000_usize).prop_map(|(id, byte, length)| Step::Put(id, byte, length)),
            1 => Just(Step::Savepoint),
            1 => Just(Step::Back),
            3 => Just(Step::Commit),
            1 => Just(Step::RollBack),
            1 => Just(Step::Look),
            1 => Just(Step::Die),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever is written, taken back and read in between, with pages that have to make room before the commit: what is
        /// committed is in the files, and nothing else is.
        #[test]
        fn what_is_committed_survives(steps in steps(), is_full in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("agl.db");
            let sync = if is_full { Sync::Full } else { Sync::Normal };
            let writer = schema::open_writer(&path, sync).unwrap();
            writer.execute_batch("PRAGMA cache_size = 5; CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);").unwrap();
            let reader = schema::open_reader(&path).unwrap();
            let mut kept = Vec::new();
            let mut has_savepoint = false;
            writer.execute_batch("BEGIN IMMEDIATE").unwrap();
            for step in steps.into_iter().chain([Step::Commit]) {
                match step {
                    Step::Put(id, byte, length) => {
                        let text = char::from(b'a' + byte % 26).to_string().repeat(length);
                        writer.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (id, text)).unwrap();
                    }
                    Step::Savepoint if !has_savepoint => {
                        writer.execute_batch("SAVEPOINT s").unwrap();
                        has_savepoint = true;
                    }
                    Step::Back if has_savepoint => writer.execute_batch("ROLLBACK TO s").unwrap(),
                    Step::Commit => {
                        let expected = rows(&writer);
                        writer.execute_batch("COMMIT").unwrap();
                        kept = expected;
                    }
                    Step::RollBack => writer.execute_batch("ROLLBACK").unwrap(),
                    Step::Look => {
                        rows(&writer);
                    }
                    _ => {}
                }
                if writer.is_autocommit() {
                    prop_assert_eq!(&rows(&reader), &kept);
                    prop_assert_eq!(&survivors(&path), &kept);
                    has_savepoint = false;
                    if matches!(step, Step::RollBack) {
                        writer.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
                    }
                    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
                } else if matches!(step, Step::Die) {
                    prop_assert_eq!(&survivors(&path), &kept);
                }
            }
        }
    }
}
