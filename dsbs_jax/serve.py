# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.serve --gin_file=gin/serve.gin --gin_file=... --gin.X=..."""

from dsbs_jax.run import door, gin_flags


def main() -> int:
  try:
    from dsbs_jax.run import serving
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{error.name} is not installed, expected the extra 'serve':"
      " pip install -e '.[serve]'."
    ) from error
  return serving.serve(gin_flags.build(serving.Serving))


if __name__ == '__main__':
  door.run(main)
