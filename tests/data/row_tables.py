# SPDX-License-Identifier: Apache-2.0
"""The same rows in every kind of file that is read."""

import csv
import json

import pyarrow
from pyarrow import parquet

# Odd cells: separators, quotes, line ends, blanks at the ends, not ASCII.
ROWS = [
  {'question': f'Is {i},\n"{i}"\teven — ¿sí? ', 'answer': 'no' if i % 2 else 'yes'}
  for i in range(30)
]  # fmt: skip
SUFFIXES = ('.jsonl', '.json', '.csv', '.tsv', '.parquet', '.arrow')


def write(path, rows=ROWS):
  """Writes rows as the kind of file that the path's suffix names."""
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pyarrow.Table.from_pylist(rows)
  match path.suffix:
    case '.jsonl':
      path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    case '.json':
      path.write_text(json.dumps(rows, indent=1))
    case '.csv' | '.tsv':
      with path.open('w', newline='') as file:
        delimiter = '\t' if path.suffix == '.tsv' else ','
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    case '.parquet':
      parquet.write_table(table, path, row_group_size=7)
    case '.arrow':
      write_arrow(path, table)
  return path


def write_arrow(path, table):
  """A stream of record batches, as `datasets` writes it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with pyarrow.ipc.new_stream(str(path), table.schema) as file:
    file.write_table(table, max_chunksize=7)


def save_dataset(folder, rows=ROWS, *, shards=2, features=None):
  """What `Dataset.save_to_disk` writes, as far as it is read."""
  table = pyarrow.Table.from_pylist(rows)
  if features is not None:
    said = json.dumps({'info': {'features': features}})
    table = table.replace_schema_metadata({'huggingface': said})
  size, names = -(-len(rows) // shards), []
  for i in range(shards):
    names.append(f'data-{i:05}-of-{shards:05}.arrow')
    write_arrow(folder / names[-1], table.slice(i * size, size))
  files = [{'filename': name} for name in names]
  (folder / 'state.json').write_text(json.dumps({'_data_files': files}))
  (folder / 'dataset_info.json').write_text('{}')
