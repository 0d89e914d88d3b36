# SPDX-License-Identifier: Apache-2.0
"""Makes matplotlib's SVG file an element of an HTML page.

Its ids become the page's, its colours CSS variables, its font the page's, and a
title, a description and tooltips are added for readers and screen readers.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence


def inline(
  text: str,
  *,
  name: str,
  title: str,
  description: str,
  tooltips: Mapping[str, Sequence[str]],
  variables: Mapping[str, str],
) -> str:
  """The `<svg>` element of a file.

  Args:
    text: the file, as matplotlib writes it.
    name: prefix of all element ids, unique in the page.
    title: what the plot shows, in a few words.
    description: the same in sentences, with the values.
    tooltips: id of a group in the file -> the text of each marker in it.
    variables: colour in the file -> CSS variable that replaces it.

  Raises:
    ValueError: a group has more or fewer markers than tooltips.
  """
  root = ElementTree.fromstring(text)
  for element in root.iter():
    element.tag = element.tag.rpartition('}')[2]
    element.attrib = {
      key.rpartition('}')[2]: _attribute(
        key, value, name=name, variables=variables
      )
      for key, value in element.items()
    }
  # The style sheet and the metadata are for a page of its own.
  for child in (*root.findall('metadata'), root.find('defs/style/..')):
    root.remove(child)
  for group, texts in tooltips.items():
    markers = root.findall(f".//g[@id='{name}-{group}']//use")
    for marker, tooltip in zip(markers, texts, strict=True):
      _prepend(marker, 'title', tooltip)
  ids = f'{name}-title', f'{name}-description'
  root.attrib = {
    'class': 'plot',
    'viewBox': root.get('viewBox'),
    'role': 'img',
    'aria-labelledby': ' '.join(ids),
  }
  _prepend(root, 'desc', description).set('id', ids[1])
  _prepend(root, 'title', title).set('id', ids[0])
  return ElementTree.tostring(root, encoding='unicode')


def one_line(text: str) -> str:
  """The text on one line, characters that cannot be printed as escapes."""
  return ''.join(
    c if c.isprintable() else ascii(c)[1:-1] for c in ' '.join(text.split())
  )


def _attribute(
  key: str, value: str, *, name: str, variables: Mapping[str, str]
) -> str:
  """A value with ids of this plot's own, and colours and font of the page."""
  if key == 'id':
    return f'{name}-{value}'
  if key == 'style':
    for color, variable in variables.items():
      value = value.replace(color, f'var({variable}, {color})')
    return re.sub('font-family: [^;]*; ', '', value)
  return re.sub(r'^(url\()?#', rf'\1#{name}-', value)


def _prepend(
  parent: ElementTree.Element, tag: str, text: str
) -> ElementTree.Element:
  child = ElementTree.Element(tag)
  child.text = one_line(text)
  parent.insert(0, child)
  return child
