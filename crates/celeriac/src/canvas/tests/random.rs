//! Random canvases, run in random order, against the model.

use super::build::{json, linked, with};
use super::model::{Canvas, Task, Value, expected, item_value};
use super::runner::run;
use crate::protocol::{Json, JsonMap, Signature};

const CASES: u64 = 400;

#[tokio::test]
async fn canvases_mean_what_the_model_says() {
    // `CELERIAC_CANVAS_SEED=17` runs the one case that failed, `CELERIAC_CANVAS_CASES=100000` very many.
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let one = number("CELERIAC_CANVAS_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number("CELERIAC_CANVAS_CASES").unwrap_or(CASES),
    };
    let (mut chords, mut failures, mut calls) = (0, 0, 0);
    for seed in seeds {
        let _replay = Replay(seed);
        let mut make = Make { random: fastrand::Rng::with_seed(seed), labels: 0, errbacks: true };
        let canvas = make.outermost();
        if one.is_some() {
            println!("{canvas:?}");
        }
        let expected = expected(&canvas);
        let (seen, fired) = run(&signature(&canvas), make.random.fork()).await;
        assert_eq!(seen, expected, "{canvas:?}");
        chords += fired;
        calls += seen.calls.len();
        failures += usize::from(seen.ends.values().any(|end| *end == super::model::End::Failure));
    }
    // Most of the space is worth nothing if the generator drifts into one corner of it.
    if one.is_none() {
        assert!(chords > 200 && failures > 80 && calls > 2_000, "{chords} {failures} {calls}");
    }
}

/// Says how to run a case again when it panics, wherever that is.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("CELERIAC_CANVAS_SEED={}", self.0);
        }
    }
}

struct Make {
    random: fastrand::Rng,
    labels: u32,
    /// Whether tasks get errbacks of their own. Not in a body that is a chain: which of its tasks speaks for the
    /// header depends on whether the chain was taken apart.
    errbacks: bool,
}

impl Make {
    fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    fn maybe(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    fn outermost(&mut self) -> Canvas {
        let errback = self.maybe(30).then(|| self.label());
        let mut canvas = self.canvas(4);
        match &mut canvas {
            Canvas::Chain { errback: place, .. }
            | Canvas::Group { errback: place, .. }
            | Canvas::Chord { errback: place, .. } => *place = errback,
            _ => {}
        }
        canvas
    }

    fn canvas(&mut self, depth: u32) -> Canvas {
        match if depth == 0 { self.random.u32(0..3) } else { self.random.u32(0..14) } {
            0..=3 => self.task(),
            4 => Canvas::Map {
                label: self.label(),
                star: self.random.bool(),
                items: self.numbers(3),
                fails: self.maybe(5),
            },
            5 => {
                Canvas::Chunks { label: self.label(), items: self.numbers(5), size: self.random.usize(1..4) }
            }
            6..=9 => Canvas::Chain { steps: self.canvases(depth, 4), errback: None },
            10..=11 => Canvas::Group { members: self.canvases(depth, 3), errback: None },
            _ => {
                let header = self.canvases(depth, 3);
                let body = self.canvas_in_body(depth - 1);
                Canvas::Chord { header, body: Box::new(body), errback: None }
            }
        }
    }

    fn canvas_in_body(&mut self, depth: u32) -> Canvas {
        let before = self.errbacks;
        // Whether it will be a chain is not known yet, so none gets any; the body alone may.
        self.errbacks = false;
        let mut body = self.canvas(depth);
        self.errbacks = before;
        if let (Canvas::Task(task), true) = (&mut body, before && self.maybe(40)) {
            task.errbacks.push(self.label());
        }
        body
    }

    fn canvases(&mut self, depth: u32, most: usize) -> Vec<Canvas> {
        // An empty one now and then.
        let least = usize::from(!self.maybe(4));
        (0..self.random.usize(least..=most)).map(|_| self.canvas(depth - 1)).collect()
    }

    fn numbers(&mut self, most: usize) -> Vec<u32> {
        (0..self.random.usize(0..=most)).map(|_| self.random.u32(0..10)).collect()
    }

    fn task(&mut self) -> Canvas {
        let errback = self.errbacks && self.maybe(15);
        Canvas::Task(Task {
            label: self.label(),
            args: self.numbers(2),
            immutable: self.maybe(15),
            fails: self.maybe(6),
            callbacks: (0..if self.maybe(15) { self.random.u32(1..4) } else { 0 })
                .map(|_| self.label())
                .collect(),
            errbacks: if errback { vec![self.label()] } else { vec![] },
        })
    }
}

fn call(name: &str) -> Signature {
    Signature::new(name, Vec::new(), JsonMap::new())
}

/// The canvas on the wire. Tasks have ids made of their labels, so that the model knows them.
fn signature(canvas: &Canvas) -> Signature {
    let all = |canvases: &[Canvas]| canvases.iter().map(signature).collect::<Vec<_>>();
    let errback = |signature: Signature, errback: &Option<u32>| match errback {
        Some(label) => linked(signature, "link_error", &[call(&format!("errback.{label}"))]),
        None => signature,
    };
    let id = |signature: Signature, label: &u32| with(signature, "task_id", &format!("\"k{label}\""));
    let name = |label: &u32, fails: &bool| format!("{}.{label}", if *fails { "fail" } else { "task" });
    let values = |star: bool, items: &[u32]| -> Vec<Json> {
        items.iter().map(|&item| json(&item_value(star, item).text())).collect()
    };
    match canvas {
        Canvas::Task(task) => {
            let mut signature = id(call(&name(&task.label, &task.fails)), &task.label);
            signature.args = task.args.iter().map(|&arg| json(&Value::Number(arg).text())).collect();
            signature.immutable = task.immutable;
            if !task.callbacks.is_empty() {
                let callbacks: Vec<_> =
                    task.callbacks.iter().map(|label| call(&format!("callback.{label}"))).collect();
                signature = linked(signature, "link", &callbacks);
            }
            errback(signature, &task.errbacks.first().copied())
        }
        Canvas::Map { label, star: false, items, fails } => {
            id(Signature::xmap(&call(&name(label, fails)), &values(false, items)), label)
        }
        Canvas::Map { label, star: true, items, fails } => {
            id(Signature::xstarmap(&call(&name(label, fails)), &values(true, items)), label)
        }
        Canvas::Chunks { label, items, size } => {
            Signature::chunks(&call(&name(label, &false)), &values(true, items), *size)
        }
        Canvas::Chain { steps, errback: own } => errback(Signature::chain(&all(steps)), own),
        Canvas::Group { members, errback: own } => errback(Signature::group(&all(members)), own),
        Canvas::Chord { header, body, errback: own } => {
            errback(Signature::chord(&Signature::group(&all(header)), &signature(body)), own)
        }
    }
}
