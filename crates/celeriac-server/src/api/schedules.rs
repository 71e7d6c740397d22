//! Schedules, which come with the scheduler: until then there are none.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// A page of schedules.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScheduleList {
    /// The schedules. There are none without the scheduler, which this version does not have yet.
    items: Vec<ScheduleView>,
    /// The `cursor` of the next page; `null` when this is the last.
    next: Option<String>,
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScheduleView {
    /// Its name.
    name: String,
}

/// List schedules
///
/// They come with the scheduler: this version always answers an empty page.
#[utoipa::path(
    get, path = "/schedules", tag = "schedules", operation_id = "list_schedules",
    responses((status = 200, description = "A page of schedules", body = ScheduleList)),
)]
pub(crate) async fn list() -> Json<ScheduleList> {
    Json(ScheduleList { items: Vec::new(), next: None })
}
