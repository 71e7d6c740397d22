//! Which queue a task goes to, and with what priority.

use crate::config::Route;
use crate::id::QueueName;

/// The settings `task_routes`, `task_default_queue` and `task_default_priority`, ready to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    routes: Vec<Route>,
    default_queue: QueueName,
    default_priority: Option<u8>,
}

impl Default for Router {
    /// Everything to the queue `celery`.
    fn default() -> Self {
        Self::new(Vec::new(), QueueName::from("celery"), None)
    }
}

impl Router {
    /// Routes are tried in order; among those that match, one without wildcards goes before a glob.
    pub(crate) fn new(
        mut routes: Vec<Route>,
        default_queue: QueueName,
        default_priority: Option<u8>,
    ) -> Self {
        routes.sort_by_key(|route| is_glob(&route.pattern));
        Self { routes, default_queue, default_priority }
    }

    /// The queue of a task whose call names none.
    pub(crate) fn queue(&self, task: &str) -> QueueName {
        self.route(task).and_then(|route| route.queue.clone()).unwrap_or_else(|| self.default_queue.clone())
    }

    /// The priority that `task_routes` gives a task.
    pub(super) fn priority(&self, task: &str) -> Option<u8> {
        self.route(task).and_then(|route| route.priority)
    }

    /// The priority of a message that has none from anywhere else.
    pub(super) fn default_priority(&self) -> Option<u8> {
        self.default_priority
    }

    fn route(&self, task: &str) -> Option<&Route> {
        self.routes.iter().find(|route| {
            if is_glob(&route.pattern) { glob_matches(&route.pattern, task) } else { route.pattern == task }
        })
    }
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// Linear in the product of the lengths at worst: the last `*` is the only place to come back to.
fn glob_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut read) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at, read));
                at += 1;
            }
            Some(&letter) if letter == '?' || letter == text[read] => {
                at += 1;
                read += 1;
            }
            _ => match &mut retry {
                Some((star, from)) => {
                    *from += 1;
                    at = *star + 1;
                    read = *from;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&letter| letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(pattern: &str, queue: &str, priority: Option<u8>) -> Route {
        Route { pattern: pattern.to_owned(), queue: Some(QueueName::from(queue)), priority }
    }

    #[test]
    fn exact_before_glob_and_first_match_wins() {
        let router = Router::new(
            vec![
                route("proj.*", "wide", Some(6)),
                route("proj.tasks.*", "narrow", None),
                route("proj.tasks.add", "exact", Some(3)),
                route("proj.tasks.add", "too late", None),
            ],
            QueueName::from("fallback"),
            Some(1),
        );
        let queue = |task| router.queue(task).to_string();
        assert_eq!(queue("proj.tasks.add"), "exact");
        assert_eq!(queue("proj.tasks.sub"), "wide");
        assert_eq!(queue("other"), "fallback");
        assert_eq!(router.priority("proj.tasks.add"), Some(3));
        assert_eq!(router.priority("proj.x"), Some(6));
        assert_eq!(router.priority("other"), None);
        assert_eq!(router.default_priority(), Some(1));
        assert_eq!(Router::default().queue("x").as_str(), "celery");
    }

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("proj.tasks.*", "proj.tasks.", true),
            ("proj.tasks.*", "proj.tasks", false),
            ("*", "", true),
            ("*.add", "a.b.add", true),
            ("*.add", "a.b.addx", false),
            ("a*b*c", "a1b2b3c", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob_matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
