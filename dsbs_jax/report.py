# SPDX-License-Identifier: Apache-2.0
"""dsbs report RUNS_DIR... [--out=FOLDER]: tables, figures and one page.

dsbs report runs/fig4
"""

from absl import flags

from dsbs_jax.reporting import example_browser, report
from dsbs_jax.runtime import command

OUT = flags.DEFINE_string('out', None, 'Default: report in the first folder.')
EXAMPLES = flags.DEFINE_integer(
  'examples', example_browser.MAX_EXAMPLES, 'How many the page holds at most.'
)


def main(*folders: str) -> None:
  report.report(folders, out=OUT.value, examples=EXAMPLES.value)


if __name__ == '__main__':
  command.run(main, most_arguments=None)
