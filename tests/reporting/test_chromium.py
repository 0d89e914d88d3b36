# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: it filters, and runs nobody else's script."""

import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse

import pytest

from dsbs_jax.data import benchmark
from dsbs_jax.reporting import report


def _chromium():
  found = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))),
    None,
  )
  if found is None:
    pytest.skip('Chromium is not installed (or set CHROMIUM)')
  return found


def _dom(path: pathlib.Path, state: dict[str, str], profile: pathlib.Path):
  """The page's elements after its script ran, as Chromium writes them."""
  address = path.as_uri() + '#' + urllib.parse.urlencode(state)
  flags = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run'
    ' --disable-background-networking --disable-component-update'
    ' --disable-sync --dump-dom'
  )
  done = subprocess.run(
    [_chromium(), *flags.split(), f'--user-data-dir={profile}', address],
    capture_output=True,
    check=True,
    timeout=300,
  )
  return done.stdout.decode('utf-8', 'replace')


def _shown(dom: str) -> list[int]:
  return [int(i) for i in re.findall(r'<article[^>]*data-index="(\d+)"', dom)]


def test_chromium_filters_searches_and_pages(make_run, tmp_path):
  lines = [
    make_run.line(
      i, prediction='yes' if i % 3 else 'no', text='tree' if i > 30 else ''
    )
    for i in range(40)
  ]
  make_run(predictions=lines)
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  profile = tmp_path / 'profile'

  wrong = _dom(path, {'show': 'wrong'}, profile)
  assert _shown(wrong) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
  assert '14 of 40 examples; the selected student is right on 0' in wrong
  second = _dom(path, {'show': 'wrong', 'page': '2'}, profile)
  assert _shown(second) == [30, 33, 36, 39]
  found = _dom(path, {'show': 'right', 'q': 'TREE'}, profile)
  assert _shown(found) == [31, 32, 34, 35, 37, 38]
  assert '<mark>tree</mark>' in found


def test_chromium_compares_any_two_methods(make_run, tmp_path):
  for method, is_right in (
    ('gt_finetune', lambda i: i < 10),
    ('gt_dsbs', lambda i: i >= 8),
  ):
    make_run(
      method=method,
      predictions=[
        make_run.line(i, prediction='yes' if is_right(i) else 'no')
        for i in range(40)
      ],
    )
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  given = {'first': '1', 'second': '0', 'show': 'only-second'}
  dom = _dom(path, given, tmp_path / 'profile')
  assert _shown(dom) == list(range(8))
  assert '8 of 40 examples; the selected student is right on 0' in dom
  # 32 right against 10 right, over 40 examples.
  assert '<td>+55.00</td>' in dom
  assert 'the first: 30 examples</button>' in dom
  assert 'the second: 8 examples</button>' in dom
  cells = dict(re.findall(r'data-pair="(\d-\d)"[^>]*>([^<]*)</button>', dom))
  assert cells == {'0-1': '−55.00', '1-0': '+55.00'}
  for text in ('Step-by-step, human labels minus Standard finetuning', 'p'):
    assert text in dom


def test_chromium_picks_a_pair_by_a_click(make_run, tmp_path):
  for method in ('gt_finetune', 'gt_dsbs', 'llm_dsbs'):
    make_run(
      method=method,
      predictions=[
        make_run.line(i, prediction='yes' if len(method) > 7 + i else 'no')
        for i in range(6)
      ],
    )
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  clicks = (
    'document.querySelector(\'[data-pair="2-1"]\').click();'
    "document.getElementById('only-first').click();"
  )
  text = path.read_text()
  path.write_text(text.replace('</body>', f'<script>{clicks}</script></body>'))
  dom = _dom(path, {}, tmp_path / 'profile')
  assert 'Step-by-step, LLM labels minus Step-by-step, human labels' in dom
  assert _shown(dom) == [0]
  assert re.search(r'data-pair="2-1"', dom)
  assert '1 of 6 examples' in dom


def test_chromium_filters_by_what_a_rationale_argues_for(
  make_run, teach, tmp_path
):
  said = ('So 2 + 2 = 4.', 'So 2 + 3 = 5.', 'It is so.', '')
  teach(
    *(
      benchmark.Example(
        *(i, f'r{i}', f'question {i}', '4', '(', text, 'malformed_label')
      )
      for i, text in enumerate(said)
    )
  )
  lines = [make_run.line(i, target='4') for i in range(4)]
  make_run(benchmark='svamp', predictions=lines)
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  for show, indices in (('argues-for', [0]), ('argues-against', [1])):
    dom = _dom(path, {'show': show}, tmp_path / 'profile')
    assert _shown(dom) == indices


def test_chromium_runs_no_hostile_text(hostile_runs, tmp_path):
  path = report.report([str(hostile_runs.folder)], out=str(tmp_path / 'out'))
  dom = _dom(path, {'show': 'all'}, tmp_path / 'profile')
  assert _shown(dom) == list(range(len(hostile_runs.texts)))
  assert '<title>Distilling step-by-step' in dom
  assert 'pwned</title>' not in dom
  assert '<img' not in dom
  assert dom.count('<script') == 2
  for code in ('U+0000', 'U+0007', 'U+202E', 'U+2066', 'U+2028', 'U+D800'):
    assert f'>{code}</span>' in dom
