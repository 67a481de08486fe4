//! Reading structs that keep the keys they do not know.
//!
//! `#[serde(flatten)]` does the same, but first gathers the whole object in an intermediate form, which costs several
//! times the reading itself.

/// Implements `Deserialize` for a struct with named fields and `extra`, a [`crate::JsonMap`] of all other keys. Every
/// field must be there, null included, unless it is marked `default`.
macro_rules! deserialize_with_extra {
    ($name:ident { $($field:ident $($default:ident)?),+ $(,)? }) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("struct ", stringify!($name)))
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        $(let mut $field = None;)+
                        let mut extra = crate::JsonMap::new();
                        while let Some(key) = map.next_key::<String>()? {
                            match key.as_str() {
                                $(stringify!($field) if $field.is_some() => {
                                    return Err(serde::de::Error::duplicate_field(stringify!($field)));
                                })+
                                $(stringify!($field) => $field = Some(map.next_value()?),)+
                                _ => {
                                    extra.insert(key, map.next_value()?);
                                }
                            }
                        }
                        Ok($name {
                            $($field: crate::extra::or_missing!($field $($default)?),)+
                            extra,
                        })
                    }
                }

                deserializer.deserialize_map(Fields)
            }
        }
    };
}
pub(crate) use deserialize_with_extra;

/// The value of a field, or what its absence means.
macro_rules! or_missing {
    ($field:ident) => {
        $field.ok_or_else(|| serde::de::Error::missing_field(stringify!($field)))?
    };
    ($field:ident default) => {
        $field.unwrap_or_default()
    };
}
pub(crate) use or_missing;
