# SPDX-License-Identifier: Apache-2.0
"""The table of a benchmark: one line per figure, as Markdown and JSON."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Row:
  """One figure."""

  section: str
  what: str
  value: float  # the median
  unit: str
  ratio: float | None = None  # the median of the ratios pair by pair
  against: str = ''  # what the ratio compares with
  spread: tuple[float, float] | None = None  # least and greatest
  cpu_seconds: float | None = None  # the median of what it took
  cpu_ratio: float | None = None  # how many times as many the other took


def row(
  section: str,
  what: str,
  values: Sequence[float],
  unit: str,
  *,
  others: Sequence[float] | None = None,
  against: str = '',
  cpu: Sequence[float] | None = None,
  cpu_of_others: Sequence[float] | None = None,
) -> Row:
  """A Row from repeated measurements: all sequences have a value per round.

  The others, and their CPU seconds, are those of what is compared with, which
  `against` names.
  """
  return Row(
    section,
    what,
    statistics.median(values),
    unit,
    _median_ratio(values, others),
    against,
    (min(values), max(values)) if len(values) > 1 else None,
    None if cpu is None else statistics.median(cpu),
    _median_ratio(cpu_of_others, cpu),
  )


def _median_ratio(
  values: Sequence[float] | None, others: Sequence[float] | None
) -> float | None:
  if values is None or others is None:
    return None
  return statistics.median(
    value / other for value, other in zip(values, others, strict=True)
  )


def rows(
  section: str,
  found: Mapping[str, Sequence[float]],
  unit: str,
  *,
  against: str | None = None,
  cpu: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[Row]:
  """A Row per name, compared with the one named `against`; as `row`."""
  cpu = cpu or {}
  for what, values in found.items():
    yield row(
      section,
      what,
      values,
      unit,
      others=found.get(against),
      against=against or '',
      cpu=cpu.get(what),
      cpu_of_others=cpu.get(against),
    )


def markdown(rows: Iterable[Row]) -> str:
  """All rows, one table per section."""
  lines, section = [], None
  for item in rows:
    if item.section != section:
      section = item.section
      lines += [
        '',
        f'### {section}',
        '',
        '| what | median | least to greatest | ratio | CPU seconds, ratio |',
        '|---|---|---|---|---|',
      ]
    spread = ''
    if item.spread:
      spread = ' to '.join(f'{value:,.3g}' for value in item.spread)
    ratio = f'{item.ratio:.2f}x {item.against}' if item.ratio else ''
    cpu = '' if item.cpu_seconds is None else _number(item.cpu_seconds)
    cpu += f', {item.cpu_ratio:.2f}x' if item.cpu_ratio else ''
    lines.append(
      f'| {item.what} | {_number(item.value)} {item.unit} | {spread} | {ratio}'
      f' | {cpu} |'
    )
  return '\n'.join(lines).strip()


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:,.3g}'


def machine() -> dict[str, object]:
  """Where and with what the figures were taken."""
  info = pathlib.Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else ''
  found = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
  packages = 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain'
  return {
    'time': time.strftime('%Y-%m-%d %H:%M', time.gmtime()),
    'processor': found[1] if found else platform.processor(),
    'cores': os.cpu_count(),
    'load': [round(value, 1) for value in os.getloadavg()],
    'devices': [str(device) for device in jax.devices()],
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
  }


def write(folder: pathlib.Path, rows: Sequence[Row], facts: dict) -> None:
  """Writes bench.md and bench.json, and prints the former."""
  folder.mkdir(parents=True, exist_ok=True)
  head = '\n'.join(f'- {name}: {value}' for name, value in facts.items())
  text = f'## Benchmark\n\n{head}\n\n{markdown(rows)}\n'
  (folder / 'bench.md').write_text(text)
  data = {'machine': facts, 'rows': [dataclasses.asdict(item) for item in rows]}
  (folder / 'bench.json').write_text(json.dumps(data, indent=1))
  print(text)
  print(f'written: {folder}/bench.md, bench.json')
