"""The coordinator of one stage: events in, instructions out, and no I/O.

It drives the method's ``round`` generator, samples cohorts, lets at most ``slots`` devices compute at once, keeps the
emulated clock, and decides which answers came in time. All answers of a turn are really there before the turn is
judged, and then they count in the order of their emulated arrival; so the outcome does not depend on how many
processes work, nor on their order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.core.method import Ask, Replies, State
from fedge.core.payload import Payload
from fedge.core.rng import seed_for
from fedge.errors import MethodError
from fedge.plan.choose import Choice
from fedge.run.brief import Brief
from fedge.run.ledger import Account
from fedge.run.server import StageServer


@dataclass(frozen=True)
class Send:
    """Ask a device: put these bytes before it as this turn of this round."""

    device: str
    round: int
    turn: int
    data: bytearray


@dataclass(frozen=True)
class End:
    """Tell a device that its conversation is over."""

    device: str


@dataclass(frozen=True)
class Seek:
    """Have a device pick (again); starts its process when it has none. ``pinned``: keep this offer."""

    device: str
    banned: tuple[int, ...] = ()
    pinned: int | None = None
    stateful: int | None = None


Instruction = Send | End | Seek


@dataclass(frozen=True)
class Picked:
    """A device has picked."""

    device: str
    choice: Choice


@dataclass(frozen=True)
class Answered:
    """A device's answer. ``peak``: bytes that it has held at most, None where nothing measures it."""

    device: str
    round: int
    turn: int
    data: bytearray
    done: bool
    stateful: bool
    peak: int | None = None
    noted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """A device was lost by the emulated world: it went over its memory, broke the protocol, or a fault was asked for."""

    device: str
    cause: str
    phase: str | None = None
    peak: int | None = None
    cap: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Died:
    """The host lost a device's process; its turn is replayed in a new one."""

    device: str
    detail: str = ""


Event = Picked | Answered | Lost | Died


@dataclass
class Late:
    """An answer that came too late for its turn and is kept for another; ``asked``: the round of its question."""

    arrival: float
    payload: Payload
    asked: int


@dataclass
class _Talk:
    """A device's conversation of this round: what it was sent, when its last turn began, and how far it is."""

    sent: list[bytearray] = field(default_factory=list)
    start: float = 0.0
    next_turn: int = 0
    done: bool = False


class Coordinator:
    """One stage from its first round to its last; see the module's text.

    ``state`` is the method's, ``now`` the emulated time in seconds, ``notes`` the events since they were last taken.
    """

    def __init__(
        self, brief: Brief, server: StageServer, accounts: Sequence[Account], *, slots: int, restart: int, now: float = 0.0
    ):
        self.brief = brief
        self.server = server
        self.accounts = {account.name: account for account in sorted(accounts, key=lambda a: a.name)}
        self.slots = slots
        self.restart = restart
        self.now = now
        self.round = 0
        self.state: State = {}
        self.notes: list[dict[str, Any]] = []
        self.kept: dict[str, Late] = {}
        self.answered: dict[str, dict[str, Any]] = {}
        self._turns: Generator[Ask, Replies, State] | None = None
        self._ask: Ask | None = None
        self._talks: dict[str, _Talk] = {}
        self._here: dict[str, tuple[float, Payload]] = {}
        self._gone: dict[str, str] = {}
        self._open: set[str] = set()
        self._queue: deque[str] = deque()
        self._computing: set[str] = set()
        self._seeking: set[str] = set()
        self._round_start = now

    # -- the stage ---------------------------------------------------------------------------------------------------

    def seek_all(self) -> list[Instruction]:
        """Have every device pick; those that had picked before (a resumed run) keep what they had."""
        return [self._seek(account, account.choice) for account in self.accounts.values() if not account.out]

    @property
    def settled(self) -> bool:
        """Whether no device is still picking."""
        return not self._seeking

    @property
    def ready(self) -> list[str]:
        """Devices that have picked something."""
        return [name for name, account in self.accounts.items() if account.choice is not None and not account.out]

    def open_stage(self) -> None:
        """Make the server's first state; call it once, when all have picked and nothing is resumed."""
        self._refresh()
        self.state = self.brief.method.init(self.server)

    # -- a round -----------------------------------------------------------------------------------------------------

    def open_round(self) -> list[Instruction]:
        """Sample the cohort and put the round's first question."""
        self._refresh()
        self._round_start = self.now
        self._talks = {}
        self.answered = {}
        cohort = self._sample()
        self.server.cohort = cohort
        self.notes.append(self._note("round", cohort=list(cohort)))
        if not cohort and not self.kept:
            self.notes.append(self._note("skipped", detail="no device is available"))
            return []
        self._turns = self.brief.method.round(self.server, self.state)
        return self._advance(None)

    @property
    def round_open(self) -> bool:
        return self._turns is not None

    def close_round(self) -> None:
        """Count the round; the caller checkpoints after this."""
        self.round += 1

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event. Raises MethodError for what the method's server side raised."""
        if isinstance(event, Picked):
            out = self._picked(event)
        elif isinstance(event, Answered):
            out = self._answer(event)
        elif isinstance(event, Lost):
            out = self._lose(event)
        else:
            out = self._died(event)
        return out + self._settle()

    # -- picking -----------------------------------------------------------------------------------------------------

    def _seek(self, account: Account, pinned: int | None = None) -> Seek:
        self._seeking.add(account.name)
        return Seek(account.name, tuple(sorted(account.banned)), pinned, account.stateful)

    def _picked(self, event: Picked) -> list[Instruction]:
        account = self.accounts[event.device]
        self._seeking.discard(event.device)
        choice = event.choice
        if account.choice == choice.index and choice.index is not None and event.device in self._open:
            return self._replay(event.device)
        account.choice, account.reason, account.runner_up = choice.index, choice.reason, choice.runner_up
        offer = None if choice.index is None else self.brief.menu[choice.index]
        self.notes.append(
            self._note(
                "picked" if offer else "left-out",
                device=event.device,
                method=offer.method if offer else None,
                variant=offer.variant if offer else None,
                predicted_peak=offer.cost.peak_memory if offer else None,
                reason=choice.reason,
            )
        )
        if offer is None:
            account.out = True
            if account.lost is None:
                account.lost = {"round": self.round, "cause": "memory", "phase": "plan", "peak": None, "cap": None}
        self._refresh()
        return []

    # -- turns -------------------------------------------------------------------------------------------------------

    def _advance(self, replies: Replies | None) -> list[Instruction]:
        assert self._turns is not None
        try:
            ask = next(self._turns) if replies is None else self._turns.send(replies)
        except StopIteration as stop:
            self.state = stop.value
            return self._finish()
        except MethodError:
            raise
        except Exception as error:
            raise MethodError(f"{type(self.brief.method).__name__}.round or update: {error}") from error
        self._ask = ask
        self._here, self._gone = {}, {}
        unknown = [device for device in ask.to if device not in self.accounts]
        if unknown:
            raise MethodError(f"the method asks '{unknown[0]}', which is not a device of this federation")
        self._open = set(ask.to)
        self._queue = deque(sorted(ask.to))
        for device in sorted(ask.to):
            talk = self._talks.setdefault(device, _Talk())
            if talk.done:
                talk = self._talks[device] = _Talk()
            talk.start = max(self.now, self.accounts[device].free_at)
            talk.sent.append(ask.to[device].to_bytes())
        return self._dispatch() + self._settle()

    def _dispatch(self) -> list[Instruction]:
        out: list[Instruction] = []
        while self._queue and len(self._computing) < self.slots:
            device = self._queue.popleft()
            if device not in self._open:
                continue
            if device in self._seeking:
                self._queue.append(device)
                if all(name in self._seeking for name in self._queue):
                    break
                continue
            self._computing.add(device)
            talk = self._talks[device]
            out.append(Send(device, self.round, talk.next_turn, talk.sent[talk.next_turn]))
        return out

    def _answer(self, event: Answered) -> list[Instruction]:
        talk = self._talks.get(event.device)
        if event.device not in self._open or talk is None or event.round != self.round or event.turn != talk.next_turn:
            return []
        self._computing.discard(event.device)
        account = self.accounts[event.device]
        talk.next_turn += 1
        if talk.next_turn < len(talk.sent):  # a replay: this answer was had before
            self._queue.appendleft(event.device)
            return self._dispatch()
        payload = Payload.from_bytes(event.data)
        assert account.choice is not None
        cost = self.brief.menu[account.choice].cost
        place = (*self.brief.seeds, self.round, talk.next_turn)
        sent = talk.sent[-1]
        arrival = account.charge(talk.start, cost, max(cost.turns, 1), len(sent), len(event.data), *place)
        account.peak_memory = max(account.peak_memory, event.peak or 0)
        talk.done = event.done
        if event.done:
            account.rounds += 1
            if event.stateful:
                account.stateful = self.round
        self._here[event.device] = (arrival, payload)
        self._open.discard(event.device)
        self._record(event, account, arrival, len(sent))
        return self._dispatch()

    def _record(self, event: Answered, account: Account, arrival: float, sent: int) -> None:
        seen = self.answered.setdefault(event.device, {"bytes_up": 0, "bytes_down": 0})
        seen["bytes_up"] += len(event.data)
        seen["bytes_down"] += sent
        seen.update(
            device=event.device,
            arrival=arrival,
            peak_memory=event.peak,
            method=self.brief.menu[account.choice].method if account.choice is not None else None,
            counts=event.noted.get("counts", {}),
            seconds=event.noted.get("seconds", {}),
        )

    def _lose(self, event: Lost) -> list[Instruction]:
        account = self.accounts[event.device]
        account.losses += 1
        account.lost = {
            "round": self.round,
            "cause": event.cause,
            "phase": event.phase,
            "peak": event.peak,
            "cap": event.cap,
        }
        chosen = None if account.choice is None else self.brief.menu[account.choice]
        method, variant = (chosen.method, chosen.variant) if chosen else (None, None)
        self.notes.append(
            self._note(
                "lost", device=event.device, **account.lost, method=method, variant=variant, detail=event.detail
            )
        )
        out = self._leave(event.device, event.cause)
        if event.cause == "memory" and chosen is not None:
            need = chosen.cost.peak_memory
            account.banned |= {offer.index for offer in self.brief.menu if offer.cost.peak_memory >= need}
            account.choice = None
            out.append(self._seek(account))
        elif event.cause in ("protocol", "host"):
            account.out = True
            self._seeking.discard(event.device)
        return out + self._dispatch()

    def _died(self, event: Died) -> list[Instruction]:
        account = self.accounts[event.device]
        self._computing.discard(event.device)
        self.notes.append(self._note("died", device=event.device, detail=event.detail, restarts=account.restarts))
        if account.restarts >= self.restart:
            return self._lose(Lost(event.device, "host", detail=event.detail))
        account.restarts += 1
        talk = self._talks.get(event.device)
        if talk is not None and not talk.done:
            talk.next_turn = 0
        return [self._seek(account, pinned=account.choice)]

    def _replay(self, device: str) -> list[Instruction]:
        """Begin a device's conversation again from what it had been sent."""
        self._talks[device].next_turn = 0
        if device not in self._queue:
            self._queue.appendleft(device)
        return self._dispatch()

    def _leave(self, device: str, cause: str) -> list[Instruction]:
        self._computing.discard(device)
        if device in self._open:
            self._open.discard(device)
            self._gone[device] = cause
        self._talks.pop(device, None)
        return []

    def _settle(self) -> list[Instruction]:
        """Judge the turn when every answer that will come is there."""
        if self._ask is None or self._open or self._turns is None:
            return []
        ask, self._ask = self._ask, None
        replies, out = self._judge(ask)
        if len(self._here) + len(self._gone) and len(replies) < self._quorum(len(ask.to)):
            self.notes.append(self._note("abandoned", detail=f"{len(replies)} of {len(ask.to)} answered"))
            self._turns.close()
            return out + self._finish()
        return out + self._advance(replies)

    def _judge(self, ask: Ask) -> tuple[Replies, list[Instruction]]:
        """Who answered in time, by emulated arrival; moves the clock to the end of the turn."""
        arrivals = {device: (when, payload, self.round) for device, (when, payload) in self._here.items()}
        arrivals.update({device: (late.arrival, late.payload, late.asked) for device, late in self.kept.items()})
        order = sorted(arrivals, key=lambda device: (arrivals[device][0], device))
        allowed = ask.deadline if ask.deadline is not None else self.brief.deadline
        end = math.inf if allowed is None else max(self.now, self._round_start + allowed)
        want = len(order) if ask.want is None else min(ask.want, len(order))
        taken = [device for device in order if arrivals[device][0] <= end][:want]
        if len(taken) >= want and not (self._gone and ask.want is None and allowed is not None):
            finished = max((arrivals[device][0] for device in taken), default=self.now)
        else:
            finished = end if end < math.inf else self.now
        self.now = max(self.now, finished)
        out: list[Instruction] = []
        lost = dict(self._gone)
        for device in order:
            if device in taken:
                self.kept.pop(device, None)
            elif ask.keep:
                when, payload, asked = arrivals[device]
                self.kept[device] = Late(when, payload, asked)
            else:
                lost[device] = "deadline"
                self._miss(device)
                out.append(End(device))
        answers = {device: arrivals[device][1] for device in taken}
        return Replies(answers, {device: arrivals[device][2] for device in taken}, lost), out

    def _miss(self, device: str) -> None:
        account = self.accounts[device]
        account.losses += 1
        account.lost = {"round": self.round, "cause": "deadline", "phase": None, "peak": None, "cap": None}
        self.notes.append(self._note("lost", device=device, **account.lost, arrival=account.free_at))
        self._talks.pop(device, None)

    def _finish(self) -> list[Instruction]:
        """End what conversations are left open; the round is over."""
        self._turns = None
        self._ask = None
        return [End(device) for device, talk in sorted(self._talks.items()) if not talk.done]

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _quorum(self, asked: int) -> int:
        share = self.brief.quorum
        return math.ceil(share * asked) if 0 < share < 1 else min(int(share), asked) if share >= 1 else 0

    def _sample(self) -> tuple[str, ...]:
        """This round's cohort: drawn among the devices that are available now, in device order."""
        here = []
        for name in self.ready:
            if name in self.kept:
                continue
            account = self.accounts[name]
            draw = (seed_for(*self.brief.seeds, self.round, name, "available") >> 10) / float(1 << 53)
            if draw < account.availability:
                here.append(name)
            else:
                self.notes.append(self._note("unavailable", device=name))
        if self.brief.cohort is not None and len(here) > self.brief.cohort:
            # the devices with the lowest hashes: a uniform draw that does not depend on any order
            here = sorted(here, key=lambda n: seed_for(*self.brief.seeds, self.round, n, "cohort"))[: self.brief.cohort]
        return tuple(sorted(here))

    def _refresh(self) -> None:
        chosen = {name: a.choice for name, a in self.accounts.items() if a.choice is not None}
        self.server.variants = {name: self.brief.variants[index] for name, index in chosen.items()}
        self.server.waiting = frozenset(self.kept)
        self.server.round = self.round

    def _note(self, event: str, **details: Any) -> dict[str, Any]:
        return {"event": event, "stage": self.brief.stage, "round": self.round, "virtual_s": self.now, **details}
