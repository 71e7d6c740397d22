//! What a request for a stream asks for.

use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};

use crate::problem::{Invalid, Problem};

const LAST_EVENT_ID: &str = "Last-Event-ID";

/// In what form records are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As a stream.
    Stream,
    /// As one page of JSON.
    Page,
}

/// The form that the client likes best; a stream where it does not mind.
pub(super) fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let mut ranges = Vec::new();
    for header in headers.get_all(ACCEPT) {
        for range in header.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |quality| quality.trim().parse::<f32>().unwrap_or(0.0));
            if !name.is_empty() {
                ranges.push((name, quality));
            }
        }
    }
    if ranges.is_empty() {
        return Ok(Form::Stream);
    }
    // How much a form is liked: by the range that names it most closely, whose closeness decides where both are liked
    // the same.
    let liked = |names: [&str; 3]| {
        let closest = names.iter().zip([3, 2, 1]).find_map(|(name, closeness)| {
            let quality = ranges.iter().find(|(range, _)| range == name)?.1;
            Some((quality, closeness))
        });
        closest.filter(|(quality, _)| *quality > 0.0)
    };
    let stream = liked(["text/event-stream", "text/*", "*/*"]);
    let page = liked(["application/json", "application/*", "*/*"]);
    match (stream, page) {
        (None, None) => Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "not-acceptable",
            "no form of the answer is accepted",
            "accept text/event-stream or application/json",
        )),
        (None, Some(_)) => Ok(Form::Page),
        (Some(stream), Some(page)) if page > stream => Ok(Form::Page),
        (Some(_), _) => Ok(Form::Stream),
    }
}

/// The position after which records are asked for. A client that reconnects sends it in the header and leaves its URL as
/// it was, so the header goes first; a header without content says nothing.
pub(super) fn position(
    headers: &HeaderMap,
    parameters: &[(&str, Option<&str>)],
    errors: &mut Vec<Invalid>,
) -> Option<u64> {
    if let Some(header) = headers.get(LAST_EVENT_ID)
        && !header.is_empty()
    {
        // What is no position is wrong all the same.
        for (name, text) in parameters {
            let _ = text.map(|text| number(name, text, errors));
        }
        return number(LAST_EVENT_ID, header.to_str().unwrap_or_default(), errors);
    }
    let mut found: Option<(&str, u64)> = None;
    for (name, text) in parameters {
        let Some(value) = text.and_then(|text| number(name, text, errors)) else { continue };
        match found {
            Some((other, known)) if known != value => errors.push(Invalid {
                at: (*name).to_owned(),
                problem: format!("is {value}, and {other} is {known}; they mean the same, so give one"),
            }),
            _ => found = Some((name, value)),
        }
    }
    found.map(|(_, value)| value)
}

/// A whole number that is not negative.
pub(super) fn number(name: &str, text: &str, errors: &mut Vec<Invalid>) -> Option<u64> {
    // Positions are columns of 64 bits with a sign in some stores.
    let number = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|text| text.parse().ok()).filter(|number| i64::try_from(*number).is_ok());
    if number.is_none() {
        let problem = "is not a position: a whole number from 0, such as the id of the last event seen";
        errors.push(Invalid { at: name.to_owned(), problem: problem.to_owned() });
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn accepts(text: &str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(text).unwrap());
        form(&headers).ok()
    }

    #[test]
    fn the_form_liked_best_is_sent() {
        assert_eq!(form(&HeaderMap::new()).unwrap(), Form::Stream);
        for stream in
            ["", "*/*", "text/event-stream", "text/*;q=0.3", "application/json;q=0.5, text/event-stream"]
        {
            assert_eq!(accepts(stream), Some(Form::Stream), "{stream}");
        }
        let pages = [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json, text/plain, */*",
            "application/json, text/event-stream;q=0.9",
            "*/*;q=0.1, text/event-stream;q=0",
        ];
        for page in pages {
            assert_eq!(accepts(page), Some(Form::Page), "{page}");
        }
        for neither in ["image/png", "application/json;q=0", "*/*;q=0"] {
            assert_eq!(accepts(neither), None, "{neither}");
        }
    }

    fn asked(header: Option<&str>, parameters: &[(&str, Option<&str>)]) -> Result<Option<u64>, Vec<String>> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(header).unwrap());
        }
        let mut errors = Vec::new();
        let found = position(&headers, parameters, &mut errors);
        if errors.is_empty() { Ok(found) } else { Err(errors.into_iter().map(|error| error.at).collect()) }
    }

    #[test]
    fn a_position_has_one_meaning() {
        assert_eq!(asked(None, &[("after", None)]), Ok(None));
        assert_eq!(asked(None, &[("after", Some("0"))]), Ok(Some(0)));
        assert_eq!(asked(Some("9"), &[("after", Some("4"))]), Ok(Some(9)), "a reconnect");
        assert_eq!(asked(Some(""), &[("after", Some("4"))]), Ok(Some(4)));
        assert_eq!(asked(None, &[("after", Some("4")), ("starting_after", Some("4"))]), Ok(Some(4)));
        let two = [("after", Some("4")), ("starting_after", Some("5"))];
        assert_eq!(asked(None, &two), Err(vec!["starting_after".to_owned()]));
        for wrong in ["", "-1", "+1", "x", "1.0", " 1", "18446744073709551615", "99999999999999999999"] {
            assert_eq!(asked(None, &[("after", Some(wrong))]), Err(vec!["after".to_owned()]), "{wrong}");
        }
        assert_eq!(asked(Some("x"), &[]), Err(vec!["Last-Event-ID".to_owned()]));
    }
}
