"""One file a paper: configuration, presets, data, claims and a report.

`python -m experiments.run --list` shows them. The library never imports this
package.
"""
