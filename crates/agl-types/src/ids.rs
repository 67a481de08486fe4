//! The forms of ids. Randomness comes in from outside, so that a store can run in a seeded simulation.

use std::fmt::Write as _;

/// Hexadecimal digits after `ro-`.
const ROLLOUT_DIGITS: usize = 12;
/// Hexadecimal digits after `at-`.
const ATTEMPT_DIGITS: usize = 8;
/// Hexadecimal digits after `rs-`.
const RESOURCES_DIGITS: usize = 12;

/// A rollout id, `ro-` and 12 hexadecimal digits of `random`.
#[must_use]
pub fn rollout_id(random: u64) -> String {
    tagged("ro-", random, ROLLOUT_DIGITS)
}

/// An attempt id, `at-` and 8 hexadecimal digits of `random`.
#[must_use]
pub fn attempt_id(random: u64) -> String {
    tagged("at-", random, ATTEMPT_DIGITS)
}

/// A resources id, `rs-` and 12 hexadecimal digits of `random`.
#[must_use]
pub fn resources_id(random: u64) -> String {
    tagged("rs-", random, RESOURCES_DIGITS)
}

/// The id of a rollout of the 1.0 contract: a version 4 UUID as 32 hexadecimal digits.
#[must_use]
pub fn uuid(high: u64, low: u64) -> String {
    let version = (high & !0xf000) | 0x4000;
    let variant = (low & !(0b11 << 62)) | (0b10 << 62);
    format!("{version:016x}{variant:016x}")
}

/// A W3C trace id, 32 hexadecimal digits; never all zeros, which would mean "no trace".
#[must_use]
pub fn trace_id(high: u64, low: u64) -> String {
    format!("{:016x}{:016x}", high, low.max(1))
}

/// A W3C span id, 16 hexadecimal digits; never all zeros, which would mean "no span".
#[must_use]
pub fn span_id(random: u64) -> String {
    format!("{:016x}", random.max(1))
}

/// Lower-case hexadecimal digits, two a byte, with zeros in front where that makes fewer than `digits`.
#[must_use]
pub fn hex(bytes: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let missing = digits.saturating_sub(bytes.len() * 2);
    let mut text = String::with_capacity(missing + bytes.len() * 2);
    text.extend(std::iter::repeat_n('0', missing));
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

fn tagged(tag: &str, random: u64, digits: usize) -> String {
    let mut id = String::with_capacity(tag.len() + 16);
    id.push_str(tag);
    // Writing to a String cannot fail.
    let _ = write!(id, "{random:016x}");
    id.truncate(tag.len() + digits);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_the_wire() {
        assert_eq!(rollout_id(0x0123_4567_89ab_cdef), "ro-0123456789ab");
        assert_eq!(attempt_id(0x0123_4567_89ab_cdef), "at-01234567");
        assert_eq!(resources_id(u64::MAX), "rs-ffffffffffff");
        assert_eq!(resources_id(0).len(), 15);
        assert_eq!(uuid(u64::MAX, u64::MAX), "ffffffffffff4fffbfffffffffffffff");
        assert_eq!(uuid(0, 0), "00000000000040008000000000000000");
        assert_eq!(trace_id(0, 0), "00000000000000000000000000000001");
        assert_eq!(span_id(0), "0000000000000001");
    }
}
