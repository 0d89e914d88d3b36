# SPDX-License-Identifier: Apache-2.0
"""The table of a benchmark: one line per figure, as Markdown and JSON."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')


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


def row(
  section: str,
  what: str,
  values: Sequence[float],
  unit: str,
  *,
  others: Sequence[float] | None = None,
  against: str = '',
) -> Row:
  """A Row from repeated measurements; others were taken in the same rounds."""
  ratio = None
  if others is not None:
    ratio = statistics.median(
      value / other for value, other in zip(values, others, strict=True)
    )
  return Row(
    section,
    what,
    statistics.median(values),
    unit,
    ratio,
    against,
    (min(values), max(values)) if len(values) > 1 else None,
  )


def rows(
  section: str,
  found: Mapping[str, Sequence[float]],
  unit: str,
  *,
  against: str | None = None,
) -> Iterator[Row]:
  """A Row per name, compared with the one named `against`."""
  for what, values in found.items():
    others = None if against is None else found[against]
    yield row(section, what, values, unit, others=others, against=against or '')


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
        '| what | median | least to greatest | ratio |',
        '|---|---|---|---|',
      ]
    spread = ''
    if item.spread:
      spread = ' to '.join(f'{value:,.3g}' for value in item.spread)
    ratio = f'{item.ratio:.2f}x {item.against}' if item.ratio else ''
    lines.append(
      f'| {item.what} | {_number(item.value)} {item.unit} | {spread} | {ratio} |'
    )
  return '\n'.join(lines).strip()


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:,.3g}'


def machine() -> dict[str, object]:
  """Where and with what the figures were taken."""
  model = platform.processor()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        model = line.split(':', 1)[1].strip()
        break
  return {
    'time': time.strftime('%Y-%m-%d %H:%M', time.gmtime()),
    'processor': model,
    'cores': os.cpu_count(),
    'load': [round(value, 1) for value in os.getloadavg()],
    'devices': [str(device) for device in jax.devices()],
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
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
