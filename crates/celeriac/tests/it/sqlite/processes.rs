//! Several processes on one file: woken, fenced, and in turns.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_woken_through_the_doorbell() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    // Without the net, only the doorbell can wake.
    let options = SqliteOptions { poll_interval: FOREVER, ..SqliteOptions::default() };
    let open = || SqliteStore::open(&path, options.clone(), SystemClock::shared()).unwrap();
    let (here, there) = (open(), open());
    for round in 0..20 {
        let id = format!("task-{round}");
        let waiting = {
            let there = there.clone();
            tokio::spawn(async move { run_one(&there).await })
        };
        let watching = {
            let (here, id) = (here.clone(), TaskId::from(id.as_str()));
            tokio::spawn(async move { here.wait(&Watch::Result(id), FOREVER).await.unwrap() })
        };
        tokio::task::yield_now().await;
        here.publish(vec![message(&id)]).await.unwrap();
        assert_eq!(soon(waiting).await.unwrap().as_str(), id);
        assert!(soon(watching).await.unwrap());
    }
    assert_sound(&here).await;
}

/// Whoever waits for a log learns of each commit of another process, whether few wait or many, whether little happens at
/// a time or much, and whatever this process commits in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_that_grows_in_another_process_is_missed() {
    const RECORDS: u64 = 12;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for watchers in [1, 3, 40, 400] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("celeriac.db");
        // Without the net, only the doorbell can wake, and nothing makes good what it misses.
        let options = SqliteOptions { poll_interval: FOREVER, ..SqliteOptions::default() };
        let open = || SqliteStore::open(&path, options.clone(), SystemClock::shared()).unwrap();
        let (here, there) = (open(), open());
        let started = |id: &TaskId| ResultMeta::new(id, State::Started, Json::null());
        // Of those that nobody follows there are more, so that the feed is mostly about others.
        let ids: Vec<TaskId> = (0..watchers + 50).map(|n| TaskId::from(format!("task-{n}"))).collect();
        let results = ids.iter().map(started).collect();
        there.record(vec![Record { results, ..Record::default() }]).await.unwrap();
        let mut following = tokio::task::JoinSet::new();
        for id in &ids[..watchers] {
            let (here, id) = (here.clone(), id.clone());
            following.spawn(async move {
                let mut after = 0;
                while after < RECORDS {
                    let watch = Watch::Log { task_id: id.clone(), after };
                    assert!(here.wait(&watch, FOREVER).await.unwrap());
                    let page = here.log(&id, after, 100).await.unwrap().unwrap();
                    assert!(page.last > after, "woken for nothing");
                    after = page.last;
                }
            });
        }
        let mut line: Vec<TaskId> = (0..RECORDS).flat_map(|_| ids.clone()).collect();
        random.shuffle(&mut line);
        let token =
            |id: &TaskId| LogRecord { task_id: id.clone(), event: "token".into(), data: Json::null() };
        while !line.is_empty() {
            let some = line.split_off(line.len().saturating_sub(random.usize(1..120)));
            let log = some.iter().map(token).collect();
            let store = if random.u8(0..8) == 0 { &here } else { &there };
            store.record(vec![Record { log, ..Record::default() }]).await.unwrap();
        }
        soon(async {
            while let Some(followed) = following.join_next().await {
                followed.unwrap();
            }
        })
        .await;
        assert_sound(&here).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_woken_without_the_doorbell() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let options = SqliteOptions { poll_interval: Duration::from_millis(1), ..SqliteOptions::default() };
    let there = SqliteStore::open(&path, options, SystemClock::shared()).unwrap();
    // Another lock file under the same name, as after a careless clean-up: nobody watches the one that is rung.
    std::fs::remove_file(directory.path().join("celeriac.db-lock")).unwrap();
    let here = open(&path);
    let waiting = tokio::spawn(async move { run_one(&there).await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    here.publish(vec![message("a")]).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().as_str(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_stuck_in_its_commit_makes_others_fail_and_not_hang() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let options = SqliteOptions { busy_timeout: Duration::from_millis(20), ..SqliteOptions::default() };
    let store = SqliteStore::open(&path, options, SystemClock::shared()).unwrap();
    let stuck = std::fs::File::open(directory.path().join("celeriac.db-lock")).unwrap();
    stuck.lock().unwrap();
    for _ in 0..3 {
        let refused = store.publish(vec![message("a")]).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    }
    stuck.unlock().unwrap();
    // The turn that came too late is passed on, to others and to ourselves.
    soon(async {
        while !matches!(tokio::task::block_in_place(|| stuck.try_lock()), Ok(())) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stuck.unlock().unwrap();
    store.publish(vec![message("a")]).await.unwrap();
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_a_worker_in_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let (here, there) = (open(&path), open(&path));
    here.publish(vec![message("a")]).await.unwrap();
    let held = there.reserve(&wanted(1, FOREVER)).await.unwrap().remove(0);
    let told = {
        let there = there.clone();
        tokio::spawn(async move { there.interrupts(&WorkerName::from("w"), &[], FOREVER).await.unwrap() })
    };
    let revoke =
        Revoke { ids: vec!["a".into()], terminate: true, signal: None, worker: "r".into(), lease: LEASE };
    let found = here.revoke(&revoke).await.unwrap();
    assert!(matches!(&found[0], Revocation::Held { worker } if worker.as_str() == "w"), "{found:?}");
    let told = soon(told).await.unwrap();
    assert_eq!(told.iter().map(|one| (&one.tag, one.terminate)).collect::<Vec<_>>(), [(&held.tag, true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_in_every_process_and_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let q = QueueName::from("q");
    {
        let (here, there) = (open(&path), open(&path));
        here.publish(vec![message("a")]).await.unwrap();
        here.pause(&q, true).await.unwrap();
        assert!(there.reserve(&wanted(1, Duration::ZERO)).await.unwrap().is_empty());
    }
    let (here, there) = (open(&path), open(&path));
    assert!(here.reserve(&wanted(1, Duration::ZERO)).await.unwrap().is_empty());
    let waiting = {
        let there = there.clone();
        tokio::spawn(async move { there.reserve(&wanted(1, FOREVER)).await.unwrap() })
    };
    here.pause(&q, false).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap()[0].task_id.as_str(), "a");
    assert_sound(&here).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_answers_reach_other_processes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let (here, there) = (open(&path), open(&path));
    // What has nothing to do with it comes first, so that the waits begin with news that are none.
    here.publish(vec![message("a")]).await.unwrap();
    for n in 1..=3u64 {
        let waiting = {
            let there = there.clone();
            tokio::spawn(async move {
                let found = there.commands(&WorkerName::from("w"), n - 1, FOREVER).await.unwrap();
                let (number, command) = found.into_iter().next().unwrap();
                let reply = Reply { worker: "w".into(), content: command.arguments };
                there.reply(&command.ticket, &reply).await.unwrap();
                number
            })
        };
        let command = Command {
            ticket: n.to_string().into(),
            method: "echo".into(),
            arguments: Json::from_value(&n).unwrap(),
            destination: None,
            expires: Timestamp::MAX,
        };
        here.send(&command).await.unwrap();
        let replies = soon(here.replies(&command.ticket, 1, FOREVER)).await.unwrap();
        assert_eq!(replies[0].content.as_str(), n.to_string());
        assert_eq!(soon(waiting).await.unwrap(), n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lost_in_one_process_is_fenced_in_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let clock = ManualClock::new();
    let open = || SqliteStore::open(&path, SqliteOptions::default(), clock.shared()).unwrap();
    let (here, there) = (open(), open());
    here.publish(vec![message("a")]).await.unwrap();
    let lost = here.reserve(&wanted(1, FOREVER)).await.unwrap().remove(0);
    clock.advance(LEASE + Duration::from_secs(1));
    assert_eq!(there.restore().await.unwrap(), 1);
    let held = there.reserve(&wanted(1, FOREVER)).await.unwrap().remove(0);
    assert_eq!(held.deliveries, 2);

    let settle = Transaction::fenced(lost.tag.clone(), Then::Ack);
    assert_eq!(here.commit(vec![settle]).await.unwrap(), [Outcome::Lost]);
    let mut settle = Transaction::fenced(lost.tag, Then::Ack);
    settle.record.results.push(success("a"));
    settle.publish.push(message("b"));
    assert_eq!(here.commit(vec![settle]).await.unwrap(), [Outcome::Lost]);
    assert_eq!(here.fetch(&["a".into()]).await.unwrap(), [None]);
    assert_eq!(here.locate(&["b".into()]).await.unwrap(), [None]);
    let settle = Transaction::fenced(held.tag, Then::Ack);
    assert!(there.commit(vec![settle]).await.unwrap()[0].is_committed());
    assert_sound(&here).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_in_two_processes_share_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let mut running = Vec::new();
    for process in 0..2 {
        let store = open(&path);
        for producer in 0..4 {
            let store = store.clone();
            running.push(tokio::spawn(async move {
                for n in 0..25 {
                    store.publish(vec![message(&format!("{process}-{producer}-{n}"))]).await.unwrap();
                    run_one(&store).await;
                }
            }));
        }
    }
    for task in running {
        soon(task).await.unwrap();
    }
    let store = open(&path);
    assert_sound(&store).await;
    let feed = store.feed(0, 1000).await.unwrap();
    assert_eq!(feed.len(), 200);
    assert!(feed.windows(2).all(|pair| pair[0].number < pair[1].number));
    assert!(store.queues().await.unwrap().is_empty());
}
