//! Reading a request's fields with errors that name them.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// A JSON object whose fields are taken out one by one; what is left at the end is not supported.
/// `null` is the same as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Path of the object in the request, with a dot at its end; empty for the request itself.
    prefix: String,
}

impl Fields {
    /// The fields of a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, prefix: String::new() }),
            Ok(_) => Err(Error::BadRequest {
                message: "the request's body must be a JSON object".into(),
                param: None,
            }),
            Err(e) => Err(Error::BadRequest {
                message: format!("the request's body is not JSON: {e}"),
                param: None,
            }),
        }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        let path = format!("{}{name}", self.prefix);
        let mut shown = found.to_string();
        if let Some((at, _)) = shown.char_indices().nth(100) {
            shown.truncate(at);
            shown.push('…');
        }
        Error::bad_request(path.clone(), format!("{path} must be {expected}, got {shown}"))
    }

    /// An error about this object as a whole.
    pub(crate) fn error(&self, message: &str) -> Error {
        Error::bad_request(self.prefix.trim_end_matches('.'), message)
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn integer(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ if most == u64::MAX => {
                Err(self.wrong(name, &format!("a whole number of at least {least}"), &value))
            }
            _ => Err(self.wrong(name, &format!("a whole number between {least} and {most}"), &value)),
        }
    }

    pub(crate) fn signed(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(name, &format!("a whole number between {least} and {most}"), &value)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ if least == f64::MIN_POSITIVE => {
                Err(self.wrong(name, &format!("a number above 0 and at most {most}"), &value))
            }
            _ => Err(self.wrong(name, &format!("a number between {least} and {most}"), &value)),
        }
    }

    /// One string or a list of them.
    pub(crate) fn strings(&mut self, name: &str, most: usize) -> Result<Vec<String>> {
        let value = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => return Ok(vec![text]),
            Some(value) => value,
        };
        let list = value.as_array().filter(|list| list.len() <= most);
        list.and_then(|list| list.iter().map(|item| item.as_str().map(str::to_owned)).collect())
            .ok_or_else(|| self.wrong(name, &format!("a string or a list of at most {most} strings"), &value))
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map, prefix: format!("{}{name}.", self.prefix) })),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// Refuses every value of a field but the one that changes nothing.
    pub(crate) fn only(&mut self, name: &str, neutral: &Value) -> Result<()> {
        let Some(value) = self.take(name) else { return Ok(()) };
        let same_number = value.as_f64().is_some() && value.as_f64() == neutral.as_f64();
        if value == *neutral || same_number {
            return Ok(());
        }
        let path = format!("{}{name}", self.prefix);
        Err(Error::bad_request(
            path.clone(),
            format!("{path} is not supported here (only {neutral} is accepted)"),
        ))
    }

    /// Drops a field that has no bearing on the answer.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.map.shift_remove(name);
    }

    /// Refuses what nobody has asked for.
    pub(crate) fn finish(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = format!("{}{name}", self.prefix);
                Err(Error::bad_request(path.clone(), format!("{path} is not a supported parameter")))
            }
        }
    }
}
