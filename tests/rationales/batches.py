# SPDX-License-Identifier: Apache-2.0
"""The files and batches of the tests' server (see `loopback`)."""

import json
import re
import time

_BOUNDARY = re.compile(r'boundary="?([^";]+)')


def refusal(body: dict) -> dict | None:
  """What OpenAI's reasoning models say to a request, None to a good one."""
  if 'max_tokens' in body:
    name, code = 'max_tokens', 'unsupported_parameter'
    words = (
      "Unsupported parameter: 'max_tokens' is not supported with this model."
      " Use 'max_completion_tokens' instead."
    )
  elif body.get('temperature', 1) != 1:
    name, code = 'temperature', 'unsupported_value'
    words = (
      "Unsupported value: 'temperature' does not support 0.0 with this model."
      ' Only the default (1) value is supported.'
    )
  else:
    return None
  kind = 'invalid_request_error'
  return {'message': words, 'type': kind, 'param': name, 'code': code}


class Store:
  """Uploaded files, and batches that complete after some polls."""

  def __init__(self, teacher):
    self.teacher = teacher
    self.files: dict[str, bytes] = {}
    self.batches: dict[str, dict] = {}
    self.polls: dict[str, int] = {}

  def handle(self, method, path, headers, body) -> tuple:
    """Status and JSON of a request; content of a file as bytes."""
    path, _, query = path.partition('?')
    parts = path.strip('/').split('/')[1:]
    if parts == ['files'] and method == 'POST':
      content = _file(body, _BOUNDARY.search(headers['content-type'])[1])
      return 200, self.upload(content)
    if parts[:1] == ['files'] and parts[-1] == 'content':
      return 200, self.files[parts[1]]
    if parts == ['batches'] and method == 'POST':
      created = self.create(json.loads(body))
      if len(self.batches) <= self.teacher.behaviour.lost_creations:
        return 500, {'error': {'message': 'lost on the way'}}
      return 200, created
    if parts == ['batches']:
      found = sorted(self.batches.values(), key=lambda b: -b['created_at'])
      return 200, {'object': 'list', 'data': found, 'has_more': False}
    forgotten = self.teacher.behaviour.batches_forgotten
    if parts == ['batches', 'batch-0'] and forgotten:
      return 404, {'error': {'message': 'no such batch'}}
    if parts[:1] == ['batches'] and parts[1] in self.batches:
      if self.teacher.behaviour.batches_unreachable:
        return 503, {'error': {'message': 'come back later'}}
      return 200, self.poll(parts[1])
    return 404, {'error': {'message': f'no {method} {path}'}}

  def upload(self, content: bytes) -> dict:
    name = f'file-{len(self.files)}'
    self.files[name] = content
    return {
      'id': name,
      'object': 'file',
      'bytes': len(content),
      'created_at': int(time.time()),
      'filename': 'requests',
      'purpose': 'batch',
    }

  def create(self, request: dict) -> dict:
    name = f'batch-{len(self.batches)}'
    self.polls[name] = 0
    self.batches[name] = {
      'id': name,
      'object': 'batch',
      'endpoint': request['endpoint'],
      'input_file_id': request['input_file_id'],
      'completion_window': '24h',
      'status': 'in_progress',
      'created_at': int(time.time()),
      'output_file_id': None,
      'error_file_id': None,
    }
    return self.batches[name]

  def poll(self, name: str) -> dict:
    found, behaviour = self.batches[name], self.teacher.behaviour
    self.polls[name] += 1
    due = self.polls[name] >= behaviour.batch_polls
    if due and found['status'] == 'in_progress':
      found['status'] = behaviour.batch_end
      if behaviour.batch_end == 'completed':
        self.complete(found)
      else:
        found['errors'] = {'data': [{'message': 'the queue is full'}]}
    return found

  def complete(self, found: dict) -> None:
    good, bad = [], []
    for line in self.files[found['input_file_id']].splitlines():
      request = json.loads(line)
      question = self.teacher.question(request['body'])
      failing = any(w in question for w in self.teacher.behaviour.failing)
      error = {'message': 'not this one'} if failing else None
      if self.teacher.behaviour.reasoning:
        error = refusal(request['body'])
      if error:
        response = {'status_code': 400, 'body': {'error': error}}
      else:
        self.teacher.paid[question] += 1
        response = {
          'status_code': 200,
          'body': self.teacher.completion(request['body']),
        }
      line = {'custom_id': request['custom_id'], 'response': response}
      if not any(w in question for w in self.teacher.behaviour.left_out):
        (bad if error else good).append(json.dumps(line))
    good.reverse()  # a batch keeps no order
    good += self.teacher.behaviour.broken_lines
    found['output_file_id'] = self.upload('\n'.join(good).encode())['id']
    if bad:
      found['error_file_id'] = self.upload('\n'.join(bad).encode())['id']


def _file(body: bytes, boundary: str) -> bytes:
  """The content of the part named `file` of a multipart body."""
  for part in body.split(b'--' + boundary.encode()):
    head, _, content = part.partition(b'\r\n\r\n')
    if b'name="file"' in head:
      return content.removesuffix(b'\r\n')
  raise ValueError('no file in the upload')
