# SPDX-License-Identifier: Apache-2.0
"""Text needs no quotes where a field takes text, and only there."""

import dataclasses
from collections.abc import Callable

import pytest

from dsbs_jax.runtime.configuration import gin_macros


@dataclasses.dataclass(frozen=True)
class Model:
  """A model.

  Attributes:
    width: of its layers.
    dtype: of its activations,
      bfloat16 or float32.
  """

  width: int
  dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings.

  Attributes:
    step: which one.
  """

  model: Model
  step: str | int
  folder: str | None
  sizes: tuple[int, ...]
  make: Callable[[], int]


CONFIG = """\
STEP = 'latest'
FOLDER = %gin.REQUIRED
here.Model.width = %WIDTH
here.Settings.step = \\
    %STEP
here.Settings.folder = %FOLDER
here.Settings.sizes = %SIZES
here.Settings.make = @here.make
"""
BINDINGS = gin_macros.Bindings(Settings, CONFIG)


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ('FOLDER = runs/a', "FOLDER = 'runs/a'"),
    ('FOLDER = it is', "FOLDER = 'it is'"),
    ("FOLDER = a'b", 'FOLDER = "a\'b"'),
    ('FOLDER = 2024-01', "FOLDER = '2024-01'"),
    ('FOLDER = {input}', "FOLDER = '{input}'"),
    ('FOLDER = a = b', "FOLDER = 'a = b'"),
    ('STEP = best', "STEP = 'best'"),
    ('here.Model.dtype = bfloat16', "here.Model.dtype = 'bfloat16'"),
    # What meant something before means it still.
    ("FOLDER = 'runs/a'", None),
    ('FOLDER = None', None),
    ('FOLDER = 3', None),
    ('FOLDER = %OTHER', None),
    ("FOLDER = 'open", None),
    ('STEP = 100', None),
    ('SIZES = (1, 2)', None),
    ('SIZES = (1, @two)', None),
    ('here.Settings.make = @here.other', None),
    ('UNKNOWN = word', None),
  ],
)
def test_text_is_quoted_by_the_type_of_its_field(given, expected):
  field = BINDINGS.field(given.partition(' = ')[0])
  assert gin_macros.quote(given, field) == (expected or given)


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ('WIDTH = wide', 'expected whole number'),
    ('SIZES = all', 'expected tuple of whole numbers'),
  ],
)
def test_a_word_for_a_field_that_takes_none_is_an_error(given, expected):
  field = BINDINGS.field(given.partition(' = ')[0])
  with pytest.raises(ValueError, match=f'the value cannot be read, {expected}'):
    gin_macros.quote(given, field)


def test_macros_are_told_by_their_fields():
  assert list(BINDINGS.macros()) == ['STEP', 'FOLDER', 'SIZES', 'WIDTH']
  assert BINDINGS.macros()['STEP'].type_text == 'text or whole number'
  assert BINDINGS.macros()['FOLDER'].type_text == 'text or None'
  dtype = BINDINGS.field('here.Model.dtype')
  assert dtype.doc == 'of its activations, bfloat16 or float32.'
  assert gin_macros.defaults(CONFIG) == {
    'STEP': "'latest'",
    'FOLDER': 'required',
  }


def test_defaults_become_macros_where_there_are_some():
  defaults = gin_macros.Defaults(
    'runs/a',
    {
      'Settings': {'step': 7, 'unknown': 1},
      'Model': {'width': 8, 'dtype': 'bfloat16'},
    },
    {'folder': 'say it'},
  )
  assert BINDINGS.lines(defaults) == [
    'STEP = 7',
    'WIDTH = 8',
    "here.Model.dtype = 'bfloat16'",
  ]
  assert BINDINGS.missing(defaults) == {'FOLDER': 'say it'}


def test_a_value_goes_on_in_indented_lines():
  config = "SIZES = \\\n    {'a': 1,\n     'b': 2}\nSTEP = 'latest'\n"
  assert gin_macros.values(config) == {
    'SIZES': {'a': 1, 'b': 2},
    'STEP': 'latest',
  }
  assert gin_macros.defaults(config)['SIZES'] == "{'a': 1, 'b': 2}"
