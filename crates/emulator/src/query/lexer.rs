//! Splits a query into tokens with positions.

use super::tree::QueryError;

/// A token of a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    /// A name or keyword, as written.
    Word(String),
    /// A name in brackets, `[[name]]`: may be a keyword and contain any characters.
    Name(String),
    /// A quoted text, unescaped.
    Text(String),
    Integer(i64),
    Float(f64),
    /// One of `( ) [ ] , . * = != <> < > <= >= + - / %`.
    Sign(&'static str),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "'{word}'"),
            Self::Name(name) => write!(f, "'[[{name}]]'"),
            Self::Text(text) => write!(f, "the text {text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Sign(sign) => write!(f, "'{sign}'"),
            Self::End => f.write_str("the end of the query"),
        }
    }
}

const SIGNS: [&str; 17] = [
    "!=", "<>", "<=", ">=", "(", ")", "[", "]", ",", ".", "*", "=", "<", "+", "-", "/", "%",
];

/// Returns the tokens of `text`, each with the position, counted in characters from 1.
pub(crate) fn tokens(text: &str) -> Result<Vec<(Token, usize)>, QueryError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        let c = chars[at];
        let token = if c.is_whitespace() {
            at += 1;
            continue;
        } else if c.is_ascii_alphabetic() || c == '_' || c == '$' {
            while at < chars.len() && (chars[at].is_alphanumeric() || "_$-".contains(chars[at])) {
                at += 1;
            }
            Token::Word(chars[start..at].iter().collect())
        } else if c.is_ascii_digit()
            || (c == '-'
                && chars.get(at + 1).is_some_and(char::is_ascii_digit)
                && !ends_operand(&tokens))
        {
            number(&chars, &mut at)?
        } else if c == '\'' || c == '"' {
            Token::Text(quoted(&chars, &mut at)?)
        } else if c == '[' && chars.get(at + 1) == Some(&'[') {
            Token::Name(bracketed(&chars, &mut at)?)
        } else if c == '>' && chars.get(at + 1) != Some(&'=') {
            at += 1;
            Token::Sign(">")
        } else {
            let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
            let sign = sign
                .ok_or_else(|| QueryError::new(start + 1, format!("unexpected character {c:?}")))?;
            at += sign.len();
            Token::Sign(sign)
        };
        tokens.push((token, start + 1));
    }
    tokens.push((Token::End, chars.len() + 1));
    Ok(tokens)
}

/// Whether the last token may end the left side of an operator. A minus after such a token is an
/// operator, not the sign of a number.
fn ends_operand(tokens: &[(Token, usize)]) -> bool {
    match tokens.last() {
        Some((Token::Word(word), _)) => !is_reserved(word),
        Some((Token::Name(_) | Token::Integer(_) | Token::Float(_), _)) => true,
        Some((Token::Sign(sign), _)) => matches!(*sign, ")" | "]"),
        _ => false,
    }
}

/// Whether a word is a keyword, and so not the name of a property.
pub(super) fn is_reserved(word: &str) -> bool {
    const RESERVED: [&str; 13] = [
        "SELECT", "TOP", "FROM", "WHERE", "AS", "AND", "OR", "NOT", "IN", "NIN", "GROUP", "BY",
        "ORDER",
    ];
    RESERVED
        .iter()
        .any(|reserved| word.eq_ignore_ascii_case(reserved))
}

fn number(chars: &[char], at: &mut usize) -> Result<Token, QueryError> {
    let start = *at;
    *at += 1;
    while *at < chars.len() {
        let c = chars[*at];
        let sign_of_exponent = "+-".contains(c) && "eE".contains(chars[*at - 1]);
        if !(c.is_ascii_digit() || ".eE".contains(c) || sign_of_exponent) {
            break;
        }
        *at += 1;
    }
    if chars[start..*at] == ['0'] && matches!(chars.get(*at), Some('x' | 'X')) {
        *at += 1;
        return hexadecimal(chars, start, at);
    }
    let text: String = chars[start..*at].iter().collect();
    if let Ok(integer) = text.parse() {
        return Ok(Token::Integer(integer));
    }
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() => Ok(Token::Float(float)),
        _ => Err(QueryError::new(
            start + 1,
            format!("'{text}' is not a number"),
        )),
    }
}

fn hexadecimal(chars: &[char], start: usize, at: &mut usize) -> Result<Token, QueryError> {
    let from = *at;
    while chars.get(*at).is_some_and(char::is_ascii_alphanumeric) {
        *at += 1;
    }
    let digits: String = chars[from..*at].iter().collect();
    i64::from_str_radix(&digits, 16)
        .map(Token::Integer)
        .map_err(|_| QueryError::new(start + 1, format!("'0x{digits}' is not a number")))
}

fn bracketed(chars: &[char], at: &mut usize) -> Result<String, QueryError> {
    let start = *at;
    let inner = &chars[start + 2..];
    let end = inner.windows(2).position(|pair| pair == [']', ']']);
    let end = end
        .filter(|end| *end > 0)
        .ok_or_else(|| QueryError::new(start + 1, "this name is empty, or has no closing ']]'"))?;
    *at = start + 2 + end + 2;
    Ok(inner[..end].iter().collect())
}

fn quoted(chars: &[char], at: &mut usize) -> Result<String, QueryError> {
    let start = *at;
    let quote = chars[start];
    *at += 1;
    let mut text = String::new();
    loop {
        let Some(&c) = chars.get(*at) else {
            return Err(QueryError::new(start + 1, "this text has no closing quote"));
        };
        *at += 1;
        if c == quote {
            return Ok(text);
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        let escape = chars.get(*at).copied();
        *at += 1;
        match escape {
            Some(c @ ('\'' | '"' | '\\' | '/')) => text.push(c),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('u') => text.push(unicode_escape(chars, at)?),
            _ => return Err(QueryError::new(*at - 1, "unknown escape after '\\'")),
        }
    }
}

fn unicode_escape(chars: &[char], at: &mut usize) -> Result<char, QueryError> {
    let start = *at;
    let unit = |at: usize| -> Option<u32> {
        let digits: String = chars.get(at..at + 4)?.iter().collect();
        u32::from_str_radix(&digits, 16).ok()
    };
    let wrong = || {
        QueryError::new(
            start - 1,
            "'\\u' takes four hexadecimal digits of a character",
        )
    };
    let high = unit(*at).ok_or_else(wrong)?;
    *at += 4;
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high).ok_or_else(wrong);
    }
    if chars.get(*at) != Some(&'\\') || chars.get(*at + 1) != Some(&'u') {
        return Err(wrong());
    }
    let low = unit(*at + 2)
        .filter(|low| (0xdc00..0xe000).contains(low))
        .ok_or_else(wrong)?;
    *at += 6;
    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unescaped() {
        for (query, expected) in [
            (r"'it\'s'", "it's"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r"'\u0041\ud83d\ude00'", "A😀"),
            ("'say \"\"'", "say \"\""),
        ] {
            assert_eq!(
                tokens(query).unwrap()[0].0,
                Token::Text(expected.to_owned()),
                "{query}"
            );
        }
    }

    #[test]
    fn errors_report_the_position() {
        for (query, position) in [
            ("a = 'x", 5),
            (r"a = '\q'", 6),
            ("a # b", 3),
            ("a = 1.2.3", 5),
            (r"'\u12'", 2),
            ("a = 0x", 5),
            ("a = 0xfg", 5),
            ("a = 0xffffffffffffffffff", 5),
            ("tags.[[a] = 1", 6),
            ("tags.[[]] = 1", 6),
        ] {
            assert_eq!(tokens(query).unwrap_err().position, position, "{query}");
        }
    }

    #[test]
    fn a_minus_is_an_operator_or_a_sign() {
        let text = |query: &str| -> Vec<String> {
            let tokens = tokens(query).unwrap();
            tokens.iter().map(|(token, _)| token.to_string()).collect()
        };
        let end = "the end of the query";
        for (query, expected) in [
            ("a -1", vec!["'a'", "'-'", "1"]),
            ("a - -1", vec!["'a'", "'-'", "-1"]),
            ("(1)-2", vec!["'('", "1", "')'", "'-'", "2"]),
            ("= -1", vec!["'='", "-1"]),
            ("IN [-1, 2]", vec!["'IN'", "'['", "-1", "','", "2", "']'"]),
            ("AND -0.5", vec!["'AND'", "-0.5"]),
            ("a-b", vec!["'a-b'"]),
            ("0x1F%0XA", vec!["31", "'%'", "10"]),
        ] {
            let expected: Vec<&str> = expected.into_iter().chain([end]).collect();
            assert_eq!(text(query), expected, "{query}");
        }
    }
}
