//! Groups of devices and aggregates: `GROUP BY` with `COUNT`, `SUM`, `AVG`, `MIN` and `MAX`.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use super::evaluate::order;
use super::tree::{Aggregate, GroupColumn, GroupValue};

/// The largest number of groups in one answer; with a few hundred bytes per row, the rows take some
/// megabytes.
const GROUPS_MAX: usize = 10_000;

/// A query with too many groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the query result has more than {GROUPS_MAX} groups, the emulator's limit")]
pub(crate) struct TooManyGroups;

/// The groups found so far, ordered by each group's first device.
pub(crate) struct Groups<'q> {
    keys: &'q [usize],
    columns: &'q [GroupColumn],
    numbers: HashMap<String, usize>,
    groups: Vec<Group>,
}

struct Group {
    keys: Vec<Option<Value>>,
    count: u64,
    /// An aggregation per column; unused for keys and counts.
    aggregations: Vec<Aggregation>,
}

/// The aggregated values of one column.
#[derive(Debug, Clone, Default, PartialEq)]
struct Aggregation {
    sum: Sum,
    numbers: u64,
    least: Option<Value>,
    most: Option<Value>,
}

/// A sum, exact for integers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sum {
    Integer(i64),
    Float(f64),
}

impl Default for Sum {
    fn default() -> Self {
        Self::Integer(0)
    }
}

impl<'q> Groups<'q> {
    /// Creates the groups of a query. Without keys, a single group exists, even for no devices.
    pub(crate) fn new(keys: &'q [usize], columns: &'q [GroupColumn]) -> Self {
        let mut groups = Self {
            keys,
            columns,
            numbers: HashMap::new(),
            groups: Vec::new(),
        };
        if keys.is_empty() {
            groups.push(String::new(), Vec::new());
        }
        groups
    }

    fn push(&mut self, name: String, keys: Vec<Option<Value>>) {
        self.numbers.insert(name, self.groups.len());
        self.groups.push(Group {
            keys,
            count: 0,
            aggregations: vec![Aggregation::default(); self.columns.len()],
        });
    }

    /// Returns the paths to read of each device.
    pub(crate) fn reads(&self) -> Vec<usize> {
        let aggregated = self.columns.iter().filter_map(|column| match column.value {
            GroupValue::Aggregate(_, path) => Some(path),
            GroupValue::Key(_) | GroupValue::Count => None,
        });
        let mut paths: Vec<usize> = self.keys.iter().copied().chain(aggregated).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Adds a device; `get` returns the device's values.
    pub(crate) fn add<'v>(
        &mut self,
        get: &impl Fn(usize) -> Option<&'v Value>,
    ) -> Result<(), TooManyGroups> {
        let keys: Vec<Option<&Value>> = self.keys.iter().map(|path| get(*path)).collect();
        let name = name_of(&keys);
        let number = match self.numbers.get(&name) {
            Some(number) => *number,
            None if self.groups.len() >= GROUPS_MAX => return Err(TooManyGroups),
            None => {
                let keys = keys.into_iter().map(Option::<&Value>::cloned).collect();
                self.push(name, keys);
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[number];
        group.count += 1;
        for (aggregation, column) in group.aggregations.iter_mut().zip(self.columns) {
            if let GroupValue::Aggregate(_, path) = column.value
                && let Some(value) = get(path)
            {
                aggregation.add(value);
            }
        }
        Ok(())
    }

    /// Returns the rows. Undefined values are left out: a key missing in the devices, or an
    /// aggregate of no values.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Value> + '_ {
        self.groups.iter().map(|group| {
            let mut row = Map::new();
            for (aggregation, column) in group.aggregations.iter().zip(self.columns) {
                let value = match column.value {
                    GroupValue::Key(key) => group.keys[key].clone(),
                    GroupValue::Count => Some(Value::from(group.count)),
                    GroupValue::Aggregate(aggregate, _) => aggregation.value(aggregate),
                };
                if let Some(value) = value {
                    row.insert(column.name.clone(), value);
                }
            }
            Value::Object(row)
        })
    }
}

/// Returns a text unique to a combination of keys. Equal numbers, as compared by queries, give the
/// same text.
fn name_of(keys: &[Option<&Value>]) -> String {
    let mut name = String::new();
    for key in keys {
        match key {
            None => name.push('-'),
            Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (None, Some(float)) => name.push_str(&float.to_string()),
                _ => name.push_str(&number.to_string()),
            },
            Some(value) => name.push_str(&value.to_string()),
        }
        // A separator outside of JSON texts, in which this character would be escaped.
        name.push('\0');
    }
    name
}

impl Aggregation {
    fn add(&mut self, value: &Value) {
        if let Value::Number(number) = value {
            self.numbers += 1;
            self.sum = self.sum.plus(number);
        }
        let beyond = |held: &Option<Value>, ordering: Ordering| match held {
            None => !matches!(value, Value::Object(_) | Value::Array(_)),
            Some(held) => order(value, held) == Some(ordering),
        };
        if beyond(&self.least, Ordering::Less) {
            self.least = Some(value.clone());
        }
        if beyond(&self.most, Ordering::Greater) {
            self.most = Some(value.clone());
        }
    }

    fn value(&self, aggregate: Aggregate) -> Option<Value> {
        match aggregate {
            Aggregate::Min => self.least.clone(),
            Aggregate::Max => self.most.clone(),
            Aggregate::Sum | Aggregate::Avg if self.numbers == 0 => None,
            Aggregate::Sum => Some(match self.sum {
                Sum::Integer(sum) => Value::from(sum),
                Sum::Float(sum) => Value::from(sum),
            }),
            Aggregate::Avg => Some(Value::from(self.sum.float() / self.numbers as f64)),
        }
    }
}

impl Sum {
    fn float(self) -> f64 {
        match self {
            Self::Integer(sum) => sum as f64,
            Self::Float(sum) => sum,
        }
    }

    fn plus(self, number: &Number) -> Self {
        if let (Self::Integer(sum), Some(integer)) = (self, number.as_i64())
            && let Some(sum) = sum.checked_add(integer)
        {
            return Self::Integer(sum);
        }
        Self::Float(self.float() + number.as_f64().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tree::{Projection, Query};
    use super::*;

    fn rows(query: &str, devices: &[Value]) -> Result<Vec<Value>, TooManyGroups> {
        let query = Query::parse(query).unwrap();
        let Projection::Groups { keys, columns } = &query.projection else {
            panic!("{query:?}")
        };
        let mut groups = Groups::new(keys, columns);
        for device in devices {
            let get = |path: usize| {
                query.paths[path]
                    .iter()
                    .try_fold(device, |value, name| value.get(name))
            };
            groups.add(&get)?;
        }
        Ok(groups.rows().collect())
    }

    fn devices() -> Vec<Value> {
        [
            json!({ "k": "a", "n": 1, "t": "x" }),
            json!({ "k": "b", "n": 2.5, "t": "z" }),
            json!({ "k": "a", "n": 4, "t": "y" }),
            json!({ "n": "no number" }),
            json!({ "k": "a" }),
            json!({ "k": 1 }),
            json!({ "k": 1.0, "n": -7 }),
        ]
        .map(|tags| json!({ "tags": tags }))
        .into()
    }

    #[test]
    fn groups_are_counted_and_aggregated() {
        let query = "SELECT tags.k AS k, COUNT() AS n, SUM(tags.n) AS s, AVG(tags.n) AS a, MIN(tags.n) AS least, MAX(tags.t) AS most FROM devices GROUP BY tags.k";
        assert_eq!(
            rows(query, &devices()).unwrap(),
            [
                json!({ "k": "a", "n": 3, "s": 5, "a": 2.5, "least": 1, "most": "y" }),
                json!({ "k": "b", "n": 1, "s": 2.5, "a": 2.5, "least": 2.5, "most": "z" }),
                json!({ "n": 1, "least": "no number" }),
                json!({ "k": 1, "n": 2, "s": -7, "a": -7.0, "least": -7 }),
            ]
        );
    }

    #[test]
    fn aggregates_without_keys_give_a_single_row() {
        let query = "SELECT COUNT(), SUM(tags.n), MAX(tags.t) AS t FROM devices";
        assert_eq!(
            rows(query, &devices()).unwrap(),
            [json!({ "$1": 7, "$2": 0.5, "t": "z" })]
        );
        assert_eq!(rows(query, &[]).unwrap(), [json!({ "$1": 0 })]);
        let grouped = "SELECT COUNT() AS n FROM devices GROUP BY tags.k";
        assert!(rows(grouped, &[]).unwrap().is_empty());
    }

    #[test]
    fn groups_differ_by_all_key_values() {
        let query = "SELECT COUNT() AS n, tags.b FROM devices GROUP BY tags.a, tags.b";
        let tags = [
            json!({ "a": "1", "b": "2" }),
            json!({ "a": 1, "b": "2" }),
            json!({ "a": "1\u{0}\"2" }),
            json!({ "b": "2" }),
            json!({ "a": "-", "b": "2" }),
            json!({ "a": true, "b": "2" }),
        ];
        let devices = tags.map(|tags| json!({ "tags": tags }));
        let found = rows(query, &devices).unwrap();
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(found.iter().all(|row| row["n"] == 1), "{found:?}");
    }

    #[test]
    fn too_many_groups_are_refused() {
        let query = "SELECT COUNT() AS n FROM devices GROUP BY deviceId";
        let devices: Vec<Value> = (0..=GROUPS_MAX)
            .map(|n| json!({ "deviceId": n.to_string() }))
            .collect();
        assert_eq!(rows(query, &devices[1..]).unwrap().len(), GROUPS_MAX);
        assert_eq!(rows(query, &devices), Err(TooManyGroups));
    }
}
