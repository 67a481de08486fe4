//! Bodies that come compressed.

use std::borrow::Cow;
use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::StreamingDecoder;

/// The largest window of zstd that a receiver has to have memory for, says RFC 9659, and all that it gets.
const ZSTD_WINDOW: u64 = 8 << 20;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

/// Why a body cannot be decompressed.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is not what its encoding says.
    Corrupt(String),
    /// It is too large.
    TooLarge,
}

impl Encoding {
    /// The names of all of them, as a list.
    pub(crate) const NAMES: &str = "identity, gzip, deflate, zstd";

    /// The encoding of this name; none at all is the same as `identity`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let known = [
            ("", Self::Identity),
            ("identity", Self::Identity),
            ("gzip", Self::Gzip),
            ("deflate", Self::Deflate),
            ("zstd", Self::Zstd),
        ];
        known
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name.trim()))
            .map(|(_, encoding)| encoding)
    }

    /// Decompresses, but never more than `limit` bytes.
    pub(crate) fn inflate(self, bytes: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, Unreadable> {
        // One more tells that there are too many.
        let room = limit.saturating_add(1);
        let inflated = match self {
            Self::Identity => Ok(Cow::Borrowed(bytes)),
            Self::Gzip => read(MultiGzDecoder::new(bytes), room).map(Cow::Owned),
            Self::Deflate if is_zlib(bytes) => read(ZlibDecoder::new(bytes), room).map(Cow::Owned),
            // What some have always sent under this name.
            Self::Deflate => read(DeflateDecoder::new(bytes), room).map(Cow::Owned),
            Self::Zstd => zstd(bytes, room).map(Cow::Owned),
        };
        let inflated = inflated.map_err(|error| {
            let name = format!("{self:?}").to_ascii_lowercase();
            Unreadable::Corrupt(format!("Unable to decompress the {name} payload: {error}"))
        })?;
        if inflated.len() > limit { Err(Unreadable::TooLarge) } else { Ok(inflated) }
    }
}

/// Reads up to `room` bytes.
fn read(source: impl Read, room: usize) -> io::Result<Vec<u8>> {
    let mut inflated = Vec::new();
    source.take(u64::try_from(room).unwrap_or(u64::MAX)).read_to_end(&mut inflated)?;
    Ok(inflated)
}

/// Whether the first two bytes are a header of zlib.
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(*bytes, [method, flags, ..] if method & 0x0f == 8 && u16::from_be_bytes([method, flags]) % 31 == 0)
}

/// All frames, one after the other.
fn zstd(mut bytes: &[u8], room: usize) -> io::Result<Vec<u8>> {
    let mut inflated = Vec::new();
    while !bytes.is_empty() && inflated.len() < room {
        let mut frame =
            StreamingDecoder::new_with_max_window_size(bytes, ZSTD_WINDOW).map_err(io::Error::other)?;
        inflated.extend(read(&mut frame, room - inflated.len())?);
        bytes = frame.into_inner();
    }
    Ok(inflated)
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const TEXT: &[u8] =
        b"spans, and spans, and spans, and more spans than anybody has ever seen in one place";

    /// Every way to say it.
    fn packed(text: &[u8]) -> Vec<(Encoding, Vec<u8>)> {
        let level = Compression::default();
        let mut gzip = GzEncoder::new(Vec::new(), level);
        let mut zlib = ZlibEncoder::new(Vec::new(), level);
        let mut raw = DeflateEncoder::new(Vec::new(), level);
        let writers: [&mut dyn io::Write; 3] = [&mut gzip, &mut zlib, &mut raw];
        for writer in writers {
            writer.write_all(text).unwrap();
        }
        vec![
            (Encoding::Identity, text.to_vec()),
            (Encoding::Gzip, gzip.finish().unwrap()),
            (Encoding::Deflate, zlib.finish().unwrap()),
            (Encoding::Deflate, raw.finish().unwrap()),
            (Encoding::Zstd, compress_to_vec(text, CompressionLevel::Fastest)),
        ]
    }

    #[test]
    fn every_encoding_is_read_up_to_the_limit() {
        for (encoding, bytes) in packed(TEXT) {
            assert_eq!(encoding.inflate(&bytes, TEXT.len()).unwrap(), TEXT, "{encoding:?}");
            assert!(
                matches!(encoding.inflate(&bytes, TEXT.len() - 1), Err(Unreadable::TooLarge)),
                "{encoding:?}"
            );
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_corrupt() {
        for (encoding, bytes) in packed(TEXT) {
            if encoding == Encoding::Identity {
                continue;
            }
            for bytes in [&bytes[..bytes.len() - 9], b"\x28\xb5 something else"] {
                let outcome = encoding.inflate(bytes, 1000);
                assert!(matches!(outcome, Err(Unreadable::Corrupt(_))), "{encoding:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn several_frames_are_one_body() {
        for (encoding, mut bytes) in packed(TEXT) {
            if matches!(encoding, Encoding::Gzip | Encoding::Zstd) {
                bytes.extend(bytes.clone());
                assert_eq!(encoding.inflate(&bytes, 1000).unwrap(), [TEXT, TEXT].concat(), "{encoding:?}");
                assert!(matches!(encoding.inflate(&bytes, TEXT.len() + 1), Err(Unreadable::TooLarge)));
            }
        }
    }

    #[test]
    fn names_are_those_of_http() {
        assert_eq!(Encoding::parse(" GZip "), Some(Encoding::Gzip));
        assert_eq!(Encoding::parse(""), Some(Encoding::Identity));
        assert_eq!(Encoding::parse("gzip, gzip"), None);
        for name in Encoding::NAMES.split(", ") {
            assert!(Encoding::parse(name).is_some(), "{name}");
        }
    }
}
