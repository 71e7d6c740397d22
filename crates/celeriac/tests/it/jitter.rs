//! A path to a server on which what is sent arrives late, and in pieces, as over a network: with `CELERIAC_TEST_JITTER` set
//! to a seed, every test goes to its Redis by one. What a test takes for granted of the order of answers shows then.
//!
//! It has threads of its own, as some tests hold up the runtime that they share with what they test.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is sent comes up to so much later, each piece.
const LATE: Duration = Duration::from_millis(4);
/// Of a few bytes at least every other time, and else of all that there is.
const PIECE_MAX: usize = 64 * 1024;

pub(crate) struct Jitter {
    port: u16,
    gone: Arc<AtomicBool>,
}

impl Jitter {
    /// The path to the server on `port`, if the tests are to go by one.
    pub(crate) fn to(port: u16) -> Option<Self> {
        let seed = std::env::var("CELERIAC_TEST_JITTER").ok()?;
        let seed = seed.parse().expect("CELERIAC_TEST_JITTER is a number, the seed");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let jitter = Self { port: listener.local_addr().unwrap().port(), gone: Arc::default() };
        let gone = jitter.gone.clone();
        std::thread::spawn(move || accept(&listener, port, seed, &gone));
        Some(jitter)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Jitter {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn accept(listener: &TcpListener, port: u16, seed: u64, gone: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    while let Ok((client, _)) = listener.accept() {
        if gone.load(Ordering::SeqCst) {
            return;
        }
        // Who finds nobody there is told so by the end of his connection.
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to, random) = (from.try_clone().unwrap(), to.try_clone().unwrap(), random.fork());
            let _ = from.set_nodelay(true);
            std::thread::spawn(move || carry(from, to, random));
        }
    }
}

/// Carries one way of a connection until it ends.
fn carry(mut from: TcpStream, mut to: TcpStream, mut random: fastrand::Rng) {
    let mut piece = vec![0; PIECE_MAX];
    // First it comes late, then as much of it as has come meanwhile: answers that were apart arrive together, too.
    while let Ok(1..) = from.peek(&mut piece[..1]) {
        if random.bool() {
            std::thread::sleep(LATE.mul_f64(random.f64()));
        }
        let most = if random.bool() { random.usize(1..64) } else { PIECE_MAX };
        let Ok(read @ 1..) = from.read(&mut piece[..most]) else { break };
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
