//! What a child says of its task while it runs: records, tokens and steps, which go through the run's [`Context`], as those
//! of a task in Rust do. `python/celeriac/_worker/report.py` is the other end.
//!
//! One thing is being done at a time, and meanwhile nothing more is read: a store that falls behind holds up the child, at
//! the bound of the socket.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::{Buf, Bytes};
use celeriac::envelopes::Envelopes;
use celeriac::task::{CancelReason, Context, StepError};
use celeriac::{Json, TaskId};

use crate::frame::{self, Channel, Frame};
use crate::order;

/// Records that are written in one step, at most.
const BATCH_MAX: usize = 256;

const NEW: u8 = 0;
const FOUND: u8 = 1;
const STORED: u8 = 2;
const STOPPED: u8 = 3;
const FAILED: u8 = 4;

/// Where frames come from.
pub(crate) trait Source {
    /// The next frame, if it has come already and `wanted` wants it.
    fn received(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<Frame>;
}

impl Source for Channel {
    fn received(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<Frame> {
        self.received(wanted)
    }
}

/// What is being done, and what is to be answered.
type Work = Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send>>;

/// The reports of one run.
pub(crate) struct Reports {
    context: Context,
    call: u32,
    work: Option<Work>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports")
            .field("call", &self.call)
            .field("busy", &self.is_busy())
            .finish_non_exhaustive()
    }
}

impl Reports {
    pub(crate) fn new(context: &Context, call: u32) -> Self {
        Self { context: context.clone(), call, work: None }
    }

    /// Whether something is being done.
    pub(crate) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// Waits until it is done; frames to be sent, if any. Dropping the wait loses nothing.
    pub(crate) async fn done(&mut self) -> Option<Vec<u8>> {
        let answer = match &mut self.work {
            Some(work) => work.await,
            None => return None,
        };
        self.work = None;
        answer
    }

    /// Begins to do what a frame says, and with it what the same kind of frames behind it say; `false` when the frame is
    /// not a report.
    pub(crate) fn hear(&mut self, found: &Frame, source: &mut impl Source) -> bool {
        if !is_report(found.kind) {
            return false;
        }
        if found.call != self.call {
            // A thread that a task has left behind.
            return true;
        }
        let context = self.context.clone();
        let payload = found.payload.clone();
        let call = self.call;
        self.work = Some(match found.kind {
            frame::RECORD => {
                let mut records = Vec::from_iter(record(payload));
                while records.len() < BATCH_MAX
                    && let Some(next) = source.received(|kind| kind == frame::RECORD)
                {
                    records.extend(
                        Some(next).filter(|next| next.call == call).and_then(|next| record(next.payload)),
                    );
                }
                Box::pin(async move {
                    context.emit_all(&records).await;
                    None
                })
            }
            frame::TOKEN => Box::pin(async move {
                context.token(&String::from_utf8_lossy(&payload)).await;
                None
            }),
            frame::STEP => Box::pin(async move { Some(find(&context, call, payload).await) }),
            frame::STEP_DONE => Box::pin(async move { Some(store(&context, call, payload).await) }),
            frame::STORE => Box::pin(async move { Some(hand_over(&context, call, payload).await) }),
            frame::FETCH => Box::pin(async move { Some(fetch(&context, call, payload).await) }),
            frame::ORDER => Box::pin(async move { Some(carry_out(&context, call, payload).await) }),
            _ => Box::pin(async move { Some(flush(&context, call, payload).await) }),
        });
        true
    }
}

/// The frame that tells a child why its task is to stop.
pub(crate) fn cancel(call: u32, reason: CancelReason) -> Vec<u8> {
    frame::json(frame::CANCEL, call, &reason_name(reason))
}

fn reason_name(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::SoftTimeLimit => "soft_time_limit",
        CancelReason::Revoked => "revoked",
        CancelReason::Shutdown => "shutdown",
        CancelReason::TimeLimit => "time_limit",
        CancelReason::LeaseLost => "lease_lost",
        // As what may finish.
        _ => "shutdown",
    }
}

/// Whether a frame is of one of the kinds that a running task sends.
pub(crate) fn is_report(kind: u8) -> bool {
    matches!(
        kind,
        frame::RECORD
            | frame::TOKEN
            | frame::STEP
            | frame::STEP_DONE
            | frame::FLUSH
            | frame::STORE
            | frame::FETCH
            | frame::ORDER
    )
}

fn record(mut payload: Bytes) -> Option<(String, Json)> {
    let event = name(&mut payload)?;
    match std::str::from_utf8(&payload)
        .map_err(|why| why.to_string())
        .and_then(|text| Json::parse(text).map_err(|why| why.to_string()))
    {
        Ok(data) => Some((event, data)),
        Err(why) => {
            tracing::warn!(event, why, "a record of a task is not JSON, left out");
            None
        }
    }
}

/// A text with its length before it.
fn name(payload: &mut Bytes) -> Option<String> {
    if payload.len() < 2 {
        return None;
    }
    let length = usize::from(payload.get_u16_le());
    (payload.len() >= length).then(|| String::from_utf8_lossy(&payload.split_to(length)).into_owned())
}

async fn find(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    match context.find_step(&String::from_utf8_lossy(&payload)).await {
        Ok(found) => match found.value {
            None => answer(call, question, NEW, &[found.key.as_bytes()]),
            Some(value) => {
                let length = u16::try_from(found.key.len()).unwrap_or(u16::MAX).to_le_bytes();
                answer(call, question, FOUND, &[&length, found.key.as_bytes(), value.as_str().as_bytes()])
            }
        },
        Err(error) => refuse(call, question, &error),
    }
}

async fn store(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    let Some(key) = name(&mut payload) else { return cut_off(call) };
    let value = std::str::from_utf8(&payload).ok().and_then(|text| Json::parse(text).ok());
    let Some(value) = value else {
        let text = format!("the value of step {key:?} is not JSON");
        return answer(call, question, FAILED, &[text.as_bytes()]);
    };
    match context.store_step(&key, &value).await {
        Ok(()) => answer(call, question, STORED, &[]),
        Err(error) => refuse(call, question, &error),
    }
}

async fn flush(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    context.write_out().await;
    answer(call, question, STORED, &[])
}

/// What a process without a store of its own publishes and stores, now or with the end of its task.
async fn hand_over(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    if payload.is_empty() {
        return cut_off(call);
    }
    let late = payload.get_u8() == 1;
    let read = json(&payload).and_then(|json| {
        Envelopes::read(&json).map_err(|wrong| {
            wrong
                .iter()
                .map(|wrong| format!("{}: {}", wrong.at, wrong.problem))
                .collect::<Vec<_>>()
                .join("; ")
        })
    });
    let envelopes = match read {
        Ok(envelopes) => envelopes,
        Err(why) => return answer(call, question, FAILED, &[why.as_bytes()]),
    };
    if late {
        context.hand_over_late(envelopes);
        return answer(call, question, STORED, &[]);
    }
    match context.hand_over(envelopes).await {
        Ok(()) => answer(call, question, STORED, &[]),
        Err(error) => refuse(call, question, &error),
    }
}

/// What is stored of tasks, as Celery's metas.
async fn fetch(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    let ids = json(&payload).and_then(|ids| ids.to::<Vec<String>>().map_err(|why| why.to_string()));
    let ids: Vec<TaskId> = match ids {
        Ok(ids) => ids.into_iter().map(TaskId::from).collect(),
        Err(why) => return answer(call, question, FAILED, &[why.as_bytes()]),
    };
    match context.app().store().backend.fetch(&ids).await {
        Ok(found) => {
            let metas: Vec<Json> = found
                .iter()
                .map(|meta| meta.as_ref().and_then(|meta| meta.encode().ok()).unwrap_or_default())
                .collect();
            answer(call, question, FOUND, &[Json::array(&metas).as_str().as_bytes()])
        }
        Err(error) => answer(call, question, FAILED, &[error.to_string().as_bytes()]),
    }
}

/// What else is asked of the store.
async fn carry_out(context: &Context, call: u32, mut payload: Bytes) -> Vec<u8> {
    let Some(question) = question(&mut payload) else { return cut_off(call) };
    match order::carry_out(context.app(), &payload).await {
        Ok(found) => answer(call, question, FOUND, &[found.as_str().as_bytes()]),
        Err(why) => answer(call, question, FAILED, &[why.as_bytes()]),
    }
}

fn json(payload: &[u8]) -> Result<Json, String> {
    let text = std::str::from_utf8(payload).map_err(|why| why.to_string())?;
    Json::parse(text).map_err(|why| why.to_string())
}

fn refuse(call: u32, question: u32, error: &StepError) -> Vec<u8> {
    match error {
        StepError::Cancelled(cancelled) => {
            answer(call, question, STOPPED, &[reason_name(cancelled.0).as_bytes()])
        }
        other => answer(call, question, FAILED, &[other.to_string().as_bytes()]),
    }
}

fn question(payload: &mut Bytes) -> Option<u32> {
    (payload.len() >= 4).then(|| payload.get_u32_le())
}

/// Nobody waits for question 0; the child is of no use when it speaks so.
fn cut_off(call: u32) -> Vec<u8> {
    tracing::warn!("a Python process asks for a step in half a sentence");
    answer(call, 0, FAILED, &[])
}

fn answer(call: u32, question: u32, status: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, frame::ANSWER, call, |out| {
        out.extend(question.to_le_bytes());
        out.push(status);
        for piece in pieces {
            out.extend(*piece);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: &str, data: &str) -> Bytes {
        let length = u16::try_from(event.len()).unwrap();
        [&length.to_le_bytes(), event.as_bytes(), data.as_bytes()].concat().into()
    }

    #[test]
    fn records_are_read_and_what_is_none_is_left_out() {
        let data = Json::parse("{\"done\":1}").unwrap();
        assert_eq!(record(told("progress", "{\"done\":1}")), Some(("progress".to_owned(), data)));
        for wrong in [told("x", "{"), Bytes::new(), Bytes::from_static(b"\x09\x00ab"), told("x", "\u{fffd}")]
        {
            assert_eq!(record(wrong.clone()), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_answer_says_to_which_question() {
        let bytes = answer(3, 7, NEW, &[b"a", b"bc"]);
        assert_eq!(bytes[4], frame::ANSWER);
        assert_eq!(bytes[5..9], 3_u32.to_le_bytes());
        assert_eq!(bytes[9..], [7, 0, 0, 0, NEW, b'a', b'b', b'c']);
    }
}
