# SPDX-License-Identifier: Apache-2.0
"""Which form of a function a program holds: its platform's, or both."""

import jax
import jax.numpy as jnp
import pytest

from dsbs_jax.core import platform

pytestmark = pytest.mark.parametrize('traced_for', [None], indirect=True)


@jax.jit
def chosen(x):
  return platform.choose(x, cpu=jnp.sin, others=jnp.cos)


def test_lowering_decides_unless_the_platform_is_told():
  x = jnp.ones(2)
  both = chosen.trace(x)
  texts = [
    both.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'tpu')
  ]
  assert 'sine' in texts[0] and 'cosine' not in texts[0]
  assert 'cosine' in texts[1] and 'stablehlo.sine' not in texts[1]


@pytest.mark.parametrize(
  ('name', 'form'), [('cpu', 'sin'), ('tpu', 'cos'), ('gpu', 'cos')]
)
def test_what_is_traced_for_a_platform_has_its_form_alone(name, form):
  x = jnp.ones(2)
  chosen.trace(x)  # JAX keeps it, and must not take it below
  with platform.traced_for(name):
    text = str(chosen.trace(x).jaxpr)
  assert f' {form} ' in text and text.count(' cos ') + text.count(' sin ') == 1
  # Nor is it taken for both afterwards, or where functions call one another.
  assert ' sin ' in str(jax.make_jaxpr(chosen)(x))
  assert ' cos ' in str(jax.make_jaxpr(chosen)(x))
  inner = platform.traced_for(name)(lambda x: chosen(x))
  text = str(jax.jit(inner).trace(x).jaxpr)
  assert text.count(' cos ') + text.count(' sin ') == 1
