"""Configuration files: YAML or JSON with our own names as keys, and what Composer and DeepSpeed users have.

Read next: :mod:`slw_data.cli.arguments`, which merges them with the command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slw_data.compat import from_composer, from_deepspeed
from slw_data.plan.schedules import Schedule

__all__ = ["composer_schedule", "deepspeed_schedule", "read_mapping"]

COMPOSER_KEYS = ("duration", "min_seq_length", "max_seq_length", "step_size")
COMPOSER_UNUSED = ("truncate", "preserve_end_of_sequence")  # how rows are cut, which no length depends on
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def read_mapping(path: str) -> dict[str, Any]:
    """The mapping in a YAML or, by its suffix, JSON file. ValueError, naming the file, for anything else in it."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        value = json.loads(text) if path.lower().endswith(".json") else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {str(error) or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a mapping of names to values, it holds {type(value).__name__}")
    return {str(key): entry for key, entry in value.items()}


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def composer_schedule(path: str, total_steps: int | None) -> tuple[Schedule, int]:
    """The schedule of ``seq_length_warmup`` in a Composer YAML, and the steps of its run: ``total_steps`` if it is
    given, else ``max_duration`` in batches."""
    config = read_mapping(path)
    section = _composer_section(config, path)
    unknown = [key for key in section if key not in (*COMPOSER_KEYS, *COMPOSER_UNUSED)]
    if unknown:
        raise ValueError(f"{path}: seq_length_warmup has no argument {unknown[0]!r}, only {', '.join(COMPOSER_KEYS)}")
    steps = total_steps if total_steps is not None else _composer_steps(config, path)
    given = {key: _resolved(section[key], config, path) for key in COMPOSER_KEYS if key in section}
    return _named(path, lambda: from_composer(total_steps=steps, **given)), steps


def _composer_section(config: dict[str, Any], path: str) -> dict[str, Any]:
    algorithms = config.get("algorithms")
    entries = algorithms if isinstance(algorithms, list) else [algorithms]
    for entry in (config, *entries):
        if isinstance(entry, dict) and "seq_length_warmup" in entry:
            section = entry["seq_length_warmup"]
            if not isinstance(section, (dict, type(None))):
                raise ValueError(f"{path}: seq_length_warmup must be a mapping, it is {section!r}")
            return section or {}
        if entry == "seq_length_warmup":
            return {}
    if algorithms is None and any(key in config for key in COMPOSER_KEYS):
        return {key: value for key, value in config.items() if key != "max_duration"}
    raise ValueError(f"{path} has no seq_length_warmup under algorithms, it has {', '.join(config) or 'nothing'}")


def _composer_steps(config: dict[str, Any], path: str) -> int:
    trainer = config.get("trainer")
    duration = config.get("max_duration", trainer.get("max_duration") if isinstance(trainer, dict) else None)
    duration = _resolved(duration, config, path)
    if isinstance(duration, str) and (match := re.fullmatch(r"\s*(\d+)\s*ba\s*", duration)):
        return int(match[1])
    got = "has no max_duration" if duration is None else f"has max_duration={duration!r}, not in batches ('10000ba')"
    raise ValueError(f"{path} {got}: the warmup is a part of the run, so give --total-steps")


def _resolved(value: Any, config: dict[str, Any], path: str) -> Any:
    """What ``${a.b}`` stands for: Composer's YAML often names its lengths once, at the top."""
    seen = []
    while isinstance(value, str) and (match := REFERENCE.fullmatch(value.strip())):
        if value in seen:
            raise ValueError(f"{path}: {value} refers to itself")
        seen.append(value)
        found: Any = config
        for key in match[1].split("."):
            if not isinstance(found, Mapping) or key not in found:
                raise ValueError(f"{path}: {value} refers to {match[1]}, which is not there")
            found = found[key]
        value = found
    return value


def deepspeed_schedule(path: str) -> Schedule:
    """The schedule of DeepSpeed's curriculum on ``seqlen``: either of its two sections, or the bare section."""
    section = _deepspeed_section(read_mapping(path), path)
    return _named(path, lambda: from_deepspeed(section))


def _deepspeed_section(config: dict[str, Any], path: str) -> Mapping[str, Any]:
    if "min_difficulty" in config or "schedule_type" in config:
        return config
    if "curriculum_learning" in config:
        return _mapping(config, "curriculum_learning", path)
    if "data_efficiency" not in config:
        raise ValueError(f"{path} has neither curriculum_learning nor data_efficiency, it has {', '.join(config) or 'nothing'}")
    for key in ("data_efficiency", "data_sampling", "curriculum_learning"):
        config = _mapping(config, key, path)
        if config.get("enabled", True) is not True:
            raise ValueError(f"{path}: {key} has enabled={config['enabled']!r}, so DeepSpeed leaves the rows as they are")
    section = _mapping(_mapping(config, "curriculum_metrics", path), "seqlen", path)
    if section.get("difficulty_type", "value") != "value":
        raise ValueError(f"{path}: seqlen has difficulty_type={section['difficulty_type']!r}: only 'value' is a length of rows")
    return section


def _mapping(config: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict):
        got = f"is {value!r}" if key in config else f"is missing beside {', '.join(map(str, config)) or 'nothing'}"
        raise ValueError(f"{path}: {key} must be a mapping, it {got}")
    return value


def _named(path: str, make: Any) -> Schedule:
    """``make()``, whose errors name the file."""
    try:
        schedule: Schedule = make()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return schedule
