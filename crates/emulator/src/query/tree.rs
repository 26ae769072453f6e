//! Queries as trees, the result of parsing and the input of evaluation.

use serde_json::Value;

/// The problem of a query, and the position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at position {position}")]
pub(crate) struct QueryError {
    /// In characters, counted from 1.
    pub(crate) position: usize,
    pub(crate) problem: String,
    /// Whether the real hub accepts the query, unlike the emulator.
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
    /// The paths read by the query; conditions and columns refer to paths by number.
    pub(crate) paths: Vec<Vec<String>>,
}

/// The content of each row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Projection {
    /// The whole twin.
    All,
    /// Selected values.
    Columns(Vec<Column>),
    /// A row for each combination of the values at these paths; a single row without paths.
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

/// The value of a group's column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupValue {
    /// A value shared by all devices of the group, by position in the list of keys.
    Key(usize),
    /// The number of devices.
    Count,
    /// An aggregate of the values at a path.
    Aggregate(Aggregate, usize),
}

/// An aggregate function.
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

/// An operand of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Path(usize),
    Literal(Value),
    /// A value, and the operations applied from left to right.
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
