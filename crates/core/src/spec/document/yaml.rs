//! Parses YAML into the tree of a document.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::json;
use super::node::{Entry, MAX_DOCUMENT_BYTES, Node, Unreadable, Value, check_depth};

/// Reads a YAML text.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        expanded: 0,
    };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(..) if root.is_some() => {
                let what = "is a second YAML document in the text; only one is allowed";
                return Err((begin(&span), what.to_owned()));
            }
            Event::DocumentStart(..) => {
                let (event, span) = reader.next()?;
                root = Some(reader.node(event, &span, 0)?);
            }
            _ => {}
        }
    }
    Ok(root.unwrap_or(Node {
        at: 0,
        value: Value::Null,
    }))
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// The values with an anchor (`&name`), by the number of the anchor.
    anchors: HashMap<usize, Node>,
    expanded: usize,
}

fn begin(span: &Span) -> Option<usize> {
    span.start.byte_offset()
}

fn unreadable(error: &ScanError) -> Unreadable {
    (
        error.marker().byte_offset(),
        format!("is not YAML: {}", error.info()),
    )
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Unreadable> {
        loop {
            match self.parser.next_event() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(next) => return next.map_err(|error| unreadable(&error)),
                None => return Ok((Event::StreamEnd, Span::default())),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, Unreadable> {
        let at = begin(span).unwrap_or_default();
        let wrong = |what: &str| (Some(at), what.to_owned());
        check_depth(depth, at)?;
        if let Some(tag) = event.tag().filter(|tag| !is_known(tag)) {
            return Err(wrong(&format!(
                "the YAML tag {} is not allowed here; remove it",
                tag.original()
            )));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain && !is_text(tag.as_deref());
                let value = match is_plain {
                    true => plain(&text),
                    false => Value::Text(text.into_owned()),
                };
                (anchor, value)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, &span, depth + 1)?);
                }
                (anchor, Value::List(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, self.map(depth)?),
            Event::Alias(of) => {
                let Some(found) = self.anchors.get(&of) else {
                    return Err(wrong("is an alias of a value that contains the alias"));
                };
                let node = Node {
                    at,
                    value: found.value.clone(),
                };
                self.count_expanded(&node)?;
                return Ok(node);
            }
            _ => return Err(wrong("is not YAML")),
        };
        let node = Node { at, value };
        if anchor > 0 {
            self.count_expanded(&node)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// Counts the values kept for aliases (`*name`), and the values inserted for aliases: a few
    /// lines of aliases could stand for more than any memory holds. Together, these values may be
    /// no larger than a document.
    fn count_expanded(&mut self, node: &Node) -> Result<(), Unreadable> {
        self.expanded += size(node);
        if self.expanded > MAX_DOCUMENT_BYTES {
            let what = format!(
                "expands, through anchors and aliases, to more than {MAX_DOCUMENT_BYTES} bytes"
            );
            return Err((Some(node.at), what));
        }
        Ok(())
    }

    fn map(&mut self, depth: usize) -> Result<Value, Unreadable> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let at = begin(&span).unwrap_or_default();
            let (key, style) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, _, _) => (text, style),
                _ => return Err((Some(at), "a key must be a text".to_owned())),
            };
            let (event, span) = self.next()?;
            let node = self.node(event, &span, depth + 1)?;
            if key == "<<" && style == ScalarStyle::Plain {
                merged.push(node);
            } else {
                let key = key.into_owned();
                entries.push(Entry { at, key, node });
            }
        }
        for node in merged {
            let at = node.at;
            let maps = match node.value {
                Value::List(items) => items,
                _ => vec![node],
            };
            for map in maps {
                let Value::Map(more) = map.value else {
                    let what = "the value of `<<` must be a map, or a list of maps";
                    return Err((Some(at), what.to_owned()));
                };
                for entry in more {
                    if entries.iter().all(|own| own.key != entry.key) {
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(Value::Map(entries))
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => {
            let sizes = entries.iter().map(|it| it.key.len() + size(&it.node));
            sizes.sum()
        }
        Value::Text(text) => text.len(),
        _ => 0,
    }
}

/// Returns whether a tag is accepted. Accepted tags state the value's own type, or make a value a
/// text.
fn is_known(tag: &Tag) -> bool {
    let known = ["str", "int", "float", "bool", "null", "seq", "map"];
    tag.handle().is_empty() && tag.suffix() == "!"
        || known.iter().any(|known| tag.is_yaml_core_schema_tag(known))
}

fn is_text(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str") || !tag.is_yaml_core_schema())
}

/// Parses an unquoted value by the core schema of YAML 1.2.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        number if is_number(number) => match json::check(number) {
            Ok(()) => Value::Number(number.to_owned()),
            Err(_) => Value::YamlNumber(number.to_owned()),
        },
        text => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = |text: &'_ str| text.strip_prefix(['+', '-']).unwrap_or(text).to_owned();
    if let Some(octal) = text.strip_prefix("0o") {
        return !octal.is_empty() && octal.bytes().all(|b| (b'0'..=b'7').contains(&b));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    let bare = unsigned(text);
    if matches!(text, ".nan" | ".NaN" | ".NAN") || matches!(&*bare, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let mantissa = match bare.split_once(['e', 'E']) {
        Some((_, exponent)) if !digits(&unsigned(exponent)) => return false,
        Some((mantissa, _)) => mantissa,
        None => &bare,
    };
    match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    }
}
