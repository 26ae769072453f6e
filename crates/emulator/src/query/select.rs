//! The select list and `GROUP BY`, and the resulting projection.

use super::lexer::Token;
use super::parser::Parser;
use super::tree::{Aggregate, Column, GroupColumn, GroupValue, Projection, QueryError};

/// A selected value, before the query is known to have groups.
#[derive(Debug)]
pub(super) struct Selected {
    position: usize,
    name: Option<String>,
    value: SelectedValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SelectedValue {
    Path(usize),
    Count,
    Aggregate(Aggregate, usize),
}

impl Parser {
    /// Parses the select list; `None` for `*`.
    pub(super) fn selected(&mut self) -> Result<Option<Vec<Selected>>, QueryError> {
        if self.take_sign("*") {
            return Ok(None);
        }
        let mut selected = Vec::new();
        loop {
            let position = self.position();
            let value = match self.take_aggregate()? {
                Some(value) => value,
                None => SelectedValue::Path(self.path()?),
            };
            let name = self.alias()?;
            selected.push(Selected {
                position,
                name,
                value,
            });
            if !self.take_sign(",") {
                return Ok(Some(selected));
            }
        }
    }

    fn take_aggregate(&mut self) -> Result<Option<SelectedValue>, QueryError> {
        let (Token::Word(word), Some((Token::Sign("("), _))) =
            (self.peek(), self.tokens.get(self.at + 1))
        else {
            return Ok(None);
        };
        let aggregate = match word.to_ascii_uppercase().as_str() {
            "COUNT" => None,
            "SUM" => Some(Aggregate::Sum),
            "AVG" => Some(Aggregate::Avg),
            "MIN" => Some(Aggregate::Min),
            "MAX" => Some(Aggregate::Max),
            _ => return Err(self.unexpected("COUNT, SUM, AVG, MIN, MAX or a property")),
        };
        self.at += 2;
        let value = match aggregate {
            None => SelectedValue::Count,
            Some(aggregate) => SelectedValue::Aggregate(aggregate, self.path()?),
        };
        self.sign(")")?;
        Ok(Some(value))
    }

    /// Parses the paths of a `GROUP BY`; `None` without the clause.
    pub(super) fn group_by(&mut self) -> Result<Option<Vec<usize>>, QueryError> {
        if !self.take_keyword("GROUP") {
            return Ok(None);
        }
        self.keyword("BY")?;
        let mut keys = Vec::new();
        loop {
            keys.push(self.path()?);
            if !self.take_sign(",") {
                return Ok(Some(keys));
            }
        }
    }

    pub(super) fn projection(
        &self,
        selected: Option<Vec<Selected>>,
        keys: Option<Vec<usize>>,
    ) -> Result<Projection, QueryError> {
        let Some(selected) = selected else {
            return match keys {
                None => Ok(Projection::All),
                Some(_) => Err(QueryError::new(8, "'*' cannot be grouped")),
            };
        };
        let last = |path: usize| self.paths[path].last().cloned().unwrap_or_default();
        let grouped = keys.is_some()
            || selected
                .iter()
                .any(|one| !matches!(one.value, SelectedValue::Path(_)));
        if !grouped {
            let columns = selected.into_iter().filter_map(|one| match one.value {
                SelectedValue::Path(path) => Some(Column {
                    path,
                    name: one.name.unwrap_or_else(|| last(path)),
                }),
                _ => None,
            });
            return Ok(Projection::Columns(columns.collect()));
        }
        let keys = keys.unwrap_or_default();
        let mut unnamed = 0;
        let mut columns = Vec::new();
        for one in selected {
            let value = match one.value {
                SelectedValue::Count => GroupValue::Count,
                SelectedValue::Aggregate(aggregate, path) => GroupValue::Aggregate(aggregate, path),
                SelectedValue::Path(path) => {
                    let key = keys.iter().position(|key| *key == path).ok_or_else(|| {
                        let path = self.paths[path].join(".");
                        let problem = format!("'{path}' is neither grouped by nor aggregated");
                        QueryError::new(one.position, problem)
                    })?;
                    GroupValue::Key(key)
                }
            };
            let name = one.name.unwrap_or_else(|| match one.value {
                SelectedValue::Path(path) => last(path),
                _ => {
                    unnamed += 1;
                    format!("${unnamed}")
                }
            });
            columns.push(GroupColumn { name, value });
        }
        Ok(Projection::Groups { keys, columns })
    }
}
