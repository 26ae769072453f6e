//! The query language: text to tree, tree to rows.

mod evaluate;
mod group;
mod lexer;
mod parser;
mod scan;
mod select;
mod tree;

pub(crate) use scan::{Page, Position, Scan};
pub(crate) use tree::{Projection, Query};
