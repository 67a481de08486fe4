//! Who may call: those with the key, and agents with a token for their attempt.

use agl_store::{Clock as _, SystemClock};
use agl_types::ApiKey;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// What every token begins with.
const TAG: &str = "agl-at";
/// Bytes of a token's seal.
const SEAL: usize = 24;

/// What a token lets its bearer do, beside calling models and recording spans for the attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptGrant {
    /// The rollout.
    pub rollout_id: String,
    /// The attempt.
    pub attempt_id: String,
    /// Whether the bearer may set the attempt's reward.
    pub may_reward: bool,
    /// When it is good no more, in seconds since 1970; at the end of the attempt it calls no models any more either way.
    pub until: Option<u64>,
}

impl AttemptGrant {
    fn is_over(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "there are few enough seconds")]
        self.until.is_some_and(|until| until as f64 <= SystemClock.now())
    }
}

/// Somebody who has neither the key nor a good token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// Makes and reads the tokens that agents get in place of the key: each is good for one attempt.
///
/// A token is the grant and its seal, an HMAC-SHA256 under a secret that only servers with the same key have.
#[derive(Clone)]
pub struct AttemptTokens {
    secret: Hmac<Sha256>,
}

impl std::fmt::Debug for AttemptTokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AttemptTokens").finish_non_exhaustive()
    }
}

impl AttemptTokens {
    /// Tokens for servers with this key; without one, for this process alone.
    #[must_use]
    pub fn new(key: Option<&ApiKey>) -> Self {
        let random: [u8; 32];
        let secret: &[u8] = match key {
            Some(key) => key.reveal().as_bytes(),
            None => {
                random = rand::random();
                &random
            }
        };
        // HMAC takes secrets of any length, and fills one that is shorter than a block up with zeros.
        let mut derived = [0; 64];
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) {
            mac.update(b"agentlightning attempt tokens, version 1");
            derived[..32].copy_from_slice(&mac.finalize().into_bytes());
        }
        Self { secret: Hmac::new(&derived.into()) }
    }

    /// The token for a grant.
    #[must_use]
    pub fn issue(&self, grant: &AttemptGrant) -> String {
        let rights = if grant.may_reward { "r" } else { "n" };
        let until = grant.until.map_or_else(String::new, |until| until.to_string());
        let claim = format!(
            "{TAG}.{rights}.{until}.{}.{}",
            BASE64.encode(&grant.rollout_id),
            BASE64.encode(&grant.attempt_id)
        );
        let seal = self.seal(&claim);
        format!("{claim}.{}", BASE64.encode(seal))
    }

    fn seal(&self, claim: &str) -> [u8; SEAL] {
        let mut mac = self.secret.clone();
        mac.update(claim.as_bytes());
        let whole = mac.finalize().into_bytes();
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&whole[..SEAL]);
        seal
    }

    /// What a token grants; none when it is no token, not one of these, or past its time.
    #[must_use]
    pub fn read(&self, token: &str) -> Option<AttemptGrant> {
        let (claim, seal) = token.rsplit_once('.')?;
        let seal = BASE64.decode(seal).ok()?;
        if !bool::from(seal.ct_eq(&self.seal(claim))) {
            return None;
        }
        let mut parts = claim.split('.');
        let (tag, rights, until) = (parts.next()?, parts.next()?, parts.next()?);
        let until = match until {
            "" => None,
            seconds => Some(seconds.parse().ok()?),
        };
        let mut id = || String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok();
        let grant = AttemptGrant { rollout_id: id()?, attempt_id: id()?, may_reward: rights == "r", until };
        (tag == TAG && parts.next().is_none() && !grant.is_over()).then_some(grant)
    }

    /// What the sender of a request is held to: an attempt, or nothing when it has the key, or there is none.
    ///
    /// # Errors
    /// [`Unknown`], also without a key for a token that is not good: that is a mistake, or worse.
    pub fn admit(&self, headers: &HeaderMap, key: Option<&ApiKey>) -> Result<Option<AttemptGrant>, Unknown> {
        if let Some(grant) = self.of_request(headers) {
            return Ok(Some(grant));
        }
        let is_let_in = match key {
            Some(key) => has_key(headers, key),
            None => !credentials(headers).any(is_token),
        };
        if is_let_in { Ok(None) } else { Err(Unknown) }
    }

    /// What the credentials of a request grant, where one of them is a token. Whoever shows the key beside it is held to
    /// the token all the same.
    fn of_request(&self, headers: &HeaderMap) -> Option<AttemptGrant> {
        credentials(headers).find_map(|credential| self.read(std::str::from_utf8(credential).ok()?))
    }
}

/// Whether text is meant to be a token, whether or not it is a good one.
fn is_token(credential: &[u8]) -> bool {
    credential.strip_prefix(TAG.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'.'))
}

/// Whether a request brings this key along, in whichever header. Takes as long for a key that is nearly right as for any other of its length.
pub(crate) fn has_key(headers: &HeaderMap, key: &ApiKey) -> bool {
    credentials(headers).any(|given| given.ct_eq(key.reveal().as_bytes()).into())
}

/// What a request brings along to show who it is from: OpenAI's SDKs send a bearer token, Anthropic's `x-api-key`,
/// Azure's `api-key`.
pub(crate) fn credentials(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    let plain = ["x-api-key", "api-key"].into_iter().filter_map(|name| headers.get(name));
    bearer.into_iter().chain(plain.map(|value| value.as_bytes().trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> AttemptGrant {
        AttemptGrant {
            rollout_id: "ro-1.ä".to_owned(),
            attempt_id: "at-1".to_owned(),
            may_reward: false,
            until: None,
        }
    }

    #[test]
    fn a_token_has_its_time() {
        let tokens = AttemptTokens::new(None);
        let at = |until: u64| tokens.read(&tokens.issue(&AttemptGrant { until: Some(until), ..grant() }));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's own time")]
        let now = SystemClock.now() as u64;
        assert_eq!(at(now + 3600), Some(AttemptGrant { until: Some(now + 3600), ..grant() }));
        for past in [0, now - 1] {
            assert_eq!(at(past), None);
        }
    }

    #[test]
    fn a_bad_token_is_no_way_in_even_without_a_key() {
        let (tokens, others) = (AttemptTokens::new(None), AttemptTokens::new(None));
        let with = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(name.parse().unwrap(), axum::http::HeaderValue::from_str(value).unwrap())])
        };
        let foreign = others.issue(&grant());
        let key = ApiKey::new("k").unwrap();
        for headers in [
            with("authorization", &format!("Bearer {foreign}")),
            with("x-api-key", &foreign),
            with("api-key", &foreign),
        ] {
            assert_eq!(tokens.admit(&headers, None), Err(Unknown));
            assert_eq!(tokens.admit(&headers, Some(&key)), Err(Unknown));
            assert_eq!(others.admit(&headers, Some(&key)), Ok(Some(grant())));
        }
        assert_eq!(tokens.admit(&HeaderMap::new(), None), Ok(None));
        assert_eq!(tokens.admit(&HeaderMap::new(), Some(&key)), Err(Unknown));
        assert_eq!(tokens.admit(&with("x-api-key", "k"), Some(&key)), Ok(None));
    }

    #[test]
    fn a_token_is_read_by_those_with_the_key_alone() {
        let key = ApiKey::new("k").unwrap();
        let tokens = AttemptTokens::new(Some(&key));
        let token = tokens.issue(&grant());
        assert_eq!(AttemptTokens::new(Some(&key)).read(&token), Some(grant()));
        assert_eq!(AttemptTokens::new(Some(&ApiKey::new("l").unwrap())).read(&token), None);
        assert_eq!(AttemptTokens::new(None).read(&token), None);
        assert!(ApiKey::new(&token).is_ok(), "it fits into a header");
    }

    #[test]
    fn a_token_cannot_be_changed() {
        let tokens = AttemptTokens::new(None);
        let token = tokens.issue(&grant());
        let other = tokens.issue(&AttemptGrant { may_reward: true, ..grant() });
        assert_ne!(token, other);
        let (claim, _) = other.rsplit_once('.').unwrap();
        let (_, seal) = token.rsplit_once('.').unwrap();
        for forged in
            [format!("{claim}.{seal}"), format!("{claim}."), claim.to_owned(), String::new(), ".".to_owned()]
        {
            assert_eq!(tokens.read(&forged), None, "{forged}");
        }
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(tokens.read(&String::from_utf8(forged).unwrap()), None, "byte {at}");
        }
    }
}
