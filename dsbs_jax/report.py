# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.report RUNS_DIR... [--out=FOLDER]"""

import sys

from absl import flags

from dsbs_jax.run import door, examples, reporting

OUT = flags.DEFINE_string('out', None, 'Default: report in the first folder.')
EXAMPLES = flags.DEFINE_integer(
  'examples', examples.MAX_EXAMPLES, 'How many the page holds at most.'
)


def main() -> None:
  folders = flags.FLAGS(sys.argv)[1:]
  reporting.report(folders, out=OUT.value, examples=EXAMPLES.value)


if __name__ == '__main__':
  door.run(main, takes_arguments=True)
