//! Reading what clients send: every problem at once, each with its place.
//!
//! Bodies are not read by serde, which stops at the first error: [`Fields`] takes one field after the other, notes what is
//! wrong with each, and at the end what nobody asked for. Values of the application's stay text, see
//! [`Json`](celeriac::Json).

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use celeriac::protocol::JsonMap;
use celeriac::{Json, Timestamp};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::escape::pointer;
use crate::problem::{Invalid, Problem};
use crate::server::Server;

/// The longest name or key that is taken, in characters.
pub(crate) const NAME_MAX: usize = 255;

/// What is wrong with the input so far.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Invalid>);

impl Problems {
    pub(crate) fn add(&mut self, at: impl Into<String>, problem: impl Into<String>) {
        // One request cannot make an answer of any length.
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(Invalid { at: at.into(), problem: problem.into() });
        }
    }

    pub(crate) fn none_so_far(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn check(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }
}

const PROBLEMS_MAX: usize = 1_000;

/// A body in JSON, not yet given a meaning; `None` for one of no bytes.
#[derive(Debug)]
pub(crate) struct Document(pub(crate) Option<Json>);

impl FromRequest<Server> for Document {
    type Rejection = Problem;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Problem> {
        let max = server.config().body_bytes_max;
        let content_type =
            request.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("").to_owned());
        let body = match Limited::new(request.into_body(), max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
                let detail = format!("the body has more than {max} bytes; pass large values by reference");
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body-too-large",
                    "the body is too large",
                    detail,
                ));
            }
            Err(error) => return Err(malformed(format!("the body cannot be read: {error}"))),
        };
        if body.is_empty() {
            return Ok(Self(None));
        }
        if !content_type.as_deref().is_some_and(is_json) {
            let title = "not JSON";
            let detail = format!(
                "the content type is {}; send application/json",
                content_type.map_or_else(|| "not given".to_owned(), |given| shown(&given))
            );
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", title, detail));
        }
        parse(&body).map(|json| Self(Some(json)))
    }
}

impl Document {
    /// The body, which must be there, as it stands.
    pub(crate) fn json(self) -> Result<Json, Problem> {
        self.0.ok_or_else(|| malformed("the body is empty; send a JSON object"))
    }

    /// The fields of the body, which must be there.
    pub(crate) fn fields(self, problems: &mut Problems) -> Result<Fields, Problem> {
        let json = self.0.ok_or_else(|| malformed("the body is empty; send a JSON object"))?;
        Ok(Fields::read(&json, String::new(), problems))
    }

    /// The fields of the body; none when it is empty or `null`.
    pub(crate) fn fields_if_any(self, problems: &mut Problems) -> Fields {
        match self.0 {
            Some(json) if !json.is_null() => Fields::read(&json, String::new(), problems),
            _ => Fields { at: String::new(), entries: Some(JsonMap::new()), of_query: false },
        }
    }
}

fn parse(body: &Bytes) -> Result<Json, Problem> {
    let text = std::str::from_utf8(body).map_err(|error| {
        malformed(format!("the body is not UTF-8: byte {} does not belong", error.valid_up_to()))
    })?;
    // Python's liberties are for what Python wrote; here, what is not JSON is told by line and column.
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| malformed(error.to_string()))?;
    Json::parse(text.trim()).map_err(|error| malformed(error.to_string()))
}

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed", "the request cannot be read", detail)
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The fields of a JSON object, taken one by one.
#[derive(Debug)]
pub(crate) struct Fields {
    /// The pointer of the object.
    at: String,
    /// `None` when it is no object, of which is complained once.
    entries: Option<JsonMap>,
    /// They are the parameters of a query.
    of_query: bool,
}

impl Fields {
    /// The fields of `json`, which stands at the pointer `at`.
    pub(crate) fn read(json: &Json, at: String, problems: &mut Problems) -> Self {
        let entries = json.entries().ok();
        if entries.is_none() {
            problems.add(&*at, format!("{} where an object belongs", kind(json)));
        }
        Self { at, entries, of_query: false }
    }

    /// Parameters of a query, as values.
    pub(crate) fn of_query(entries: JsonMap) -> Self {
        Self { at: String::new(), entries: Some(entries), of_query: true }
    }

    /// The pointer of the object.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// The pointer of a field; the name of a parameter.
    pub(crate) fn place(&self, name: &str) -> String {
        if self.of_query { name.to_owned() } else { format!("{}/{}", self.at, pointer(name)) }
    }

    /// Whether the object has no field left.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.as_ref().is_none_or(JsonMap::is_empty)
    }

    /// The fields that are left.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Json)> {
        self.entries.iter().flatten()
    }

    /// A field that stays.
    pub(crate) fn peek(&self, name: &str) -> Option<&Json> {
        self.entries.as_ref()?.get(name)
    }

    /// Whether a field is there and `null`.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.peek(name).is_some_and(Json::is_null)
    }

    /// Whether a field is there and a text.
    pub(crate) fn is_text(&self, name: &str) -> bool {
        self.peek(name).is_some_and(|value| value.as_str().starts_with('"'))
    }

    /// A field as it stands, be it `null`.
    pub(crate) fn any(&mut self, name: &str) -> Option<Json> {
        self.entries.as_mut()?.remove(name)
    }

    /// A field; `null` is none.
    pub(crate) fn value(&mut self, name: &str) -> Option<Json> {
        self.any(name).filter(|value| !value.is_null())
    }

    /// A text of 1 to `max` characters.
    pub(crate) fn text(&mut self, name: &str, max: usize, problems: &mut Problems) -> Option<String> {
        let value = self.value(name)?;
        text(&value, max).map_err(|problem| problems.add(self.place(name), problem)).ok()
    }

    /// The same, and it must be there. What is missing is noted, and an empty text returned.
    pub(crate) fn required_text(&mut self, name: &str, max: usize, problems: &mut Problems) -> String {
        match self.any(name) {
            Some(value) => text(&value, max)
                .map_err(|problem| problems.add(self.place(name), problem))
                .unwrap_or_default(),
            None => {
                if self.entries.is_some() {
                    problems.add(self.place(name), "missing");
                }
                String::new()
            }
        }
    }

    /// A list of texts.
    pub(crate) fn texts(
        &mut self,
        name: &str,
        count_max: usize,
        max: usize,
        problems: &mut Problems,
    ) -> Option<Vec<String>> {
        let items = self.items(name, count_max, problems)?;
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match text(item, max) {
                Ok(text) => texts.push(text),
                Err(problem) => problems.add(format!("{}/{index}", self.place(name)), problem),
            }
        }
        Some(texts)
    }

    /// A list of values.
    pub(crate) fn items(
        &mut self,
        name: &str,
        count_max: usize,
        problems: &mut Problems,
    ) -> Option<Vec<Json>> {
        let value = self.value(name)?;
        match value.array_items() {
            Ok(items) if items.len() <= count_max => return Some(items),
            Ok(items) => {
                problems
                    .add(self.place(name), format!("{} items; at most {count_max} are taken", items.len()));
            }
            Err(_) => problems.add(self.place(name), format!("{} where a list belongs", kind(&value))),
        }
        None
    }

    /// An object as it stands.
    pub(crate) fn object(&mut self, name: &str, problems: &mut Problems) -> Option<JsonMap> {
        let value = self.value(name)?;
        let entries = value.entries().ok();
        if entries.is_none() {
            problems.add(self.place(name), format!("{} where an object belongs", kind(&value)));
        }
        entries
    }

    /// An object whose fields are taken one by one.
    pub(crate) fn fields(&mut self, name: &str, problems: &mut Problems) -> Option<Self> {
        let value = self.any(name)?;
        Some(Self::read(&value, self.place(name), problems))
    }

    /// A whole number.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
        problems: &mut Problems,
    ) -> Option<u64> {
        let value = self.value(name)?;
        integer(value.as_str(), &range).map_err(|problem| problems.add(self.place(name), problem)).ok()
    }

    /// Seconds, with fractions.
    pub(crate) fn seconds(
        &mut self,
        name: &str,
        min: Duration,
        max: Duration,
        problems: &mut Problems,
    ) -> Option<Duration> {
        let value = self.value(name)?;
        let wrong = match value.to::<f64>() {
            Ok(seconds) => match Duration::try_from_secs_f64(seconds) {
                Ok(duration) if (min..=max).contains(&duration) => return Some(duration),
                _ => format!(
                    "{} is not within {} to {} seconds",
                    shown(value.as_str()),
                    min.as_secs_f64(),
                    max.as_secs()
                ),
            },
            Err(_) => format!("{} where seconds belong", kind(&value)),
        };
        problems.add(self.place(name), wrong);
        None
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, name: &str, problems: &mut Problems) -> Option<bool> {
        let value = self.value(name)?;
        match value.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                problems.add(self.place(name), format!("{} where true or false belongs", kind(&value)));
                None
            }
        }
    }

    /// A moment in RFC 3339.
    pub(crate) fn time(&mut self, name: &str, problems: &mut Problems) -> Option<Timestamp> {
        let value = self.value(name)?;
        let read = match value.as_string() {
            Some(text) => moment(&text),
            None => Err(format!("{} where a date and time belongs", kind(&value))),
        };
        read.map_err(|problem| problems.add(self.place(name), problem)).ok()
    }

    /// Notes what is left over.
    pub(crate) fn finish(self, known: &[&str], problems: &mut Problems) {
        for name in self.entries.iter().flat_map(JsonMap::keys) {
            let close = crate::names::close(name, known.iter().copied());
            let hint = close.first().map_or_else(
                || format!("the fields are {}", known.join(", ")),
                |close| format!("did you mean {close}?"),
            );
            problems.add(self.place(name), format!("unknown field; {hint}"));
        }
    }
}

/// The parameters of a query, taken one by one.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl FromRequestParts<Server> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Problem> {
        match Query::<Vec<(String, String)>>::from_request_parts(parts, server).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(rejection) => Err(malformed(format!("the query cannot be read: {}", rejection.body_text()))),
        }
    }
}

impl Params {
    pub(crate) fn one(&mut self, name: &str, problems: &mut Problems) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            problems.add(name, "given more than once");
        }
        values.pop()
    }

    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect()
    }

    /// A text of 1 to `max` characters.
    pub(crate) fn text(&mut self, name: &str, max: usize, problems: &mut Problems) -> Option<String> {
        let value = self.one(name, problems)?;
        bounded(value, max).map_err(|problem| problems.add(name, problem)).ok()
    }

    /// A parameter that may be repeated, or be a list with commas.
    pub(crate) fn list(&mut self, name: &str, problems: &mut Problems) -> Vec<String> {
        let mut found = Vec::new();
        for value in self.all(name) {
            for piece in value.split(',') {
                match bounded(piece.to_owned(), NAME_MAX) {
                    Ok(piece) => found.push(piece),
                    Err(problem) => problems.add(name, problem),
                }
            }
        }
        if found.len() > LIST_MAX {
            problems.add(name, format!("{} values; at most {LIST_MAX} are taken", found.len()));
        }
        found
    }

    /// A whole number.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
        problems: &mut Problems,
    ) -> Option<u64> {
        let value = self.one(name, problems)?;
        integer(&value, &range).map_err(|problem| problems.add(name, problem)).ok()
    }

    /// Seconds, with fractions.
    pub(crate) fn seconds(&mut self, name: &str, max: Duration, problems: &mut Problems) -> Option<Duration> {
        let value = self.one(name, problems)?;
        let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let seconds = seconds.filter(|seconds| *seconds <= max);
        if seconds.is_none() {
            problems.add(name, format!("{} is not within 0 to {} seconds", shown(&value), max.as_secs()));
        }
        seconds
    }

    /// A moment in RFC 3339.
    pub(crate) fn time(&mut self, name: &str, problems: &mut Problems) -> Option<Timestamp> {
        let value = self.one(name, problems)?;
        moment(&value).map_err(|problem| problems.add(name, problem)).ok()
    }

    /// Where a page goes on, as the page before said.
    pub(crate) fn cursor(&mut self, problems: &mut Problems) -> Option<u64> {
        let value = self.one("cursor", problems)?;
        let number = crate::api::cursor::read(&value);
        if number.is_none() {
            problems.add(
                "cursor",
                "not what a page gave as its `next`; leave it out to begin with the first page",
            );
        }
        number
    }

    /// Notes what is left over.
    pub(crate) fn finish(self, known: &[&str], problems: &mut Problems) {
        for (name, _) in self.0 {
            let hint = format!("unknown parameter; there are {}", known.join(", "));
            problems.add(shown(&name), hint);
        }
    }
}

const LIST_MAX: usize = 50;

/// The name in the path.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl FromRequestParts<Server> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, server).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(rejection) => Err(malformed(format!("the path cannot be read: {}", rejection.body_text()))),
        }
    }
}

/// The two names in the path.
#[derive(Debug)]
pub(crate) struct Names(pub(crate) String, pub(crate) String);

impl FromRequestParts<Server> for Names {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Problem> {
        match Path::<(String, String)>::from_request_parts(parts, server).await {
            Ok(Path((first, second))) => Ok(Self(first, second)),
            Err(rejection) => Err(malformed(format!("the path cannot be read: {}", rejection.body_text()))),
        }
    }
}

fn text(value: &Json, max: usize) -> Result<String, String> {
    let Some(text) = value.as_string() else { return Err(format!("{} where a text belongs", kind(value))) };
    bounded(text.into_owned(), max)
}

fn bounded(text: String, max: usize) -> Result<String, String> {
    match text.chars().count() {
        0 => Err("empty".to_owned()),
        count if count > max => Err(format!("{count} characters; at most {max} are taken")),
        _ => Ok(text),
    }
}

/// Reads a whole number; JSON spells 3 as `3.0` and `3e0`, too.
fn integer(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let exact = text.parse::<u64>().ok();
    let whole = || {
        let number = text.parse::<f64>().ok()?;
        // Beyond this a float has no last digit.
        (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
    };
    exact.or_else(whole).filter(|number| range.contains(number)).ok_or_else(|| {
        format!("{} is not a whole number from {} to {}", shown(text), range.start(), range.end())
    })
}

fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse::<Timestamp>()
        .map_err(|_| format!("{} is not a date and time as 2026-11-05T08:30:00Z (RFC 3339)", shown(text)))
}

/// What a value is, for people.
pub(crate) fn kind(value: &Json) -> &'static str {
    match value.as_str().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a text",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

/// A text of the client's, short enough to be given back.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

const SHOWN_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str, problems: &mut Problems) -> Fields {
        Fields::read(&Json::parse(text).unwrap(), String::new(), problems)
    }

    #[test]
    fn every_problem_is_noted_with_its_place() {
        let mut problems = Problems::default();
        let mut body = fields(
            r#"{"a/b": 1, "n": 1.5, "big": 99999999999999999999, "t": "soon", "s": "", "l": ["x", 2], "b": 1, "d": -1}"#,
            &mut problems,
        );
        assert_eq!(body.required_text("task", 10, &mut problems), "");
        assert_eq!(body.integer("n", 0..=9, &mut problems), None);
        assert_eq!(body.integer("big", 0..=9, &mut problems), None);
        assert_eq!(body.time("t", &mut problems), None);
        assert_eq!(body.text("s", 10, &mut problems), None);
        assert_eq!(body.texts("l", 10, 10, &mut problems), Some(vec!["x".to_owned()]));
        assert_eq!(body.boolean("b", &mut problems), None);
        assert_eq!(body.seconds("d", Duration::ZERO, Duration::MAX, &mut problems), None);
        body.finish(&["task", "n"], &mut problems);
        let places: Vec<&str> = problems.0.iter().map(|problem| &*problem.at).collect();
        assert_eq!(places, ["/task", "/n", "/big", "/t", "/s", "/l/1", "/b", "/d", "/a~1b"]);
        let problem = problems.check().unwrap_err();
        assert_eq!((problem.status, problem.errors.len()), (422, 9));
    }

    #[test]
    fn numbers_of_every_spelling() {
        let integer = |text: &str| super::integer(text, &(0..=10)).ok();
        for text in ["3", "3.0", "3e0", "0.3e1"] {
            assert_eq!(integer(text), Some(3), "{text}");
        }
        for text in ["-1", "11", "3.5", "1e400", "NaN", "", "x"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn syntax_errors_have_line_and_column() {
        let problem = parse(&Bytes::from_static(b"{\n  \"a\": NaN}")).unwrap_err();
        assert_eq!(problem.status, 400);
        assert!(problem.detail.contains("line 2 column 8"), "{}", problem.detail);
        assert_eq!(parse(&Bytes::from_static(b"\"\xff\"")).unwrap_err().status, 400);
    }
}
