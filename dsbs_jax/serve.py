# SPDX-License-Identifier: Apache-2.0
"""dsbs serve FOLDER: a student answers over HTTP, also in OpenAI's protocol.

  dsbs serve runs/cqa
  dsbs serve runs/cqa --step=best --rationales --port=8080
  curl --json '{"inputs": ["Where do fish live?"]}' \\
    http://127.0.0.1:8000/v1/answers

FOLDER is a run, one of its checkpoints, an exported folder, or a T5 of Hugging
Face or T5X. Without FOLDER, gin files say it: python -m dsbs_jax.serve
--gin_file=gin/serve.gin ... There is no password: see docs/serving.md.
"""

from absl import flags

from dsbs_jax import contract
from dsbs_jax.inference import student_flags
from dsbs_jax.runtime import command

S, B, N = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer
ROWS = B('rows', False, "Inputs are the benchmark's raw rows.")
DOOR = student_flags.define(
  'serve',
  {
    'HOST': S('host', None, 'Address to listen at.'),
    'PORT': N('port', None, 'The same; 0 takes a free one.'),
    'MODEL_NAME': S('model_name', None, "Its id in OpenAI's protocol."),
    'RATIONALES': B('rationales', None, 'Write them, too.'),
    'MAX_CHOICES': N('max_choices', None, 'Choices of an input at most.'),
  },
)


def _server():
  """The module, which needs the extra."""
  try:
    from dsbs_jax.serving import server
  except ModuleNotFoundError as error:
    raise contract.UserError(
      f"{error.name} is not installed, expected the extra 'serve':"
      " pip install -e '.[serve]'."
    ) from error
  return server


def main(folder: str | None = None) -> int:
  server = _server()
  config = DOOR.build(server.ServeConfig, folder)
  return server.serve(config.reading_rows() if ROWS.value else config)


if __name__ == '__main__':
  command.run(
    main,
    most_arguments=1,
    more_help=lambda: DOOR.help_text(_server().ServeConfig),
  )
