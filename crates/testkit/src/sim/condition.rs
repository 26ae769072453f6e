//! The part of the hubs' query language used by rollouts, on text tags.

use std::collections::BTreeMap;

/// A device's tags, by path.
pub type Tags = BTreeMap<String, String>;

/// Returns whether a device matches a condition; an empty condition matches all devices.
///
/// # Panics
/// If the condition is not part of this language: a real hub would not understand the query either.
pub(crate) fn matches(condition: &str, device: &str, tags: &Tags) -> bool {
    let mut rest = Reader {
        tokens: tokens(condition),
        next: 0,
        device,
        tags,
    };
    if rest.tokens.is_empty() {
        return true;
    }
    let holds = rest.any();
    assert_eq!(
        rest.next,
        rest.tokens.len(),
        "the condition is read to the end: {condition}"
    );
    holds == Some(true)
}

/// A combined parser and evaluator. `None` is the result of a comparison with an undefined tag.
struct Reader<'a> {
    tokens: Vec<String>,
    next: usize,
    device: &'a str,
    tags: &'a Tags,
}

impl Reader<'_> {
    fn any(&mut self) -> Option<bool> {
        let mut holds = self.all();
        while self.skip("OR") {
            let other = self.all();
            holds = match (holds, other) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (None, _) | (_, None) => None,
                _ => Some(false),
            };
        }
        holds
    }

    fn all(&mut self) -> Option<bool> {
        let mut holds = self.one();
        while self.skip("AND") {
            let other = self.one();
            holds = match (holds, other) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (None, _) | (_, None) => None,
                _ => Some(true),
            };
        }
        holds
    }

    fn one(&mut self) -> Option<bool> {
        if self.skip("NOT") {
            return self.one().map(|holds| !holds);
        }
        if self.skip("(") {
            let holds = self.any();
            self.expect(")");
            return holds;
        }
        if self.skip("IS_DEFINED") {
            self.expect("(");
            let value = self.value();
            self.expect(")");
            return Some(value.is_some());
        }
        let value = self.value();
        let operator = self.word();
        let others = match operator.as_str() {
            "=" | "!=" => vec![self.word()],
            _ => self.list(),
        };
        let is_among = others.contains(&format!("'{}", value?));
        Some(is_among == matches!(operator.as_str(), "=" | "IN"))
    }

    fn value(&mut self) -> Option<String> {
        let word = self.word();
        match word.strip_prefix("tags.") {
            Some(path) => self.tags.get(path).cloned(),
            None => {
                assert_eq!(word, "deviceId", "a tag or the device's id");
                Some(self.device.to_owned())
            }
        }
    }

    fn list(&mut self) -> Vec<String> {
        self.expect("[");
        let mut items = vec![self.word()];
        while self.skip(",") {
            items.push(self.word());
        }
        self.expect("]");
        items
    }

    fn word(&mut self) -> String {
        let word = self.tokens.get(self.next).expect("a further token");
        self.next += 1;
        word.clone()
    }

    fn skip(&mut self, word: &str) -> bool {
        let is_next = self.tokens.get(self.next).is_some_and(|next| next == word);
        self.next += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, word: &str) {
        assert!(
            self.skip(word),
            "{word:?} at {}: {:?}",
            self.next,
            self.tokens
        );
    }
}

/// Splits a condition into words and signs. A text keeps the opening quote, as the difference to a
/// word.
fn tokens(condition: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = condition.chars().peekable();
    while let Some(c) = chars.next() {
        let mut token = String::from(c);
        match c {
            ' ' => continue,
            '\'' => loop {
                match chars.next().expect("the end of the text") {
                    '\'' => break,
                    '\\' => token.extend(chars.next()),
                    c => token.push(c),
                }
            },
            '!' => token.extend(chars.next()),
            c if c.is_alphanumeric() => {
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || "._".contains(*c)) {
                    token.push(c);
                    // `[[name]]`, with any characters in the name.
                    if c == '.' && chars.peek() == Some(&'[') {
                        let name = chars.by_ref().skip_while(|c| *c == '[');
                        token.extend(name.take_while(|c| *c != ']'));
                        _ = chars.next();
                    }
                }
            }
            _ => {}
        }
        tokens.push(token);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_as_in_a_hub() {
        let tags = Tags::from([
            ("region".into(), "eu".into()),
            ("a.b".into(), "it's".into()),
            ("group.2-b".into(), "it's".into()),
        ]);
        for (condition, holds) in [
            ("", true),
            ("tags.region = 'eu'", true),
            ("tags.region != 'eu'", false),
            ("tags.region IN ['us', 'eu']", true),
            ("tags.region NIN ['us', 'eu']", false),
            ("tags.a.b = 'it\\'s'", true),
            ("tags.[[group]].[[2-b]] = 'it\\'s'", true),
            ("NOT IS_DEFINED(tags.[[group]].[[2-b]])", false),
            ("tags.none = 'x'", false),
            ("tags.none != 'x'", false),
            ("NOT tags.none = 'x'", false),
            ("NOT IS_DEFINED(tags.none) OR tags.none != 'x'", true),
            ("deviceId IN ['d', 'e'] AND tags.region = 'us'", false),
            (
                "(deviceId IN ['d']) AND (tags.region = 'eu' OR tags.none = 'x')",
                true,
            ),
        ] {
            assert_eq!(matches(condition, "d", &tags), holds, "{condition}");
        }
    }
}
