//! JSON text by byte range: members are found, replaced, added and cut where they stand, so that every byte which is
//! not meant stays as it was.
//!
//! The text is taken to be JSON, which its readers have made sure of. For other text the answer is none or some range
//! within it, never a panic.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, Bytes};

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where its name is, quotes included.
    pub(crate) key: Range<usize>,
    /// Where its value is.
    pub(crate) value: Range<usize>,
}

impl Member {
    /// Its name, with escapes undone.
    pub(crate) fn name<'t>(&self, text: &'t [u8]) -> Cow<'t, str> {
        let quoted = text.get(self.key.clone()).unwrap_or_default();
        let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
        if memchr::memchr(b'\\', inner).is_some() {
            let name: Option<String> = serde_json::from_slice(quoted).ok();
            return name.unwrap_or_default().into();
        }
        std::str::from_utf8(inner).map_or_else(|_| String::from_utf8_lossy(inner), Cow::Borrowed)
    }
}

/// The members of the object at `place`, in order; none when there is no object.
pub(crate) fn members(text: &[u8], place: Range<usize>) -> Option<Vec<Member>> {
    let text = text.get(..place.end)?;
    Some(members_at(text, blank(text, place.start))?.0)
}

/// The members of the object that begins at `at`, and where it ends.
pub(crate) fn members_at(text: &[u8], at: usize) -> Option<(Vec<Member>, usize)> {
    let mut members = Vec::new();
    let end = walk_members(text, at, |key, at| {
        let value = at..end_of_value(text, at)?;
        let end = value.end;
        members.push(Member { key, value });
        Some(end)
    })?;
    Some((members, end))
}

/// Goes through the object that begins at `at`, and returns where it ends. `value` is told where a name is and where
/// its value begins, and says where that ends.
pub(crate) fn walk_members(
    text: &[u8],
    mut at: usize,
    mut value: impl FnMut(Range<usize>, usize) -> Option<usize>,
) -> Option<usize> {
    expect(text, &mut at, b'{')?;
    at = blank(text, at);
    if text.get(at) == Some(&b'}') {
        return Some(at + 1);
    }
    loop {
        at = blank(text, at);
        let key = at..string(text, at)?;
        at = blank(text, key.end);
        expect(text, &mut at, b':')?;
        at = blank(text, at);
        at = blank(text, value(key, at)?);
        match text.get(at)? {
            b',' => at += 1,
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Where the value of a member of the object at `place` is; none when it has no such member.
pub(crate) fn member(text: &[u8], place: Range<usize>, name: &str) -> Option<Range<usize>> {
    let found = members(text, place)?.into_iter().find(|member| member.name(text) == name);
    found.map(|member| member.value)
}

/// The items of the array at `place`, in order; none when there is no array.
pub(crate) fn items(text: &[u8], place: Range<usize>) -> Option<Vec<Range<usize>>> {
    let text = text.get(..place.end)?;
    let mut items = Vec::new();
    walk_items(text, blank(text, place.start), |at| {
        let item = at..end_of_value(text, at)?;
        let end = item.end;
        items.push(item);
        Some(end)
    })?;
    Some(items)
}

/// Goes through the array that begins at `at`, and returns where it ends. `item` is told where an item begins, and says
/// where it ends.
pub(crate) fn walk_items(
    text: &[u8],
    mut at: usize,
    mut item: impl FnMut(usize) -> Option<usize>,
) -> Option<usize> {
    expect(text, &mut at, b'[')?;
    at = blank(text, at);
    if text.get(at) == Some(&b']') {
        return Some(at + 1);
    }
    loop {
        at = blank(text, at);
        at = blank(text, item(at)?);
        match text.get(at)? {
            b',' => at += 1,
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Where members have to go for those that `is_unwanted` to be gone, with a comma each.
pub(crate) fn cuts(members: &[Member], is_unwanted: impl Fn(&Member) -> bool) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let first_kept = members.iter().position(|member| !is_unwanted(member));
    let Some(first_kept) = first_kept else {
        if let (Some(first), Some(last)) = (members.first(), members.last()) {
            cuts.push(first.key.start..last.value.end);
        }
        return cuts;
    };
    if first_kept > 0 {
        cuts.push(members[0].key.start..members[first_kept].key.start);
    }
    for pair in members[first_kept..].windows(2) {
        if is_unwanted(&pair[1]) {
            cuts.push(pair[0].value.end..pair[1].value.end);
        }
    }
    cuts
}

/// Changes to a text, made all at once.
#[derive(Debug, Default)]
pub(crate) struct Edits(Vec<(Range<usize>, Cow<'static, str>)>);

impl Edits {
    /// Puts `with` in place of what is at `place`. Places must not overlap.
    pub(crate) fn replace(&mut self, place: Range<usize>, with: impl Into<Cow<'static, str>>) {
        self.0.push((place, with.into()));
    }

    pub(crate) fn cut(&mut self, places: impl IntoIterator<Item = Range<usize>>) {
        self.0.extend(places.into_iter().map(|place| (place, Cow::Borrowed(""))));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text with the changes made.
    pub(crate) fn apply(self, text: &[u8]) -> Vec<u8> {
        let added: usize = self.0.iter().map(|(_, with)| with.len()).sum();
        let mut edited = Vec::with_capacity(text.len() + added);
        self.write(text, &mut edited);
        edited
    }

    /// Appends the text with the changes made.
    pub(crate) fn write(self, text: &[u8], to: &mut impl BufMut) {
        for (kept, with) in self.in_order(text.len()) {
            to.put_slice(text.get(kept).unwrap_or_default());
            to.put_slice(with.as_bytes());
        }
    }

    /// The text with the changes made, in pieces that share its memory.
    pub(crate) fn pieces(self, text: &Bytes) -> Vec<Bytes> {
        let mut pieces = Vec::with_capacity(2 * self.0.len() + 1);
        for (kept, with) in self.in_order(text.len()) {
            let kept = text.get(kept).map_or_else(Bytes::new, |kept| text.slice_ref(kept));
            let with = match with {
                Cow::Borrowed(with) => Bytes::from_static(with.as_bytes()),
                Cow::Owned(with) => with.into(),
            };
            pieces.extend([kept, with].into_iter().filter(|piece| !piece.is_empty()));
        }
        pieces
    }

    /// What stays of a text of this length, and what comes behind each part of that.
    fn in_order(mut self, length: usize) -> impl Iterator<Item = (Range<usize>, Cow<'static, str>)> {
        // Stable: what is put into one place stays in the order given.
        self.0.sort_by_key(|(place, _)| place.start);
        let mut from = 0;
        let end = (length..length, Cow::Borrowed(""));
        self.0.into_iter().chain([end]).map(move |(place, with)| {
            let kept = from..place.start;
            from = place.end.max(from);
            (kept, with)
        })
    }
}

/// The first place from `at` on that is not blank.
pub(crate) fn blank(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

fn expect(text: &[u8], at: &mut usize, byte: u8) -> Option<()> {
    (text.get(*at) == Some(&byte)).then(|| *at += 1)
}

/// The end of the string that begins at `at`.
fn string(text: &[u8], mut at: usize) -> Option<usize> {
    expect(text, &mut at, b'"')?;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        // A backslash takes what follows with it.
        at += 2;
    }
}

/// The end of the value that begins at `at`.
pub(crate) fn end_of_value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => string(text, at),
        b'[' if text.get(at + 1).is_some_and(u8::is_ascii_digit) => end_of_numbers(text, at),
        b'{' | b'[' => end_of_nested(text, at),
        _ => {
            let rest = &text[at..];
            let length = rest.iter().position(|byte| is_delimiter(*byte)).unwrap_or(rest.len());
            (length > 0).then_some(at + length)
        }
    }
}

/// The end of the array that begins at `at` with a number. Mostly there are only numbers in it, and a great many.
fn end_of_numbers(text: &[u8], at: usize) -> Option<usize> {
    let inner = text.get(at + 1..)?;
    let length = memchr::memchr(b']', inner)?;
    if memchr::memchr3(b'"', b'[', b'{', &inner[..length]).is_some() {
        return end_of_nested(text, at);
    }
    Some(at + 1 + length + 1)
}

/// The end of the object or the array that begins at `at`. Answers are long and mostly within one: only what opens, closes or
/// quotes is looked at.
fn end_of_nested(text: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        at += text.get(at..)?.iter().position(|byte| IS_STRUCTURE[usize::from(*byte)])?;
        match text[at] {
            b'"' => {
                at = string(text, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            _ => depth -= 1,
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

const IS_STRUCTURE: [bool; 256] = {
    let mut is = [false; 256];
    let mut at = 0;
    while at < b"\"{}[]".len() {
        is[b"\"{}[]"[at] as usize] = true;
        at += 1;
    }
    is
};

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' | b'}' | b']' | b'"' | b'{' | b'[')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn without(text: &str, unwanted: &[&str]) -> String {
        let members = members(text.as_bytes(), 0..text.len()).unwrap();
        let mut edits = Edits::default();
        edits.cut(cuts(&members, |member| unwanted.contains(&&*member.name(text.as_bytes()))));
        String::from_utf8(edits.apply(text.as_bytes())).unwrap()
    }

    #[test]
    fn members_are_cut_and_the_rest_stays_byte_for_byte() {
        let text = r#" { "a" : 1.50 ,"b":[1, {"b":"}"}],  "c":"\"b\":,\\" , "d":null}"#;
        assert_eq!(without(text, &[]), text);
        assert_eq!(without(text, &["b"]), r#" { "a" : 1.50,  "c":"\"b\":,\\" , "d":null}"#);
        assert_eq!(without(text, &["a"]), r#" { "b":[1, {"b":"}"}],  "c":"\"b\":,\\" , "d":null}"#);
        assert_eq!(without(text, &["a", "b"]), r#" { "c":"\"b\":,\\" , "d":null}"#);
        assert_eq!(without(text, &["a", "c", "d"]), r#" { "b":[1, {"b":"}"}]}"#);
        assert_eq!(without(text, &["a", "b", "c", "d"]), " { }");
        assert_eq!(without("{}", &["a"]), "{}");
    }

    #[test]
    fn a_name_is_told_whatever_it_is_written_with() {
        let text = br#"{"mod\u0065l": 1}"#;
        assert_eq!(members(text, 0..text.len()).unwrap()[0].name(text), "model");
    }

    #[test]
    fn what_is_no_object_has_no_members() {
        for text in [
            "",
            "[",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "[1]",
            "1",
            "{\"a\":]}",
            "{\"a",
            "{\"a\\",
        ] {
            assert_eq!(members(text.as_bytes(), 0..text.len()), None, "{text}");
        }
    }

    #[test]
    fn the_items_of_an_array_are_told_apart() {
        let found = |text: &str| items(text.as_bytes(), 0..text.len());
        assert_eq!(found("{}"), None);
        assert!(found(" [ ]x").unwrap().is_empty());
        assert_eq!(found(r#" [1, [2,3] ,"]"] "#).unwrap(), [2..3, 5..10, 12..15]);
        assert_eq!(found(r#"[[1,"]",2],[3,[4]],[5,{"a":[6]}]]"#).unwrap(), [1..10, 11..18, 19..32]);
        for broken in ["[", "[1", "[1,", "[1 2]", "[[1,2"] {
            assert_eq!(found(broken), None, "{broken}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[ab\"\\\\]{0,2}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn cutting_a_member_is_removing_it(
            value in prop::collection::vec(("[abc]", any_json()), 0..5),
            pretty in any::<bool>(),
        ) {
            let mut object: serde_json::Map<String, Value> = value.into_iter().collect();
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let cut = without(&text.unwrap(), &["a", "c"]);
            object.retain(|key, _| key != "a" && key != "c");
            prop_assert_eq!(serde_json::from_str::<Value>(&cut).unwrap(), Value::Object(object));
        }

        #[test]
        fn nothing_panics(text in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = members(&text, 0..text.len());
            let _ = items(&text, 0..text.len());
        }
    }
}
