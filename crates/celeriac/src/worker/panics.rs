//! A panic in a task is the FAILURE of that task: this remembers where it happened, for the traceback.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::sync::Once;

use crate::task::TaskError;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs a panic hook that notes the place and then does what the hook before it did. Once for the process.
pub(crate) fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map_or_else(String::new, |place| format!("at {place}\n"));
            let backtrace = Backtrace::capture();
            // A thread that is shutting down may have lost its locals; the panic matters more than its place.
            let _ = LAST.try_with(|last| *last.borrow_mut() = Some(format!("{place}{backtrace}")));
            before(info);
        }));
    });
}

/// The panic that this thread has just caught.
pub(crate) fn caught(payload: &(dyn Any + Send)) -> TaskError {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    let place = LAST.with(|last| last.borrow_mut().take());
    TaskError::panic(&message, place.as_deref())
}

/// A panic on another thread, whose place is not known here.
pub(super) fn last(what: &str) -> TaskError {
    TaskError::panic(&format!("{what} panicked"), None)
}
