//! Queries as trees: what the parser makes of a text, and what is evaluated.

use serde_json::Value;

/// What is wrong with a query, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at position {position}")]
pub(crate) struct QueryError {
    /// In characters from 1.
    pub(crate) position: usize,
    pub(crate) problem: String,
    /// Whether the hub would take the query, and only the emulator does not.
    pub(crate) not_emulated: bool,
}

impl QueryError {
    pub(crate) fn new(position: usize, problem: impl Into<String>) -> Self {
        Self {
            position,
            problem: problem.into(),
            not_emulated: false,
        }
    }
}

/// A query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) top: Option<u64>,
    pub(crate) projection: Projection,
    pub(crate) condition: Option<Condition>,
    /// The paths that the query reads; conditions and columns refer to them by number.
    pub(crate) paths: Vec<Vec<String>>,
}

/// What each row holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Projection {
    /// The whole twin.
    All,
    /// These values.
    Columns(Vec<Column>),
    /// A row for each combination of the values at these paths, or one row if there are none.
    Groups {
        keys: Vec<usize>,
        columns: Vec<GroupColumn>,
    },
}

/// A value of a group's row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupColumn {
    pub(crate) name: String,
    pub(crate) value: GroupValue,
}

/// What a group tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupValue {
    /// One of the values that its devices share, by its place in the list of keys.
    Key(usize),
    /// How many devices it has.
    Count,
    /// An account of the values at a path.
    Of(Aggregate, usize),
}

/// An account of many values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    Sum,
    Avg,
    Min,
    Max,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    pub(crate) path: usize,
    pub(crate) name: String,
}

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    Not(Box<Condition>),
    Compare(Operand, Comparison, Operand),
    In {
        operand: Operand,
        values: Vec<Value>,
        negated: bool,
    },
    IsDefined(usize),
    StartsWith(Operand, Operand),
    EndsWith(Operand, Operand),
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Path(usize),
    Literal(Value),
    /// A value, and what is done to it from left to right.
    Arithmetic(Box<Operand>, Vec<(Operator, Operand)>),
}

/// An operator between numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
}
