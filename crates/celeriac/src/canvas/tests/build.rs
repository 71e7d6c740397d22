//! Signatures and planners for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{Given, Plan, Planner, Router, plan};
use crate::clock::Timestamp;
use crate::protocol::{Json, JsonMap, Message, Signature};

pub(super) fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

/// A call of `name` with a JSON list of arguments.
pub(super) fn task(name: &str, args: &str) -> Signature {
    Signature::new(name, json(args).array_items().unwrap(), JsonMap::new())
}

pub(super) fn add(args: &str) -> Signature {
    task("wapp.add", args)
}

pub(super) fn xsum() -> Signature {
    task("wapp.xsum", "[]")
}

pub(super) fn chord(header: &[Signature], body: &Signature) -> Signature {
    Signature::chord(&Signature::group(header), body)
}

pub(super) fn items(list: &str) -> Vec<Json> {
    json(list).array_items().unwrap()
}

pub(super) fn with(mut signature: Signature, option: &str, value: &str) -> Signature {
    signature.options.insert(option, json(value));
    signature
}

pub(super) fn linked(mut signature: Signature, option: &str, links: &[Signature]) -> Signature {
    let links: Vec<Json> = links.iter().map(Signature::encode).collect();
    signature.options.insert(option, Json::array(&links));
    signature
}

/// Ids `id-1`, `id-2`, …
#[derive(Debug, Default)]
pub(super) struct Ids(AtomicU64);

impl Ids {
    pub(super) fn next(&self) -> String {
        format!("id-{}", self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

pub(super) fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

pub(super) fn planner<'a>(router: &'a Router, ids: &'a (dyn Fn() -> String + Sync)) -> Planner<'a> {
    Planner {
        now: now(),
        parent_id: None,
        root_id: None,
        origin: "gen1@test",
        router,
        inherited_priority: None,
        ids,
    }
}

/// Plans with the default router and counted ids.
pub(super) fn planned(signature: &Signature) -> Plan {
    let (router, ids) = (Router::default(), Ids::default());
    plan(signature, Given::default(), &planner(&router, &|| ids.next())).unwrap()
}

pub(super) fn decoded(plan: &Plan) -> Vec<Message> {
    plan.publish.iter().map(|routed| Message::decode(&routed.message).unwrap()).collect()
}
