//! Runs a query over the fleet. Only values named by the query are computed, so that a scan of a
//! million devices takes a fraction of a second.

use std::borrow::Cow;

use serde_json::Value;

use super::evaluate::{Found, holds};
use super::group::{Groups, TooManyGroups};
use super::tree::{GroupColumn, Projection, Query};
use crate::fleet::{
    DeviceRecord, Generator, Group, MessageBehaviour, Registry, RegistryEntry, etag_of,
};
use crate::hub::{ANSWER_PROPERTY as PROPERTY, Hub};

/// The number of devices scanned under one lock of the registry: about a millisecond of work, so
/// that writers and sends never wait long.
const DEVICES_PER_LOCK: u32 = 8192;

/// A page of a query's rows.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Value>,
    /// The start of the next page; `None` after the last row.
    pub(crate) next: Option<Position>,
}

/// A position in a query's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The number of the next device.
    pub(crate) device: u32,
    /// The number of earlier rows.
    pub(crate) rows: u64,
}

/// A running query.
pub(crate) struct Scan<'a> {
    hub: &'a Hub,
    query: &'a Query,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(hub: &'a Hub, query: &'a Query) -> Self {
        Self { hub, query }
    }

    /// Returns the page at `position` with at most `limit` rows.
    ///
    /// # Errors
    ///
    /// The query makes more groups than one answer may have.
    pub(crate) fn page(&self, position: Position, limit: usize) -> Result<Page, TooManyGroups> {
        let left = self
            .query
            .top
            .map_or(u64::MAX, |top| top.saturating_sub(position.rows));
        if left == 0 {
            return Ok(Page {
                rows: Vec::new(),
                next: None,
            });
        }
        if let Projection::Groups { keys, columns } = &self.query.projection {
            return self.groups_page(keys, columns, position, limit, left);
        }
        let mut rows = Vec::new();
        let mut next = None;
        self.walk(position.device, |registry, number| {
            if rows.len() as u64 == left {
                return false;
            }
            if rows.len() == limit {
                // A further row exists, so a further page exists.
                next = Some(Position {
                    device: number,
                    rows: position.rows + rows.len() as u64,
                });
                return false;
            }
            rows.extend(self.row(registry, number));
            true
        });
        Ok(Page { rows, next })
    }

    /// Returns a page of groups. The groups are computed anew for each page, in the order of each
    /// group's first device.
    fn groups_page(
        &self,
        keys: &[usize],
        columns: &[GroupColumn],
        position: Position,
        limit: usize,
        left: u64,
    ) -> Result<Page, TooManyGroups> {
        let mut groups = Groups::new(keys, columns);
        let reads = groups.reads();
        let mut added = Ok(());
        self.walk(0, |registry, number| {
            let values = self.values(registry, number, &reads);
            added = groups.add(&|path: usize| {
                let at = reads.iter().position(|read| *read == path)?;
                values.get(at)?.as_ref()
            });
            added.is_ok()
        });
        added?;
        let skipped = usize::try_from(position.rows).unwrap_or(usize::MAX);
        let count = limit.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut rows = groups.rows().skip(skipped);
        let page: Vec<Value> = rows.by_ref().take(count).collect();
        let more = page.len() as u64 != left && rows.next().is_some();
        let next = more.then(|| Position {
            device: 0,
            rows: position.rows + page.len() as u64,
        });
        Ok(Page { rows: page, next })
    }

    /// Calls `found` with each device that meets the condition, until `found` returns `false`.
    fn walk(&self, from: u32, mut found: impl FnMut(&Registry, u32) -> bool) {
        let mut at = from;
        loop {
            let registry = self.hub.registry();
            let end = registry.end().min(at.saturating_add(DEVICES_PER_LOCK));
            if at >= end {
                return;
            }
            while at < end {
                let Some((group, position)) = registry.fleet().locate(at) else {
                    let until = end;
                    for number in at..until {
                        if self.changed_meets(&registry, number) && !found(&registry, number) {
                            return;
                        }
                    }
                    at = until;
                    break;
                };
                let until = end.min(group.start + group.count);
                if !self.walk_group(
                    &registry,
                    group,
                    position..position + (until - at),
                    &mut found,
                ) {
                    return;
                }
                at = until;
            }
        }
    }

    fn walk_group(
        &self,
        registry: &Registry,
        group: &Group,
        positions: std::ops::Range<u32>,
        found: &mut impl FnMut(&Registry, u32) -> bool,
    ) -> bool {
        let untouched = registry.is_untouched();
        let bindings: Vec<Binding<'_>> = self
            .query
            .paths
            .iter()
            .map(|path| Binding::new(group, path))
            .collect();
        for position in positions {
            let number = group.start + position;
            let meets = if untouched || registry.entry(number).is_none() {
                let get =
                    |path: usize| self.computed(registry, group, position, &bindings[path], path);
                self.query
                    .condition
                    .as_ref()
                    .is_none_or(|condition| holds(condition, &get) == Some(true))
            } else {
                self.changed_meets(registry, number)
            };
            if meets && !found(registry, number) {
                return false;
            }
        }
        true
    }

    /// Whether a device with an entry in the registry exists and meets the condition.
    fn changed_meets(&self, registry: &Registry, number: u32) -> bool {
        let Some(RegistryEntry::Changed(record)) = registry.entry(number) else {
            return false;
        };
        let Some(condition) = &self.query.condition else {
            return true;
        };
        let twin = self.hub.queried_twin(registry, number, record);
        let get = |path: usize| in_document(&twin, &self.query.paths[path]);
        holds(condition, &get) == Some(true)
    }

    fn computed<'v>(
        &'v self,
        registry: &Registry,
        group: &Group,
        position: u32,
        binding: &Binding<'v>,
        path: usize,
    ) -> Found<'v> {
        let text = |text: &str| Some(Cow::Owned(Value::from(text)));
        let number = group.start + position;
        match binding {
            Binding::Undefined => None,
            Binding::DeviceId => Some(Cow::Owned(Value::String(group.id(position)))),
            Binding::Status => text(
                if group.message_behaviour(position) == MessageBehaviour::Disabled {
                    "disabled"
                } else {
                    "enabled"
                },
            ),
            Binding::Etag => text(&etag_of(2)),
            Binding::Generated(generator, rest) => generated(generator, rest, position),
            Binding::Reported { before, after } => {
                let overlay = after.filter(|_| self.hub.has_changed(number));
                let (generator, rest) = overlay.or(*before)?;
                generated(generator, rest, position)
            }
            Binding::Answer(rest) => {
                let at_ms = self.hub.queried_ms();
                let answer = self.hub.simulated_answer(group, position, at_ms)?;
                answer.at(rest).map(Cow::Owned)
            }
            Binding::Document => {
                let record: DeviceRecord = registry.record(number)?;
                let twin = self.hub.queried_twin(registry, number, &record);
                in_document(&twin, &self.query.paths[path])
                    .map(|value| Cow::Owned(value.into_owned()))
            }
        }
    }

    fn row(&self, registry: &Registry, number: u32) -> Option<Value> {
        let Projection::Columns(columns) = &self.query.projection else {
            let record = registry.record(number)?;
            return Some(self.hub.queried_twin(registry, number, &record));
        };
        let paths: Vec<usize> = columns.iter().map(|column| column.path).collect();
        let values = self.values(registry, number, &paths);
        let row = columns
            .iter()
            .zip(values)
            .filter_map(|(column, value)| Some((column.name.clone(), value?)));
        Some(Value::Object(row.collect()))
    }

    /// Returns a device's values at the given paths of the query.
    fn values(&self, registry: &Registry, number: u32, paths: &[usize]) -> Vec<Option<Value>> {
        if paths.is_empty() {
            return Vec::new();
        }
        let located = registry
            .fleet()
            .locate(number)
            .filter(|_| registry.entry(number).is_none());
        if let Some((group, position)) = located {
            let value = |path: &usize| {
                let binding = Binding::new(group, &self.query.paths[*path]);
                let found = self.computed(registry, group, position, &binding, *path);
                found.map(Cow::into_owned)
            };
            return paths.iter().map(value).collect();
        }
        let twin = registry
            .record(number)
            .map(|record| self.hub.queried_twin(registry, number, &record));
        let value = |path: &usize| {
            let found = in_document(twin.as_ref()?, &self.query.paths[*path]);
            found.map(Cow::into_owned)
        };
        paths.iter().map(value).collect()
    }
}

/// The source of a query path's value in the devices of one group.
#[derive(Clone, Copy)]
enum Binding<'a> {
    Undefined,
    DeviceId,
    Status,
    Etag,
    Generated(&'a Generator, &'a [String]),
    Reported {
        before: Option<(&'a Generator, &'a [String])>,
        after: Option<(&'a Generator, &'a [String])>,
    },
    /// A path below the answer of a simulated device.
    Answer(&'a [String]),
    /// A rarer path, read from the whole twin document.
    Document,
}

impl<'a> Binding<'a> {
    fn new(group: &'a Group, path: &'a [String]) -> Self {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match names[..] {
            ["deviceId"] => Self::DeviceId,
            ["status"] => Self::Status,
            ["etag"] => Self::Etag,
            ["tags", _, ..] => match locate(&group.tags, &path[1..]) {
                Some((generator, rest)) => Self::Generated(generator, rest),
                None => Self::Undefined,
            },
            ["properties", "reported", PROPERTY, ..] if group.answers().is_some() => {
                Self::Answer(&path[3..])
            }
            ["properties", "reported", name, ..] if !name.starts_with('$') => Self::Reported {
                before: locate(&group.reported, &path[2..]),
                after: locate(&group.reported_after, &path[2..]),
            },
            _ => Self::Document,
        }
    }
}

/// Follows a path through nested objects, as far as the objects go.
fn locate<'a>(
    generator: &'a Generator,
    path: &'a [String],
) -> Option<(&'a Generator, &'a [String])> {
    let (mut generator, mut rest) = (generator, path);
    while let (Generator::Object(_), [first, after @ ..]) = (generator, rest) {
        generator = generator.at(std::slice::from_ref(first))?;
        rest = after;
    }
    Some((generator, rest))
}

fn generated<'a>(generator: &'a Generator, rest: &[String], position: u32) -> Found<'a> {
    let value = generator.value(position);
    let value = if rest.is_empty() {
        value
    } else {
        Cow::Owned(in_document(&value, rest)?.into_owned())
    };
    (!value.is_null()).then_some(value)
}

pub(crate) fn in_document<'a>(document: &'a Value, path: &[String]) -> Found<'a> {
    let value = path
        .iter()
        .try_fold(document, |value, name| value.get(name))?;
    (!value.is_null()).then_some(Cow::Borrowed(value))
}
