//! Deserializes the tree of a document into any type. Error messages use the terms of the
//! document's author.

use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, Expected, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::node::{Entry, Mistake, MistakeKind, Node, Step, Value, not_json_number};
use crate::json::Json;

/// Deserializes a value of the tree.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a Node);

impl std::error::Error for Mistake {}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            MistakeKind::Message(text) => f.write_str(text),
            MistakeKind::Missing(field) => write!(f, "{field} is missing"),
            MistakeKind::Emptied => f.write_str("has nothing"),
        }
    }
}

impl Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::message(message.to_string())
    }
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::message(format!("is {}, and must be {expected}", unexpected(found)))
    }
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::message(format!("has {length} values, and must be {expected}"))
    }
    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::message(format!("{found:?} is not one of {}", known.join(", ")))
    }
    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::message(format!(
            "is not a field here; the fields are {}",
            known.join(", ")
        ))
    }
    fn duplicate_field(field: &'static str) -> Self {
        Self::message(format!("has {field} twice"))
    }
    fn missing_field(field: &'static str) -> Self {
        Self {
            path: Vec::new(),
            kind: MistakeKind::Missing(field),
        }
    }
}

fn unexpected(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Char(_) | Unexpected::Str(_) => "a text".to_owned(),
        Unexpected::Unit | Unexpected::Option => "empty".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        _ => "a map".to_owned(),
    }
}

impl<'a> Reader<'a> {
    fn is_not(self, expected: &str) -> Mistake {
        let shown = |text: &str| match text.chars().count() {
            0..=60 => format!("{text:?}"),
            _ => format!("{:?} and more", text.chars().take(60).collect::<String>()),
        };
        let found = match &self.0.value {
            Value::Null | Value::Invalid => "empty".to_owned(),
            // The text may be a secret in the wrong place.
            Value::Text(_) | Value::UntypedText(_) if expected.starts_with("a map") => {
                "a text".to_owned()
            }
            Value::Bool(value) => value.to_string(),
            Value::Number(number) | Value::YamlNumber(number) => format!("the number {number}"),
            Value::Text(text) | Value::UntypedText(text) => format!("the text {}", shown(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        Mistake::message(format!("is {found}, and must be {expected}"))
    }

    fn text(self) -> Result<&'a str, Mistake> {
        match &self.0.value {
            Value::Text(text) | Value::UntypedText(text) => Ok(text),
            Value::Number(written) | Value::YamlNumber(written) => {
                Err(self.is_not(&format!("a text: quote it (\"{written}\")")))
            }
            Value::Bool(value) => Err(self.is_not(&format!("a text: quote it (\"{value}\")"))),
            _ => Err(self.is_not("a text")),
        }
    }

    fn number(self) -> Option<&'a str> {
        match &self.0.value {
            Value::Number(written) | Value::UntypedText(written) => Some(written),
            _ => None,
        }
    }

    fn truth(self) -> Option<bool> {
        match &self.0.value {
            Value::Bool(value) => Some(*value),
            Value::UntypedText(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn entries(self, without_null: bool) -> Option<Entries<'a>> {
        let Value::Map(entries) = &self.0.value else {
            return None;
        };
        Some(Entries {
            entries: entries.iter(),
            without_null,
            current: None,
        })
    }

    fn items(self) -> Option<Items<'a>> {
        let Value::List(items) = &self.0.value else {
            return None;
        };
        Some(Items(items.iter().enumerate()))
    }

    /// Returns the only entry of a map, as the choice among several variants.
    fn choice(self, known: &[&str]) -> Result<Choice<'a>, Mistake> {
        let among = known.join(", ");
        match &self.0.value {
            Value::Text(name) | Value::UntypedText(name) => Ok(Choice { name, of: None }),
            Value::Map(entries) => {
                let mut sound = entries.iter().filter(|entry| !entry.node.is_invalid());
                match (sound.next(), sound.next()) {
                    (Some(one), None) => Ok(Choice {
                        name: &one.key,
                        of: Some(&one.node),
                    }),
                    (None, None) if !entries.is_empty() => Err(Mistake {
                        path: Vec::new(),
                        kind: MistakeKind::Emptied,
                    }),
                    _ => Err(Mistake::message(format!(
                        "must have exactly one of {among}"
                    ))),
                }
            }
            Value::YamlNumber(number) => Err(not_json_number(number)),
            _ => Err(self.is_not(&format!("one of {among}"))),
        }
    }
}

/// Returns the number as an `f64`, if the `f64` has the same digits.
fn exact(written: &str) -> Option<f64> {
    let number: f64 = written.parse().ok()?;
    (number.is_finite() && digits(written) == digits(&format!("{number:e}"))).then_some(number)
}

/// Returns the significant digits, and the power of ten of the first digit.
fn digits(written: &str) -> (String, i64) {
    let (mantissa, exponent) = written.split_once(['e', 'E']).unwrap_or((written, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = whole.trim_start_matches('-');
    let all = [whole, fraction].concat();
    let leading = all.len() - all.trim_start_matches('0').len();
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX / 2);
    let power = exponent + whole.len() as i64 - leading as i64;
    match all.trim_matches('0') {
        "" => (String::new(), 0),
        digits => (digits.to_owned(), power),
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            match self.number().and_then(|written| written.parse::<$type>().ok()) {
                Some(number) => visitor.$visit(number),
                None => Err(self.is_not(&match (<$type>::MIN == 0, <$type>::BITS) {
                    (true, 64) => "a whole number, 0 or above".to_owned(),
                    (false, 64) => "a whole number".to_owned(),
                    _ => format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX),
                })),
            }
        }
    )* };
}

macro_rules! texts {
    ($($method:ident),*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            visitor.visit_borrowed_str(self.text()?)
        }
    )* };
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Null | Value::Invalid => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(written) => match written.parse::<i64>() {
                Ok(number) => match u64::try_from(number) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => visitor.visit_i64(number),
                },
                Err(_) => match exact(written) {
                    Some(number) => visitor.visit_f64(number),
                    None => Err(self.is_not(&format!(
                        "a number with fewer digits; quote it (\"{written}\") if it is a text"
                    ))),
                },
            },
            Value::YamlNumber(number) => Err(not_json_number(number)),
            Value::Text(text) | Value::UntypedText(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(_) => visitor.visit_map(self.entries(true).expect("it is a map")),
        }
    }

    whole_numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }
    texts! { deserialize_str, deserialize_string, deserialize_char, deserialize_bytes, deserialize_byte_buf, deserialize_identifier }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let number = self.number().and_then(|it| it.parse::<f64>().ok());
        match number.filter(|number| number.is_finite()) {
            Some(number) => visitor.visit_f64(number),
            None => Err(self.is_not("a number")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.truth() {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.is_not("true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.0.value {
            Value::Null | Value::Invalid => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.0.value {
            Value::Null => visitor.visit_unit(),
            _ => Err(self.is_not("empty")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if name == Json::NAME {
            let mut text = String::new();
            self.0.write(&mut text)?;
            return visitor.visit_string(text);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.items() {
            Some(items) => visitor.visit_seq(items),
            None => Err(self.is_not("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.entries(false) {
            Some(entries) => visitor.visit_map(entries),
            None => Err(self.is_not("a map")),
        }
    }

    /// A null field counts as absent.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match self.entries(true) {
            Some(entries) => visitor.visit_map(entries),
            None => Err(self.is_not(&format!("a map with fields such as {}", fields.join(", ")))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_enum(self.choice(variants)?)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_unit()
    }
}

struct Items<'a>(std::iter::Enumerate<std::slice::Iter<'a, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        let Some((index, item)) = self.0.find(|(_, item)| !item.is_invalid()) else {
            return Ok(None);
        };
        let read = seed.deserialize(Reader(item));
        read.map(Some).map_err(|it| it.within(Step::Item(index)))
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    without_null: bool,
    current: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        let without_null = self.without_null;
        let is_there = |entry: &&Entry| match entry.node.value {
            Value::Invalid => false,
            Value::Null => !without_null,
            _ => true,
        };
        let Some(entry) = self.entries.find(is_there) else {
            return Ok(None);
        };
        self.current = Some(entry);
        let read = seed.deserialize(BorrowedStrDeserializer::new(&entry.key));
        let step = || Step::Key(entry.key.clone());
        read.map(Some).map_err(|it: Mistake| it.within(step()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let entry = self.current.take().expect("its key was read");
        let read = seed.deserialize(Reader(&entry.node));
        read.map_err(|it| it.within(Step::Key(entry.key.clone())))
    }
}

struct Choice<'a> {
    name: &'a str,
    of: Option<&'a Node>,
}

impl<'a> Choice<'a> {
    /// Returns a function that places a mistake within the entry, if the choice is written as a
    /// map.
    fn locator(&self) -> impl Fn(Mistake) -> Mistake + use<'a> {
        let step = self.of.map(|_| Step::Key(self.name.to_owned()));
        move |it| match &step {
            Some(step) => it.within(step.clone()),
            None => it,
        }
    }

    fn value(&self) -> Result<Reader<'a>, Mistake> {
        let needs = || Mistake::message(format!("needs a value: write {{ {}: ... }}", self.name));
        self.of.map(Reader).ok_or_else(needs)
    }
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = Mistake;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mistake> {
        let read = seed.deserialize(BorrowedStrDeserializer::new(self.name));
        Ok((read.map_err(self.locator())?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        match self.of.map(|node| &node.value) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(self.locator()(Mistake::message("takes no value"))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mistake> {
        seed.deserialize(self.value()?).map_err(self.locator())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mistake> {
        let value = self.value()?;
        value.deserialize_seq(visitor).map_err(self.locator())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let value = self.value()?;
        let read = value.deserialize_struct("", fields, visitor);
        read.map_err(self.locator())
    }
}
