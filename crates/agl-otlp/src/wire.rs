//! Protobuf's encoding, read in place.

use crate::Error;

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of a message, in the order in which they come.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a>(&'a [u8]);

pub(crate) fn fields(message: &[u8]) -> Fields<'_> {
    Fields(message)
}

impl<'a> Fields<'a> {
    /// The number and the value of the next field.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.chunk()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| cut_off())?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(cut_off)?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => {
                self.chunk::<4>()?;
                Wire::Fixed32
            }
            kind => return Err(Error::payload(format!("there is a field of the unknown kind {kind}"))),
        };
        match key >> 3 {
            0 => Err(Error::payload("there is a field with the number 0")),
            number => Ok(Some((number, value))),
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Error> {
        match *self.0 {
            // Nearly all keys and lengths have a single byte.
            [byte, ref rest @ ..] if byte < 0x80 => {
                self.0 = rest;
                Ok(byte.into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for (place, byte) in self.0.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if place == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = &self.0[place + 1..];
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 { cut_off() } else { Error::payload("a number has more than 64 bits") })
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (chunk, rest) = self.0.split_first_chunk::<N>().ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(*chunk)
    }
}

fn cut_off() -> Error {
    Error::payload("a message is cut off")
}

impl<'a> Wire<'a> {
    pub(crate) fn bytes(self, field: &'static str) -> Result<&'a [u8], Error> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(odd(field)) }
    }

    pub(crate) fn text(self, field: &'static str) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| Error::payload(format!("{field} is not UTF-8")))
    }

    pub(crate) fn varint(self, field: &'static str) -> Result<u64, Error> {
        if let Self::Varint(number) = self { Ok(number) } else { Err(odd(field)) }
    }

    pub(crate) fn fixed64(self, field: &'static str) -> Result<u64, Error> {
        if let Self::Fixed64(number) = self { Ok(number) } else { Err(odd(field)) }
    }
}

fn odd(field: &'static str) -> Error {
    Error::payload(format!("{field} is not of the kind that it should be"))
}
