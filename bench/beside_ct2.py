# SPDX-License-Identifier: Apache-2.0
"""python -m bench.beside_ct2: a worker that decodes with CTranslate2."""

import tempfile

import ctranslate2

from bench import programs, worker, workload
from dsbs_jax.interop import ct2_model


def main() -> None:
  parser = workload.parser(__doc__)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--kind', default='float32', help='Such as int8.')
  arguments = parser.parse_args()
  config = workload.configured(arguments)
  parts = arguments.threads if arguments.kind == 'int8' else 1
  names = [f't{number}' for number in range(config.vocab_size)]
  with tempfile.TemporaryDirectory() as folder:
    ct2_model.save(
      folder,
      programs.endless_params(config),
      config,
      tokens=names,
      quantization=arguments.kind,
    )
    translator = ctranslate2.Translator(
      folder,
      device='cpu',
      compute_type=arguments.kind,
      inter_threads=parts,  # as `inference/backends/ct2_engine.py` has it
      intra_threads=arguments.threads // parts,
    )
  rows = workload.rows_to_decode(config.vocab_size)
  inputs = [[names[number] for number in row[row > 0]] for row in rows]

  def measure(request):
    length = int(request)
    outputs = translator.translate_batch(
      inputs,
      max_batch_size=-(-len(inputs) // parts),
      beam_size=1,
      min_decoding_length=length,
      max_decoding_length=length,
    )
    assert {len(output.hypotheses[0]) for output in outputs} == {length}
    return {'rows': len(outputs)}

  worker.serve(measure, {'ctranslate2': ctranslate2.__version__})


if __name__ == '__main__':
  main()
