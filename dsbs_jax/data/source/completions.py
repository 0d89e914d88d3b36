# SPDX-License-Identifier: Apache-2.0
"""Completions of one split, handed out row by row.

Two kinds of files: arrays of strings that stand in the order of the rows (the
original archive, `completions_by_position`), and JSON lines that carry the
row's id (what `rationales` writes, and the user's own). Both check that nothing
is left over.
"""

import array
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import parsing, soft_labels
from dsbs_jax.data.source import json_reader, rows

HEADER = 'header'
COMPLETION = 'completion'
RATIONALIZATION = 'rationalization'
FAILURE = 'failure'
VERDICT = 'verdict'
COUNTERFACTUAL = 'counterfactual'
_KINDS = COMPLETION, RATIONALIZATION, COUNTERFACTUAL

_THINK, _THOUGHT = '<think>', '</think>'

Opener = Callable[[], BinaryIO]


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion of a row.

  Attributes:
    text: what the LLM wrote; lone surrogates are replaced by U+FFFD.
    number: which of several samples it is.
    hinted: whether the prompt gave the human label away.
    model: who wrote it; '' where that is not said.
    verdict: whether the LLM called it right when it was asked, see
      `parsing.verdict`; '' where it was not asked.
    wrong_label: what the prompt asked to argue for, in place of what is right;
      '' for other samples.
    logprobs: of the answer's tokens, see `soft_labels`; () where not given.
  """

  text: str
  number: int = 0
  hinted: bool = False
  model: str = ''
  verdict: str = ''
  wrong_label: str = ''
  logprobs: Sequence[soft_labels.Token] = ()


class Completions:
  """A split's completions; as such none, as before a benchmark's first stage.

  Attributes:
    torn: lines at the end that a kill had cut.
  """

  torn: int = 0

  def take(self, row: rows.Row) -> Sequence[Sample] | None:
    """The samples of the next row; None where a failure is recorded."""
    return ()

  def finish(self, num_rows: int) -> None:
    """Raises UserError where completions are left after the last row."""


class ById(Completions):
  """JSON lines with an `id`, in any order; only their offsets are in memory.

  Lines are told apart by their `kind`: completions (also lines without one),
  rationalizations, verdicts, counterfactuals and failures are read, all others
  are skipped. A verdict counts if the completion still reads as it was judged.
  Of two lines with the same id, sample and kind the first wins, or the last one
  with `retry`; a second text without the number of its sample is an error. A
  last line that was cut by a kill is left out and counted in `torn`.

  What `rationales` writes says which rows were asked about: the header names
  benchmark and split, each answer has its row's fingerprint.

  Args:
    wanted: settings that a header must not contradict.

  Raises:
    UserError: a line is malformed, or a header is of other rows.
  """

  def __init__(
    self, name: str, opener: Opener, *, wanted: Mapping[str, str] | None = None
  ):
    self._wanted = wanted or {}
    self._name = name
    self._opener = opener
    self._file = opener()
    hashes, offsets = self._scan()
    order = np.argsort(hashes, kind='stable')
    self._hashes, self._offsets = hashes[order], offsets[order]
    self._used = np.zeros(len(order), bool)

  def take(self, row: rows.Row) -> Sequence[Sample] | None:
    key = np.uint64(_hash(row.example_id))
    begin = int(np.searchsorted(self._hashes, key, side='left'))
    end = int(np.searchsorted(self._hashes, key, side='right'))
    samples, verdicts, failed = {}, {}, False
    for position in range(begin, end):
      self._file.seek(int(self._offsets[position]))
      line = json_reader.decode(self._file.readline(), self._name)
      if line['id'] != row.example_id:
        continue
      self._used[position] = True
      if line.get('kind') == FAILURE:
        failed = True
        continue
      if line.get('fingerprint') not in (None, row.fingerprint):
        raise self._another_row(row, position, line)
      if line.get('kind') == VERDICT:
        judged = line.get('sample') or 0, line.get('about')
        if line.get('retry'):
          verdicts[judged] = line['text']
        verdicts.setdefault(judged, line['text'])
        continue
      kind = _KINDS.index(line.get('kind', COMPLETION))
      number = line.get('sample') or 0
      model = str(line.get('model') or '')
      text = line['text']
      if 'prompt_hash' in line:  # earlier versions left reasoning in there
        text, _ = split_reasoning(text)
      sample = Sample(
        encodable(text),
        number,
        _KINDS[kind] == RATIONALIZATION,
        model,
        wrong_label=line['hint'] if _KINDS[kind] == COUNTERFACTUAL else '',
        logprobs=soft_labels.logprobs(line.get('logprobs')),
      )
      if line.get('retry'):
        samples[kind, number] = sample
      first = samples.setdefault((kind, number), sample)
      if first.text != sample.text and line.get('sample') is None:
        raise self._unnumbered(row, position)
    if failed and not samples:
      return None
    return tuple(
      _with_verdict(samples[key], verdicts) for key in sorted(samples)
    )

  def finish(self, num_rows: int) -> None:
    self._file.close()
    left = np.flatnonzero(~self._used)
    if not len(left):
      return
    with self._opener() as file:
      file.seek(int(self._offsets[left].min()))
      line = json_reader.decode(file.readline(), self._name)
    raise contract.UserError(
      f'{self._name} has {len(left):,} completions for ids that none of the'
      f' {num_rows:,} rows has, the first being {line["id"]!r}; expected ids'
      ' of this split. Check that rows and completions belong together.'
    )

  def _another_row(
    self, row: rows.Row, position: int, line: Mapping[str, Any]
  ) -> contract.UserError:
    return contract.UserError(
      f'{self._place(position)} has the id {row.example_id!r} of'
      f' {row.place}, but answers another row: the row reads'
      f' {row.input!r:.200}, the completion {line["text"]!r:.200}; expected the'
      ' row that was asked about. Give the rows as they were then, or delete'
      ' such lines: the same extraction then asks these rows again.'
    )

  def _unnumbered(self, row: rows.Row, position: int) -> contract.UserError:
    return contract.UserError(
      f'{self._place(position)} has another text for the id'
      f' {row.example_id!r}, which an earlier line has, expected "sample": 0,'
      ' 1, ... where a row has several. Number them, or keep one.'
    )

  def _place(self, position: int) -> str:
    with self._opener() as file:
      number = 1 + file.read(int(self._offsets[position])).count(b'\n')
    return f'{self._name}:{number}'

  def _scan(self) -> tuple[np.ndarray, np.ndarray]:
    """Checks every line; returns uint64 hashes of ids, and byte offsets."""
    hashes, offsets = array.array('Q'), array.array('Q')
    with self._opener() as file:
      for number, offset, line in json_reader.lines(file, self._name):
        place = f'{self._name}:{number}'
        try:
          value = json_reader.decode(line, place)
        except contract.UserError:
          if line.endswith(b'\n'):
            raise
          self.torn = 1
          continue
        self._check_header(value, place)
        if _is_sample(value, place):
          hashes.append(_hash(value['id']))
          offsets.append(offset)
    return np.array(hashes, np.uint64), np.array(offsets, np.uint64)

  def _check_header(self, line: Any, place: str) -> None:
    settings = header_settings(line)
    for name, wanted in self._wanted.items():
      if settings.get(name) not in (None, wanted):
        raise contract.UserError(
          f'{place} says that these are completions of the {name}'
          f' {settings[name]!r}, expected {wanted!r}. Give the completions of'
          ' these rows.'
        )


def header_settings(line: Any) -> Mapping[str, Any]:
  """The settings that a header tells; {} for any other line."""
  known = isinstance(line, dict) and line.get('kind') == HEADER
  settings = line.get('settings') if known else None
  return settings if isinstance(settings, dict) else {}


def split_reasoning(text: str) -> tuple[str, str]:
  """The answer, and what a reasoning model wrote in <think> tags before it.

  The opening tag may be in the server's chat template. Without the closing one
  the completion was cut before the answer.
  """
  thought, end, answer = text.rpartition(_THOUGHT)
  if not end:
    if not text.lstrip().startswith(_THINK):
      return text, ''
    thought, answer = text, ''
  return answer.lstrip(), thought.strip().removeprefix(_THINK).strip()


def _with_verdict(
  sample: Sample, verdicts: Mapping[tuple[int, str], str]
) -> Sample:
  """The sample with the verdict on it; completions alone are judged."""
  said = verdicts.get((sample.number, digest(sample.text)))
  if sample.hinted or sample.wrong_label or said is None:
    return sample
  answer, _ = split_reasoning(said)
  return dataclasses.replace(sample, verdict=parsing.verdict(answer))


def _is_sample(line: Any, place: str) -> bool:
  """Whether a line is about a row; checks the ones that are."""
  known = isinstance(line, dict)
  kind = line.get('kind', COMPLETION) if known else None
  if known and kind not in (*_KINDS, VERDICT, FAILURE):
    return False
  wanted = {FAILURE: ('id',), COUNTERFACTUAL: ('id', 'text', 'hint')}.get(
    kind, ('id', 'text')
  )
  if not known or not all(
    isinstance(line.get(key), str) and (line[key] or key != 'hint')
    for key in wanted
  ):
    raise contract.UserError(
      f'{place} is {str(line)[:60]!r}, expected an object with the strings'
      f' {" and ".join(map(json.dumps, wanted))}. Fix or drop the line.'
    )
  sample = line.get('sample') or 0
  if not isinstance(sample, int):
    raise contract.UserError(
      f'{place} has sample {sample!r}, expected a whole number. Fix or drop'
      ' the line.'
    )
  return True


def _hash(example_id: str) -> int:
  data = example_id.encode('utf-8', 'surrogatepass')
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def encodable(text: str) -> str:
  """The text with lone surrogates, which no file can hold, replaced."""
  return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def digest(text: str) -> str:
  """What a verdict names the completion by that it is about."""
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.sha256(data).hexdigest()[:16]
