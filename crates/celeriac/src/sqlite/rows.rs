//! Between columns and the types of the store.

use rusqlite::{Connection, Params, Row};

use super::fault::Fault;
use crate::clock::Timestamp;
use crate::id::DeliveryTag;
use crate::protocol::{Extended, Json, ResultTuple};

/// A time as a column: nanoseconds since 1970. Times past the year 2262 become that year: all that lies so far off is
/// a lease or a delay without an end.
pub(super) fn column_of(at: Timestamp) -> i64 {
    let nanos = at.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// The time in a column.
pub(super) fn time_of(column: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(column)).unwrap_or(Timestamp::MAX)
}

/// A bound for SQL, whose integers have a sign.
pub(super) fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A limit for SQL, where a negative one would mean none.
pub(super) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A column that is never negative.
pub(super) fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

/// A delivery count.
pub(super) fn count(column: i64) -> u32 {
    u32::try_from(column.max(0)).unwrap_or(u32::MAX)
}

/// One reservation: the task's number and the token of this reservation of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tag {
    pub(super) seq: i64,
    pub(super) token: i64,
}

impl Tag {
    /// Reads a tag; `None` for one that this store never gave out, which is one it does not hold.
    pub(super) fn parse(tag: &DeliveryTag) -> Option<Self> {
        let (seq, token) = tag.as_str().split_once('-')?;
        Some(Self { seq: seq.parse().ok()?, token: token.parse().ok()? })
    }
}

impl From<Tag> for DeliveryTag {
    fn from(tag: Tag) -> Self {
        Self::from(format!("{}-{}", tag.seq, tag.token))
    }
}

/// Runs a cached statement; returns how many rows it changed.
pub(super) fn execute(
    connection: &Connection,
    sql: &'static str,
    params: impl Params,
) -> Result<usize, Fault> {
    Ok(connection.prepare_cached(sql)?.execute(params)?)
}

/// The first row of a cached statement, if any.
pub(super) fn first<T>(
    connection: &Connection,
    sql: &'static str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    Ok(rows.next()?.map(read).transpose()?)
}

/// Every row of a cached statement.
pub(super) fn all<T>(
    connection: &Connection,
    sql: &'static str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// JSON in a column.
pub(super) fn json(text: &str) -> Result<Json, Fault> {
    Json::parse(text).map_err(|why| Fault::Corrupt(format!("a column that should hold JSON does not: {why}")))
}

/// The children of a task as Celery's `as_tuple` writes them: `[[[id, parent], children], …]`.
pub(super) fn children_column(children: &[ResultTuple]) -> String {
    serde_json::Value::Array(children.iter().map(tuple_value).collect()).to_string()
}

/// Reads what [`children_column`] wrote.
pub(super) fn children_of(column: &str) -> Result<Vec<ResultTuple>, Fault> {
    let wrong = || Fault::Corrupt("a column that should hold the children of a task does not".to_owned());
    let value: serde_json::Value = serde_json::from_str(column).map_err(|_| wrong())?;
    let children = value.as_array().ok_or_else(wrong)?;
    children.iter().map(|child| tuple_of(child).ok_or_else(wrong)).collect()
}

fn tuple_value(tuple: &ResultTuple) -> serde_json::Value {
    let parent = tuple.parent.as_deref().map_or(serde_json::Value::Null, tuple_value);
    let children = match &tuple.children {
        None => serde_json::Value::Null,
        Some(children) => serde_json::Value::Array(children.iter().map(tuple_value).collect()),
    };
    serde_json::json!([[tuple.id, parent], children])
}

fn tuple_of(value: &serde_json::Value) -> Option<ResultTuple> {
    let [head, children] = value.as_array()?.as_slice() else { return None };
    let [id, parent] = head.as_array()?.as_slice() else { return None };
    let parent = if parent.is_null() { None } else { Some(Box::new(tuple_of(parent)?)) };
    let children = match children {
        serde_json::Value::Null => None,
        children => Some(children.as_array()?.iter().map(tuple_of).collect::<Option<_>>()?),
    };
    Some(ResultTuple { id: id.as_str()?.to_owned(), parent, children })
}

/// How [`Extended`] lies in its column.
#[derive(serde::Serialize, serde::Deserialize)]
struct ExtendedColumn {
    name: String,
    args: Json,
    kwargs: Json,
    worker: String,
    retries: u32,
    queue: Option<String>,
    other: crate::protocol::JsonMap,
}

/// `result_extended` as a column.
pub(super) fn extended_column(extended: &Extended) -> Result<String, Fault> {
    let Extended { name, args, kwargs, worker, retries, queue, other } = extended.clone();
    let column = ExtendedColumn { name, args, kwargs, worker, retries, queue, other };
    serde_json::to_string(&column).map_err(|why| Fault::Corrupt(format!("a result cannot be written: {why}")))
}

/// Reads what [`extended_column`] wrote.
pub(super) fn extended_of(column: &str) -> Result<Extended, Fault> {
    let ExtendedColumn { name, args, kwargs, worker, retries, queue, other } = serde_json::from_str(column)
        .map_err(|why| {
        Fault::Corrupt(format!("a column that should hold the details of a call does not: {why}"))
    })?;
    Ok(Extended { name, args, kwargs, worker, retries, queue, other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_round_trip() {
        let leaf = ResultTuple { id: "a".into(), parent: None, children: None };
        let group = ResultTuple {
            id: "g".into(),
            parent: Some(Box::new(leaf.clone())),
            children: Some(vec![leaf.clone(), ResultTuple { id: "b".into(), parent: None, children: None }]),
        };
        let children = vec![leaf, group];
        let column = children_column(&children);
        assert!(column.starts_with(r#"[[["a",null],null],[["g",[["a",null],null]],["#), "{column}");
        assert_eq!(children_of(&column), Ok(children));
        assert!(children_of("[1]").is_err());
    }

    #[test]
    fn only_our_tags_are_read() {
        let tag = Tag { seq: 7, token: 12 };
        assert_eq!(Tag::parse(&tag.into()), Some(tag));
        for foreign in ["", "7", "7-", "-", "x-1", "7-1-2", "0191e5c1-7b0c-7000-8000-000000000000"] {
            assert_eq!(Tag::parse(&DeliveryTag::from(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn times_far_off_stay_in_order() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(time_of(column_of(now)), now);
        assert!(column_of(Timestamp::MAX) > column_of(now));
        assert!(column_of(Timestamp::MIN) < column_of(now));
    }
}
