# SPDX-License-Identifier: Apache-2.0
"""python tests/llm/llama_server.py MODEL.gguf PORT [SLOTS] [CONTEXT] [KEY]

A llama.cpp server on loopback, in a process of its own. It serves until it is
killed, and needs the package xllamacpp and nothing of ours.
"""

import os
import signal
import sys

import xllamacpp


def main(model, port, slots=2, context=2048, key=''):
  params = xllamacpp.CommonParams()
  params.model.path = model
  params.hostnames, params.port = ['127.0.0.1'], int(port)
  params.n_ctx, params.n_parallel = int(context), int(slots)
  # Two threads are thirty times slower than one on two shared cores.
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
  params.model_alias = {'teacher'}
  if key:
    params.api_keys = [key]
  parent = os.getppid()
  server = xllamacpp.Server(params)
  print('ready', flush=True)
  signal.signal(signal.SIGALRM, lambda *_: None)
  while os.getppid() == parent:  # never outlives the test
    signal.setitimer(signal.ITIMER_REAL, 5)
    signal.pause()
  del server


if __name__ == '__main__':
  main(*sys.argv[1:])
