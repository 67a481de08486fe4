//! The bytes of images and files that requests carry as `data:` URLs. Agents send them again with every turn; the store
//! keeps each once an attempt, as a span of its own whose id is that of the content, and calls have a reference in its place:
//! `sha256:HEX?type=MEDIA/TYPE&size=BYTES`. What goes to the model server is not touched.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};

use agl_types::{Span, semconv};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How many are remembered as kept.
const REMEMBERED: usize = 4096;
/// How many attempts may store new ones at once.
const TURNS: usize = 64;

/// Bytes that were taken out of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    digest: String,
    media_type: String,
    size: usize,
    /// In base64, as it came.
    data: String,
}

impl Blob {
    /// What a `data:` URL holds; none for anything else, and for what is no base64.
    fn of_url(url: &str) -> Option<Self> {
        let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
        let media_type = head.strip_suffix(";base64")?;
        let bytes = STANDARD.decode(data).ok()?;
        let mut digest = String::with_capacity(64);
        for byte in Sha256::digest(&bytes) {
            let _ = write!(digest, "{byte:02x}");
        }
        Some(Self { digest, media_type: media_type.to_owned(), size: bytes.len(), data: data.to_owned() })
    }

    /// What stands in its place.
    pub(crate) fn reference(&self) -> String {
        let Self { digest, media_type, size, .. } = self;
        format!("sha256:{digest}?type={media_type}&size={size}")
    }

    /// The id of its span: the same content has the same, so that it is stored once.
    pub(crate) fn span_id(&self) -> &str {
        span_id(&self.digest)
    }

    /// Its span, below that of the call that brought it.
    pub(crate) fn into_span(self, call: &Span) -> Span {
        let (start, end) = (call.start_time.unwrap_or_default(), call.start_time.unwrap_or_default());
        let mut span = Span::new(semconv::BLOB, call.trace_id.clone(), self.span_id().to_owned(), start, end);
        span.parent_id = Some(call.span_id.clone());
        let name = |part: &str| format!("{}.{part}", semconv::BLOB);
        span.attributes.insert(name("sha256"), self.digest.into());
        span.attributes.insert(name("media_type"), self.media_type.into());
        span.attributes.insert(name("size"), self.size.into());
        span.attributes.insert(name("data"), self.data.into());
        span.resource = call.resource.clone();
        span
    }
}

fn span_id(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// The request with references in place of bytes, and the bytes; none where it has no such thing.
pub(crate) fn taken_out(request: &Value) -> Option<(Value, Vec<Blob>)> {
    if !strings(request).any(|text| text.starts_with("data:")) {
        return None;
    }
    let mut request = request.clone();
    let mut blobs: Vec<Blob> = Vec::new();
    change(&mut request, &mut |text| {
        let blob = Blob::of_url(text)?;
        let reference = blob.reference();
        if !blobs.contains(&blob) {
            blobs.push(blob);
        }
        Some(reference)
    });
    (!blobs.is_empty()).then_some((request, blobs))
}

/// The references in a request, each with the id of the span that has the bytes.
pub(crate) fn references(request: &Value) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = strings(request)
        .filter_map(|text| {
            let digest = text.strip_prefix("sha256:")?.split_once("?type=")?.0;
            (digest.len() == 64).then(|| (text.to_owned(), span_id(digest).to_owned()))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Puts the bytes that a span has back where `reference` stands.
pub(crate) fn put_back(request: &mut Value, reference: &str, span: &Span) {
    let of = |part: &str| span.attributes.get(&format!("{}.{part}", semconv::BLOB)).and_then(Value::as_str);
    let Some((media_type, data)) = of("media_type").zip(of("data")) else { return };
    let url = format!("data:{media_type};base64,{data}");
    change(request, &mut |text| (text == reference).then(|| url.clone()));
}

/// All strings below a value.
fn strings(value: &Value) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Value::String(text) => Box::new(std::iter::once(text.as_str())),
        Value::Array(items) => Box::new(items.iter().flat_map(strings)),
        Value::Object(members) => Box::new(members.values().flat_map(strings)),
        _ => Box::new(std::iter::empty()),
    }
}

/// Replaces the strings below a value for which there is something else.
fn change(value: &mut Value, other: &mut impl FnMut(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = other(text) {
                *text = new;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| change(item, other)),
        Value::Object(members) => members.values_mut().for_each(|member| change(member, other)),
        _ => {}
    }
}

/// What is known to be in the store.
#[derive(Debug)]
pub(crate) struct Kept {
    known: Mutex<(HashSet<String>, VecDeque<String>)>,
    turns: [tokio::sync::Mutex<()>; TURNS],
}

impl Default for Kept {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: std::array::from_fn(|_| tokio::sync::Mutex::default()) }
    }
}

impl Kept {
    /// Waits for other calls of the attempt that are storing what may be the same. To be held until these are stored;
    /// none where nothing is new.
    pub(crate) async fn turn(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        blobs: &[Blob],
    ) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if blobs.iter().all(|blob| self.has(rollout_id, attempt_id, blob.span_id())) {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (rollout_id, attempt_id).hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default();
        Some(self.turns[place].lock().await)
    }

    fn name(rollout_id: &str, attempt_id: &str, span_id: &str) -> String {
        format!("{rollout_id}/{attempt_id}/{span_id}")
    }

    pub(crate) fn has(&self, rollout_id: &str, attempt_id: &str, span_id: &str) -> bool {
        let kept = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0.contains(&Self::name(rollout_id, attempt_id, span_id))
    }

    pub(crate) fn add(&self, rollout_id: &str, attempt_id: &str, span_id: &str) {
        let name = Self::name(rollout_id, attempt_id, span_id);
        let mut kept = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0.insert(name.clone()) {
            kept.1.push_back(name);
        }
        if kept.1.len() > REMEMBERED
            && let Some(oldest) = kept.1.pop_front()
        {
            kept.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use serde_json::json;

    use super::*;

    const PIXEL: &str = "data:image/png;base64,iVBORw0KGgo=";

    fn message(url: &str) -> Value {
        json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "data: what is this?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]}]})
    }

    #[test]
    fn bytes_are_taken_out_once_and_put_back() {
        let request = json!([message(PIXEL), message(PIXEL), message("http://h/i.png")]);
        let (short, blobs) = taken_out(&request).unwrap();
        let digest = "4c4b6a3be1314ab86138bef4314dde022e600960d8689a2c8f8631802d20dab6";
        let reference = format!("sha256:{digest}?type=image/png&size=8");
        assert_eq!(short, json!([message(&reference), message(&reference), message("http://h/i.png")]));
        assert_eq!(blobs.len(), 1);
        assert_eq!(references(&short), [(reference.clone(), digest[..16].to_owned())]);
        let call = Span::new("call", "t".to_owned(), "s".to_owned(), 1.0, 2.0);
        let span = blobs[0].clone().into_span(&call);
        assert_eq!((span.span_id.as_str(), span.parent_id.as_deref()), (&digest[..16], Some("s")));
        let mut back = short;
        put_back(&mut back, &reference, &span);
        assert_eq!(back, request);
    }

    #[test]
    fn what_is_no_file_stays() {
        for url in ["data:image/png;base64,??", "data:text/plain,hello", "data:", "sha256:x", "file"] {
            assert_eq!(taken_out(&message(url)), None, "{url}");
        }
        assert_eq!(references(&message("sha256:short?type=x&size=1")), []);
    }

    #[test]
    fn what_is_new_is_stored_by_one_call_at_a_time() {
        let kept = Kept::default();
        let blobs = taken_out(&message(PIXEL)).unwrap().1;
        let turn = |attempt: &'static str| kept.turn("r", attempt, &blobs).now_or_never();
        let first = turn("a").unwrap();
        assert!(first.is_some());
        assert!(turn("a").is_none(), "another call of the attempt waits");
        drop(first);
        assert!(turn("a").unwrap().is_some());
        kept.add("r", "a", blobs[0].span_id());
        assert!(turn("a").unwrap().is_none(), "nobody waits for what is there");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let kept = Kept::default();
        for number in 0..=REMEMBERED {
            kept.add("r", "a", &number.to_string());
        }
        assert!(!kept.has("r", "a", "0") && kept.has("r", "a", "1"));
        assert!(!kept.has("r", "b", "1"));
    }
}
