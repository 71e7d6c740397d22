//! The kinds of problems, explained.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::input::{Name, shown};
use crate::problem::Problem;

/// A kind of problem.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Kind {
    /// The `type` of problem documents of this kind.
    #[serde(rename = "type")]
    kind: String,
    /// What it means, and what to do.
    text: String,
}

/// Every kind there is, with what it means.
const KINDS: &[(&str, &str)] = &[
    ("body-timeout", "The body of the request did not come in time. Send it again."),
    ("body-too-large", "The body is larger than is allowed. Pass large values by reference."),
    ("busy", "The server has as many connections as it takes. Try again after the time in Retry-After."),
    ("content-type", "The body is of a type that is not taken. Send JSON as application/json."),
    ("forbidden", "The token's role does not include this. Use a token of a higher role."),
    ("foreign-host", "The request is for another host than this server is. Use its own address."),
    (
        "foreign-origin",
        "The request came from a web page of another origin. Name the origin in cors_origins to allow it.",
    ),
    (
        "internal",
        "The server failed in a way it should not. Its log says how; nothing is known to have been done.",
    ),
    ("invalid-input", "The input is wrong in the ways listed under errors. Nothing was done."),
    (
        "key-reused",
        "The idempotency key or id was used before for something else. Use a new one for something new, or send exactly what was sent before.",
    ),
    ("malformed", "The request cannot be read: it is not JSON, or its path or query is not text."),
    (
        "method-not-allowed",
        "There is such a path, but not for this method. The header Allow names those there are.",
    ),
    (
        "no-answer",
        "The worker did not answer in time. It may be busy or gone; the command may still be carried out.",
    ),
    (
        "no-message",
        "The task is finished, and its message is not kept or cannot be read, so that it cannot be sent again. Send it anew.",
    ),
    ("no-route", "There is no such path. See /openapi.json for those there are."),
    (
        "not-acceptable",
        "The answer is not to be had in any of the types in Accept. Ask for one of those in the detail.",
    ),
    (
        "queue-full",
        "As many messages wait on the queue as are allowed. Try again after the time in Retry-After, or start workers.",
    ),
    ("rate-limit", "Too many requests came from this client. Try again after the time in Retry-After."),
    (
        "request-timeout",
        "The request took too long and was given up. It may or may not have been carried out.",
    ),
    ("store", "The store failed in a way that trying again does not mend. The server's log says how."),
    (
        "store-unavailable",
        "The store cannot be reached at the moment. Nothing is known to have been done; try again.",
    ),
    (
        "streams-unavailable",
        "The server cannot open another stream at the moment. Try again after the time in Retry-After.",
    ),
    ("trimmed-log", "The position asked for is no longer kept. Ask from the position in first."),
    ("two-keys", "The header and the body name different idempotency keys. Leave one out."),
    ("unauthorized", "There is no valid token with the request. Send one as Authorization: Bearer."),
    (
        "unfinished",
        "The task waits or runs, so that it cannot be run again. Revoke it first, or wait for its end.",
    ),
    ("unknown-problem", "There is no such kind of problem."),
    ("unknown-task", "No task of this id is known: it was never sent, or its result has expired."),
    (
        "unknown-task-name",
        "No worker is known to run a task of this name. Start one that does, or correct the name.",
    ),
    ("unknown-worker", "No live worker has this name."),
    ("webhooks-off", "The server has no secret to sign webhooks with, so it sends none."),
];

/// Explain a kind of problem
///
/// The `type` of a problem document is the path of its explanation.
#[utoipa::path(
    get, path = "/problems/{kind}", tag = "process", operation_id = "explain_problem",
    params(("kind" = String, Path, description = "The last part of the `type`", min_length = 1)),
    responses((status = 200, description = "What it means, and what to do", body = Kind), (status = 404)),
)]
pub(crate) async fn explain(Name(kind): Name) -> Result<Json<Kind>, Problem> {
    let Some((slug, text)) = KINDS.iter().find(|(slug, _)| *slug == kind) else {
        let detail = format!("no kind of problem is called {}", shown(&kind));
        return Err(Problem::not_found("unknown-problem", detail));
    };
    Ok(Json(Kind { kind: format!("/problems/{slug}"), text: (*text).to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Whoever makes a kind of problem explains it.
    #[test]
    fn every_kind_that_is_made_is_explained() {
        let mut made = Vec::new();
        read_sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut made);
        assert!(made.len() >= 20, "{made:?}");
        for slug in &made {
            assert!(KINDS.iter().any(|(known, _)| known == slug), "{slug} is not explained");
        }
        for (known, _) in KINDS {
            assert!(made.iter().any(|slug| slug == known), "{known} is explained, and never made");
        }
        assert!(KINDS.is_sorted());
    }

    fn read_sources(folder: &Path, made: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_sources(&path, made);
            } else {
                let source = std::fs::read_to_string(&path).unwrap();
                made.extend(slugs(source.split("#[cfg(test)]").next().unwrap_or_default()));
            }
        }
    }

    /// The first text after each place that makes a problem, and the first of what is only ever a conflict.
    fn slugs(source: &str) -> Vec<String> {
        let makers = ["Problem::new(", "Self::new(StatusCode", "not_found(\"", "conflict(\""];
        let starts = makers.iter().flat_map(|maker| source.match_indices(maker));
        starts
            .filter_map(|(at, _)| {
                let text = source[at..].split('"').nth(1)?;
                let is_slug = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
                is_slug.then(|| text.to_owned())
            })
            .collect()
    }
}
