"""An asyncio loop on virtual time: it never waits, and whose turn it is is drawn from a seed.

    outcome = run(7, scenario)      # scenario: an async function; outcome.trace_hash is the same each time

Nothing is ready: the clock jumps to the next timer. Several callbacks are ready: any of them may be next, so that only causes
come before their effects. Each step costs a little time, so who polls also grows old. Nobody is ready and no timer is set: a
Deadlock that names every task and the line it waits at. Threads and sockets do not exist here.

A callback belongs to the process whose context it was made in (`PROCESS`); `kill` drops every callback of a process from then
on, at whatever await its tasks stand: no finally, no farewell, as kill -9 does.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import heapq
import random
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import structlog

from tests.sim.cost import METER

# Name and life of the process whose code runs, for example "c1.2"; empty: the world itself.
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")
STEP_S: Final = 1e-6
# Less than this is not worth a turn.
BUSY_NS: Final = 50_000
STEPS_MAX: Final = 20_000_000


class Deadlock(Exception):
    """Everybody waits for something that cannot happen."""


class Exhausted(Exception):
    """Too many steps: something turns in circles."""


class Trace:
    """What happened, line by line, and a hash of it all. Lines tell no addresses and nothing of the machine."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._hash = hashlib.blake2b(digest_size=12)
        self._open = True
        self.listeners: list[Callable[[str], None]] = []

    def note(self, now_s: float, who: str, text: str) -> None:
        """Add an event."""
        if self._open:
            line = f"{now_s:12.6f} {who or '-':8} {text}"
            self.lines.append(line)
            self._hash.update(line.encode("utf-8", "replace"))
            for listener in self.listeners:
                listener(line)

    def step(self, now_s: float, label: str) -> None:
        """Count a step of the loop in: hashed, not kept."""
        if self._open:
            self._hash.update(f"{now_s:.6f} {label}\n".encode())

    def close(self) -> None:
        """Take nothing more: what follows is cleaning up."""
        self._open = False

    @property
    def hash(self) -> str:
        """Of everything so far."""
        return self._hash.hexdigest()


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set depends on the order of making, not on its address."""

    def __init__(self, coro: Any, *, number: int, label: str, loop: SimLoop, name: str | None, context: Any) -> None:
        # First of all: asyncio puts it into a set, and a set where all have one hash is a list.
        self.number = number
        # Its name in the trace, whatever it is renamed to.
        self.label = label
        super().__init__(coro, loop=loop, name=name or label, context=context)

    def __hash__(self) -> int:
        return self.number


async def _gathered(futures: Sequence[asyncio.Future[Any]], *, return_exceptions: bool) -> list[Any]:
    try:
        if futures:
            await asyncio.wait(futures, return_when=asyncio.ALL_COMPLETED if return_exceptions else asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        for future in futures:
            future.cancel()
        raise
    if not return_exceptions:
        for future in futures:
            if future.done():
                future.result()
        return [future.result() for future in futures]
    return [_result(future) for future in futures]


def _result(future: asyncio.Future[Any]) -> Any:
    try:
        return future.result()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - what gather returns
        return error


def gather(*awaitables: Any, return_exceptions: bool = False) -> asyncio.Future[Any]:
    """Do what asyncio.gather does, in the same steps on every Python: the library's own takes other steps since 3.12."""
    futures = [asyncio.ensure_future(each) for each in awaitables]
    return asyncio.ensure_future(_gathered(futures, return_exceptions=return_exceptions))


class SimFuture(asyncio.Future[Any]):
    """The same for a future."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, seed: int | str, *, steps_max: int = STEPS_MAX) -> None:
        super().__init__()
        self.random = random.Random(f"{seed}/turns")
        self.trace = Trace()
        self.steps = 0
        # What nobody awaited: exceptions of callbacks and of tasks.
        self.faults: list[str] = []
        self._steps_max = steps_max
        self._now_s = 0.0
        self._numbers = 0
        self._dead: set[str] = set()
        self._limbo: list[asyncio.Handle] = []
        self._fuses: dict[str, tuple[int, Callable[[], None]]] = {}
        # Process -> how long each of its steps has to wait for its turn.
        self._slow: dict[str, float] = {}
        # How much longer than on a fast core computation takes; 0: no time at all. Process -> until when it computes.
        self.cpu = 0.0
        self._busy: dict[str, float] = {}
        self._failure: BaseException | None = None
        self._nobody = contextvars.Context()
        self._turns: list[asyncio.Handle] = []
        self._ready: Any = self._turns
        self._scheduled: list[asyncio.TimerHandle] = []
        self.set_exception_handler(self._fault)

    # --- processes -------------------------------------------------------------------------------------------------------

    def kill(self, process: str) -> None:
        """Nothing of that process runs ever again."""
        self._dead.add(process)
        self._busy.pop(process, None)
        self._fuses.pop(process, None)

    def slow_down(self, process: str, step_s: float) -> None:
        """Let each step of a process wait before its turn, as on a host that has no time for it; 0: no more."""
        if step_s > 0:
            self._slow[process] = step_s
        else:
            self._slow.pop(process, None)

    def light_fuse(self, process: str, steps: int, act: Callable[[], None]) -> None:
        """Act after the process has taken that many steps: at any await of it."""
        self._fuses[process] = (steps, act)

    def snuff_fuses(self) -> None:
        """Let none burn on, and nobody be slow."""
        self._fuses.clear()
        self._slow.clear()

    def leap(self, by_s: float) -> None:
        """Nobody lives through that time, as when all machines are suspended; what was due in it is due now."""
        self._now_s += by_s

    def fail(self, error: BaseException) -> None:
        """End the story with this error, whoever runs now."""
        self._failure = self._failure or error

    def clean_up(self) -> None:
        """The story is over: let everybody, also the dead, be cancelled in an orderly way."""
        self.trace.close()
        self._failure = None
        self._dead.clear()
        self._fuses.clear()
        self._slow.clear()
        self._busy.clear()
        self._turns.extend(self._limbo)
        self._limbo.clear()

    # --- time and turns ----------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time, seconds."""
        return self._now_s

    def _run_once(self) -> None:
        if self._failure is not None:
            raise self._failure
        turns, heap = self._turns, self._scheduled
        if not turns:
            while heap and heap[0].cancelled():
                self._pop()
            if not heap:
                raise Deadlock(self._waiting())
            self._now_s = max(self._now_s, heap[0].when())
        while heap and heap[0].when() <= self._now_s:
            timer = self._pop()
            if not timer.cancelled():
                turns.append(timer)
        if not turns:
            return
        index = int(self.random.random() * len(turns))
        handle = turns[index]
        turns[index] = turns[-1]
        turns.pop()
        self._turn(handle)

    def _pop(self) -> asyncio.TimerHandle:
        timer = heapq.heappop(self._scheduled)
        timer._scheduled = False  # type: ignore[attr-defined]
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers leave when their time comes."""

    def _turn(self, handle: Any, waited: bool = False) -> None:
        if handle._cancelled:
            return
        process = handle._context.get(PROCESS, "")
        if process in self._dead:
            self._limbo.append(handle)
            return
        if process in self._slow and not waited:
            self.call_later(self._slow[process], self._turn, handle, True, context=self._nobody)
            return
        if self._busy.get(process, 0.0) > self._now_s:
            self.call_at(self._busy[process], self._turn, handle, True, context=self._nobody)
            return
        self.steps += 1
        if self.steps > self._steps_max:
            raise Exhausted(f"{self.steps} steps taken")
        self._now_s += STEP_S
        self.trace.step(self._now_s, _label(handle._callback))
        METER.ns = 0
        handle._run()
        if process and METER.ns * self.cpu > BUSY_NS:
            self._busy[process] = self._now_s + METER.ns * self.cpu / 1e9
        if process in self._fuses:
            left, act = self._fuses[process]
            self._fuses[process] = (left - 1, act)
            if left <= 1:
                del self._fuses[process]
                act()

    # --- what asyncio asks for -----------------------------------------------------------------------------------------------

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None) -> Any:
        """Make a task that is named after its place in the story."""
        self._check_closed()  # type: ignore[attr-defined]
        self._numbers += 1
        label = f"{getattr(coro, '__qualname__', 'task')}#{self._numbers}"
        return SimTask(coro, number=self._numbers, label=label, loop=self, name=name, context=context)

    def create_future(self) -> Any:
        """Make a future."""
        self._numbers += 1
        future = SimFuture(loop=self)
        future.number = self._numbers
        return future

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:
        """Refuse."""
        raise RuntimeError(f"{func!r} wants a thread: what threads do cannot be repeated")

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _fault(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = f"{context.get('message', '')}: {error!r}"
        if isinstance(error, BaseException):
            text += "\n" + "".join(traceback.format_exception(error)[-3:])
        self.faults.append(text)

    def _waiting(self) -> str:
        lines = [f"at {self._now_s:.6f} s, after {self.steps} steps, nobody has anything to do:"]
        tasks = [(each.get_name(), where(each)) for each in asyncio.all_tasks(self)]
        return "\n".join([*lines, *(f"  {name} waits at {place}" for name, place in sorted(tasks))])


def where(task: asyncio.Task[Any]) -> str:
    """Return the innermost line a task stands at."""
    awaited: Any = task.get_coro()
    place = "nowhere"
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            place = f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        awaited = (
            getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None) or getattr(awaited, "gi_yieldfrom", None)
        )
    return place


def _label(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, SimTask):
        return owner.label
    return getattr(callback, "__qualname__", type(callback).__name__)


_traces: list[Trace] = []


@contextmanager
def traced() -> Iterator[Trace]:
    """Give the trace of the story run inside, also when it fails."""
    trace = Trace()
    _traces.append(trace)
    try:
        yield trace
    finally:
        _traces.remove(trace)


@dataclass
class Outcome:
    """How a story went."""

    trace_hash: str
    steps: int
    virtual_s: float
    faults: Sequence[str]
    lines: Sequence[str] = field(repr=False, default=())
    result: Any = None


def run(seed: int | str, scenario: Callable[[], Coroutine[Any, Any, Any]], *, steps_max: int = STEPS_MAX) -> Outcome:
    """Run a story to its end; what it raises gets a note of the seed."""
    loop = SimLoop(seed, steps_max=steps_max)
    if _traces:
        loop.trace = _traces[-1]
    # The collector runs finalizers whenever it likes.
    collecting = gc.isenabled()
    gc.disable()
    original, asyncio.gather = asyncio.gather, gather  # type: ignore[assignment]
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                result = runner.run(scenario())
            except BaseException as error:
                error.add_note(f"seed {seed}, trace hash {loop.trace.hash}, at {loop.time():.3f} s")
                raise
            finally:
                outcome = Outcome(loop.trace.hash, loop.steps, loop.time(), list(loop.faults), loop.trace.lines)
                loop.clean_up()
    finally:
        asyncio.gather = original
        # A World sends the product's log lines to its trace.
        structlog.reset_defaults()
        if collecting:
            gc.enable()
    outcome.result = result
    return outcome
