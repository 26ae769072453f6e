//! The grammar: `SELECT [TOP n] … FROM devices [WHERE …] [GROUP BY …]`.

use serde_json::Value;

use super::lexer::{Token, is_reserved, tokens};
use super::tree::{Comparison, Condition, Operand, Operator, Query, QueryError};

/// The longest query accepted by the hub, in characters.
const QUERY_CHARS_MAX: usize = 8192;
/// The deepest nesting of conditions.
const DEPTH_MAX: u32 = 64;

/// The properties at the root of a twin, which are case-insensitive in queries.
const ROOT_PROPERTIES: [&str; 20] = [
    "deviceId",
    "moduleId",
    "etag",
    "deviceEtag",
    "status",
    "statusReason",
    "statusUpdateTime",
    "connectionState",
    "lastActivityTime",
    "cloudToDeviceMessageCount",
    "authenticationType",
    "x509Thumbprint",
    "modelId",
    "version",
    "tags",
    "properties",
    "capabilities",
    "deviceScope",
    "parentScopes",
    "configurations",
];

impl Query {
    /// Reads a query.
    pub(crate) fn parse(text: &str) -> Result<Self, QueryError> {
        let length = text.chars().count();
        if length > QUERY_CHARS_MAX {
            let problem =
                format!("the query has {length} characters; at most {QUERY_CHARS_MAX} are allowed");
            return Err(QueryError::new(QUERY_CHARS_MAX + 1, problem));
        }
        let mut parser = Parser {
            tokens: tokens(text)?,
            at: 0,
            paths: Vec::new(),
        };
        parser.keyword("SELECT")?;
        let top = parser.top()?;
        let selected = parser.selected()?;
        parser.keyword("FROM")?;
        parser.collection()?;
        let condition = if parser.take_keyword("WHERE") {
            Some(parser.condition(0)?)
        } else {
            None
        };
        let keys = parser.group_by()?;
        if *parser.peek() != Token::End {
            let expected = match (&keys, &condition) {
                (Some(_), _) => "',' or the end of the query",
                (None, Some(_)) => "AND, OR, GROUP BY or the end of the query",
                (None, None) => "WHERE, GROUP BY or the end of the query",
            };
            return Err(parser.unexpected(expected));
        }
        let projection = parser.projection(selected, keys)?;
        Ok(Self {
            top,
            projection,
            condition,
            paths: parser.paths,
        })
    }
}

/// The tokens, and the position of the parser.
pub(super) struct Parser {
    pub(super) tokens: Vec<(Token, usize)>,
    pub(super) at: usize,
    pub(super) paths: Vec<Vec<String>>,
}

impl Parser {
    // The last token is always `End` and is never passed, so a current token always exists.
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn position(&self) -> usize {
        self.tokens[self.at].1
    }

    pub(super) fn unexpected(&self, expected: &str) -> QueryError {
        QueryError::new(
            self.position(),
            format!("found {} where {expected} is expected", self.peek()),
        )
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    pub(super) fn take_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        if found {
            self.at += 1;
        }
        found
    }

    pub(super) fn keyword(&mut self, keyword: &str) -> Result<(), QueryError> {
        if self.take_keyword(keyword) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{keyword}'")))
        }
    }

    pub(super) fn take_sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(found) if *found == sign);
        if found {
            self.at += 1;
        }
        found
    }

    pub(super) fn sign(&mut self, sign: &str) -> Result<(), QueryError> {
        if self.take_sign(sign) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{sign}'")))
        }
    }

    fn top(&mut self) -> Result<Option<u64>, QueryError> {
        if !self.take_keyword("TOP") {
            return Ok(None);
        }
        let parenthesis = self.take_sign("(");
        let Token::Integer(number) = *self.peek() else {
            return Err(self.unexpected("a number"));
        };
        let number =
            u64::try_from(number).map_err(|_| self.unexpected("a number that is not negative"))?;
        self.at += 1;
        if parenthesis {
            self.sign(")")?;
        }
        Ok(Some(number))
    }

    fn collection(&mut self) -> Result<(), QueryError> {
        self.keyword("devices")?;
        let position = self.position();
        if !self.take_sign(".") {
            return Ok(());
        }
        match self.peek() {
            Token::Word(word)
                if ["modules", "jobs"]
                    .iter()
                    .any(|known| word.eq_ignore_ascii_case(known)) =>
            {
                let problem = format!("the emulator does not support devices.{word}, found");
                Err(QueryError {
                    not_emulated: true,
                    ..QueryError::new(position, problem)
                })
            }
            _ => Err(self.unexpected("'modules' or 'jobs'")),
        }
    }

    pub(super) fn alias(&mut self) -> Result<Option<String>, QueryError> {
        if !self.take_keyword("AS") {
            return Ok(None);
        }
        match self.peek().clone() {
            Token::Word(word) if !is_reserved(&word) => {
                self.at += 1;
                Ok(Some(word))
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn path(&mut self) -> Result<usize, QueryError> {
        let mut path = vec![self.name()?];
        while self.take_sign(".") {
            path.push(self.name()?);
        }
        // The name of the collection may precede properties.
        if path.len() > 1 && path[0].eq_ignore_ascii_case("devices") {
            path.remove(0);
        }
        let root = ROOT_PROPERTIES
            .iter()
            .find(|root| root.eq_ignore_ascii_case(&path[0]));
        if let Some(root) = root {
            path[0] = (*root).to_owned();
        }
        let known = self.paths.iter().position(|known| *known == path);
        Ok(known.unwrap_or_else(|| {
            self.paths.push(path);
            self.paths.len() - 1
        }))
    }

    fn name(&mut self) -> Result<String, QueryError> {
        match self.peek().clone() {
            Token::Word(word) if !is_reserved(&word) => {
                self.at += 1;
                Ok(word)
            }
            Token::Name(name) => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a property")),
        }
    }

    fn condition(&mut self, depth: u32) -> Result<Condition, QueryError> {
        let mut left = self.conjunction(depth)?;
        while self.take_keyword("OR") {
            left = Condition::Or(Box::new(left), Box::new(self.conjunction(depth)?));
        }
        Ok(left)
    }

    fn conjunction(&mut self, depth: u32) -> Result<Condition, QueryError> {
        let mut left = self.negation(depth)?;
        while self.take_keyword("AND") {
            left = Condition::And(Box::new(left), Box::new(self.negation(depth)?));
        }
        Ok(left)
    }

    fn negation(&mut self, depth: u32) -> Result<Condition, QueryError> {
        if depth > DEPTH_MAX {
            return Err(QueryError::new(
                self.position(),
                "the condition nests too deeply",
            ));
        }
        if self.take_keyword("NOT") {
            return Ok(Condition::Not(Box::new(self.negation(depth + 1)?)));
        }
        if !self.opens_operand() && self.take_sign("(") {
            let inner = self.condition(depth + 1)?;
            self.sign(")")?;
            return Ok(inner);
        }
        self.function(depth)
            .unwrap_or_else(|| self.comparison(depth))
    }

    /// Whether the parenthesis at this position encloses a value and not a condition: an operator
    /// follows the closing parenthesis.
    fn opens_operand(&self) -> bool {
        let mut open = 0u32;
        for (at, (token, _)) in self.tokens.iter().enumerate().skip(self.at) {
            match token {
                Token::Sign("(") => open += 1,
                Token::Sign(")") if open > 0 => open -= 1,
                _ => {}
            }
            if open == 0 {
                return at > self.at
                    && match &self.tokens[at + 1].0 {
                        Token::Sign(sign) => !matches!(*sign, "(" | ")" | "[" | "]" | "," | "."),
                        Token::Word(word) => ["IN", "NIN"]
                            .iter()
                            .any(|known| word.eq_ignore_ascii_case(known)),
                        _ => false,
                    };
            }
        }
        false
    }

    fn function(&mut self, depth: u32) -> Option<Result<Condition, QueryError>> {
        let Token::Word(word) = self.peek() else {
            return None;
        };
        if !matches!(self.tokens[self.at + 1].0, Token::Sign("(")) {
            return None;
        }
        let name = word.to_ascii_uppercase();
        let position = self.position();
        self.at += 2;
        Some(match name.as_str() {
            "IS_DEFINED" => self.path().and_then(|path| {
                self.sign(")")?;
                Ok(Condition::IsDefined(path))
            }),
            "STARTSWITH" => self
                .two_operands(depth)
                .map(|(a, b)| Condition::StartsWith(a, b)),
            "ENDSWITH" => self
                .two_operands(depth)
                .map(|(a, b)| Condition::EndsWith(a, b)),
            _ => Err(QueryError::new(
                position,
                format!("unknown function '{name}'"),
            )),
        })
    }

    fn two_operands(&mut self, depth: u32) -> Result<(Operand, Operand), QueryError> {
        let first = self.operand(depth)?;
        self.sign(",")?;
        let second = self.operand(depth)?;
        self.sign(")")?;
        Ok((first, second))
    }

    fn comparison(&mut self, depth: u32) -> Result<Condition, QueryError> {
        let operand = self.operand(depth)?;
        for (keyword, negated) in [("IN", false), ("NIN", true)] {
            if self.take_keyword(keyword) {
                let values = self.list()?;
                return Ok(Condition::In {
                    operand,
                    values,
                    negated,
                });
            }
        }
        let comparison = match self.peek() {
            Token::Sign("=") => Comparison::Equal,
            Token::Sign("!=" | "<>") => Comparison::NotEqual,
            Token::Sign("<") => Comparison::Less,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign("<=") => Comparison::LessOrEqual,
            Token::Sign(">=") => Comparison::GreaterOrEqual,
            _ => return Err(self.unexpected("a comparison")),
        };
        self.at += 1;
        let right = self.operand(depth)?;
        Ok(Condition::Compare(operand, comparison, right))
    }

    /// Parses a sum of products.
    fn operand(&mut self, depth: u32) -> Result<Operand, QueryError> {
        const SUM: [(&str, Operator); 2] = [("+", Operator::Add), ("-", Operator::Subtract)];
        self.chain(SUM, |parser| {
            const PRODUCT: [(&str, Operator); 3] = [
                ("*", Operator::Multiply),
                ("/", Operator::Divide),
                ("%", Operator::Remainder),
            ];
            parser.chain(PRODUCT, |parser| parser.single_operand(depth))
        })
    }

    fn chain<const N: usize>(
        &mut self,
        operators: [(&str, Operator); N],
        part: impl Fn(&mut Self) -> Result<Operand, QueryError>,
    ) -> Result<Operand, QueryError> {
        let first = part(self)?;
        let mut rest = Vec::new();
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.take_sign(sign)) {
            rest.push((*operator, part(self)?));
        }
        Ok(if rest.is_empty() {
            first
        } else {
            Operand::Arithmetic(Box::new(first), rest)
        })
    }

    fn single_operand(&mut self, depth: u32) -> Result<Operand, QueryError> {
        if depth > DEPTH_MAX {
            return Err(QueryError::new(
                self.position(),
                "the value nests too deeply",
            ));
        }
        if self.take_sign("(") {
            let inner = self.operand(depth + 1)?;
            self.sign(")")?;
            return Ok(inner);
        }
        match self.literal() {
            Some(value) => Ok(Operand::Literal(value)),
            None if matches!(self.peek(), Token::Word(_) | Token::Name(_)) => {
                Ok(Operand::Path(self.path()?))
            }
            None => Err(self.unexpected("a property or a value")),
        }
    }

    fn literal(&mut self) -> Option<Value> {
        let value = match self.peek() {
            Token::Text(text) => Value::from(text.as_str()),
            Token::Integer(number) => Value::from(*number),
            Token::Float(number) => Value::from(*number),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Value::Bool(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Value::Bool(false),
            Token::Word(word) if word.eq_ignore_ascii_case("null") => Value::Null,
            _ => return None,
        };
        self.at += 1;
        Some(value)
    }

    fn list(&mut self) -> Result<Vec<Value>, QueryError> {
        self.sign("[")?;
        let mut values = Vec::new();
        if self.take_sign("]") {
            return Ok(values);
        }
        loop {
            values.push(self.literal().ok_or_else(|| self.unexpected("a value"))?);
            if self.take_sign("]") {
                return Ok(values);
            }
            self.sign(",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Projection;
    use super::*;

    #[test]
    fn queries_of_the_sdks_and_the_documents_are_read() {
        for query in [
            "SELECT * FROM devices",
            "select * from devices where tags.a = 'x'",
            "SELECT TOP 5 deviceId, tags.region AS r FROM devices WHERE NOT (tags.a != 1 OR tags.b <> true)",
            "SELECT COUNT() AS n FROM devices WHERE IS_DEFINED(tags.x) AND STARTSWITH(deviceId, 'fr')",
            "SELECT deviceId FROM devices WHERE tags.a IN ['x', \"y\"] AND tags.b NIN [1, -2.5] AND tags.[[group]] = null",
            "SELECT deviceId FROM devices WHERE properties.reported.v >= 1 AND 5 > tags.x",
            "SELECT properties.reported.telemetryConfig.status AS status, COUNT() AS numberOfDevices FROM devices GROUP BY properties.reported.telemetryConfig.status",
            "select avg(tags.n), min(tags.n) as least, devices.tags.b from devices where tags.a = 1 group by tags.a, tags.b",
            "SELECT SUM(properties.desired.$version) FROM devices",
            "SELECT deviceId, tags.[[group]] AS t0, [[tags]].[[2nd]].x FROM devices WHERE tags.[[order]].[[$iotin:x]] IN ['a']",
            "SELECT COUNT() AS n FROM devices WHERE IS_DEFINED(tags.[[it's a )]]) GROUP BY tags.[[group]]",
        ] {
            assert!(
                Query::parse(query).is_ok(),
                "{query}: {:?}",
                Query::parse(query)
            );
        }
    }

    #[test]
    fn errors_report_the_position_and_the_cause() {
        for (query, position, hint) in [
            ("", 1, "'SELECT'"),
            ("SELECT", 7, "a property"),
            ("SELECT * FROM machines", 15, "'devices'"),
            ("SELECT * FROM devices WHERE", 28, "a property or a value"),
            ("SELECT * FROM devices WHERE tags.a", 35, "a comparison"),
            (
                "SELECT * FROM devices WHERE tags.a = 'x' ORDER BY tags.a",
                42,
                "the end",
            ),
            (
                "SELECT * FROM devices WHERE tags.group = 'x'",
                34,
                "a property",
            ),
            ("SELECT * FROM devices WHERE tags.a IN ('x')", 39, "'['"),
            (
                "SELECT * FROM devices WHERE STARTS_WITH(tags.a, 'x')",
                29,
                "unknown function",
            ),
            ("SELECT * FROM devices WHERE (tags.a = 1", 40, "')'"),
            (
                "SELECT * FROM devices WHERE tags.a + = 1",
                38,
                "a property or a value",
            ),
            ("SELECT * FROM devices WHERE tags.a + 1", 39, "a comparison"),
            (
                "SELECT * FROM devices WHERE (tags.a = 1) + 1 = 2",
                37,
                "')'",
            ),
            ("SELECT tags.a + 1 FROM devices", 15, "'FROM'"),
            ("SELECT deviceId AS FROM devices", 20, "a name"),
            ("SELECT TOP x * FROM devices", 12, "a number"),
            (
                "SELECT tags.a, COUNT() FROM devices",
                8,
                "'tags.a' is neither",
            ),
            (
                "SELECT COUNT(), tags.a FROM devices GROUP BY tags.b",
                17,
                "neither grouped by",
            ),
            ("SELECT * FROM devices GROUP BY tags.a", 8, "grouped"),
            ("SELECT COUNT() FROM devices GROUP tags.a", 35, "'BY'"),
            ("SELECT COUNT() FROM devices GROUP BY", 37, "a property"),
            ("SELECT MEDIAN(tags.a) FROM devices", 8, "SUM"),
            ("SELECT SUM() FROM devices", 12, "a property"),
            ("SELECT COUNT(tags.a) FROM devices", 14, "')'"),
            ("SELECT deviceId FROM devices devices", 30, "WHERE"),
            ("SELECT * FROM devices.things", 23, "'modules'"),
        ] {
            let error = Query::parse(query).unwrap_err();
            assert_eq!(error.position, position, "{query}: {error}");
            assert!(error.problem.contains(hint), "{query}: {error}");
        }
        let deep = format!("SELECT * FROM devices WHERE {}a = 1", "(".repeat(1000));
        assert!(Query::parse(&deep).unwrap_err().problem.contains("deeply"));
        let deep = format!("SELECT * FROM devices WHERE a = {}1", "(".repeat(1000));
        assert!(Query::parse(&deep).unwrap_err().problem.contains("deeply"));
        let long = format!("SELECT * FROM devices WHERE a = 1{}", " + 1".repeat(2000));
        assert!(Query::parse(&long).is_ok());
        assert!(
            Query::parse(&"x".repeat(9000))
                .unwrap_err()
                .problem
                .contains("9000")
        );
    }

    #[test]
    fn the_collection_and_the_case_of_root_properties_do_not_matter() {
        let query = "SELECT devices.DeviceId, LASTACTIVITYTIME, Tags.Room, devices.tags.Room AS again FROM Devices";
        let query = Query::parse(query).unwrap();
        let paths: Vec<String> = query.paths.iter().map(|path| path.join(".")).collect();
        assert_eq!(paths, ["deviceId", "lastActivityTime", "tags.Room"]);
        let Projection::Columns(columns) = query.projection else {
            panic!("{query:?}")
        };
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["deviceId", "lastActivityTime", "Room", "again"]);
    }

    #[test]
    fn unemulated_collections_are_marked_in_errors() {
        for (collection, missing) in [
            ("devices.jobs", true),
            ("devices.Modules", true),
            ("devices.things", false),
            ("jobs", false),
        ] {
            let error = Query::parse(&format!("SELECT * FROM {collection}")).unwrap_err();
            assert_eq!(error.not_emulated, missing, "{collection}: {error}");
        }
    }
}
