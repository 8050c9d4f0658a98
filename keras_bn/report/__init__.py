"""Reports: result values → the results document → self-contained HTML, Markdown, CSV.

`results` builds, checks and loads the document, `html`, `markdown` and `csv` draw it, from the
document alone, so that a report can be made again from its results.json. Between them stand
tables (`converted`, `measured`, `microcontrollers`, `folding`), charts as geometry (`strips`,
`trade_offs`, `scaling`) and sentences (`summary`), which all formats share.
"""
