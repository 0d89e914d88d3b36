# SPDX-License-Identifier: Apache-2.0
"""Every benchmark that `prepare --rows` has described in DSBS_DATA_DIR.

The commands of this project find them without this module. Programs that know
seqio alone import it: `--module_import=tasks.declared`, or
`MIXTURE_OR_TASK_MODULE = 'tasks.declared'` under T5X's own gin files.
"""

from dsbs_jax.data import register

register.declare_all()
