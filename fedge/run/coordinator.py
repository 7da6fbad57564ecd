"""The coordinator of one stage: events in, instructions out, and no I/O.

It drives the method's ``round`` generator, samples cohorts, lets at most ``slots`` devices compute at once, keeps the
emulated clock, and decides which answers came in time. All answers of a turn are really there before the turn is
judged, and then they count in the order of their emulated arrival; so the outcome does not depend on how many
processes work, nor on their order.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fedge.core.method import Ask, Replies, State
from fedge.core.payload import Payload
from fedge.core.rng import seed_everything, seed_for
from fedge.errors import FedgeError, MethodError, ProtocolError
from fedge.run.answers import Here, Late, judge, require_finite
from fedge.run.brief import Brief
from fedge.run.events import Answered, Died, End, Event, Instruction, Lost, Picked, Seek, Send
from fedge.run.ledger import Account
from fedge.run.server import StageServer
from fedge.run.stash import Stash
from fedge.wire.blobs import Blob


@dataclass
class _Talk:
    """A device's conversation of this round: what it was sent, when its last turn began, and how far it is."""

    sent: list[Blob] = field(default_factory=list)
    start: float = 0.0
    next_turn: int = 0
    done: bool = False


class Coordinator:
    """One stage from its first round to its last; see the module's text.

    ``state`` is the method's, ``now`` the emulated time in seconds, ``notes`` the events since they were last taken.
    """

    def __init__(
        self,
        brief: Brief,
        server: StageServer,
        accounts: Sequence[Account],
        *,
        slots: int,
        restart: int,
        now: float = 0.0,
        stash: Stash | None = None,
    ):
        """``stash``: where answers go that memory should not hold until their turn is over."""
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
        self._turn = 0
        self._ask: Ask | None = None
        self._talks: dict[str, _Talk] = {}
        self._here: dict[str, Here] = {}
        self._stash = stash
        self._gone: dict[str, str] = {}
        self._dropped: dict[str, str] = {}
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
        self.refresh()
        with blame(self.brief, "init"):
            seed_everything(*self.brief.seeds, "server", "init")
            self.state = _state(self.brief.method.init(self.server))

    def refresh(self) -> None:
        """Tell the server which devices there are, what each picked, and who is still under way."""
        chosen = {name: a.choice for name, a in self.accounts.items() if a.choice is not None}
        self.server.variants = {name: self.brief.variants[index] for name, index in chosen.items()}
        self.server.waiting = frozenset(self.kept)
        self.server.round = self.round

    # -- a round -----------------------------------------------------------------------------------------------------

    def open_round(self) -> list[Instruction]:
        """Sample the cohort and put the round's first question."""
        self.refresh()
        self._round_start = self.now
        self._turn = 0
        self._talks, self._dropped, self.answered = {}, {}, {}
        cohort = self._sample()
        self.server.cohort = cohort
        self.notes.append(self._note("round", cohort=list(cohort)))
        if not cohort and not self.kept:
            self.notes.append(self._note("skipped", detail="no device is available"))
            return []
        with blame(self.brief, "round"):
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
        if self.accounts[event.device].out:
            return []
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
        if account.choice is not None and account.choice == choice.index:
            # it had picked that before its process was started again; the reason stays the one it had then
            return self._replay(event.device) if event.device in self._open else []
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
        return []

    # -- turns -------------------------------------------------------------------------------------------------------

    def _advance(self, replies: Replies | None) -> list[Instruction]:
        assert self._turns is not None
        seed_everything(*self.brief.seeds, self.round, "server", self._turn)
        self._turn += 1
        with blame(self.brief, "round" if replies is None else "round or update"):
            try:
                ask = next(self._turns) if replies is None else self._turns.send(replies)
            except StopIteration as stop:
                self.state = _state(stop.value)
                return self._finish()
            questions = self._questions(ask)
        self._ask = ask
        self._here = {}
        self._gone = {device: self._dropped[device] for device in questions if device in self._dropped}
        for device, data in questions.items():
            if device in self._gone:
                continue
            talk = self._talks.get(device)
            if talk is None or talk.done:
                talk = self._talks[device] = _Talk()
            talk.start = max(self.now, self.accounts[device].free_at)
            talk.sent.append(data)
        self._open = set(questions) - set(self._gone)
        self._queue = deque(sorted(self._open))
        return self._dispatch() + self._settle()

    def _questions(self, ask: object) -> dict[str, Blob]:
        """The bytes of a turn's questions in device order; what several devices are asked alike is one blob.

        MethodError for anything but an Ask to known devices.
        """
        if not isinstance(ask, Ask) or not isinstance(ask.to, Mapping):
            raise MethodError(f"it asked by a {type(ask).__name__}, not by an Ask")
        questions: dict[str, Blob] = {}
        packed: dict[Any, Blob] = {}
        for device in sorted(ask.to):
            account = self.accounts.get(device)
            if account is None:
                raise MethodError(f"it asks '{device}', which is not a device of this federation")
            if not isinstance(ask.to[device], Payload):
                raise MethodError(f"it asks '{device}' by a {type(ask.to[device]).__name__}, not by a Payload")
            same = _identity(ask.to[device])
            if same not in packed:
                packed[same] = Blob(ask.to[device].to_bytes())
            questions[device] = packed[same]
            if account.out or account.choice is None:
                self._dropped.setdefault(device, account.lost["cause"] if account.lost else "host")
        return questions

    def _dispatch(self) -> list[Instruction]:
        out: list[Instruction] = []
        held: list[str] = []
        while self._queue and len(self._computing) < self.slots:
            device = self._queue.popleft()
            if device in self._seeking:
                held.append(device)
            elif device in self._open:
                self._computing.add(device)
                talk = self._talks[device]
                account = self.accounts[device]
                blob = talk.sent[talk.next_turn]
                out.append(Send(device, self.round, talk.next_turn, blob, account.choice, account.stateful))
        self._queue.extendleft(reversed(held))
        return out

    def _answer(self, event: Answered) -> list[Instruction]:
        talk = self._talks.get(event.device)
        if event.device not in self._open or talk is None or event.round != self.round or event.turn != talk.next_turn:
            return []
        self._computing.discard(event.device)
        talk.next_turn += 1
        if talk.next_turn < len(talk.sent):  # a replay: this answer was had before
            self._queue.appendleft(event.device)
            return self._dispatch()
        try:
            payload = self.brief.chain.decode(Payload.from_bytes(event.data), self._limit(event.device))
            require_finite(payload)
        except ProtocolError as error:
            return [End(event.device), *self._lose(Lost(event.device, "protocol", detail=str(error)))]
        account = self.accounts[event.device]
        assert account.choice is not None
        cost = self.brief.menu[account.choice].cost
        place = (*self.brief.seeds, self.round, talk.next_turn)
        sent = talk.sent[-1].length
        spent = account.energy_j
        arrival = account.charge(talk.start, cost, max(cost.turns, 1), sent, len(event.data), *place)
        account.peak_memory = max(account.peak_memory, event.peak or 0)
        talk.done = event.done
        if event.done:
            account.rounds += 1
            account.stateful = event.stateful
        self._here[event.device] = Here(arrival, self._keep(event, payload), self.round)
        self._open.discard(event.device)
        self._record(event, account, arrival, sent, account.energy_j - spent)
        return self._dispatch()

    def _keep(self, event: Answered, payload: Payload) -> Payload | Callable[[], Payload]:
        """The answer itself, or how to read it again."""
        path = self._stash.put(event.data) if self._stash is not None else None
        if path is None:
            return payload
        chain, limit = self.brief.chain, self._limit(event.device)
        return lambda: chain.decode(Payload.from_bytes(bytearray(path.read_bytes())), limit)

    def _record(self, event: Answered, account: Account, arrival: float, sent: int, energy: float) -> None:
        began = self._talks[event.device].start
        start = {"began": began, "bytes_up": 0, "bytes_down": 0, "energy_j": 0.0}
        seen = self.answered.setdefault(event.device, start)
        seen["energy_j"] += energy
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

    def _limit(self, device: str) -> int:
        """Bytes that an answer may decode to: twice what the plan saw, since some answers grow with what they say."""
        choice = self.accounts[device].choice
        return (1 << 20) + (0 if choice is None else 2 * sum(self.brief.menu[choice].cost.sent.values()))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _lose(self, event: Lost) -> list[Instruction]:
        account = self.accounts[event.device]
        chosen = None if account.choice is None else self.brief.menu[account.choice]
        method, variant = (chosen.method, chosen.variant) if chosen else (None, None)
        self._drop(event, method=method, variant=variant, detail=event.detail)
        self._computing.discard(event.device)
        if event.device in self._open:
            self._open.discard(event.device)
            self._gone[event.device] = event.cause
        out: list[Instruction] = []
        if event.cause == "memory" and chosen is not None:
            need = chosen.cost.peak_memory
            account.banned |= {offer.index for offer in self.brief.menu if offer.cost.peak_memory >= need}
            account.choice = None
            out.append(self._seek(account))
        elif event.cause in ("protocol", "host"):
            account.out = True
            self._seeking.discard(event.device)
        return out + self._dispatch()

    def _drop(self, event: Lost, **details: Any) -> None:
        """Note a loss; the device takes no further part in this round."""
        account = self.accounts[event.device]
        account.losses += 1
        account.lost = {
            "round": self.round,
            "cause": event.cause,
            "phase": event.phase,
            "peak": event.peak,
            "cap": event.cap,
        }
        self.notes.append(self._note("lost", device=event.device, **account.lost, **details))
        self._dropped[event.device] = event.cause
        self._talks.pop(event.device, None)

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
        return [self._seek(account, pinned=account.choice), *self._dispatch()]

    def _replay(self, device: str) -> list[Instruction]:
        """Begin a device's conversation again from what it had been sent."""
        self._talks[device].next_turn = 0
        if device not in self._queue:
            self._queue.appendleft(device)
        return self._dispatch()

    # -- the end of a turn -------------------------------------------------------------------------------------------

    def _settle(self) -> list[Instruction]:
        """Judge the turn when every answer that will come is there."""
        if self._ask is None or self._open or self._turns is None:
            return []
        ask, self._ask = self._ask, None
        replies, out = self._judge(ask)
        if ask.to and len(replies) < self._quorum(ask):
            self.notes.append(self._note("abandoned", detail=f"{len(replies)} of {len(ask.to)} answered"))
            self._turns.close()
            return out + self._finish()
        return out + self._advance(replies)

    def _judge(self, ask: Ask) -> tuple[Replies, list[Instruction]]:
        """Who answered in time, by emulated arrival; moves the clock to the end of the turn."""
        arrivals = dict(self._here)
        if ask.keep:  # what is kept waits for a turn that takes late answers; a newer answer takes its place
            kept = {device: Here(late.arrival, late.payload, late.asked) for device, late in self.kept.items()}
            arrivals = {**kept, **arrivals}
            self.kept = {}
        judged = judge(arrivals, ask, now=self.now, end=self._end_of(ask), gone=len(self._gone))
        self.now = judged.finished
        out: list[Instruction] = []
        lost = dict(self._gone)
        for device in judged.late:
            if ask.keep:
                self.kept[device] = arrivals[device].whole()
            else:
                lost[device] = "deadline"
                talk = self._talks.get(device)
                if talk is not None and not talk.done:
                    out.append(End(device))
                self._drop(Lost(device, "deadline"), arrival=arrivals[device].arrival)
        answers = {device: arrivals[device].payload for device in judged.taken}
        return Replies(answers, {device: arrivals[device].asked for device in judged.taken}, lost), out

    def _end_of(self, ask: Ask) -> float:
        """When answers begin to be late: by the turn's deadline from now, by the round's from the round's start."""
        end = math.inf if self.brief.deadline is None else self._round_start + self.brief.deadline
        if ask.deadline is not None:
            end = min(end, self.now + ask.deadline)
        return max(self.now, end)

    def _finish(self) -> list[Instruction]:
        """End what conversations are left open; the round is over."""
        self._turns = None
        self._ask = None
        self._here = {}
        if self._stash is not None:
            self._stash.clear()
        return [End(device) for device, talk in sorted(self._talks.items()) if not talk.done]

    # -- helpers -----------------------------------------------------------------------------------------------------

    def doing(self, device: str) -> str:
        """What a device is at: 'picking', 'computing', 'waiting' (for its turn, or for others) or 'lost'.

        A device that is lost for this round only is 'lost' until the round ends.
        """
        if self.accounts[device].out or (device in self._dropped and self.round_open):
            return "lost"
        if device in self._seeking:
            return "picking"
        return "computing" if device in self._computing else "waiting"

    def _quorum(self, ask: Ask) -> int:
        """How many answers make a turn count; never more than the method itself waits for."""
        needed = self.brief.needed(len(ask.to))
        return needed if ask.want is None else min(needed, ask.want)

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

    def _note(self, event: str, **details: Any) -> dict[str, Any]:
        # events within a round carry its start, so that the order in which they are heard of leaves no trace
        place = {"stage": self.brief.stage, "round": self.round, "virtual_s": self._round_start}
        return {"event": event, **place, **details}


@contextmanager
def blame(brief: Brief, part: str) -> Iterator[None]:
    """Turn what a method's server side raises into a MethodError that names the method and the function."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"method '{brief.key}', {part}: {error.message}", hint=error.hint) from error
    except FedgeError:
        raise
    except Exception as error:
        raise MethodError(f"method '{brief.key}', {part}: {type(error).__name__}: {error}") from error


def _state(state: object) -> State:
    if not isinstance(state, dict):
        raise MethodError(f"it left a {type(state).__name__} as its state, not a dict")
    return state


def _identity(payload: Payload) -> tuple[Any, ...]:
    """Equal for payloads that hold the very same tensors, weight and meta, as long as they live."""
    tensors = tuple((role, name, id(tensor)) for role, tree in payload.parts.items() for name, tensor in tree.items())
    return (tuple(payload.parts), tensors, payload.weight, json.dumps(payload.meta, sort_keys=True, default=repr))
