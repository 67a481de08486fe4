//! How the system's allocator is to deal with this program's memory.

/// Bytes from which on a piece of memory is had from the system by itself, and goes back there when it is freed. Long
/// prompts and their answers are above that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 96 << 10;

/// Bytes that stay at hand for small pieces, so that they are not had and given back again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const AT_HAND: libc::c_int = 1 << 20;

/// Has glibc give large pieces back when they are freed. It does so in the beginning, but after the first one keeps ever
/// larger ones, between which small ones then come to lie: with many long calls at once, half as much memory more.
pub(crate) fn give_back_large_pieces() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "there is no other way to tell the allocator")]
        // SAFETY: numbers are set, under the allocator's own lock. Should that be refused, nothing is different.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TOP_PAD, AT_HAND);
        }
    }
}
