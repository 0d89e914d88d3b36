# SPDX-License-Identifier: Apache-2.0
"""Writes docs/files.md: every file with the first line that it says of itself.

python -m tests.claims.file_list
"""

import pathlib
import re
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / 'docs' / 'files.md'
ROOMS = ('dsbs_jax', 'tasks', 'rationales', 'gin', 'bench', 'examples', 'docs')
_DESCRIBED = ('.py', '.gin', '.flags', '.md')
_HEAD = """# Files

What lies where, one line per file, in the words of the file itself. How the rooms depend on each
other: [architecture.md](architecture.md). Written by `python -m tests.claims.file_list`.
"""


def page() -> str:
  """The page as it should be.

  Raises:
    FileNotFoundError: git is not installed.
    subprocess.CalledProcessError: this is no git checkout.
  """
  done = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard', *ROOMS],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  )
  folders = {}
  for name in sorted(set(done.stdout.split())):
    path = REPOSITORY / name
    if path.suffix in _DESCRIBED and path.exists():
      if path.name != '__init__.py' and path != PAGE:
        folders.setdefault(str(path.relative_to(REPOSITORY).parent), []).append(
          path
        )
  parts = [_HEAD]
  for folder, paths in folders.items():
    rows = (f'| `{path.name}` | {description(path)} |' for path in paths)
    parts += [f'\n## {folder}/\n\n| file | |\n|---|---|\n', '\n'.join(rows)]
    parts.append('\n')
  return ''.join(parts)


def description(path: pathlib.Path) -> str:
  """The first sentence of a file: of its docstring, comment or heading."""
  lines = path.read_text(encoding='utf-8').splitlines()
  for line in lines:
    text = line.strip().removeprefix('"""').removesuffix('"""')
    text = re.sub(r'^(#+|//|/\*|<!--)\s*|\s*(\*/|-->)$', '', text).strip()
    if text and not text.startswith(('SPDX', '<!', '!')):
      return text.replace('|', '\\|')
  return ''


if __name__ == '__main__':
  PAGE.write_text(page(), encoding='utf-8')
