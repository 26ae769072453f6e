//! The query language: from text to tree, and from tree to rows.

pub(crate) mod evaluate;
mod group;
mod lexer;
mod parser;
pub(crate) mod scan;
mod select;
mod tree;

pub(crate) use scan::{Page, Position, Scan};
pub(crate) use tree::{Projection, Query};
