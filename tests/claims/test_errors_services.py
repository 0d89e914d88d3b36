# SPDX-License-Identifier: Apache-2.0
"""Wrong settings of the server and of the planner: one clear error, status 2."""

import socket

import pytest

from tests.claims import doors
from tests.claims.errors import REPOSITORY, gin, refused

SERVE = {
  'no_checkpoint': (
    "CHECKPOINT_PATH='/nowhere'",
    ("checkpoint at '/nowhere'", 'Check CHECKPOINT_PATH'),
  ),
  'macro_typo': ('PRT=1', ('--gin.PRT=1', 'PORT?')),
  'port': ('PORT=70000', ('--gin.PORT=70000: port is 70000', '< 65,536')),
  'port_text': ("PORT='http'", ("port is 'http'", 'whole')),
  'host': ("HOST='no.such.invalid'", ("HOST 'no.such.invalid'", 'PORT')),
  'host_number': ('HOST=5', ('host is 5', 'text')),
  'batch_sizes_fall': (
    'BATCH_SIZES=(4, 1)',
    ('--gin.BATCH_SIZES', 'batch_sizes is (4, 1)', 'rising'),
  ),
  'batch_sizes_empty': ('BATCH_SIZES=()', ('batch_sizes is ()', 'rising')),
  'batch_sizes_number': ('BATCH_SIZES=4', ('batch_sizes is 4', 'rising')),
  'input_lengths': (
    "INPUT_LENGTHS=('a',)",
    ("input_lengths is ('a',)", 'rising'),
  ),
  'wait': ('MAX_WAIT_MS=-1', ('max_wait_ms is -1', '>= 0')),
  'wait_text': ("MAX_WAIT_MS='x'", ("max_wait_ms is 'x'", 'a number')),
  'queue': ('MAX_QUEUE=0', ('max_queue is 0', '>= 1')),
  'inputs': ('MAX_INPUTS=512', ('MAX_INPUTS is 512', 'MAX_QUEUE (256)')),
  'body': ('MAX_BODY_BYTES=0', ('max_body_bytes is 0', '>= 1')),
  'request_timeout': ('REQUEST_TIMEOUT=0', ('request_timeout is 0', 'above 0')),
  'request_nan': (
    "REQUEST_TIMEOUT='nan'",
    ("request_timeout is 'nan'", 'a number'),
  ),
  'drain': ('DRAIN_TIMEOUT=-1', ('drain_timeout is -1', '>= 0')),
  'prompt': ("PROMPT='Question'", ("PROMPT is 'Question'", '{input}')),
  'completion': ("COMPLETION='yes'", ("COMPLETION is 'yes'", '{label}')),
  'beams': ('NUM_BEAMS=0', ('num_beams is 0', '>= 1')),
  'task': (
    "MIXTURE_OR_TASK_NAME='svamp_gt_dsb'",
    ("'svamp_gt_dsb' is not a task name", "such as 'cqa_gt_dsbs'"),
  ),
  'vocabulary': ("VOCABULARY='no.model'", ("'no.model' is not a file",)),
  'other_vocabulary': (
    "VOCABULARY='{place}/q.txt'",
    ('q.txt', 'SentencePiece'),
  ),
  'step': ('STEP=99', ('step is 99', "'checkpoint_7'")),
  'mesh': ("MESH='2x'", ("mesh is '2x'", '"4x2"')),
  'width': ('EMB_DIM=8', ('of another size', 'Check the model file')),
}


@pytest.mark.parametrize('name', SERVE)
def test_serve_says_what_is_wrong(place, name):
  flag, parts = SERVE[name]
  refused(gin('serve', place, flag.replace('{place}', str(place))), *parts)


def test_a_port_that_is_taken_is_named(place):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    refused(
      gin('serve', place, f'PORT={port}'),
      f"HOST '127.0.0.1' and PORT {port} cannot be listened at",
      'another PORT',
    )


PLAN = {
  'no_mesh': (('--device=v5e',), ('--mesh is not given', '--mesh=8x4')),
  'no_device': (('--mesh=2x2',), ('--device is not given', '--device=v5e')),
  'mesh': (('--mesh=2x', '--device=v5e'), ("mesh is '2x'", '"4x2"')),
  'device': (
    ('--mesh=2x2', '--device=v9'),
    ('v9', 'v5e', 'h100'),
  ),
  'batch': (
    ('--mesh=2x2', '--device=h100', '--batch=12'),
    ("--batch is '12'", 'label:32x128/16'),
  ),
  'view': (
    ('--mesh=2x2', '--device=h100', '--batch=labl:8x8/8'),
    ("--batch is 'labl:8x8/8'", 'label, rationale'),
  ),
  'no_rows': (
    ('--mesh=2x2', '--device=h100', '--batch=0x128/16'),
    ("--batch is '0x128/16'", 'ROWSxINPUTS'),
  ),
  'price': (
    ('--mesh=2x2', '--device=v5e', '--price_per_device_hour=-1'),
    ('--price_per_device_hour is -1.0', '>= 0'),
  ),
  'price_nan': (
    ('--mesh=2x2', '--device=v5e', '--price_per_device_hour=nan'),
    ('--price_per_device_hour is nan', '>= 0'),
  ),
  'utilisation': (
    ('--mesh=2x2', '--device=v5e', '--utilisation=0.5'),
    ('--utilisation is 0.5,', '0.24,0.47'),
  ),
  'utilisation_falls': (
    ('--mesh=2x2', '--device=v5e', '--utilisation=0.5,0.2'),
    ('--utilisation is 0.5,0.2', 'low and high'),
  ),
  'utilisation_text': (
    ('--mesh=2x2', '--device=v5e', '--utilisation=a,b'),
    ('--utilisation is a,b', '0.24,0.47'),
  ),
}


@pytest.mark.parametrize('name', PLAN)
def test_plan_says_what_is_wrong(name):
  arguments, parts = PLAN[name]
  ended = doors.call(
    'dsbs_jax.plan',
    f'--gin_search_paths={REPOSITORY}',
    '--gin_file=gin/models/small.gin',
    *arguments,
  )
  refused(ended, *parts)
