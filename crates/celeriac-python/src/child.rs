//! One child: a Python process that runs one task at a time, and the conversation with it.

use std::time::Duration;

use bytes::{Buf, Bytes};
use celeriac::Json;
use celeriac::protocol::{Exception, ResultMeta};
use celeriac::task::{CancelReason, Concluded, Context, Fault, ForeignCall, Ran, Verdict};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::frame::{self, Channel, Frame};
use crate::memory;
use crate::report::{self, Reports};
use crate::zygote::{ChildOptions, Fate, Zygote, kill_group, send_signal};

/// How long the zygote may take to say how a child ended.
const FATE_PATIENCE: Duration = Duration::from_secs(2);

/// What is said of one whose end nobody has told.
const UNHEARD: &str = "its connection was closed.";
/// How old the count of processes killed for want of memory may be when a task begins.
const COUNTED_FOR: Duration = Duration::from_secs(1);

const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const RETRIED: u8 = 2;
const IGNORED: u8 = 3;
const REJECTED: u8 = 4;
const BROKEN: u8 = 5;
const STOPPED: u8 = 6;

/// A child that is ready.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) number: u32,
    pub(crate) pid: u32,
    channel: Channel,
    fate: watch::Receiver<Fate>,
    calls: u32,
    /// Runs that it has ended.
    pub(crate) done: u32,
    /// Another is coming to take its place.
    pub(crate) replaced: bool,
    /// How many the system had killed for want of memory when its task began, or shortly before, and when that was.
    starved: Option<(Instant, Option<u64>)>,
    out: Vec<u8>,
}

/// What it said besides the end of a task.
pub(crate) enum Aside {
    /// It imported modules.
    Modules(Vec<String>),
    /// What a task has left behind in it may go on: another is to take its place.
    Spent,
}

#[derive(Debug, Deserialize)]
struct Hello {
    pid: u32,
}

#[derive(Debug, Deserialize)]
struct ToldFault {
    r#type: String,
    module: Option<String>,
    args: Vec<Value>,
    shown: String,
    traceback: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ToldRejection {
    requeue: bool,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct ToldLoss {
    why: String,
}

#[derive(Debug, Deserialize)]
struct ToldConclusion {
    stored: Option<String>,
    error: Option<String>,
}

/// Has a child forked, and waits until it is ready; one that is not after `patience` is killed.
pub(crate) async fn born(
    zygote: &Zygote,
    options: &ChildOptions,
    patience: Duration,
) -> Result<Child, String> {
    let (number, channel, fate) = zygote.fork(options).await.map_err(|error| error.to_string())?;
    let known = fate.clone();
    let coming = tokio::time::timeout(patience, Child::ready(number, channel, fate));
    coming.await.unwrap_or_else(|_| {
        if let Fate::Lives(pid) = *known.borrow() {
            // It leads a group as soon as it runs.
            send_signal(pid, Signal::KILL);
            kill_group(pid);
        }
        let seconds = patience.as_secs_f64();
        Err(format!(
            "it was not ready after {seconds} s and is killed; worker_proc_alive_timeout gives it longer"
        ))
    })
}

impl Child {
    /// Waits until a child that was forked is ready.
    pub(crate) async fn ready(
        number: u32,
        mut channel: Channel,
        mut fate: watch::Receiver<Fate>,
    ) -> Result<Self, String> {
        let pid = loop {
            let found = tokio::select! {
                found = channel.receive() => found,
                status = over(&mut fate) => return Err(death(status)),
            };
            match found {
                Ok(Some(Frame { kind: frame::HELLO, payload, .. })) => {
                    let hello: Hello = serde_json::from_slice(&payload).map_err(|why| why.to_string())?;
                    break hello.pid;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(epitaph(&mut fate).await),
            }
        };
        Ok(Self {
            number,
            pid,
            channel,
            fate,
            calls: 0,
            done: 0,
            replaced: false,
            starved: None,
            out: Vec::new(),
        })
    }

    /// Whether it is gone.
    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.fate.borrow(), Fate::Over(_))
    }

    /// Runs a task; one that comes to have more than `memory_most` KiB is killed. Dropped before its end, the child is in the
    /// midst of something and must be killed.
    pub(crate) async fn run(
        &mut self,
        call: &ForeignCall,
        cx: &Context,
        memory_most: Option<u64>,
        mut aside: impl FnMut(Aside),
    ) -> Ran {
        let number = self.next_call();
        // Counted anew before what runs long, and not before each of many that are over at once.
        if self.starved.is_none_or(|(at, _)| at.elapsed() > COUNTED_FOR) {
            self.starved = Some((Instant::now(), memory::killed_for_want()));
        }
        self.out.clear();
        frame::write(&mut self.out, frame::TASK, number, |out| write_task(out, call));
        if self.channel.send(&self.out).await.is_err() {
            self.kill();
            return Ran::NotBegun;
        }
        // A large message is not kept for the sake of the next.
        self.out.shrink_to(1 << 16);
        let (mut asked, mut told, mut answered) = (false, false, false);
        let mut reports = Reports::new(cx, number);
        let exceeds = memory::exceeds(self.pid, memory_most);
        tokio::pin!(exceeds);
        loop {
            tokio::select! {
                biased;
                answer = reports.done(), if reports.is_busy() => {
                    answered |= answer.is_some();
                    if let Some(answer) = answer
                        && self.channel.send(&answer).await.is_err()
                    {
                        return Ran::Lost { why: self.lost_call(number).await };
                    }
                }
                found = self.channel.receive(), if !reports.is_busy() => match found {
                    Ok(Some(Frame { kind: frame::END, call, payload })) if call == number => {
                        self.done += 1;
                        return end(payload).unwrap_or_else(|why| Ran::Lost { why });
                    }
                    Ok(Some(found)) => {
                        if !reports.hear(&found, &mut self.channel) {
                            hear(&found, &mut aside);
                        }
                    }
                    // The system says so when what was sent was not read: where that is the task alone, it was gone before.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::ConnectionReset && !(asked || told || answered) =>
                    {
                        self.kill();
                        return Ran::NotBegun;
                    }
                    Ok(None) | Err(_) => return Ran::Lost { why: self.lost_call(number).await },
                },
                found = &mut exceeds => {
                    self.kill();
                    let most = memory_most.unwrap_or_default();
                    let why = format!(
                        "Worker exited prematurely: out of memory, killed with {found} KiB where {most} KiB is the limit. \
                         Job: {number}."
                    );
                    return Ran::Lost { why };
                }
                cancelled = cx.cancelled(), if !asked => {
                    asked = true;
                    let _ = self.channel.send(&report::cancel(number, cancelled.0)).await;
                    if cancelled.0 == CancelReason::SoftTimeLimit {
                        send_signal(self.pid, Signal::USR1);
                    }
                }
                reason = cx.stopped(), if !told => {
                    told = true;
                    let _ = self.channel.send(&report::cancel(number, reason)).await;
                    if reason == CancelReason::Revoked {
                        let number = i32::from(cx.stop_signal().number());
                        send_signal(self.pid, Signal::from_named_raw(number).unwrap_or(Signal::TERM));
                    }
                }
            }
        }
    }

    /// Has an end stored that it has not seen.
    pub(crate) async fn conclude(
        &mut self,
        call: &ForeignCall,
        verdict: &Verdict,
        mut aside: impl FnMut(Aside),
    ) -> Result<Concluded, String> {
        let number = self.next_call();
        let verdict = self::verdict(verdict)?;
        self.out.clear();
        frame::write(&mut self.out, frame::CONCLUDE, number, |out| write_conclusion(out, &verdict, call));
        if self.channel.send(&self.out).await.is_err() {
            return Err(self.lost_call(number).await);
        }
        loop {
            match self.channel.receive().await {
                Ok(Some(Frame { kind: frame::CONCLUDED, call, payload })) if call == number => {
                    return concluded(&payload);
                }
                Ok(Some(found)) => hear(&found, &mut aside),
                Ok(None) | Err(_) => return Err(self.lost_call(number).await),
            }
        }
    }

    /// Sends what [`frame::write`] has written.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        self.channel.send(frames).await
    }

    /// Waits for the next frame; `None` when it is gone.
    pub(crate) async fn receive(&mut self) -> std::io::Result<Option<Frame>> {
        self.channel.receive().await
    }

    /// Tells it to go, now that it does nothing, and waits until it has gone; killed when it takes longer than `patience`.
    pub(crate) async fn stop(mut self, patience: Duration) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, frame::STOP, 0, |_| {});
        let _ = self.channel.send(&bytes).await;
        if tokio::time::timeout(patience, over(&mut self.fate)).await.is_err() {
            tracing::warn!(pid = self.pid, "a Python process does not end by itself, killed");
        }
        // What it has started and left behind goes too.
        self.kill();
    }

    /// Kills it with its whole group.
    pub(crate) fn kill(&self) {
        kill_group(self.pid);
    }

    fn next_call(&mut self) -> u32 {
        self.calls = self.calls.wrapping_add(1);
        self.calls
    }

    /// How it was lost.
    pub(crate) async fn lost(&mut self) -> String {
        let status = tokio::time::timeout(FATE_PATIENCE, over(&mut self.fate)).await.ok();
        let before = self.starved.and_then(|(_, count)| count);
        let starved =
            status.is_some_and(|status| memory::starved(-status, before, memory::killed_for_want()));
        self.kill();
        let why = status.map_or_else(|| UNHEARD.to_owned(), death);
        if starved { format!("{why}, out of memory: the system killed it.") } else { why }
    }

    /// How it was lost in the midst of a call, in Celery's words.
    async fn lost_call(&mut self, call: u32) -> String {
        let why = self.lost().await;
        format!("Worker exited prematurely: {why} Job: {call}.")
    }
}

async fn over(fate: &mut watch::Receiver<Fate>) -> i32 {
    match fate.wait_for(|fate| matches!(fate, Fate::Over(_))).await.map(|fate| *fate) {
        Ok(Fate::Over(status)) => status,
        _ => -Signal::KILL.as_raw(),
    }
}

async fn epitaph(fate: &mut watch::Receiver<Fate>) -> String {
    match tokio::time::timeout(FATE_PATIENCE, over(fate)).await {
        Ok(status) => death(status),
        Err(_) => UNHEARD.to_owned(),
    }
}

fn death(status: i32) -> String {
    match status {
        signal @ ..0 => format!("signal {} ({})", -signal, signal_name(-signal)),
        code => format!("exitcode {code}"),
    }
}

fn signal_name(number: i32) -> String {
    let known = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (10, "SIGUSR1"),
        (11, "SIGSEGV"),
        (12, "SIGUSR2"),
        (15, "SIGTERM"),
    ];
    known
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

/// A verdict as Python reads it.
pub(crate) fn verdict(verdict: &Verdict) -> Result<String, String> {
    let told = match verdict {
        Verdict::TimeLimit(seconds) => serde_json::json!({ "verdict": "time_limit", "seconds": seconds }),
        Verdict::Lost(text) => serde_json::json!({ "verdict": "lost", "text": text }),
        Verdict::Rejected(text) => serde_json::json!({ "verdict": "rejected", "text": text }),
        Verdict::Revoked(text) => serde_json::json!({ "verdict": "revoked", "text": text }),
        Verdict::Terminated(signal) => {
            serde_json::json!({ "verdict": "revoked", "text": "terminated", "signal": signal.number() })
        }
        Verdict::NotRegistered(_) => serde_json::json!({ "verdict": "not_registered" }),
        _ => return Err("this verdict is not known to Python".to_owned()),
    };
    Ok(told.to_string())
}

/// The payload of a CONCLUDE.
pub(crate) fn write_conclusion(out: &mut Vec<u8>, verdict: &str, call: &ForeignCall) {
    out.extend(length(verdict.len()));
    out.extend(verdict.as_bytes());
    write_task(out, call);
}

/// Reads the payload of a CONCLUDED.
pub(crate) fn concluded(payload: &[u8]) -> Result<Concluded, String> {
    let told: ToldConclusion = serde_json::from_slice(payload).map_err(|why| why.to_string())?;
    match (told.stored.as_deref(), told.error) {
        (_, Some(error)) => Err(error),
        (Some("SUCCESS"), None) => Ok(Concluded::Succeeded),
        (Some("RETRY"), None) => Ok(Concluded::Retried),
        _ => Ok(Concluded::Stored),
    }
}

/// The payload of a TASK.
pub(crate) fn write_task(out: &mut Vec<u8>, call: &ForeignCall) {
    let queue = call.queue.as_str().as_bytes();
    let head = call.message.head.as_bytes();
    out.extend(call.deliveries.to_le_bytes());
    out.extend(u16::try_from(queue.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(queue);
    out.extend(length(head.len()));
    out.extend(head);
    out.extend(&*call.message.body);
}

fn hear(found: &Frame, aside: &mut impl FnMut(Aside)) {
    match found.kind {
        frame::MODULES => {
            if let Ok(modules) = serde_json::from_slice(&found.payload) {
                aside(Aside::Modules(modules));
            }
        }
        frame::SPENT => aside(Aside::Spent),
        other => tracing::warn!(kind = other, "a Python process says what is not understood"),
    }
}

/// Reads the payload of an END.
pub(crate) fn end(mut payload: Bytes) -> Result<Ran, String> {
    if payload.len() < 9 {
        return Err("the end of a task is cut off".to_owned());
    }
    let outcome = payload.get_u8();
    let took = Duration::try_from_secs_f64(payload.get_f64_le()).unwrap_or_default();
    let fault = |mut payload: Bytes| {
        let left = left(&mut payload)?;
        let told: ToldFault = serde_json::from_slice(&payload).map_err(|why| why.to_string())?;
        let args = told.args.iter().map(|arg| Json::from_value(arg).unwrap_or_default()).collect();
        let exception = Exception { exc_type: told.r#type, exc_message: args, exc_module: told.module };
        Ok::<_, String>(Fault { exception, shown: told.shown, traceback: told.traceback, left })
    };
    Ok(match outcome {
        SUCCEEDED => {
            let left = left(&mut payload)?;
            let shown = String::from_utf8_lossy(&part(&mut payload)?).into_owned();
            let value = std::str::from_utf8(&payload).ok().and_then(|text| Json::parse(text).ok());
            Ran::Succeeded { value: value.unwrap_or_default(), shown, took, left }
        }
        FAILED => Ran::Failed(fault(payload)?),
        RETRIED => Ran::Retried(fault(payload)?),
        IGNORED => Ran::Ignored,
        REJECTED => {
            let told: ToldRejection = serde_json::from_slice(&payload).map_err(|why| why.to_string())?;
            Ran::Rejected { requeue: told.requeue, reason: told.reason }
        }
        BROKEN => {
            let told: ToldLoss = serde_json::from_slice(&payload).map_err(|why| why.to_string())?;
            Ran::Lost { why: told.why }
        }
        STOPPED => {
            let why = String::from_utf8_lossy(&payload);
            Ran::Lost { why: format!("the task stopped as it was told to ({why}).") }
        }
        other => return Err(format!("a task ended in outcome {other}, which is not known here")),
    })
}

/// A part with its length before it.
fn part(payload: &mut Bytes) -> Result<Bytes, String> {
    let cut_off = || "the end of a task is cut off".to_owned();
    if payload.len() < 4 {
        return Err(cut_off());
    }
    let bytes = payload.get_u32_le() as usize;
    if payload.len() < bytes { Err(cut_off()) } else { Ok(payload.split_to(bytes)) }
}

/// The result that is left to the worker to store.
fn left(payload: &mut Bytes) -> Result<Option<Box<ResultMeta>>, String> {
    let part = part(payload)?;
    if part.is_empty() {
        return Ok(None);
    }
    ResultMeta::decode(&part).map(Box::new).map(Some).map_err(|why| format!("its result: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(outcome: u8, rest: &[u8]) -> Bytes {
        let mut bytes = vec![outcome];
        bytes.extend(1.5_f64.to_le_bytes());
        bytes.extend(rest);
        bytes.into()
    }

    #[test]
    fn ends_are_read() {
        let mut rest = length(0).to_vec();
        rest.extend(length(3));
        rest.extend(b"'5'\"5\"");
        let value = Json::parse("\"5\"").unwrap();
        let took = Duration::from_millis(1500);
        let succeeded = Ran::Succeeded { value, shown: "'5'".to_owned(), took, left: None };
        assert_eq!(end(payload(SUCCEEDED, &rest)), Ok(succeeded));
        let fault = br#"{"type": "ValueError", "module": "builtins", "args": ["x"], "shown": "ValueError('x')", "traceback": "t"}"#;
        let failed = [&length(0)[..], fault].concat();
        let Ok(Ran::Failed(found)) = end(payload(FAILED, &failed)) else { panic!("a failure") };
        assert_eq!(found.exception, Exception::builtin("ValueError", "x"));
        let meta =
            br#"{"status": "SUCCESS", "result": 5, "traceback": null, "children": [], "task_id": "t"}"#;
        let rest = [&length(meta.len())[..], meta, &length(1), b"5"].concat();
        let Ok(Ran::Succeeded { left: Some(left), .. }) = end(payload(SUCCEEDED, &rest)) else {
            panic!("a result that is left")
        };
        assert_eq!((left.task_id.as_str(), left.result.as_str()), ("t", "5"));
        assert_eq!(end(payload(IGNORED, b"")), Ok(Ran::Ignored));
        let rejected = Ran::Rejected { requeue: true, reason: "no".to_owned() };
        assert_eq!(end(payload(REJECTED, br#"{"requeue": true, "reason": "no"}"#)), Ok(rejected));
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        for wrong in [
            Bytes::new(),
            payload(SUCCEEDED, b"\x01"),
            payload(SUCCEEDED, &length(9)),
            payload(FAILED, b"{"),
            payload(9, b""),
        ] {
            assert!(end(wrong.clone()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn deaths_are_told_as_celery_tells_them() {
        assert_eq!(death(-9), "signal 9 (SIGKILL)");
        assert_eq!(death(1), "exitcode 1");
    }
}
