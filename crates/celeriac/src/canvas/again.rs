//! The message that sends a finished task again.

use super::{Error, Planner};
use crate::broker::Routed;
use crate::id::{QueueName, TaskId};
use crate::protocol::{Json, Message};

/// The header of a message that was sent again by hand: what was said of the task before does not hold for it.
pub(crate) const SENT_AGAIN: &str = "celeriac_again";

/// The message of a finished task, as that of a new life under the same id: no retries made, due at once, never
/// expiring. What follows the task follows it again.
///
/// # Errors
/// The message cannot be written.
pub(crate) fn again(mut message: Message, cx: &Planner<'_>) -> Result<Routed, Error> {
    let headers = &mut message.headers;
    headers.retries = 0;
    headers.eta = None;
    headers.expires = None;
    headers.custom.insert(SENT_AGAIN, Json::from_value(&true).unwrap_or_default());
    let properties = &mut message.properties;
    properties.expiration = None;
    properties.redelivered = false;
    properties.delivery_tag = (cx.ids)();
    let queue = match properties.routing_key.as_str() {
        "" => cx.router.queue(&headers.task),
        queue => QueueName::from(queue),
    };
    Ok(Routed {
        task_id: TaskId::from(message.headers.id.as_str()),
        task: message.headers.task.clone().into_boxed_str(),
        queue,
        priority: message.properties.priority,
        due: None,
        // The id is known, and that is the point.
        unique: false,
        tags: super::options::tags(&message.headers.custom),
        message: message.encode()?,
    })
}
