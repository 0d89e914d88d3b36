# SPDX-License-Identifier: Apache-2.0
"""The counters of a server, for Prometheus."""

import functools

import prometheus_client

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

_SECONDS = (
  *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
  *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class ServerMetrics:
  """The counters of one server, which compiles these numbers of rows."""

  def __init__(self, batch_sizes: tuple[int, ...]):
    self._registry = registry = prometheus_client.CollectorRegistry()
    # CPU seconds, memory and open files of the process.
    prometheus_client.ProcessCollector(registry=registry)

    counter = functools.partial(prometheus_client.Counter, registry=registry)
    gauge = functools.partial(prometheus_client.Gauge, registry=registry)
    histogram = functools.partial(
      prometheus_client.Histogram, registry=registry
    )
    self.requests = counter(
      'dsbs_requests', 'Requests by status.', ('route', 'status')
    )
    self.errors = counter(
      'dsbs_errors', 'Requests that got an error.', ('code',)
    )
    self.seconds = histogram(
      'dsbs_request_seconds',
      'From the head of a request to its response.',
      ('route',),
      buckets=_SECONDS,
    )
    self.batch_inputs = histogram(
      'dsbs_batch_inputs', 'Inputs of a batch.', buckets=batch_sizes
    )
    self.batch_seconds = histogram(
      'dsbs_batch_seconds', 'Time of a batch in the model.', buckets=_SECONDS
    )
    self.dropped = counter(
      'dsbs_dropped_inputs',
      'Inputs whose client left or whose request timed out.',
    )
    self.unreadable = counter(
      'dsbs_unreadable_completions',
      "Completions that the benchmark's parser does not read back.",
    )
    self.queue = gauge('dsbs_queue_inputs', 'Inputs that wait.')
    self.in_flight = gauge(
      'dsbs_requests_in_flight', 'Requests that are not answered yet.'
    )
    self.ready = gauge('dsbs_ready', '1 while requests are answered.')

  def text(self) -> bytes:
    """All counters in the text format of Prometheus."""
    return prometheus_client.generate_latest(self._registry)
