//! What the system tells of memory: how much a process has, and whether one was killed for want of it.
//!
//! A process has what is resident of it (`VmRSS`), as Celery counts for `worker_max_memory_per_child`: what it shares with the
//! process it was forked from is part of that.

use std::path::Path;
use std::time::Duration;

/// How often a process with a bound is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The resident memory of a process, in KiB; `None` where the system does not tell.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()? / 1024)
}

/// Waits until a process has more than `most` KiB, and says how much; never ends where there is no bound.
pub(crate) async fn exceeds(pid: u32, most: Option<u64>) -> u64 {
    let Some(most) = most else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if let Some(found) = resident_kib(pid).filter(|found| *found > most) {
            return found;
        }
    }
}

/// How many processes the system has killed for want of memory: of our control group where that counts them, for a
/// container is no concern of its neighbours; else of the machine. `None` where it does not tell.
pub(crate) fn killed_for_want() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let counted = counters(&groups).into_iter().find_map(|path| oom_kills(Path::new(&path)));
    counted.or_else(|| oom_kills(Path::new("/proc/vmstat")))
}

/// Where the kernel counts for the groups that `/proc/self/cgroup` lists: of version 2, and of version 1.
fn counters(groups: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kinds), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let path = path.trim_end_matches('/');
        if kinds.is_empty() {
            paths.push(format!("/sys/fs/cgroup{path}/memory.events"));
        } else if kinds.split(',').any(|kind| kind == "memory") {
            paths.push(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
            // As a container sees it, whose group is the root of what is mounted there.
            paths.push("/sys/fs/cgroup/memory/memory.oom_control".to_owned());
        }
    }
    paths
}

/// The line `oom_kill` of one of these files.
fn oom_kills(path: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

/// Whether a process that ended by `signal` was killed for want of memory, given how many had been before its task and have
/// been since. By SIGKILL alone: it might have been anybody's, but then nobody else was killed so meanwhile.
pub(crate) fn starved(signal: i32, before: Option<u64>, since: Option<u64>) -> bool {
    signal == rustix::process::Signal::KILL.as_raw() && before.is_some() && since > before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let found = resident_kib(std::process::id()).expect("Linux tells");
        assert!((100..100_000_000).contains(&found), "{found}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_exceeds_a_bound_is_seen_and_who_does_not_is_not() {
        let own = std::process::id();
        assert!(exceeds(own, Some(100)).await > 100);
        for most in [None, Some(u64::MAX)] {
            let seen = tokio::time::timeout(Duration::from_secs(60), exceeds(own, most)).await;
            assert!(seen.is_err(), "{most:?}");
        }
    }

    #[test]
    fn want_of_memory_is_told_from_other_deaths() {
        assert!(starved(9, Some(3), Some(4)));
        for (signal, before, since) in [
            (9, Some(3), Some(3)),
            (9, None, Some(4)),
            (9, None, None),
            (15, Some(3), Some(4)),
            (11, Some(3), Some(4)),
        ] {
            assert!(!starved(signal, before, since), "{signal} {before:?} {since:?}");
        }
    }

    #[test]
    fn the_counters_of_both_versions_are_found() {
        assert_eq!(counters("0::/user.slice/a.scope\n"), ["/sys/fs/cgroup/user.slice/a.scope/memory.events"]);
        assert_eq!(counters("0::/\n"), ["/sys/fs/cgroup/memory.events"]);
        let first = counters("12:cpu,cpuacct:/a\n4:memory:/docker/b\n1:name=systemd:/c\n");
        assert_eq!(
            first,
            ["/sys/fs/cgroup/memory/docker/b/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"]
        );
        assert!(counters("nonsense").is_empty());
    }

    #[test]
    fn the_count_is_read_as_the_kernel_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        std::fs::write(&path, "low 0\nhigh 2\noom 3\noom_kill 5\noom_group_kill 7\n").unwrap();
        assert_eq!(oom_kills(&path), Some(5));
        std::fs::write(&path, "low 0\n").unwrap();
        assert_eq!(oom_kills(&path), None);
        assert_eq!(oom_kills(&folder.path().join("absent")), None);
    }
}
