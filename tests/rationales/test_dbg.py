import pytest
from tests.rationales.test_extraction import *
from tests.rationales.conftest import *
def test_dbg(server, extract, out):
  server.configure(faults=0.2, seed=1, kinds=['duplicate'])
  done = extract(2000, '--timeout=20', '--attempts=20', seconds=1500)
  print(done.output)
  s=server.stats(); print({k:v for k,v in s.items() if k not in('times','cuts')})
