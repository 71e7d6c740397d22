"""What many tasks of one process say at once: bounded, in its order, and held up by nobody but itself."""

import asyncio
import queue
import socket
import threading

import pytest
from celeriac import StepError, TaskStopped
from celeriac._worker import report, wire, writer
from conftest import PATIENCE, until

QUESTIONS = (wire.STEP, wire.STEP_DONE, wire.FLUSH, wire.STORE, wire.FETCH)


class Supervisor:
    """The other end, which answers questions when it is let."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        self.channel = wire.Channel(theirs)
        self.writer = writer.Writer(wire.Channel(ours))
        self.writer.start()
        self.lines = {}
        self.heard = []
        self.held = queue.SimpleQueue()
        self.holds = set()
        threading.Thread(target=self.listen, daemon=True).start()

    def call(self, number):
        self.lines[number] = line = writer.Line(self.writer, number)
        return writer.Call(self.writer, line, f"task {number}")

    def listen(self):
        while (frame := self.channel.receive()) is not None:
            kind, number, payload = frame
            self.heard.append(frame)
            if kind in QUESTIONS:
                (question,) = report.QUESTION.unpack_from(payload)
                if number in self.holds:
                    self.held.put((number, question))
                else:
                    self.answer(number, question)

    def answer(self, number, question):
        self.lines[number].answer(question, report.NEW, b"key")

    def release(self, number):
        self.holds.discard(number)
        while not self.held.empty():
            self.answer(*self.held.get())

    def of(self, number, kind):
        return [payload for found, call, payload in self.heard if (found, call) == (kind, number)]


@pytest.fixture
def supervisor():
    return Supervisor()


def flood(call, size):
    thread = threading.Thread(target=lambda: [call.record("n", str(n)) for n in range(size)], daemon=True)
    thread.start()
    return thread


def test_one_that_waits_for_the_store_is_bounded_and_holds_up_no_other(supervisor):
    slow, quick = supervisor.call(1), supervisor.call(2)
    supervisor.holds.add(1)
    flooding = flood(slow, 5_000)
    until(lambda: slow.line.is_full(), "nothing holds it up")
    flood(quick, 5_000).join(PATIENCE)
    quick.settle()
    assert len(supervisor.of(2, wire.RECORD)) == 5_000
    assert flooding.is_alive() and len(supervisor.of(1, wire.RECORD)) < 128
    supervisor.release(1)
    flooding.join(PATIENCE)
    slow.settle()
    assert [int(payload[3:]) for payload in supervisor.of(1, wire.RECORD)] == list(range(5_000))


def test_large_records_are_bounded_by_their_bytes(supervisor):
    call = supervisor.call(1)
    supervisor.holds.add(1)
    for _ in range(20):
        call.record("n", '"' + "x" * 50_000 + '"')
    until(lambda: not supervisor.held.empty(), "it asks nothing")
    assert len(supervisor.of(1, wire.RECORD)) < 8
    supervisor.release(1)
    call.settle()
    assert len(supervisor.of(1, wire.RECORD)) == 20


def test_all_that_was_said_goes_before_the_end_and_nothing_after(supervisor):
    call = supervisor.call(1)
    for n in range(100):
        call.token(f"{n} ")
        if n % 10 == 0:
            call.record("n", str(n))
    call.end()
    call.token("late")
    call.line.put(wire.END, b"end")
    call.line.put(wire.RECORD, b"later")
    until(lambda: supervisor.of(1, wire.END), "there is no end")
    assert supervisor.heard[-1][0] == wire.END
    text = b"".join(supervisor.of(1, wire.TOKEN)).decode()
    assert text == "".join(f"{n} " for n in range(100))
    assert len(supervisor.of(1, wire.RECORD)) == 10


def test_who_waits_is_told_when_nobody_hears_any_more(supervisor):
    call = supervisor.call(1)
    supervisor.holds.add(1)
    found = queue.SimpleQueue()

    def step():
        try:
            call.find_step("a")
        except TaskStopped as why:
            found.put(why)

    threading.Thread(target=step, daemon=True).start()
    until(lambda: not supervisor.held.empty(), "it asks nothing")
    flooding = flood(call, 5_000)
    until(lambda: call.line.is_full(), "nothing holds it up")
    supervisor.writer.close(call.line)
    assert isinstance(found.get(timeout=PATIENCE), TaskStopped)
    flooding.join(PATIENCE)
    assert not flooding.is_alive()


def test_on_a_loop_only_a_coroutine_that_waits_is_held_up(supervisor):
    call = supervisor.call(1)
    supervisor.holds.add(1)

    async def main():
        supervisor.writer.loop_thread = threading.get_ident()
        # More than threads may say, and said without waiting.
        for n in range(600):
            call.record("n", str(n))
        assert call.line.is_full()
        with pytest.raises(StepError, match="would keep every task"):
            call.find_step("a")
        waiting = asyncio.ensure_future(call.line.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        supervisor.release(1)
        await asyncio.wait_for(waiting, PATIENCE)
        assert await asyncio.wait_for(call.find_step_async("a"), PATIENCE) == ("key", None)

    asyncio.run(main())
    assert len(supervisor.of(1, wire.RECORD)) == 600
