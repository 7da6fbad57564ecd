"""Quantities with units, both ways: ``'512MiB'`` to 536870912 and back.

Inside fedge a size is bytes (int), a duration seconds, a bit rate bits per second, a byte rate bytes per second,
compute floating-point operations per second, power watts, and a share a number from 0 to 1. Outside, in YAML and on
the command line, each carries its unit. Every ``parse_*`` raises ``ValueError`` with a message for a person; every
``format_*`` rounds for reading, or with ``exact=True`` gives a text that parses to the very same number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

# digits and exponent are bounded so that no text can ask for an integer of a billion digits
_QUANTITY = re.compile(
    r"\s*([+-]?)(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE]([+-]?\d{1,3})(?![0-9.]))?\s*(.*?)\s*", re.S
)


@dataclass(frozen=True)
class _Kind:
    what: str  # how a message calls it
    units: dict[str, Decimal]  # spelling that is written -> factor
    also: dict[str, str]  # other spellings that are read -> spelling that is written
    wrong: dict[str, str]  # a unit that is easily meant but is not right -> what to say; {n} is the number
    propose: str  # the unit that a bare number most likely lacks
    most: float  # beyond this it is a slip, not a device
    zero: bool = False

    def read(self, given: object, zero: bool | None = None) -> Decimal:
        shown = _shown(given)
        number = _number(given)
        if number is not None:  # a bare number, or a text that holds nothing else
            if not math.isfinite(number):
                raise ValueError(f"{shown}: not a finite number")
            if number == 0 and (self.zero if zero is None else zero):
                return Decimal(0)
            if number < 0:
                raise ValueError(f"{shown}: {self.what} can't be negative")
            if number == 0:
                raise ValueError(f"{shown}: {self.what} can't be zero, and has a unit, such as '{self.example}'")
            raise ValueError(f"{shown}: a unit is missing; {shown}{self.propose}?")
        if not isinstance(given, str):
            raise ValueError(f"{shown}: expected {self.what} with its unit, such as '{self.example}'")
        match = _QUANTITY.fullmatch(given)
        if match is None or match[4][:1] in "0123456789.,_+-":
            hint = "; the decimal sign is a point" if re.match(r"\s*\d+,\d", given) else ""
            raise ValueError(f"{shown}: expected {self.what}, such as '{self.example}'{hint}")
        sign, digits, exponent, unit = match.groups()
        factor = self._factor(shown, digits, unit)
        value = Decimal(f"{digits}e{exponent or 0}") * factor
        if sign == "-" and value != 0:
            raise ValueError(f"{shown}: {self.what} can't be negative")
        if value == 0 and not (self.zero if zero is None else zero):
            raise ValueError(f"{shown}: {self.what} can't be zero")
        if value > Decimal(self.most):
            raise ValueError(f"{shown}: {self.what} beyond anything real")
        return value

    @property
    def plain(self) -> str:
        return next(unit for unit, factor in self.units.items() if factor == 1)

    @property
    def example(self) -> str:
        return f"40{self.propose}"

    def _factor(self, shown: str, digits: str, unit: str) -> Decimal:
        if unit in self.units:
            return self.units[unit]
        if unit in self.also:
            return self.units[self.also[unit]]
        if unit in self.wrong:
            raise ValueError(f"{shown}: {self.wrong[unit].format(n=digits)}")
        lowered = {name.lower(): name for name in self.also} | {name.lower(): name for name in self.units}
        if unit.lower() in lowered:
            name = lowered[unit.lower()]
            return self.units[self.also.get(name, name)]
        raise ValueError(f"{shown}: '{_shown(unit)}' is no unit of {self.what}; {', '.join(self.units)} are")

    def exact(self, value: float) -> str:
        """The shortest text that reads back as the same number."""
        if value == 0:
            return f"0{self.propose}"
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        texts = [(True, 40, Decimal(0), f"{value!r}{self.plain}")]
        for unit, factor in self.units.items():
            scaled = (number / factor).normalize()
            text = f"{scaled:f}{unit}"
            if len(text) <= 30 and self.read(text) == number:
                texts.append((scaled < 1, len(text), -factor, text))
        return min(texts)[-1]

    def human(self, value: float, units: tuple[str, ...]) -> str:
        """Three figures and the unit that keeps the number small; ``units`` from small to large."""
        chosen = units[0]
        for unit in units:
            # just below a unit, three figures would read 1000 of the one before
            if abs(value) >= float(self.units[unit]) * (1 - 5e-4):
                chosen = unit
        scaled = value / float(self.units[chosen])
        text = f"{scaled:.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
        return f"{text} {chosen}"


def _number(given: object) -> float | None:
    if isinstance(given, bool):
        return None
    if isinstance(given, (int, float)):
        try:
            return float(given)
        except OverflowError:
            return math.inf
    if isinstance(given, str):
        try:
            return float(given)
        except ValueError:
            return None
    return None


def _shown(given: object) -> str:
    if isinstance(given, bool):
        return "true" if given else "false"
    if given is None:
        return "nothing"
    if isinstance(given, dict):
        return "a mapping"
    if isinstance(given, (list, tuple)):
        return "a list"
    text = str(given).strip() if isinstance(given, (str, int, float)) else type(given).__name__
    text = text if len(text) <= 40 else text[:37] + "..."
    return text or "''"


def _decimal(prefixes: str, suffix: str) -> dict[str, Decimal]:
    powers = {"n": -9, "µ": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12}
    return {(p if p != "_" else "") + suffix: Decimal(10) ** powers[p if p != "_" else ""] for p in prefixes}


_BYTES = _Kind(
    what="a size",
    units={
        **_decimal("_kMGT", "B"),
        **{f"{p}iB": Decimal(1024) ** n for n, p in enumerate("KMGT", start=1)},
    },
    also={"byte": "B", "bytes": "B", "KB": "kB"},
    wrong={
        **{p: f"is that {p}B or {p}iB? {{n}}{p}iB?" for p in "KMGT"},
        "k": "is that kB or KiB? {n}KiB?",
        "m": "is that MB or MiB? {n}MiB?",
        "g": "is that GB or GiB? {n}GiB?",
        "b": "b is a bit; {n}B?",
        **{f"{p}b": f"{p}b counts bits; {{n}}{p}B?" for p in "kKMGT"},
        **{f"{p}bit": f"{p}bit counts bits; {{n}}{p}B?" for p in "kMGT"},
    },
    propose="MiB",
    most=2.0**60,
)
_BITRATE = _Kind(
    what="a bit rate",
    units=_decimal("_kMG", "bit/s"),
    also={
        **{f"{p}bps": f"{p}bit/s" for p in ("", "k", "M", "G")},
        **{f"{p}b/s": f"{p}bit/s" for p in ("", "k", "M", "G")},
    },
    wrong={
        **{f"{p}B/s": f"{p}B/s counts bytes, a link's rate is in bits; {{n}}{p}bit/s?" for p in ("", "k", "M", "G")},
        **{f"{p}bit": f"a rate is per second; {{n}}{p}bit/s?" for p in ("", "k", "M", "G")},
    },
    propose="Mbit/s",
    most=1e15,
)
_BYTERATE = _Kind(
    what="a byte rate",
    units={
        **_decimal("_kMGT", "B/s"),
        **{f"{p}iB/s": Decimal(1024) ** n for n, p in enumerate("KMGT", start=1)},
    },
    also={"KB/s": "kB/s"},
    wrong={
        **{f"{p}bit/s": f"{p}bit/s counts bits; {{n}}{p}B/s?" for p in ("", "k", "M", "G")},
        **{f"{p}b/s": f"{p}b/s counts bits; {{n}}{p}B/s?" for p in ("", "k", "M", "G")},
        **{f"{p}B": f"a rate is per second; {{n}}{p}B/s?" for p in ("", "k", "M", "G", "T")},
    },
    propose="GB/s",
    most=1e16,
)
# 1:30 and 1m30s
_SEVERAL = re.compile(r"\s*(\d+:\d+(:\d+)?|\d+\s*[A-Za-z]+\s*(\d+\s*[A-Za-z]+\s*)+)")
_SECONDS = _Kind(
    what="a duration",
    units={
        **_decimal("nµm_", "s"),
        "min": Decimal(60),
        "h": Decimal(3600),
        "d": Decimal(86400),
    },
    also={
        "us": "µs",
        "μs": "µs",  # the Greek letter beside the micro sign
        **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
        **dict.fromkeys(("mins", "minute", "minutes"), "min"),
        **dict.fromkeys(("hr", "hour", "hours"), "h"),
        **dict.fromkeys(("day", "days"), "d"),
    },
    wrong={"m": "is that min or ms? {n}min?", "M": "M is no unit of time; {n}min?"},
    propose="s",
    most=86400.0 * 3660,
    zero=True,
)
_FLOPS = _Kind(
    what="compute",
    units=_decimal("_kMGT", "FLOP/s"),
    also={
        **{f"{p}FLOPS": f"{p}FLOP/s" for p in ("", "k", "M", "G", "T")},
        **{f"{p}FLOPs/s": f"{p}FLOP/s" for p in ("", "k", "M", "G", "T")},
    },
    wrong={f"{p}FLOP": f"a rate is per second; {{n}}{p}FLOP/s?" for p in ("", "k", "M", "G", "T")}
    | {f"{p}Hz": f"{p}Hz is a clock rate, not compute; {{n}}{p}FLOP/s?" for p in ("", "k", "M", "G", "T")}
    | {f"{p}OPS": f"{p}OPS counts small integers; what does it sustain in fp32, in GFLOP/s?" for p in ("G", "T")}
    | dict.fromkeys(("core", "cores"), "say what the cores sustain together, such as {n}GFLOP/s"),
    propose="GFLOP/s",
    most=1e21,
)
_WATTS = _Kind(
    what="power",
    units=_decimal("m_k", "W"),
    also={"watt": "W", "watts": "W"},
    wrong={"J": "J is energy, power is in watts; {n}W?", "Wh": "Wh is energy, power is in watts; {n}W?"},
    propose="W",
    most=1e7,
    zero=True,
)
_JOULES = _Kind(
    what="energy",
    units={**_decimal("m_kM", "J"), "mWh": Decimal("3.6"), "Wh": Decimal(3600), "kWh": Decimal(3600000)},
    also={"joule": "J", "joules": "J"},
    wrong={
        "W": "W is power, energy is in joules; {n}J?",
        "mAh": "mAh needs a voltage; 4000mAh at 3.85V are 15.4Wh",
        "%": "a share of what? say it in joules or Wh",
    },
    propose="J",
    most=1e12,
)


def parse_bytes(given: object) -> int:
    """A size in bytes, from '512MiB', '1.5GB', '90 MB'."""
    value = _BYTES.read(given)
    whole = int(value.to_integral_value())
    if whole == 0:
        raise ValueError(f"{_shown(given)}: a size is at least 1B")
    return whole


def parse_bitrate(given: object) -> float:
    """A link's rate in bits per second, from '2Mbit/s'."""
    return float(_BITRATE.read(given))


def parse_byterate(given: object) -> float:
    """Memory traffic in bytes per second, from '4.8 GB/s'."""
    return float(_BYTERATE.read(given))


def parse_seconds(given: object, *, zero: bool = True) -> float:
    """A duration in seconds, from '40ms', '90s', '2min'."""
    if isinstance(given, str) and _SEVERAL.fullmatch(given):
        raise ValueError(f"{_shown(given)}: a duration is one number and one unit, such as 90s or 1.5min")
    return float(_SECONDS.read(given, zero))


def parse_flops(given: object) -> float:
    """Compute in floating-point operations per second, from '9 GFLOP/s'."""
    return float(_FLOPS.read(given))


def parse_watts(given: object) -> float:
    """Power in watts, from '6W'."""
    return float(_WATTS.read(given))


def parse_joules(given: object) -> float:
    """Energy in joules, from '20J', '15.4Wh'."""
    return float(_JOULES.read(given))


def parse_share(given: object, *, zero: bool = True) -> float:
    """A share from 0 to 1, from '80%' or 0.8."""
    shown = _shown(given)
    number = _number(given)
    if number is None and isinstance(given, str) and given.strip().endswith("%"):
        digits = given.strip()[:-1].strip()
        if re.fullmatch(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})", digits):
            number = float(Decimal(digits) / 100)
    if number is None:
        raise ValueError(f"{shown}: expected a share, such as 80% or 0.8")
    if not math.isfinite(number):
        raise ValueError(f"{shown}: not a finite number")
    if number < 0:
        raise ValueError(f"{shown}: a share can't be negative")
    if number > 1:
        bare = f"; {shown}%?" if not shown.endswith("%") and 2 <= number <= 100 else ""
        raise ValueError(f"{shown}: a share is at most 100%{bare}")
    if number == 0 and not zero:
        raise ValueError(f"{shown}: this share can't be zero")
    return number


def format_bytes(size: float, *, exact: bool = False) -> str:
    """'40 MiB' for 41943040."""
    return _BYTES.exact(size) if exact else _BYTES.human(size, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_bitrate(rate: float, *, exact: bool = False) -> str:
    """'2 Mbit/s' for 2e6 bits per second."""
    return _BITRATE.exact(rate) if exact else _BITRATE.human(rate, tuple(_BITRATE.units))


def format_byterate(rate: float, *, exact: bool = False) -> str:
    """'4.8 GB/s' for 4.8e9 bytes per second."""
    return _BYTERATE.exact(rate) if exact else _BYTERATE.human(rate, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"))


def format_seconds(duration: float, *, exact: bool = False) -> str:
    """'40 ms', '7.2 s', '13 min 32 s', '5 h 03 min'."""
    if exact:
        return _SECONDS.exact(duration)
    if duration == 0:
        return "0 s"
    if abs(duration) < 99.95:
        return _SECONDS.human(duration, ("ns", "µs", "ms", "s"))
    if duration < 3600 - 0.5:
        minutes, seconds = divmod(round(duration), 60)
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(duration / 60), 60)
    return f"{hours} h {minutes:02d} min"


def format_flops(rate: float, *, exact: bool = False) -> str:
    """'9 GFLOP/s' for 9e9."""
    return _FLOPS.exact(rate) if exact else _FLOPS.human(rate, tuple(_FLOPS.units))


def format_watts(power: float, *, exact: bool = False) -> str:
    """'6 W'."""
    return _WATTS.exact(power) if exact else _WATTS.human(power, tuple(_WATTS.units))


def format_joules(energy: float, *, exact: bool = False) -> str:
    """'20 J', '55.4 kJ'."""
    return _JOULES.exact(energy) if exact else _JOULES.human(energy, ("mJ", "J", "kJ", "MJ"))


def format_share(share: float) -> str:
    """'80%' for 0.8; always exact."""
    percent = (Decimal(repr(float(share))) * 100).normalize()
    # a share of 1e-300 would fill a page with zeros
    return f"{percent:f}%" if share == 0 or share >= 1e-6 else repr(float(share))
