//! What the system tells of memory.

/// The resident memory of a process, in KiB; `None` where the system does not tell.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()? / 1024)
}

/// How many processes the system has killed for want of memory; `None` where it does not tell.
pub(crate) fn killed_for_want() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let found = resident_kib(std::process::id()).expect("Linux tells");
        assert!((100..100_000_000).contains(&found), "{found}");
    }
}
