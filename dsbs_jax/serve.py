# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.serve --gin_file=gin/serve.gin --gin_file=... --gin.X=..."""

from dsbs_jax import contract
from dsbs_jax.runtime import command, gin_flags


def main() -> int:
  try:
    from dsbs_jax.serving import server
  except ModuleNotFoundError as error:
    raise contract.UserError(
      f"{error.name} is not installed, expected the extra 'serve':"
      " pip install -e '.[serve]'."
    ) from error
  return server.serve(gin_flags.build(server.ServeConfig))


if __name__ == '__main__':
  command.run(main)
