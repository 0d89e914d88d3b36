# SPDX-License-Identifier: Apache-2.0
"""The student that tests of this folder export."""

from tests.exporting import student

vocabulary, params, run = student.vocabulary, student.params, student.run
