use std::fmt;

/// The key that a server asks for. It is never shown: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Box<str>);

/// Text that cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// There is nothing in it.
    #[error("the key is empty: give one, or leave it out")]
    Empty,
    /// It could not be sent in a header.
    #[error("the key has characters that no HTTP header can carry: use printable ASCII without blanks")]
    Unprintable,
}

impl ApiKey {
    /// The environment variable that servers and clients take their key from.
    pub const VARIABLE: &str = "AGL_KEY";

    /// A key as a user gives it; blanks and line ends around it do not count.
    ///
    /// # Errors
    /// [`ApiKeyError`] for text that cannot be a key. It does not repeat the text.
    pub fn new(text: &str) -> Result<Self, ApiKeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ApiKeyError::Empty);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ApiKeyError::Unprintable);
        }
        Ok(Self(text.into()))
    }

    /// The key itself, to be sent or compared, never to be logged.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_and_hidden() {
        let key = ApiKey::new(" s3cret\n").unwrap();
        assert_eq!(key.reveal(), "s3cret");
        assert!(!format!("{key:?}").contains("s3cret"));
        assert_eq!(ApiKey::new(" \n"), Err(ApiKeyError::Empty));
        for text in ["two words", "schlüssel", "a\nb"] {
            assert_eq!(ApiKey::new(text), Err(ApiKeyError::Unprintable));
        }
    }
}
