//! The tasks that a program can run, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Arguments, Context, Description, Execution, KnownTask, Task, TaskError, TaskOptions};

/// The tasks that a program can run, by name; and what it knows of those that others run.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    tasks: BTreeMap<&'static str, Arc<RegisteredTask>>,
    known: BTreeMap<Box<str>, Arc<KnownTask>>,
}

type Bind = fn(Context, Arguments) -> Result<Execution, TaskError>;

/// A task without its type.
#[derive(Debug)]
pub(crate) struct RegisteredTask {
    pub(crate) name: &'static str,
    pub(crate) options: TaskOptions,
    pub(crate) description: Option<Description>,
    pub(crate) bind: Bind,
}

impl Registry {
    /// Adds a task; one of the same name is replaced.
    pub fn register<T: Task>(&mut self) {
        let task = RegisteredTask {
            name: T::NAME,
            options: T::options(),
            description: T::description(),
            bind: T::bind,
        };
        self.tasks.insert(task.name, Arc::new(task));
    }

    /// Notes what is known of a task that others run.
    pub fn know(&mut self, task: KnownTask) {
        self.known.insert(task.name.clone(), Arc::new(task));
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.tasks.keys().copied()
    }

    /// The names of tasks that others run and this program knows more of, in order.
    pub fn known_names(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(|name| &**name)
    }

    /// The options of a task that this program can run.
    #[must_use]
    pub fn options(&self, name: &str) -> Option<&TaskOptions> {
        self.tasks.get(name).map(|task| &task.options)
    }

    /// The options that hold for those who send a task, whoever runs it.
    #[must_use]
    pub fn options_of_calls(&self, name: &str) -> Option<&TaskOptions> {
        self.options(name).or_else(|| self.known.get(name).map(|task| &task.options))
    }

    /// What a task says of itself, whoever runs it.
    #[must_use]
    pub fn description(&self, name: &str) -> Option<&Description> {
        match self.tasks.get(name) {
            Some(task) => task.description.as_ref(),
            None => self.known.get(name)?.description.as_ref(),
        }
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
