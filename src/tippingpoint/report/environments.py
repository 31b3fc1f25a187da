"""What is unlike in environments, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from tippingpoint.machine import Environment

# A longer value is cut down to the parts that are unlike.
_LONGEST = 60


def unlike_fields(environments: Sequence[Environment]) -> list[tuple[str, tuple[str, ...]]]:
    """Return every field that is not the same in all environments, with its value in each of them.

    Fields that hold several settings, such as versions of libraries, are shown setting by setting.
    """
    told = [_settings(environment) for environment in environments]
    names = dict.fromkeys(name for settings in told for name in settings)
    rows = [(name, tuple(settings.get(name, "") for settings in told)) for name in names]
    rows = [(name, _short(values)) for name, values in rows if len(set(values)) > 1]
    return [(name, tuple(value or "(not told)" for value in values)) for name, values in rows]


def differences_lines(environments: Mapping[str, Environment]) -> list[str]:
    """Return one line for each field that is unlike, naming who has which value; none if all are alike.

    Args:
        environments: By what they are called, such as the beginning of their fingerprints.
    """
    rows = unlike_fields(list(environments.values()))
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, values in rows:
        who: dict[str, list[str]] = {}
        for called, value in zip(environments, values, strict=True):
            who.setdefault(value, []).append(called)
        lines.append(
            f"{name:<{width}}  " + "; ".join(f"{value} in {', '.join(called)}" for value, called in who.items())
        )
    return lines


def _settings(environment: Environment) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields(environment):
        value = getattr(environment, field.name)
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):
            found |= {f"{field.name} {key}": str(setting) for key, setting in value}
        else:
            found[field.name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


def _short(values: tuple[str, ...]) -> tuple[str, ...]:
    if max(map(len, values)) <= _LONGEST:
        return values
    parts = [dict.fromkeys(value.replace("\n", ",").replace(", ", ",").split(",")) for value in values]
    common = set(parts[0]).intersection(*parts[1:])
    unlike = [", ".join(part.strip() for part in mine if part not in common) for mine in parts]
    return tuple(short or (value and "(the rest)") for short, value in zip(unlike, values, strict=True))
