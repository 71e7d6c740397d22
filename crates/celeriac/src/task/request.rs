//! What a run was asked for: a message as it was delivered.

use crate::broker::Delivery;
use crate::id::{DeliveryTag, QueueName, TaskId};
use crate::protocol::Headers;

/// What is being run.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) tag: DeliveryTag,
    pub(crate) task_id: TaskId,
    pub(crate) queue: QueueName,
    pub(crate) deliveries: u32,
    pub(crate) headers: Headers,
}

impl Request {
    /// The request that a delivery brings.
    pub(crate) fn of(delivery: &Delivery, headers: Headers) -> Self {
        Self {
            tag: delivery.tag.clone(),
            task_id: delivery.task_id.clone(),
            queue: delivery.queue.clone(),
            deliveries: delivery.deliveries,
            headers,
        }
    }
}
