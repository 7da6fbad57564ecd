"""The coordinator of one stage: events in, instructions out, and no I/O.

It drives the method's ``round`` generator, lets at most ``slots`` devices compute at once, keeps the emulated clock,
and ends a turn. Who is asked (``cohort``), what a device runs (``picking``), what becomes of one that is lost
(``losses``) and which answers are in time (``answers``) are modules of their own.

All answers of a turn are really there before the turn is judged, and then they count in the order of their emulated
arrival; so the outcome does not depend on how many processes work, nor on their order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedge.core.method import Abandon, Ask, Replies, State
from fedge.core.payload import Payload
from fedge.core.rng import seed_everything
from fedge.emulation.pace import Timing
from fedge.errors import MethodError, ProtocolError
from fedge.run.answers import Here, Late, Outlines, judge, odd_ones, require_finite
from fedge.run.brief import Brief
from fedge.run.cohort import draw, present, when_anyone
from fedge.run.events import (
    Answered,
    Died,
    End,
    Event,
    Hurry,
    Instruction,
    Lost,
    Paused,
    Picked,
    Resumed,
    Send,
)
from fedge.run.faults import Fault, Faults, away, slowed
from fedge.run.ledger import Account
from fedge.run.losses import Losses
from fedge.run.picking import Picking
from fedge.run.questions import as_state, blame, packed
from fedge.run.server import StageServer
from fedge.run.stash import Stash
from fedge.run.tally import SURPLUS, Tally, is_behind
from fedge.units import format_seconds
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
        faults: Faults | None = None,
        elsewhere: Collection[str] = (),
        outlines: Outlines | None = None,
    ):
        """``stash``: where answers go that memory should not hold until their turn is over. ``elsewhere``: devices
        that compute on other machines, and so take no slot of this one; ``outlines`` is what their answers are held
        to."""
        self.brief = brief
        self.server = server
        self.accounts = {account.name: account for account in sorted(accounts, key=lambda a: a.name)}
        self.slots = slots
        self.elsewhere = frozenset(elsewhere)
        self._outlines = outlines
        self.restart = restart
        self.now = now
        self.round = 0
        self.state: State = {}
        self.notes: list[dict[str, Any]] = []
        self.kept: dict[str, Late] = {}
        self.tally = Tally()
        self._turns: Generator[Ask, Replies, State] | None = None
        self._turn = 0
        self._ask: Ask | None = None
        self._talks: dict[str, _Talk] = {}
        self._here: dict[str, Here] = {}
        self._stash = stash
        self._faults = faults or Faults()
        self._picking = Picking(brief, self.accounts, self._note)
        self._losses = Losses(self.accounts, self._faults, restart, self._note)
        self._gone: dict[str, str] = {}
        self._away: dict[str, float] = {}
        self._open: set[str] = set()
        self._queue: deque[str] = deque()
        self._computing: set[str] = set()
        self._round_start = now

    # -- the stage ---------------------------------------------------------------------------------------------------

    def seek_all(self) -> list[Instruction]:
        """Have every device pick; those that had picked before (a resumed run) keep what they had."""
        return [self._picking.seek(account, account.choice) for account in self.accounts.values() if not account.out]

    @property
    def settled(self) -> bool:
        """Whether no device is still picking."""
        return not self._picking.seeking

    @property
    def ready(self) -> list[str]:
        """Devices that have picked something."""
        return [name for name, account in self.accounts.items() if account.choice is not None and not account.out]

    def open_stage(self) -> None:
        """Make the server's first state; call it once, when all have picked and nothing is resumed."""
        self.refresh()
        with blame(self.brief, "init"):
            seed_everything(*self.brief.seeds, "server", "init")
            self.state = as_state(self.brief.method.init(self.server))

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
        if not self.kept:
            self.now = when_anyone([self.accounts[name] for name in self.ready], self.now)
        self._round_start = self.now
        self._turn = 0
        self._talks, self._losses.dropped, self.tally = {}, {}, Tally()
        cohort = self._sample()
        self.server.cohort = cohort
        self._note("round", cohort=list(cohort))
        if not cohort and not self.kept and not self.brief.method.unasked:
            self._note("skipped", detail="no device is available")
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
        elif isinstance(event, (Paused, Resumed)):
            out = self._pause(event)
        else:
            out = self._died(event)
        return out + self._settle()

    def _picked(self, event: Picked) -> list[Instruction]:
        if self._picking.picked(event, self.round) or event.device not in self._open:
            return []
        return self._replay(event.device)

    # -- turns -------------------------------------------------------------------------------------------------------

    def _advance(self, replies: Replies | None) -> list[Instruction]:
        assert self._turns is not None
        seed_everything(*self.brief.seeds, self.round, "server", self._turn)
        self._turn += 1
        try:
            with blame(self.brief, "round" if replies is None else "round or update"):
                try:
                    ask = next(self._turns) if replies is None else self._turns.send(replies)
                except StopIteration as stop:
                    self.state = as_state(stop.value)
                    return self._finish()
                except Abandon as why:
                    self._note("abandoned", detail=str(why))
                    return self._finish()
                questions = packed(ask, self.accounts)
        except (MethodError, ProtocolError) as error:
            return self._expel(replies or {}, error)
        self._ask = self.brief.policy(ask)
        self._here, self._away = {}, {}
        for device in questions:
            account = self.accounts[device]
            if account.out or account.choice is None:
                self._losses.dropped.setdefault(device, account.lost["cause"] if account.lost else "host")
        dropped = self._losses.dropped
        self._gone = {device: dropped[device] for device in questions if device in dropped}
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

    def _expel(self, replies: Mapping[str, Payload], error: MethodError | ProtocolError) -> list[Instruction]:
        """Drop the devices on other machines whose answers the method could not take, and leave the round as if it had
        not been; raises ``error`` where none of them is to blame."""
        chosen = {device: self.accounts[device].choice for device in replies}
        liars = odd_ones(replies, self.elsewhere, chosen) if self.elsewhere & set(replies) else {}
        if not liars:
            raise error
        self._turns = None
        out: list[Instruction] = []
        for device, why in liars.items():
            out += [End(device, why), *self._lose(Lost(device, "protocol", detail=why))]
        self._note("abandoned", detail=error.message)
        return out + self._finish()

    def _dispatch(self) -> list[Instruction]:
        out: list[Instruction] = []
        held: list[str] = []
        busy = len(self._computing - self.elsewhere)
        while self._queue and (busy < self.slots or self.elsewhere):
            device = self._queue.popleft()
            here = device not in self.elsewhere
            if device in self._picking.seeking or (here and busy >= self.slots):
                held.append(device)
            elif device in self._open:
                busy += here
                self._computing.add(device)
                talk = self._talks[device]
                account = self.accounts[device]
                turn = talk.next_turn
                blob, new = talk.sent[turn], turn == len(talk.sent) - 1
                turns = 1 if account.choice is None else self.brief.menu[account.choice].cost.turns
                faults = self._faults.strike(device, self.round, turn, turns) if new else ()
                told = (account.choice, account.stateful, self._timing(device, talk, faults), faults)
                out.append(Send(device, self.round, turn, blob, *told))
        self._queue.extendleft(reversed(held))
        return out

    def _timing(self, device: str, talk: _Talk, faults: Sequence[Fault]) -> Timing | None:
        """When a device's turn is to happen; None for a turn whose answer was had before."""
        account, ask = self.accounts[device], self._ask
        if talk.next_turn < len(talk.sent) - 1 or account.choice is None or ask is None:
            return None
        cost = self.brief.menu[account.choice].cost
        place = (*self.brief.seeds, self.round, talk.next_turn + 1)
        end = min(self._end_of(ask), account.presence.until(talk.start))
        down = talk.sent[-1].length
        timing = account.timing(self.now, talk.start, cost, max(cost.turns, 1), down, *place, end=end)
        return replace(timing, compute=timing.compute * slowed(faults) + away(faults))

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
            choice = self.accounts[event.device].choice
            if self._outlines is not None and event.device in self.elsewhere and choice is not None:
                self._outlines.require(choice, payload)
        except ProtocolError as error:
            return [End(event.device, str(error)), *self._lose(Lost(event.device, "protocol", detail=str(error)))]
        account = self.accounts[event.device]
        assert account.choice is not None
        cost = self.brief.menu[account.choice].cost
        place = (*self.brief.seeds, self.round, talk.next_turn)
        sent = talk.sent[-1].length
        spent = account.energy_j
        met = self._faults.met(event.device)
        how = {"slowed": slowed(met), "away": away(met)}
        arrival = account.charge(talk.start, cost, max(cost.turns, 1), sent, len(event.data), *place, **how)
        account.peak_memory = max(account.peak_memory, event.peak or 0)
        if arrival == math.inf:
            return self._left(event, account, talk)
        talk.done = event.done
        if event.done:
            account.rounds += 1
            account.stateful = event.stateful
            account.last_round, account.took = self.round, arrival - talk.start
            account.met_loss = event.noted.get("counts", {}).get("loss", account.met_loss)
        self._here[event.device] = Here(arrival, self._keep(event, payload), self.round)
        self._open.discard(event.device)
        method, energy = self.brief.menu[account.choice].method, account.energy_j - spent
        self.tally.count(event, method, began=talk.start, arrival=arrival, down=sent, energy=energy)
        account.behind_s += event.paced.get("behind_s", 0.0)
        if is_behind(event):
            self._note("behind", device=event.device, behind_s=event.paced["behind_s"])
        return self._hurry() + self._dispatch()

    def _left(self, event: Answered, account: Account, talk: _Talk) -> list[Instruction]:
        """The device went away before its answer was here; what it has done until then stays on it."""
        after = account.free_at - talk.start
        if event.done:
            account.stateful = event.stateful
        self._away[event.device] = account.free_at
        out: list[Instruction] = [] if event.done else [End(event.device)]
        detail = f"left {format_seconds(after)} after it was asked"
        return out + self._lose(Lost(event.device, "availability", detail=detail))

    def _hurry(self) -> list[Instruction]:
        """Nobody waits for those who are still at it once there are as many answers as the method wants."""
        want = None if self._ask is None else self._ask.want
        if want is None or len(self._here) != want:
            return []
        return [Hurry(device) for device in sorted(self._open & self._computing)]

    def _keep(self, event: Answered, payload: Payload) -> Payload | Callable[[], Payload]:
        """The answer itself, or how to read it again."""
        path = self._stash.put(event.data) if self._stash is not None else None
        if path is None:
            return payload
        chain, limit = self.brief.chain, self._limit(event.device)
        return lambda: chain.decode(Payload.from_bytes(bytearray(path.read_bytes())), limit)

    def _limit(self, device: str) -> int:
        """Bytes that an answer may decode to: twice what the plan saw, since some answers grow with what they say."""
        choice = self.accounts[device].choice
        return (1 << 20) + (0 if choice is None else 2 * sum(self.brief.menu[choice].cost.sent.values()))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _lose(self, event: Lost) -> list[Instruction]:
        """The device takes no further part in this round; what it runs from now on is for its pick to say."""
        choice = self.accounts[event.device].choice
        offer = None if choice is None else self.brief.menu[choice]
        method, variant = (offer.method, offer.variant) if offer else (None, None)
        self._losses.drop(event, self.round, method=method, variant=variant, detail=event.detail)
        self._talks.pop(event.device, None)
        self.tally.ends.pop(event.device, None)
        self._computing.discard(event.device)
        if event.device in self._open:
            self._open.discard(event.device)
            self._gone[event.device] = event.cause
        return self._picking.after_loss(event) + self._dispatch()

    def _pause(self, event: Paused | Resumed) -> list[Instruction]:
        """A device that is held still takes part in no round; the one under way goes on without it."""
        if isinstance(event, Resumed):
            self._losses.paused.discard(event.device)
            return []
        self._losses.paused.add(event.device)
        talk = self._talks.get(event.device)
        if event.device not in self._open and (talk is None or talk.done or not self.round_open):
            return []
        return self._lose(Lost(event.device, "fault", "pause", detail="paused by hand"))

    def _died(self, event: Died) -> list[Instruction]:
        account = self.accounts[event.device]
        self._computing.discard(event.device)
        if not self._losses.begins_again(event):
            return self._lose(Lost(event.device, "host", detail=event.detail))
        talk = self._talks.get(event.device)
        if talk is not None and not talk.done:
            talk.next_turn = 0
        return [self._picking.seek(account, pinned=account.choice), *self._dispatch()]

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
            self._note("abandoned", detail=f"{len(replies)} of {len(ask.to)} answered")
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
        end = self._end_of(ask)
        judged = judge(arrivals, ask, now=self.now, end=end, gone=len(self._gone))
        self.now = judged.finished
        if end == math.inf and (ask.want is None or len(judged.taken) < ask.want):
            # that a device is gone is known when it goes, and not before
            self.now = max([self.now, *self._away.values()])
        out: list[Instruction] = []
        lost = dict(self._gone)
        for device in judged.late:
            if arrivals[device].asked == self.round:
                self.tally.ends[device] = SURPLUS if arrivals[device].arrival <= end and not ask.keep else "late"
            if ask.keep:
                self.kept[device] = arrivals[device].whole()
                self._losses.settle(device, "late")
                continue
            talk = self._talks.get(device)
            if talk is not None and not talk.done:
                out.append(End(device))
            if arrivals[device].arrival <= end:  # in time, but enough others were there before
                lost[device] = self._losses.dropped[device] = SURPLUS
                self._talks.pop(device, None)
                self._losses.settle(device, SURPLUS)
                self._note(SURPLUS, device=device, arrival=arrivals[device].arrival)
            else:
                lost[device] = "deadline"
                self.accounts[device].overdue += 1
                self._losses.drop(Lost(device, "deadline"), self.round, arrival=arrivals[device].arrival)
                self._talks.pop(device, None)
        for device in judged.taken:
            self.tally.ends[device] = "answered" if arrivals[device].asked == self.round else "kept"
            self.accounts[device].overdue = 0
            self._losses.settle(device, "answered")
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
        ended = [End(device) for device, talk in sorted(self._talks.items()) if not talk.done]
        return ended + self._picking.after_round(self.round, self.elsewhere | set(self.kept))

    # -- helpers -----------------------------------------------------------------------------------------------------

    def doing(self, device: str) -> str:
        """What a device is at: 'picking', 'computing', 'waiting' (for its turn, or for others) or 'lost'.

        A device that is lost for this round only is 'lost' until the round ends.
        """
        if self.accounts[device].out or (device in self._losses.dropped and self.round_open):
            return "lost"
        if device in self._picking.seeking:
            return "picking"
        return "computing" if device in self._computing else "waiting"

    def _quorum(self, ask: Ask) -> int:
        """How many answers make a turn count; never more than the method itself waits for."""
        needed = self.brief.needed(len(ask.to))
        return needed if ask.want is None else min(needed, ask.want)

    def _sample(self) -> tuple[str, ...]:
        """This round's cohort, drawn among the devices that are available now and have nothing left to answer."""
        asked = [self.accounts[name] for name in self.ready if name not in self.kept]
        here, absent = present(self.brief, asked, self.round, self.now, self._losses.paused)
        for name, detail in absent.items():
            self._note("unavailable", device=name, **({"detail": detail} if detail else {}))
        return draw(self.brief, here, self.round, list(self.accounts))

    def _note(self, event: str, **details: Any) -> None:
        # events within a round carry its start, so that the order in which they are heard of leaves no trace
        place = {"stage": self.brief.stage, "round": self.round, "virtual_s": self._round_start}
        self.notes.append({"event": event, **place, **details})
