//! What is too large to be written, found before it is sent to the writer.

use super::fault::{ROW_BYTES_MAX, too_large};
use crate::backend::Record;
use crate::broker::Routed;
use crate::store::Result;

/// Refuses messages larger than a row may be.
pub(super) fn check_messages(messages: &[Routed]) -> Result<()> {
    for routed in messages {
        let bytes = routed.message.head.len() + routed.message.body.len();
        if bytes > ROW_BYTES_MAX {
            return Err(too_large(format!("the message of task {}", routed.task_id)));
        }
    }
    Ok(())
}

/// Refuses results, steps, chords and log records larger than a row may be.
pub(super) fn check_record(record: &Record) -> Result<()> {
    for meta in &record.results {
        let bytes = meta.result.as_str().len() + meta.traceback.as_ref().map_or(0, String::len);
        if bytes > ROW_BYTES_MAX {
            return Err(too_large(format!("the result of task {}", meta.task_id)));
        }
    }
    for part in &record.parts {
        if part.result.as_str().len() > ROW_BYTES_MAX {
            return Err(too_large(format!("the result of task {} in chord {}", part.task_id, part.group_id)));
        }
    }
    for chord in &record.chords {
        if chord.body.as_str().len() > ROW_BYTES_MAX {
            return Err(too_large(format!("the body of chord {}", chord.group_id)));
        }
    }
    for step in &record.steps {
        if step.value.as_str().len() > ROW_BYTES_MAX {
            return Err(too_large(format!("the value of step {} of task {}", step.name, step.task_id)));
        }
    }
    for log in &record.log {
        if log.data.as_str().len() > ROW_BYTES_MAX {
            return Err(too_large(format!("a log record of task {}", log.task_id)));
        }
    }
    Ok(())
}
