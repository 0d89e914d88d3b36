# SPDX-License-Identifier: Apache-2.0
"""Gin's silent mistakes are loud errors."""

import dataclasses
import textwrap

import pytest

from dsbs_jax.runtime.configuration import gin_config


@dataclasses.dataclass(frozen=True)
class Model:
  width: int
  depth: int = 2


@dataclasses.dataclass(frozen=True)
class Settings:
  model: Model
  folder: str


def wide():
  return 99


@pytest.fixture
def files(tmp_path):
  engine = tmp_path / 'engine.gin'
  engine.write_text(
    textwrap.dedent(f"""
      from __gin__ import dynamic_registration
      import {__name__} as here

      FOLDER = %gin.REQUIRED
      WIDTH = 4

      here.Settings:
        model = @here.Model()
        folder = %FOLDER
      here.Model.width = %WIDTH
      """)
  )
  model = tmp_path / 'model.gin'
  model.write_text('WIDTH = 8\n')
  return [str(engine), str(model)]


def _build(files, *bindings):
  return gin_config.build(Settings, gin_files=files, gin_bindings=bindings)


def test_flags_override_files_and_later_files_override_earlier(files):
  assert _build(files, "FOLDER = '/a'") == Settings(Model(8), '/a')
  assert _build(files, "FOLDER = '/a'", 'WIDTH = 16').model.width == 16


def test_flags_may_name_what_no_file_binds(files):
  built = _build(
    files, "FOLDER = '/a'", 'here.Model.depth = 5', 'WIDTH = @here.wide()'
  )
  assert built.model == Model(99, 5)


def test_operative_config_rebuilds_the_settings(files, tmp_path):
  built = _build(files, "FOLDER = '/a'")
  written = str(tmp_path / 'config.gin')
  (tmp_path / 'config.gin').write_text(gin_config.operative_text())
  assert (
    gin_config.build(Settings, gin_files=[written], gin_bindings=[]) == built
  )


@pytest.mark.parametrize(
  ('binding', 'expected'),
  [
    ('WIDHT = 3', 'WIDHT is read by nothing.*Did you mean WIDTH'),
    ('here.Model.widht = 3', 'has no parameter widht. Did you mean width?'),
    ('here.Modle.width = 3', 'has no Modle. Did you mean here.Model?'),
    ('WIDTH = eight', 'gin.WIDTH=eight: the value cannot be read'),
  ],
)
def test_typos_are_errors(files, binding, expected):
  with pytest.raises(ValueError, match=expected):
    _build(files, "FOLDER = '/a'", binding)


def test_missing_value_is_an_error(files):
  with pytest.raises(ValueError, match='FOLDER'):
    _build(files)


def test_engine_file_comes_first(files):
  with pytest.raises(ValueError, match='expected it first'):
    _build(files[::-1], "FOLDER = '/a'")


def test_missing_file_is_named(files):
  with pytest.raises(ValueError, match='nowhere.gin'):
    _build([*files, 'nowhere.gin'], "FOLDER = '/a'")
