//! The query language: text to tree, tree to rows.

mod evaluate;
mod lexer;
mod parser;
mod scan;

pub(crate) use parser::{Projection, Query};
pub(crate) use scan::{Page, Position, Scan};
