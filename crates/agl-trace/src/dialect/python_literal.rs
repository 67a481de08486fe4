//! Python's literals as JSON: what `repr` writes of lists, tuples, dictionaries, strings, numbers, booleans and None.

use agl_types::JsonMap;
use serde_json::{Number, Value};

/// How deep a literal may nest.
const MAX_DEPTH: usize = 64;

/// Reads a literal; none for anything else, and for what JSON cannot say (sets, numbers that are not finite).
pub(crate) fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text, depth: 0 };
    let value = reader.value()?;
    reader.rest.trim().is_empty().then_some(value)
}

struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

impl Reader<'_> {
    fn value(&mut self) -> Option<Value> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '[' => self.items('[', ']').map(Value::Array),
            '(' => self.items('(', ')').map(Value::Array),
            '{' => self.fields().map(Value::Object),
            '\'' | '"' => self.string().map(Value::String),
            _ => self.word(),
        }
    }

    /// Takes `token` if it is next.
    fn take(&mut self, token: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn deeper(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn items(&mut self, open: char, close: char) -> Option<Vec<Value>> {
        self.deeper()?;
        let mut items = Vec::new();
        self.take(open);
        while !self.take(close) {
            items.push(self.value()?);
            if !self.take(',') {
                self.take(close).then_some(())?;
                break;
            }
        }
        self.depth -= 1;
        Some(items)
    }

    fn fields(&mut self) -> Option<JsonMap> {
        self.deeper()?;
        let mut fields = JsonMap::new();
        self.take('{');
        while !self.take('}') {
            let key = match self.value()? {
                Value::String(key) => key,
                Value::Null => "None".to_owned(),
                key @ (Value::Number(_) | Value::Bool(_)) => key.to_string(),
                Value::Array(_) | Value::Object(_) => return None,
            };
            self.take(':').then_some(())?;
            let value = self.value()?;
            fields.insert(key, value);
            if !self.take(',') {
                self.take('}').then_some(())?;
                break;
            }
        }
        self.depth -= 1;
        Some(fields)
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut characters = self.rest[1..].char_indices();
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            if character == quote {
                self.rest = &self.rest[1 + at + 1..];
                return Some(text);
            }
            if character != '\\' {
                text.push(character);
                continue;
            }
            let (_, escaped) = characters.next()?;
            let digits = match escaped {
                'n' => Ok('\n'),
                't' => Ok('\t'),
                'r' => Ok('\r'),
                'x' => Err(2),
                'u' => Err(4),
                'U' => Err(8),
                other => Ok(other),
            };
            match digits {
                Ok(character) => text.push(character),
                Err(count) => {
                    let code = (0..count)
                        .try_fold(0_u32, |code, _| Some(code * 16 + characters.next()?.1.to_digit(16)?))?;
                    text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "None" | "null" => Some(Value::Null),
            "True" | "true" => Some(true.into()),
            "False" | "false" => Some(false.into()),
            _ => word
                .parse::<i64>()
                .map(Value::from)
                .ok()
                .or_else(|| Number::from_f64(word.parse().ok()?).map(Value::Number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_repr_writes_is_read() {
        let literal =
            r#"{'a': [1, -2.5, None, True], "b": ('x',), 'q': "it's", 'e': 'tab\t\'\\ \xe9 \u20ac', 3: {}}"#;
        assert_eq!(
            parse(literal),
            Some(json!({"a": [1, -2.5, null, true], "b": ["x"], "q": "it's", "e": "tab\t'\\ é €", "3": {}}))
        );
        assert_eq!(parse("[]"), Some(json!([])));
        assert_eq!(parse(r#"[{"a": true, "b": null}]"#), Some(json!([{"a": true, "b": null}])), "JSON too");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "[1", "{'a'}", "{1, 2}", "Choices(index=0)", "[Choices(index=0)]", "'open", "[nan]", "1 2"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), None);
    }
}
