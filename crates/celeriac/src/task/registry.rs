//! The tasks that a program can run, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Arguments, Context, Execution, Task, TaskError, TaskOptions};

/// The tasks that a program can run, by name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    tasks: BTreeMap<&'static str, Arc<RegisteredTask>>,
}

type Bind = fn(Context, Arguments) -> Result<Execution, TaskError>;

/// A task without its type.
#[derive(Debug)]
pub(crate) struct RegisteredTask {
    pub(crate) name: &'static str,
    pub(crate) options: TaskOptions,
    pub(crate) bind: Bind,
}

impl Registry {
    /// Adds a task; one of the same name is replaced.
    pub fn register<T: Task>(&mut self) {
        let task = RegisteredTask { name: T::NAME, options: T::options(), bind: T::bind };
        self.tasks.insert(task.name, Arc::new(task));
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.tasks.keys().copied()
    }

    /// The options of a task.
    #[must_use]
    pub fn options(&self, name: &str) -> Option<&TaskOptions> {
        self.tasks.get(name).map(|task| &task.options)
    }

    pub(crate) fn task(&self, name: &str) -> Option<&Arc<RegisteredTask>> {
        self.tasks.get(name)
    }
}

/// The function that `#[celeriac::task]` leaves under the task's name, so that `register(digest)` can be written with
/// the same word as the call `digest("notes.md")`. The parameter lists its arguments.
pub trait TaskFunction<Parameters, T> {}

macro_rules! task_function {
    ($($parameter:ident),*) => {
        impl<F, T, $($parameter),*> TaskFunction<($($parameter,)*), T> for F
        where
            F: Fn($($parameter),*) -> crate::Signature<T>,
            T: Task,
        {
        }
    };
}

task_function!();
task_function!(A);
task_function!(A, B);
task_function!(A, B, C);
task_function!(A, B, C, D);
task_function!(A, B, C, D, E);
task_function!(A, B, C, D, E, G);
task_function!(A, B, C, D, E, G, H);
task_function!(A, B, C, D, E, G, H, I);
task_function!(A, B, C, D, E, G, H, I, J);
task_function!(A, B, C, D, E, G, H, I, J, K);
task_function!(A, B, C, D, E, G, H, I, J, K, L);
task_function!(A, B, C, D, E, G, H, I, J, K, L, M);
