"""Reports: result values → the results document → self-contained HTML, Markdown.

`results` builds, checks and loads the document, `html` and `markdown` draw it. Both are drawn
from the document alone, so that a report can be made again from its results.json.
"""
